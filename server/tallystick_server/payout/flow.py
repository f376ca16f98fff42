"""The way of a payout: accept → prepare → execute → record → settle, and of a destination: register → verify. Their stages, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from tallystick.payout.v1 import payout_pb2
from tallystick_core.payable import DestinationHappening, DestinationState, move_destination
from tallystick_core.payout import Cause, Happening, PayoutState, demanded, destination_demand, payout_demand
from tallystick_core.provider import PayoutFailure, PayoutProvider, Trouble
from tallystick_core.recovery import Step
from tallystick_server.payout.accept import Accept, Accepted, Arrival
from tallystick_server.payout.collect import Collect
from tallystick_server.payout.decide import Decide
from tallystick_server.payout.destination import Unverified, Verify, move_destinations, unverified
from tallystick_server.payout.funds import Funding
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import Payout, stored_payouts
from tallystick_server.payout.prepare import Prepare
from tallystick_server.payout.record import Record
from tallystick_server.payout.settle import Settle
from tallystick_server.payout.standing import Turn
from tallystick_server.payout.submit import Port
from tallystick_server.payout.watch import Watch
from tallystick_server.runtime.changes import Changes
from tallystick_server.runtime.demand import Answered
from tallystick_server.runtime.execute import UNCONFIGURED_WAIT
from tallystick_server.runtime.flow import TELLING_LANES, Flow, FlowSettings
from tallystick_server.runtime.operator import DeadLetters
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.postpone import Troubled
from tallystick_server.runtime.sellers import SellerOwners
from tallystick_server.runtime.stage import CALLERS_WAITING, Stage
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payout import destination as destinations
from tallystick_storage.payout import payouts as store

Item = Payout | Unverified


@dataclass(frozen=True, slots=True)
class PayoutSettings:
    """What only payouts have to be told."""

    provider: str
    """Who pays new payouts."""
    environment: str
    """What the provider's keys begin with."""
    approve_above: Mapping[str, int]
    """By currency, in minor units, the amount above which a second person has to approve."""
    waiting_period: float
    """Seconds that a new destination waits before it is used."""
    destination_approve_above: Mapping[str, int]
    """By currency, in minor units, the available money of a seller above which a second person has to approve a new destination."""


