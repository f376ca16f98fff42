"""The schema of the toy service."""

from tallystick_storage.migrations import create
from tallystick_storage.migrations.shared_tables import ALERTS, OUTBOX

revision, down_revision, branch_labels, depends_on = "toy_0001", None, ("toy",), None


def upgrade() -> None:
    note = "\ncreate table note (note text primary key); grant select, insert on note to {service};"
    create("toy", note, OUTBOX, ALERTS)
