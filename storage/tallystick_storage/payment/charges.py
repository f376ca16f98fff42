"""Charges: what the worker needs to advance them, and the polls of failed ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.database import encode_rows
from tallystick_storage.payment.orders import OrderRow
from tallystick_storage.sql import Connection, Query, columns, text
from tallystick_storage.webhook_events import SubjectKey, find_subjects, find_subjects_query


@dataclass(frozen=True, slots=True)
class ChargeOrderRow(OrderRow):
    """An order of a charge, with its checkout, the charge's last attempt and its operation.

    `age` is that of the attempt; `expires_in`, `resolves_in` and `since_sent` are the times until
    the payment expires, until the order must be resolved, and since the charge was sent. All are in
    seconds; None: there is no such time.
    """

    caller: str
    owner: str
    payment_token: str
    payment_method_type: str
    buyer_country: str
    traceparent: str
    attempt_number: int
    provider_key: str
    outcome: str
    moved_amount: int | None
    moved_currency: str | None
    attempt_reference: str
    attempt_reason: str
    attempt_code: str
    age: Decimal
    expires_in: Decimal | None
    cancel_reason: str
    resolves_in: Decimal | None
    maybe_sent: bool
    since_sent: Decimal | None
    not_found_count: int
    lookup_only: bool
    retry_counts: Mapping[str, int] | None


_CHARGE = f"""
    select {columns(OrderRow, "o")}, c.caller, c.owner, c.payment_token, c.payment_method_type,
        c.buyer_country, c.traceparent,
        a.attempt_number,
        a.provider_key, a.outcome, a.moved_amount, a.moved_currency,
        a.provider_reference as attempt_reference, a.failure_reason as attempt_reason,
            a.decline_code as attempt_code,
        extract(epoch from clock() - a.start_time) as age,
            extract(epoch from c.expire_time - clock()) as expires_in, c.cancel_reason,
        extract(epoch from o.resolve_by_time - clock()) as resolves_in,
        coalesce(op.maybe_sent, false) as maybe_sent,
            extract(epoch from clock() - op.sent_time) as since_sent,
        coalesce(op.not_found_count, 0) as not_found_count,
            coalesce(op.lookup_only, false) as lookup_only, op.retry_counts
    from unnest(cast(:charges as text[])) as g (id)
    {{operation}} op on op.kind = 'charge' and op.operation_id = g.id
    join lateral (select * from attempt a where a.kind = 'charge' and a.operation_id = g.id
        order by attempt_number desc limit 1) a on true
    join checkout c on c.checkout_id = a.checkout_id
    join payment_order o on o.checkout_id = c.checkout_id and o.charge_id = g.id and {{which}}
    order by o.charge_id, o.payment_order_id
"""
_LOAD_CHARGES = Query(
    ChargeOrderRow, _CHARGE.format(operation="join operation", which="o.status <> 'FAILED'")
)
# A charge in any state, with an operation or without: all orders but those that the risk check
# rejected.
_ANY_CHARGE = _CHARGE.format(
    operation="left join operation", which="(o.status <> 'FAILED' or o.attempt_count > 0)"
)
_FIND_CHARGES = Query(ChargeOrderRow, _ANY_CHARGE)
_LOCK_CHARGES = Query(ChargeOrderRow, f"{_ANY_CHARGE} for update of o")


def load_charges(connection: Connection, charge_ids: list[str]) -> list[ChargeOrderRow]:
    """The orders of charges to work on, with the data that the next action needs."""
    return _LOAD_CHARGES.all(connection, charges=charge_ids)


def find_charges(connection: Connection, charge_ids: list[str]) -> list[ChargeOrderRow]:
    """The orders of charges in any state, in the same form. Orders that the risk check rejected
    belong to no charge.
    """
    return _FIND_CHARGES.all(connection, charges=charge_ids)


def lock_charges(connection: Connection, charge_ids: list[str]) -> list[ChargeOrderRow]:
    """Locks the orders of charges and returns them, in the same form. The operations must be
    locked.
    """
    return _LOCK_CHARGES.all(connection, charges=charge_ids)


@dataclass(slots=True)
class NextPoll:
    """When to poll a failed charge next, in seconds (None: never again), and the number of polls so
    far.
    """

    charge_id: str
    delay_seconds: float | None
    poll_count: int


class _PollableCharge(NamedTuple):
    charge_id: str
    poll_count: int


_SCHEDULE_POLLS = text("""
    insert into failed_charge_poll (charge_id, provider, next_poll_time, poll_count)
    select r.charge_id, a.provider, clock() + make_interval(secs => r.delay_seconds), r.poll_count
    from json_to_recordset(cast(:polls as json))
        as r (charge_id text collate "C", delay_seconds float, poll_count int)
    join attempt a on a.kind = 'charge' and a.operation_id = r.charge_id and a.attempt_number = 1
    order by r.charge_id
    on conflict (charge_id) do update set next_poll_time = excluded.next_poll_time,
        poll_count = excluded.poll_count
""")
_LIST_POLLABLE = Query(
    _PollableCharge,
    """
    select {columns} from failed_charge_poll where next_poll_time <= (select clock())
        and provider = any (cast(:providers as text[]))
    order by next_poll_time, charge_id limit :limit
    """,
)
_STOP_POLLS = text("delete from failed_charge_poll where charge_id = any (cast(:ids as text[]))")


def schedule_polls(connection: Connection, polls: Sequence[NextPoll]) -> None:
    """Schedules polls of failed charges, or ends them."""
    connection.execute(
        _SCHEDULE_POLLS,
        {"polls": encode_rows([poll for poll in polls if poll.delay_seconds is not None])},
    )
    connection.execute(
        _STOP_POLLS, {"ids": [poll.charge_id for poll in polls if poll.delay_seconds is None]}
    )


def list_pollable(connection: Connection, providers: Sequence[str], limit: int) -> dict[str, int]:
    """Failed charges of these providers that are due for a poll, and the number of polls so far."""
    rows = _LIST_POLLABLE.all(connection, providers=list(providers), limit=limit)
    return {row.charge_id: row.poll_count for row in rows}


_FIND_REPORTED = find_subjects_query(KindName.CHARGE, "provider_money", "charge_id")


def find_reported(connection: Connection, keys: Collection[SubjectKey]) -> dict[SubjectKey, str]:
    """The charges that webhook events are about."""
    return find_subjects(connection, _FIND_REPORTED, keys)
