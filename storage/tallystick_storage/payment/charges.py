"""Charges: what the worker needs to advance them, and the polls of failed ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.database import encode_rows
from tallystick_storage.payment.orders import OrderRow
from tallystick_storage.sql import Connection, Query, columns, text
from tallystick_storage.webhook_events import SubjectKey, find_subjects, find_subjects_query


@dataclass(frozen=True, slots=True)
class ChargeOrderRow(OrderRow):
    """An order of a charge, with its checkout, an attempt of the charge, by default the last, and
    its operation.

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
    attempt_provider: str
    provider_key: str
    routing_rule: str
    fallback_provider: str
    outcome: str
    moved_amount: int | None
    moved_currency: str | None
    attempt_reference: str
    attempt_reason: str
    attempt_code: str
    attempt_fee: int | None
    attempt_fee_currency: str | None
    age: Decimal
    expires_in: Decimal | None
    cancel_reason: str
    resolves_in: Decimal | None
    maybe_sent: bool
    since_sent: Decimal | None
    not_found_count: int
    lookup_only: bool
    retry_counts: Mapping[str, int] | None
    page_return_url: str | None
    """None: the buyer pays by token."""
    page_locale: str | None
    page_expire_time: datetime | None
    page_create_time: datetime


_CHARGE = f"""
    select {columns(OrderRow, "o")}, c.caller, c.owner, c.payment_token, c.payment_method_type,
        c.buyer_country, c.traceparent,
        a.attempt_number, a.provider as attempt_provider,
        a.provider_key, a.routing_rule, a.fallback_provider, a.outcome,
        a.moved_amount, a.moved_currency,
        a.provider_reference as attempt_reference, a.failure_reason as attempt_reason,
            a.decline_code as attempt_code, a.provider_fee as attempt_fee,
            a.provider_fee_currency as attempt_fee_currency,
        extract(epoch from clock() - a.start_time) as age,
            extract(epoch from c.expire_time - clock()) as expires_in, c.cancel_reason,
        extract(epoch from o.resolve_by_time - clock()) as resolves_in,
        coalesce(op.maybe_sent, false) as maybe_sent,
            extract(epoch from clock() - op.sent_time) as since_sent,
        coalesce(op.not_found_count, 0) as not_found_count,
            coalesce(op.lookup_only, false) as lookup_only, op.retry_counts,
        h.return_url as page_return_url, h.locale as page_locale,
            c.expire_time as page_expire_time, c.create_time as page_create_time
    from unnest(cast(:charges as text[]), cast(:numbers as int[]), cast(:providers as text[]))
        as g (id, number, provider)
    {{operation}} op on op.kind = 'charge' and op.operation_id = g.id
    join lateral (select * from attempt a where a.kind = 'charge' and a.operation_id = g.id
        and (g.number is null or a.attempt_number = g.number)
        and (g.provider is null or a.provider = g.provider)
        order by attempt_number desc limit 1) a on true
    join checkout c on c.checkout_id = a.checkout_id
    left join hosted_page h on h.checkout_id = a.checkout_id
    join payment_order o on o.checkout_id = c.checkout_id and o.charge_id = g.id and {{which}}
    order by o.charge_id, a.attempt_number, o.payment_order_id
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
    return _LOAD_CHARGES.all(
        connection, **_parameters_of([AttemptSelector(id_) for id_ in charge_ids])
    )


class AttemptSelector(NamedTuple):
    """Selects the last attempt of a charge, or the one with a number, or the last at a provider."""

    charge_id: str
    attempt_number: int | None = None
    provider: str | None = None


def find_charges(
    connection: Connection, attempts: Sequence[AttemptSelector]
) -> list[ChargeOrderRow]:
    """The orders of charges in any state, in the same form, each with the selected attempt; without
    one, the charge is left out. Orders that the risk check rejected belong to no charge.
    """
    return _FIND_CHARGES.all(connection, **_parameters_of(attempts))


def lock_charges(connection: Connection, charge_ids: list[str]) -> list[ChargeOrderRow]:
    """Locks the orders of charges and returns them, in the same form. The operations must be
    locked.
    """
    return _LOCK_CHARGES.all(
        connection, **_parameters_of([AttemptSelector(id_) for id_ in charge_ids])
    )


def _parameters_of(attempts: Sequence[AttemptSelector]) -> dict[str, Any]:
    return {
        "charges": [attempt.charge_id for attempt in attempts],
        "numbers": [attempt.attempt_number for attempt in attempts],
        "providers": [attempt.provider for attempt in attempts],
    }


@dataclass(slots=True)
class NextPoll:
    """When to poll an attempt of a charge next, in seconds (None: never again), and the number of
    polls so far.
    """

    charge_id: str
    attempt_number: int
    delay_seconds: float | None
    poll_count: int


class PollableAttempt(NamedTuple):
    """An attempt to poll, and the number of polls so far."""

    charge_id: str
    attempt_number: int
    poll_count: int


_SCHEDULE_POLLS = text("""
    insert into failed_charge_poll (charge_id, attempt_number, provider, next_poll_time,
        poll_count)
    select r.charge_id, r.attempt_number, a.provider,
        clock() + make_interval(secs => r.delay_seconds), r.poll_count
    from json_to_recordset(cast(:polls as json))
        as r (charge_id text collate "C", attempt_number int, delay_seconds float, poll_count int)
    join attempt a on a.kind = 'charge' and a.operation_id = r.charge_id
        and a.attempt_number = r.attempt_number
    order by r.charge_id, r.attempt_number
    on conflict (charge_id, attempt_number) do update set next_poll_time = excluded.next_poll_time,
        poll_count = excluded.poll_count
""")
_LIST_POLLABLE = Query(
    PollableAttempt,
    """
    select {columns} from failed_charge_poll where next_poll_time <= (select clock())
        and provider = any (cast(:providers as text[]))
    order by next_poll_time, charge_id, attempt_number limit :limit
    """,
)
_STOP_POLLS = text("""
    delete from failed_charge_poll where (charge_id, attempt_number) in (
        select * from unnest(cast(:ids as text[]), cast(:numbers as int[])))
""")


def schedule_polls(connection: Connection, polls: Sequence[NextPoll]) -> None:
    """Schedules polls of attempts, or ends them."""
    connection.execute(
        _SCHEDULE_POLLS,
        {"polls": encode_rows([poll for poll in polls if poll.delay_seconds is not None])},
    )
    ended = [poll for poll in polls if poll.delay_seconds is None]
    connection.execute(
        _STOP_POLLS,
        {
            "ids": [poll.charge_id for poll in ended],
            "numbers": [poll.attempt_number for poll in ended],
        },
    )


def list_pollable(
    connection: Connection, providers: Sequence[str], limit: int
) -> list[PollableAttempt]:
    """The attempts at these providers that are due for a poll."""
    return _LIST_POLLABLE.all(connection, providers=list(providers), limit=limit)


_FIND_REPORTED = find_subjects_query(KindName.CHARGE, "provider_money", "charge_id")


def find_reported(connection: Connection, keys: Collection[SubjectKey]) -> dict[SubjectKey, str]:
    """The charges that webhook events are about."""
    return find_subjects(connection, _FIND_REPORTED, keys)
