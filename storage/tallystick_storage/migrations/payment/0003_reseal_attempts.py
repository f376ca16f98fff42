"""Seals the attempts again, which have got a column. It locks no table, and rows only briefly."""

from tallystick_storage.migrations import run_in_batches
from tallystick_storage.migrations.seals import reseal

revision = "payment_0003"
down_revision = "payment_0002"
branch_labels = None
depends_on = None
minimum_process_revision = "payment_0001"


def upgrade() -> None:
    run_in_batches("payment", reseal("attempt"))
