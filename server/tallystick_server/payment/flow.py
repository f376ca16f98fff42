"""The way of a payment: accept, then the way of every demand. Its stages, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Connection

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import Cause, FeeRates, Happening, PaymentEvent, move
from tallystick_core.provider import Declined, FailureReason, Outcome, Pending, PendingReason, Provider
from tallystick_core.refusal import Refused, overloaded, seller_taken
from tallystick_core.risk import RiskCheck
from tallystick_server.payment.accept import Accept, Accepted, Arrival
from tallystick_server.payment.charge import SUBJECTS, Charge, stored_charges
from tallystick_server.payment.deliver import Deliver
from tallystick_server.payment.move import Move, Moved, move_orders
from tallystick_server.payment.record import Record, Recorded
from tallystick_server.payment.sellers import KnownSellers
from tallystick_server.payment.settle import Settle
from tallystick_server.payment.storable import Storable
from tallystick_server.payment.unapplied import BookUnapplied
from tallystick_server.payment.watch import Watch, watch
from tallystick_server.runtime.bulkhead import Bulkhead
from tallystick_server.runtime.changes import Changes
from tallystick_server.runtime.dead_letters import end_demands
from tallystick_server.runtime.demand import Answered
from tallystick_server.runtime.flow import TELLING_LANES, Flow, FlowSettings
from tallystick_server.runtime.operator import DeadLetters
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.postpone import Troubled
from tallystick_server.runtime.sellers import SellerOwners
from tallystick_server.runtime.stage import CALLERS_WAITING, Stage
from tallystick_server.runtime.telemetry import current_context, traceparent
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payment import orders as store

_PLATFORM = "platform"
"""Who ends a dead letter that nobody has asked for."""


class PayIn(Flow[Charge, Moved]):
    """Charges on their way. `provider`: who charges new payments; `environment`: what its keys begin with; `waiting_depth`: how many charges may wait
    for a provider that fails, before new ones are refused; `resolve_within`: seconds that an order has for what it waits for;
    `seller_check_interval`: seconds after which a seller's owner is asked for again; `holder` names this process."""

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        providers: Mapping[str, Provider],
        peers: Peers,
        wallet_address: str,
        ledger_address: str,
        settings: FlowSettings,
        *,
        provider: str,
        environment: str,
        waiting_depth: int,
        resolve_within: Mapping[PendingReason, float],
        seller_check_interval: float,
        holder: UUID,
    ) -> None:
        super().__init__("payment", database, providers, settings)
        self.changes: Changes[payment_pb2.Payment] = Changes()
        self.dead_letters = DeadLetters(database, self)
        self._policies = settings.policies
        self._unstored = Bulkhead(settings.max_in_flight, settings.owner_share)  # orders
        self._storable = Storable(database, self.execute, provider, waiting_depth)
        accept = Accept(database, risk, fees, provider, environment, settings.lease, self.take, self._storable.room)
        self._accept: Stage[Arrival, Accepted] = Stage(
            "payment.accept",
            accept.run,
            most=MOST_ITEMS,
            weight=lambda one: len(one.event.orders),
            for_callers=True,
            max_waiting=CALLERS_WAITING,
        )
        self._record: Stage[Answered[Charge, Outcome], Recorded] = Stage(
            "payment.record", Record(database, resolve_within).run, most=MOST_ITEMS, weight=lambda one: one.item.weight
        )
        settle = Settle(database, peers, wallet_address, ledger_address)
        self._settle: Stage[Charge, payment_pb2.Payment | None] = Stage(
            "payment.settle", settle.run, most=MOST_ITEMS, weight=lambda one: one.weight, lanes=TELLING_LANES
        )
        deliver = Deliver(database, peers, wallet_address)
        watcher = Watch(database, self.execute, settings.policies, providers, self.record, self.turn_to_watch(holder))
        self.watching = Periodic("payment.watch", settings.sweep_interval, watcher.turn)
        self._releases = Periodic("payment.release", settings.sweep_interval, deliver.turn)
        self._deliver: Stage[str, bool] = Stage("payment.deliver", deliver.run, for_callers=True, max_waiting=CALLERS_WAITING)
        self._sellers = KnownSellers(database, SellerOwners(peers, wallet_address), seller_check_interval)
        self._stages += [self._storable.stage, *self._sellers.stages, self._accept, self._record, self._settle, self._deliver]
        self._periodic += [
            Periodic("payment.unapplied", settings.sweep_interval, BookUnapplied(database, peers, ledger_address).turn),
            self.watching,
            Periodic("payment.overdue", settings.sweep_interval, self.end_overdue),
            self._releases,
        ]

    async def accept(self, event: PaymentEvent) -> Accepted:
        """Stores a payment or finds it; its charges are under way when this returns.

        Raises KEY_REUSED, ID_TAKEN, DEPENDENCY_UNAVAILABLE, OVERLOADED: one owner's orders that wait to be stored leave room for those of others.
        """
        self.refuse_overload()
        owner, orders = event.owner, len(event.orders)
        if not self._unstored.try_take(owner, orders):
            raise overloaded("orders wait to be stored")
        try:
            refused = await self._refuse_sellers(event)
            return await self._accept.submit(Arrival(event, event.fingerprint(), traceparent(), current_context(), refused))
        finally:
            self._unstored.release(owner, orders)

    async def _refuse_sellers(self, event: PaymentEvent) -> Refused | None:
        """Why the event may not name its sellers. One that is stored already is answered all the same."""
        try:
            others = await self._sellers.of_others(
                event.owner, {order.seller_account for order in event.orders}, lambda: self._storable.require(event)
            )
        except Refused as refused:
            return refused
        place = min((order.place for order in event.orders if order.seller_account in others), default=None)
        return None if place is None else seller_taken(f"payment_orders[{place}].seller_account")

    async def cancel(self, checkout_id: str, caller: str, reason: str) -> tuple[str, bool]:
        """Cancels a payment that is open, whose charges are taken up at once, dead letters as well; what stands, as `store.cancel` has it."""

        def cancel(connection: Connection) -> tuple[str, bool]:
            stands, now = store.cancel(connection, checkout_id, reason)
            if now:
                charges = {f"{SUBJECTS}{id_}": id_ for id_ in store.open_charges(connection, checkout_id)}
                end_demands(connection, charges, caller, f"the payment was cancelled: {reason}")
            return stands, now

        stands = await self._database.transact(cancel)
        self.wake()
        return stands

    async def end_overdue(self) -> None:
        """Takes up the dead letters whose payments have expired since, or whose buyers did not act in time: their charges are to be ended."""

        def end(connection: Connection) -> bool:
            charges = {f"{SUBJECTS}{id_}": id_ for id_ in due.overdue(connection, MOST_ITEMS)}
            end_demands(connection, charges, _PLATFORM, "the time of the payment is up")
            return bool(charges)

        if await self._database.transact(end):
            self.wake()

    async def confirm_delivery(self, payment_order_id: str) -> bool:
        """Notes that an order was delivered; whether that was not noted before. An order that is not settled is left alone."""
        noted = await self._deliver.submit(payment_order_id)
        self._releases.wake()
        return noted

    def demand_id(self, subject: str) -> str:
        return subject.removeprefix(SUBJECTS)

    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[Charge]:
        return stored_charges(store.charges(connection, list(tokens)), tokens, now, self.lease)

    async def record(self, item: Charge, outcome: Outcome) -> Charge:
        recorded = await self._record.submit(Answered(item, outcome), item.context)
        rests = isinstance(outcome, Declined | Pending) or recorded.closed is not None
        self.changes.happened(item.checkout_id, rest=rests, closed=recorded.closed)
        return recorded.charge

    async def settle(self, item: Charge) -> None:
        closed = await self._settle.submit(item, item.context)
        self.changes.happened(item.checkout_id, rest=True, closed=closed)

    def fail(self, connection: Connection, given_up: Sequence[Troubled[Charge]]) -> Moved:
        reasons = [(troubled.item, troubled.give_up or FailureReason.PROVIDER_UNREACHABLE) for troubled in given_up]
        moves = [one for charge, reason in reasons for one in _failed(charge, Happening.GIVEN_UP, Cause.GIVEN_UP, reason)]
        return self._watched(connection, moves, [charge for charge, _ in reasons])

    def close(self, connection: Connection, item: Charge, operator: str, reason: str) -> Moved:  # the dead letter keeps by whom and why
        return self._watched(connection, _failed(item, Happening.CLOSED, Cause.CLOSED_BY_OPERATOR, FailureReason.CLOSED_BY_OPERATOR), [item])

    def _watched(self, connection: Connection, moves: Sequence[Move], charges: Sequence[Charge]) -> Moved:
        """Fails charges; what may have been charged all the same is watched."""
        moved = move_orders(connection, moves)
        watch(connection, self._policies, [charge for charge in charges if charge.orders[0].payment_order_id in moved.orders])
        return moved

    def failed(self, item: Charge, made: Moved) -> None:
        closed = made.closed.get(item.checkout_id)
        if closed is not None:
            self.changes.happened(item.checkout_id, rest=True, closed=closed)


def _failed(charge: Charge, happening: Happening, cause: Cause, reason: FailureReason) -> list[Move]:
    """The moves that fail a charge's orders."""
    return [
        Move(
            charge,
            order,
            store.OrderMove(
                payment_order_id=order.payment_order_id,
                charge_id=charge.charge_id,
                lease_token=charge.lease_token,
                version=order.version,
                status=move(order.status, happening),
                cause=cause,
                failure_reason=reason,
            ),
        )
        for order in charge.orders
    ]
