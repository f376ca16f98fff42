"""The declaration of PayoutService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="payout",
    contract="tallystick.payout.v1.payout_service_pb2:PayoutService",
    wiring="tallystick_server.payout.wiring",
    migrations="tallystick_storage:migrations/payout",
    queries="tallystick_storage.verify.payout",
    checks="tallystick_server.verify.payouts",
    dependencies=("wallet", "ledger", "event"),
    calls_providers=True,
    history_collection="payouts",
    event_tables={
        "payoutDestinations": "payout.payout_destination",
        "payoutBatches": "payout.payout_batch",
        "payoutSchedules": "payout.payout_schedule",
    },
)
