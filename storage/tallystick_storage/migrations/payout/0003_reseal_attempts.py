"""Seals the attempts again, which have got a column. It locks no table."""

from tallystick_storage.migrations import run
from tallystick_storage.migrations.seals import reseal

revision = "payout_0003"
down_revision = "payout_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("payout", reseal("attempt"))
