"""The declaration of PaymentService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="payment",
    contract="tallystick.payment.v1.payment_service_pb2:PaymentService",
    wiring="tallystick_server.payment.wiring",
    migrations="tallystick_storage:migrations/payment",
    queries="tallystick_storage.verify.payment",
    checks="tallystick_server.verify.payments",
    dependencies=("wallet", "ledger", "event"),
    calls_providers=True,
    history_collection="paymentOrders",
    event_tables={
        "payments": "payment.checkout",
        "unappliedCharges": "payment.unapplied_charge",
    },
)
