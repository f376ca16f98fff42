"""Seals the attempts again, which have got a column. It locks no table."""

from tallystick_storage.migrations import run
from tallystick_storage.migrations.seals import reseal

revision = "payment_0003"
down_revision = "payment_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("payment", reseal("attempt"))
