"""The declaration of LedgerService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="ledger",
    contract="tallystick.ledger.v1.ledger_service_pb2:LedgerService",
    wiring="tallystick_server.ledger.wiring",
    migrations="tallystick_storage:migrations/ledger",
    queries="tallystick_storage.verify.ledger",
    checks="tallystick_server.verify.ledger",
    dependencies=("event",),
    connections=2,
)
