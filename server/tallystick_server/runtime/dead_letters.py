"""Dead letters as every service shows them and tells of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.dead_letter import DeadLetterState
from tallystick_server.runtime import alerts
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.fields import EnumNames, to_timestamp
from tallystick_server.runtime.relay import tell, telling
from tallystick_storage import dead_letter, due

_LONGEST_REASON = 255
_ALERT = "DEAD_LETTER"
STATES = EnumNames(recovery_pb2.DeadLetterState.DESCRIPTOR)


def message(row: Row[Any]) -> recovery_pb2.DeadLetter:
    return recovery_pb2.DeadLetter(
        dead_letter_id=row.dead_letter_id,
        subject=row.subject,
        state=STATES.number(row.state),
        cause=row.cause,
        detail=row.detail,
        tries=row.tries,
        operator=row.operator,
        reason=row.reason,
        evidence=row.evidence,
        create_time=to_timestamp(row.create_time),
        end_time=to_timestamp(row.end_time) if row.end_time else None,
        provider=row.provider,
    )


def tell_changed(connection: Connection, rows: Sequence[Row[Any]], on_behalf: Callable[[Row[Any]], tuple[str, str]]) -> None:
    """Tells of dead letters that are new or have ended; `on_behalf` gives the caller and the traceparent of each. Ended ones end their alert."""
    with telling(connection, rows) as told:
        for row in rows:
            letter, version = message(row), 2 if row.end_time else 1
            at = letter.end_time if row.end_time else letter.create_time
            type_, aggregate = event_pb2.EVENT_TYPE_DEAD_LETTER_CHANGED, f"deadLetters/{row.dead_letter_id}"
            tell(told, type_, aggregate, version, at, *on_behalf(row), dead_letter=letter)
    ended = [f"deadLetters/{row.dead_letter_id}" for row in rows if row.end_time]
    if ended:
        alerts.end_of(connection, _ALERT, ended)


def end_demands(connection: Connection, demands: Mapping[str, str], by: str, reason: str) -> None:
    """Takes up again those demands, by subject, that were set aside and are to be ended, never to be sent; `by`: who has decided so."""
    ended = dead_letter.end(connection, sorted(demands), DeadLetterState.RETRIED, by, reason[:_LONGEST_REASON]) if demands else ()
    tell_changed(connection, ended, lambda _: (by, ""))
    due.revive(connection, [demands[row.subject] for row in ended])


def go_on(connection: Connection, items: Iterable[InHand]) -> None:
    """Ends the dead letters of demands of which something definite became known; what was set aside goes on."""
    known = {item.subject: item for item in items}
    if not known:
        return
    resolved = resolve(connection, {subject: (item.caller, item.traceparent) for subject, item in known.items()})
    due.revive(connection, [known[row.subject].demand_id for row in resolved])


def resolve(connection: Connection, subjects: Mapping[str, tuple[str, str]]) -> Sequence[Row[Any]]:
    """Ends the dead letters of subjects that nobody has to decide on any more; those that ended. By subject: its caller and its traceparent."""
    resolved = dead_letter.end(connection, sorted(subjects), DeadLetterState.RESOLVED) if subjects else ()
    tell_changed(connection, resolved, lambda row: subjects[row.subject])
    return resolved
