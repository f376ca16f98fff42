"""Move: payouts move, and what changed is told, in the same transaction. Whoever moves payouts does it here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from tallystick.payout.v1 import payout_pb2
from tallystick_server.payout import encode, events
from tallystick_server.payout.payout import Payout
from tallystick_server.payout.standing import Standing, Turn
from tallystick_server.runtime.relay import telling
from tallystick_storage.payout import payouts as store


@dataclass(frozen=True, slots=True)
class Move:
    """A move of a payout, in one turn or several. `fact`: it happens whoever holds the lease; the rest as in `store.PayoutMove`."""

    item: Payout
    turns: tuple[Turn, ...]
    fact: bool = False
    waits: bool = False
    watch_after: float | None = None

    @property
    def to(self) -> Standing:
        return self.turns[-1].standing


def move_payouts(connection: Connection, moves: Sequence[Move]) -> dict[str, Payout]:
    """Moves payouts, as far as their leases and versions still hold; those that moved, as they stand now, by payout id."""
    if not moves:
        return {}
    rows = store.move(connection, [_to_store(one) for one in moves], [step for one in moves for step in _steps(one)])
    moved = {}
    with telling(connection, rows.values()) as told:
        for one in moves:
            row = rows.get(one.item.payout_id)
            if row is None:
                continue
            message = one.item.message
            for turn in one.turns:
                message = _after(message, turn.standing, row.update_time)
                events.payout_changed(told, message, one.item.traceparent)
            begun = one.to.attempt_count > one.item.standing.attempt_count  # before that nothing can have been sent
            sent = one.item.maybe_sent and not begun
            # what has moved was not tried in vain
            moved[one.item.payout_id] = replace(one.item, standing=one.to, message=message, tries={}, maybe_sent=sent)
    return moved


def _after(before: payout_pb2.Payout, standing: Standing, updated: datetime) -> payout_pb2.Payout:
    message = payout_pb2.Payout()
    message.CopyFrom(before)
    encode.stand(message, standing, updated)
    return message


def _to_store(one: Move) -> store.PayoutMove:
    item, to = one.item, one.to
    return store.PayoutMove(
        payout_id=item.payout_id,
        lease_token=None if one.fact else item.lease_token,
        reported_under=item.lease_token,
        from_version=item.standing.version,
        version=to.version,
        state=to.state,
        settled=to.settled,
        failure_reason=to.failure_reason,
        decline_code=to.decline_code,
        provider_reference=to.provider_reference,
        attempt_count=to.attempt_count,
        paid_amount=to.paid_amount,
        returned_amount=to.returned_amount,
        provider_key=item.provider_key if to.attempt_count > item.standing.attempt_count else "",
        waits=one.waits,
        watch_after=one.watch_after,
    )


def _steps(one: Move) -> Iterator[store.Step]:
    before = one.item.standing.state
    for turn in one.turns:
        after = turn.standing
        yield store.Step(one.item.payout_id, after.version, before, after.state, turn.cause, after.settled, turn.actor, turn.reason)
        before = after.state