class PayOut(Flow[Item, Mapping[str, Item]]):
    """Payouts and destinations on their way. `holder` names this process."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, PayoutProvider],
        peers: Peers,
        wallet_address: str,
        ledger_address: str,
        settings: FlowSettings,
        own: PayoutSettings,
        holder: UUID,
    ) -> None:
        self._ports = {name: Port(provider, settings.provider_timeout) for name, provider in providers.items()}
        super().__init__("payout", database, self._ports, settings)
        self.changes: Changes[payout_pb2.Payout] = Changes()
        self.dead_letters = DeadLetters(database, self)
        self.settings = own
        self.funding = Funding(peers, wallet_address)
        self.sellers = SellerOwners(peers, wallet_address)
        self.accept = Accept(database, self.funding.of, self.sellers.of, own.environment, settings.lease, self.take)
        self.decide = Decide(database, own.environment, settings.lease, self.take, self.apart)
        self._accept: Stage[Arrival, Accepted] = Stage(
            "payout.accept", self.accept.run, most=MOST_ITEMS, for_callers=True, max_waiting=CALLERS_WAITING
        )
        self._prepare: Stage[Payout, Payout] = Stage(
            "payout.prepare", Prepare(database, peers, wallet_address, own.approve_above).run, most=MOST_ITEMS, lanes=TELLING_LANES
        )
        record = Record(database)
        self._record: Stage[Answered[Payout, Any], Payout] = Stage("payout.record", record.run, most=MOST_ITEMS)
        self._settle: Stage[Payout, Payout] = Stage(
            "payout.settle", Settle(database, peers, wallet_address, ledger_address, settings.policies).run, most=MOST_ITEMS, lanes=TELLING_LANES
        )
        self._verify: Stage[Answered[Unverified, Any], Unverified] = Stage("payout.verify", Verify(database).run)
        self._stages += [self._accept, self._prepare, self._record, self._settle, self._verify]
        watch = Watch(database, self.execute, settings.policies, self.record, record.note_anothers, self.turn_to_watch(holder))
        self.watching = Periodic("payout.watch", settings.sweep_interval, watch.turn)
        collect = Collect(database, self.accept, self.funding, holder, lambda: self.in_hand, self.apart)
        self.collecting = Periodic("payout.collect", settings.sweep_interval, collect.turn)
        self._periodic += [self.watching, self.collecting]

    def start(self) -> None:
        for port in self._ports.values():
            port.start()
        super().start()

    async def stop(self) -> None:
        await super().stop()
        for port in self._ports.values():
            await port.stop()

    async def pay(self, arrival: Arrival) -> Accepted:
        """Stores a payout or finds it; it is under way when this returns. Raises Refused, and then nothing was stored."""
        self.refuse_overload()
        return await self._accept.submit(arrival)

    async def bring_on(self, item: Item) -> None:
        if isinstance(item, Payout) and item.state in (PayoutState.CREATED, PayoutState.READY):
            if not self.execute.knows(item.provider):  # no money is held, nor an attempt begun, for what cannot be sent
                why = f"the provider {item.provider} is not configured"
                await self._postponed(Troubled(item, Trouble.HELD_BACK, why, Step.PREPARE, UNCONFIGURED_WAIT))
                return
            prepared = await self.told(item, self._prepare.submit(item, item.context))
            if prepared is None or prepared.standing == item.standing:  # the lease was lost: whoever has it goes on
                return
            item = prepared
            self._happened(item)
            if item.state is PayoutState.AWAITING_APPROVAL:
                return
        await super().bring_on(item)

    def demand_id(self, subject: str) -> str:
        collection, _, id_ = subject.partition("/")
        return payout_demand(id_) if collection == "payouts" else destination_demand(id_)

    def lock_undecided(self, connection: Connection, demand_ids: list[str], others: Sequence[str] = ()) -> set[str]:
        payouts, ends = demanded(demand_ids)
        undecided = {destination_demand(id_) for id_ in destinations.lock_undecided(connection, ends)} if ends else set()
        due.lock(connection, [*demand_ids, *others])
        return undecided | ({payout_demand(id_) for id_ in store.lock_undecided(connection, payouts)} if payouts else set())

    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[Item]:
        payouts, ends = demanded(tokens)
        deadline = now + self.lease
        found = stored_payouts(store.to_do(connection, payouts), tokens, self.settings.environment, deadline) if payouts else []
        return [*found, *(unverified(destinations.to_do(connection, ends), tokens, deadline) if ends else ())]

    async def record(self, item: Item, outcome: object) -> Item:
        if isinstance(item, Unverified):
            return await self._verify.submit(Answered(item, outcome), item.context)
        recorded = await self._record.submit(Answered(item, outcome), item.context)
        self._happened(recorded)
        return recorded

    async def settle(self, item: Item) -> None:
        if isinstance(item, Payout):
            self._happened(await self._settle.submit(item, item.context))

    def fail(self, connection: Connection, given_up: Sequence[Troubled[Item]]) -> Mapping[str, Item]:
        payouts = [one.item for one in given_up if isinstance(one.item, Payout)]
        unreached = {"failure_reason": PayoutFailure.PROVIDER_UNREACHABLE}
        return _failed(connection, [(item, Turn(item.standing.after(Happening.GIVEN_UP, **unreached), Cause.GIVEN_UP)) for item in payouts])

    def close(self, connection: Connection, item: Item, operator: str, reason: str) -> Mapping[str, Item]:
        if isinstance(item, Payout):
            after = item.standing.after(Happening.CLOSED, failure_reason=PayoutFailure.CLOSED_BY_OPERATOR)
            return _failed(connection, [(item, Turn(after, Cause.CLOSED_BY_OPERATOR, operator, reason))])
        ended = move_destination(DestinationState(item.state), DestinationHappening.CLOSED)
        move_destinations(connection, [destinations.DestinationMove(item.payout_destination_id, ended)])
        return {}

    def failed(self, item: Item, made: Mapping[str, Item]) -> None:
        moved = made.get(item.demand_id)
        if isinstance(moved, Payout):
            self._happened(moved)
            self.take(moved)  # its hold is to be released

    def _happened(self, item: Payout) -> None:
        self.changes.happened(item.payout_id, rest=True)


def _failed(connection: Connection, ends: Sequence[tuple[Payout, Turn]]) -> Mapping[str, Item]:
    moved = move_payouts(connection, [Move(item, (turn,)) for item, turn in ends])
    return {one.demand_id: one for one in moved.values()}
