"""The index of webhook events that name only the platform's id of a charge or payout."""

from tallystick_storage.migrations import build_index

revision = "payment_0004"
down_revision = "payment_0003"
branch_labels = None
depends_on = None
minimum_process_revision = "payment_0001"


def upgrade() -> None:
    build_index(
        "payment",
        "webhook_event_by_client_reference",
        "webhook_event (client_reference, receive_time desc) "
        "where reference = '' and client_reference <> ''",
    )
