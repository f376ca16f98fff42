"""The provider's ids of requests, and the last failed tries of each operation."""

from tallystick_storage.migrations import run
from tallystick_storage.migrations.seals import seal
from tallystick_storage.migrations.shared_tables import FAILED_TRIES, REQUEST_IDS

revision = "payout_0002"
down_revision = "payout_0001"
branch_labels = None
depends_on = None
minimum_process_revision = "payout_0001"


def upgrade() -> None:
    run("payout", REQUEST_IDS, FAILED_TRIES, seal("payout", "failed_try"))
