"""Settle: credit the wallet, post to the ledger, then set both flags, for a batch of charges. Each step may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.booking import Kind, pay_in
from tallystick_core.money import format_amount
from tallystick_core.payment import Cause, Happening, move
from tallystick_server.payment.charge import Charge, ChargedOrder
from tallystick_server.payment.move import Move, Moved, move_orders
from tallystick_server.runtime.flow import SettlingRefused
from tallystick_server.runtime.items import refusals
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.postings import add_posting
from tallystick_server.runtime.stage import by_halves
from tallystick_storage.database import Database
from tallystick_storage.payment import orders as store


class Settle:
    """The settle stage's work, for at most as many orders as a call to another service may have items.

    The flags are set only where wallet and ledger have both answered.
    """

    def __init__(self, database: Database, peers: Peers, wallet_address: str, ledger_address: str) -> None:
        self._database = database
        self._peers = peers
        self._wallet: Any = peers.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet_address)
        self._ledger: Any = peers.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger_address)

    async def run(self, charges: Sequence[Charge]) -> Sequence[payment_pb2.Payment | Exception | None]:
        """Each charge's payment if it came to its end by it, or SettlingRefused. Raises DEPENDENCY_UNAVAILABLE for all of them."""
        return await by_halves(self._settle, charges)

    async def _settle(self, charges: Sequence[Charge]) -> Sequence[payment_pb2.Payment | Exception | None]:
        orders = [(charge, order) for charge in charges for order in charge.orders]
        refused = await self._each(orders, self._credit)
        refused |= await self._each([pair for pair in orders if pair[0].charge_id not in refused], self._post)
        moves = [_settled(charge, order) for charge, order in orders if charge.charge_id not in refused]

        moved = await self._database.transact(lambda connection: move_orders(connection, moves)) if moves else Moved()
        return [refused.get(charge.charge_id) or moved.closed.get(charge.checkout_id) for charge in charges]

    async def _each(self, orders: Sequence[tuple[Charge, ChargedOrder]], call: Callable[..., Any]) -> dict[str, SettlingRefused]:
        """Calls for all orders; returns why charges were refused."""
        refused = refusals(((charge.charge_id, order.payment_order_id) for charge, order in orders), await call(orders) if orders else ())
        return {charge_id: SettlingRefused(f"order {order_id}: {why.message}") for (charge_id, order_id), why in refused.items()}

    async def _credit(self, orders: Sequence[tuple[Charge, ChargedOrder]]) -> Sequence[Any]:
        request = wallet_service_pb2.BatchCreditRequest(outcome_only=True)
        for charge, order in orders:
            request.credits.add(
                cause=f"PAY_IN/{order.payment_order_id}",
                caller=charge.caller,
                seller_account=order.seller_account,
                amount=format_amount(order.amount - order.platform_fee, charge.currency),
                currency=charge.currency,
                pending=True,
            )
        return list((await self._peers.call(self._wallet.BatchCredit, request)).results)

    async def _post(self, orders: Sequence[tuple[Charge, ChargedOrder]]) -> Sequence[Any]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for charge, order in orders:
            lines = pay_in(charge.provider, order.buyer_account, order.seller_account, charge.currency, order.amount, order.platform_fee)
            add_posting(request, Kind.PAY_IN, order.payment_order_id, charge.caller, lines)
        return list((await self._peers.call(self._ledger.BatchPost, request)).results)


def _settled(charge: Charge, order: ChargedOrder) -> Move:
    to = store.OrderMove(
        payment_order_id=order.payment_order_id,
        charge_id=charge.charge_id,
        lease_token=charge.lease_token,
        version=order.version,
        status=move(order.status, Happening.SETTLED),
        cause=Cause.SETTLED,
        settled=True,
    )
    return Move(charge, order, to)
