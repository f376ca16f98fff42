"""The provider's ids of requests, and the last failed tries of each operation."""

from tallystick_storage.migrations import run
from tallystick_storage.migrations.seals import seal
from tallystick_storage.migrations.shared_tables import FAILED_TRIES, REQUEST_IDS

revision = "payment_0002"
down_revision = "payment_0001"
branch_labels = None
depends_on = None
minimum_process_revision = "payment_0001"


def upgrade() -> None:
    run("payment", REQUEST_IDS, FAILED_TRIES, seal("payment", "failed_try"))
