"""The declaration of WalletService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="wallet",
    contract="tallystick.wallet.v1.wallet_service_pb2:WalletService",
    wiring="tallystick_server.wallet.wiring",
    migrations="tallystick_storage:migrations/wallet",
    queries="tallystick_storage.verify.wallet",
    checks="tallystick_server.verify.wallets",
    dependencies=("event",),
    history_collection="wallets",
    event_tables={"walletPolicies": "wallet.wallet_policy", "sellers": "wallet.seller"},
)
