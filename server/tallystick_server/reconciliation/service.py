"""The declaration of ReconciliationService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="reconciliation",
    contract="tallystick.reconciliation.v1.reconciliation_service_pb2:ReconciliationService",
    wiring="tallystick_server.reconciliation.wiring",
    migrations="tallystick_storage:migrations/reconciliation",
    queries="tallystick_storage.verify.reconciliation",
    checks="tallystick_server.verify.reconciliation",
    dependencies=("payment", "payout", "wallet", "ledger", "event"),
    event_tables={"breaks": "reconciliation.break"},
)
