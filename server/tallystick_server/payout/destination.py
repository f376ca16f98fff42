"""Destinations: registered, verified by the provider, and ended. A destination that ends takes the payouts along that were not sent to it yet."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payable import VERIFICATIONS, DestinationHappening, DestinationState, move_destination
from tallystick_core.payout import UNSENT, Cause, Happening, demanded, destination_demand
from tallystick_core.provider import Declined, FailureReason, Verification
from tallystick_core.recovery import Circuit, Step
from tallystick_server.payout import encode, events
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import stored_payouts
from tallystick_server.payout.standing import Turn
from tallystick_server.payout.submit import Port
from tallystick_server.runtime.dead_letters import go_on, resolve
from tallystick_server.runtime.demand import Answered, InHand, stored_tries
from tallystick_server.runtime.relay import telling
from tallystick_server.runtime.stage import by_halves
from tallystick_server.runtime.telemetry import context_of
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payout import destination as store
from tallystick_storage.payout import payouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified(InHand):
    """A destination whose provider is asked whether it can pay there. Asking again is harmless."""

    payout_destination_id: str
    currency: str
    bank_account_token: str
    state: DestinationState

    @property
    def subject(self) -> str:
        return f"payoutDestinations/{self.payout_destination_id}"

    @property
    def to_settle(self) -> bool:
        return False

    @property
    def phase(self) -> str:
        return "VERIFYING"

    @property
    def waits(self) -> bool:
        return False

    def ending(self, now: float) -> FailureReason | None:
        return None

    def key_honoured(self, key_window: float, lease: float) -> bool:
        return True  # it has none: to ask again is harmless

    def step(self, now: float, key_window: float, lease: float) -> Step:
        return Step.LOOK_UP if self.looking else Step.SEND

    def circuit(self, step: Step) -> Circuit:
        return Circuit.VERIFICATIONS  # whichever step it is

    def ask(self, provider: Port, step: Step) -> Awaitable[Verification]:
        return provider.verify(self.bank_account_token, self.currency)


def unverified(rows: Iterable[Row[Any]], tokens: Mapping[str, int], deadline: float) -> list[Unverified]:
    """Destinations out of the database, claimed under `tokens` until `deadline` (the loop's time)."""
    return [
        Unverified(
            demand_id=destination_demand(row.payout_destination_id),
            caller=row.caller,
            number=1,
            provider=row.provider,
            provider_key="",
            lease_token=tokens[destination_demand(row.payout_destination_id)],
            lease_deadline=deadline,
            traceparent=row.traceparent,
            context=context_of(row.traceparent),
            maybe_sent=True,  # so that it never fails for want of an answer
            looking=row.looking,
            tries=stored_tries(row.tries),
            payout_destination_id=row.payout_destination_id,
            currency=row.currency,
            bank_account_token=row.bank_account_token,
            state=DestinationState(row.state),
        )
        for row in rows
    ]


class Verify:
    """The verify stage's work: what providers said of destinations, written down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, items: Sequence[Answered[Unverified, Verification]]) -> Sequence[Unverified | Exception]:
        """Each destination as it stands after it."""
        return await by_halves(self._record, items)

    async def _record(self, items: Sequence[Answered[Unverified, Verification]]) -> Sequence[Unverified | Exception]:
        moved: dict[str, DestinationState] = {}

        def record(connection: Connection) -> None:
            moved.clear()
            rows = store.lock(connection, sorted({one.item.payout_destination_id for one in items}))
            moves = {}
            for one in items:
                id_, happening = one.item.payout_destination_id, VERIFICATIONS[type(one.outcome)]
                before = DestinationState(rows[id_].state)
                if before is DestinationState.PENDING_VERIFICATION:  # what has ended, or is verified, stays so
                    after = move_destination(before, happening)
                    if after is not before:
                        code = one.outcome.code if isinstance(one.outcome, Declined) else ""
                        moves[id_] = store.DestinationMove(id_, after, code)
                        moved[id_] = after
            move_destinations(connection, list(moves.values()))
            go_on(connection, [one.item for one in items if one.item.payout_destination_id in moved])

        await self._database.transact(record)
        return [replace(one.item, state=moved.get(one.item.payout_destination_id, one.item.state)) for one in items]


def move_destinations(connection: Connection, moves: Sequence[store.DestinationMove]) -> Sequence[Row[Any]]:
    """Moves locked destinations, and tells of them."""
    rows = store.move(connection, moves) if moves else ()
    with telling(connection, rows) as told:
        for row in rows:
            events.destination_changed(told, encode.destination(row), row.traceparent)
    return rows


def end_destinations(
    connection: Connection, ids: Sequence[str], happening: DestinationHappening, *, actor: str = "", reason: str = "", others: Sequence[str] = ()
) -> None:
    """Ends destinations, the dead letters of their verifications, and the payouts whose money is held for them; those are settled by a sweep.

    `others`: demands whose due work the transaction locks later; all of it is locked here, in one pass. Raises STATE_FORBIDS.
    """
    moves = []
    locked = store.lock(connection, sorted(ids))
    for id_, row in locked.items():
        before = DestinationState(row.state)
        after = move_destination(before, happening)
        if after is not before:
            moves.append(store.DestinationMove(id_, after, disabled_by=actor, disable_reason=reason))
    ended = {move.payout_destination_id: locked[move.payout_destination_id] for move in moves}
    unsent = [demand for id_ in ended for demand in payouts.unsent(connection, id_)]  # none is added: what is held for a destination locks it first
    due.lock(connection, [*map(destination_demand, ended), *unsent, *others])
    move_destinations(connection, moves)
    resolve(connection, {f"payoutDestinations/{id_}": (actor or row.caller, row.traceparent) for id_, row in ended.items()})
    _cancel_unsent(connection, unsent)


def _cancel_unsent(connection: Connection, demand_ids: Sequence[str]) -> None:
    tokens = due.take_over(connection, demand_ids, 0.0) if demand_ids else {}
    if tokens:
        items = stored_payouts(payouts.to_do(connection, demanded(tokens)[0]), tokens, "")
        ended = [item for item in items if item.state in UNSENT]  # but what was decided since they were found
        resolve(connection, {item.subject: (item.caller, item.traceparent) for item in ended})
        move_payouts(connection, [Move(item, (Turn(item.standing.after(Happening.DESTINATION_ENDED), Cause.DESTINATION_ENDED),)) for item in ended])
