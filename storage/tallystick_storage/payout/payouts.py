"""Payouts: storage, transitions, and the data that the worker needs. Lock order: batches, attempts,
destinations, operations, payouts, transfers, dead letters, each by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from tallystick_core.payout.state import PayoutState, PayoutTransitionReason
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class PayoutRow:
    """A payout; amounts in minor units."""

    payout_id: str
    caller: str
    owner: str
    seller_account: str
    amount: int
    fee: int
    net_amount: int
    reserve: int
    currency: str
    payout_destination_id: str
    payout_batch_id: str
    provider: str
    traceparent: str
    state: str
    booked: bool
    failure_reason: str
    decline_code: str
    provider_reference: str
    attempt_count: int
    paid_amount: int
    returned_amount: int
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(slots=True)
class NewPayoutRow:
    """A payout to store, CREATED. `fingerprint` is in hex, amounts in minor units;
    `requested_amount` None: as much as can be paid.
    """

    payout_id: str
    caller: str
    owner: str
    fingerprint: str
    requested_amount: int | None
    requested_destination: str
    seller_account: str
    amount: int
    fee: int
    reserve: int
    currency: str
    payout_destination_id: str
    payout_batch_id: str
    provider: str
    traceparent: str


@dataclass(slots=True)
class PayoutTransitionRow:
    """One version of a payout that a transition creates."""

    payout_id: str
    version: int
    from_state: str
    to_state: str
    transition_reason: str
    booked: bool
    actor: str
    reason: str


@dataclass(slots=True)
class PayoutUpdateRow:
    """A change of a payout from `from_version` to its new state, in one or several transitions.

    It happens only from that version, and only under the lease `lease_token`. None marks a fact,
    which is applied under any lease. `reporter_lease_token` is the lease token that the
    reporter of a fact has or had. `provider_key` is the key of the attempt that starts, or "".
    `awaits_approval`: nothing is due before an operator has decided. `poll_after_seconds` is the
    time until the provider is polled, once the payout is booked; None: no poll.
    """

    payout_id: str
    lease_token: int | None
    reporter_lease_token: int
    from_version: int
    version: int
    state: str
    booked: bool
    failure_reason: str
    decline_code: str
    provider_reference: str
    attempt_count: int
    paid_amount: int
    returned_amount: int
    provider_key: str = ""
    awaits_approval: bool = False
    poll_after_seconds: float | None = None


@dataclass(slots=True)
class NextPayoutPoll:
    """When to poll a completed payout next, in seconds (None: never again), and the number of polls
    so far.
    """

    payout_id: str
    delay_seconds: float | None
    poll_count: int


class RequestedPayoutRow(NamedTuple):
    """A payout as its caller requested it; for the fields see `NewPayoutRow`."""

    payout_id: str
    caller: str
    owner: str
    fingerprint: bytes
    requested_amount: int | None
    requested_destination: str
    seller_account: str
    currency: str


_FIND_EXISTING = Query(
    RequestedPayoutRow,
    "select {columns} from payout where payout_id = any (cast(:ids as text[]))",
)


def find_existing(connection: Connection, payout_ids: list[str]) -> dict[str, RequestedPayoutRow]:
    """The given ids that exist, with the requests of their callers."""
    return {row.payout_id: row for row in _FIND_EXISTING.all(connection, ids=payout_ids)}


class InsertedPayoutRow(NamedTuple):
    """A new payout, and the outbox row in which it is to be recorded."""

    payout_id: str
    create_time: datetime
    outbox_sequence: int


# Only rows that the first insert returns are stored. If another process stored a payout meanwhile,
# nothing else of it is inserted.
_INSERT = Query(
    InsertedPayoutRow,
    f"""
    with t as materialized (select clock() as now),
    new as (
        insert into payout (payout_id, caller, owner, fingerprint, requested_amount,
            requested_destination,
            seller_account, amount, fee, net_amount, reserve, currency,
            payout_destination_id, payout_batch_id, provider, traceparent, state, booked,
                failure_reason, decline_code, provider_reference,
            attempt_count, paid_amount, returned_amount, version, create_time, update_time)
        select payout_id, caller, owner, decode(fingerprint, 'hex'), requested_amount,
            requested_destination, seller_account, amount, fee, amount - fee, reserve, currency,
            payout_destination_id, payout_batch_id, provider, traceparent, :state, false, '', '',
                '', 0, 0, 0, 1, now, now
        from json_to_recordset(cast(:payouts as json))
            as r (payout_id text collate "C", caller text, owner text, fingerprint text,
            requested_amount bigint,
            requested_destination text, seller_account text, amount bigint, fee bigint,
                reserve bigint,
                currency text, payout_destination_id text, payout_batch_id text,
            provider text, traceparent text), t
        order by payout_id
        on conflict do nothing returning payout_id, provider, payout_batch_id,
            payout_destination_id, create_time),
    history as (
        insert into payout_history (payout_id, version, from_state, to_state, transition_reason,
            booked, actor,
            reason, create_time)
        select payout_id, 1, null, :state, :transition_reason, false, '', '', create_time from new),
    new_operation as (
        insert into operation (kind, operation_id, provider, next_try_time, lease_until,
            lease_token, is_leased,
            maybe_sent, lookup_only, retry_reason, detail,
            payout_batch_id, payout_destination_id)
        select 'payout', payout_id, provider, create_time,
            create_time + cast(:lease as interval), 1, true, false, false, '', '', payout_batch_id,
            payout_destination_id from new),
    {insert_into_outbox("new", "'payouts/' || payout_id", "1")}
    select payout_id, create_time, sequence as outbox_sequence from new, outbox_sequence
    """,
)


def insert(
    connection: Connection, payouts: Sequence[NewPayoutRow], lease_seconds: float
) -> dict[str, InsertedPayoutRow]:
    """Stores payouts, leased for `lease_seconds` seconds under lease token 1. Returns the new
    ones.
    """
    rows = _INSERT.all(
        connection,
        payouts=encode_rows(payouts),
        lease=f"{lease_seconds} seconds",
        state=PayoutState.CREATED,
        transition_reason=PayoutTransitionReason.CREATED,
    )
    return {row.payout_id: row for row in rows}


class UpdatedPayoutRow(NamedTuple):
    """A payout after its transitions: the lease token of its operation, and the outbox row in which
    they are to be recorded.
    """

    payout_id: str
    version: int
    update_time: datetime
    lease_token: int
    outbox_sequence: int


_TRANSITION = Query(
    UpdatedPayoutRow,
    f"""
    with t as materialized (select clock() as now),
    leased as materialized (
        select r.*, op.holder_token
        from (select * from json_to_recordset(cast(:updates as json))
            as r (payout_id text collate "C", lease_token bigint, reporter_lease_token bigint,
            from_version int, version int, state text,
                booked boolean, failure_reason text, decline_code text, provider_reference text,
                    attempt_count int, paid_amount bigint,
                returned_amount bigint, provider_key text, awaits_approval boolean,
                    poll_after_seconds float)
                    order by payout_id) r
        cross join lateral (  -- a lease that was taken over is no longer ours
            select op.lease_token as holder_token from operation op
            where op.kind = 'payout' and op.operation_id = r.payout_id
                and (r.lease_token is null or op.lease_token = r.lease_token)
                    limit 1 for update) op),
    locked as materialized (
        select l.* from (select * from leased order by payout_id) l
        cross join lateral (select from payout p where p.payout_id = l.payout_id
            and p.version = l.from_version limit 1 for update) p),
    changed as (
        update payout p set state = l.state, booked = l.booked, failure_reason = l.failure_reason,
            decline_code = l.decline_code,
            provider_reference = l.provider_reference, attempt_count = l.attempt_count,
                paid_amount = l.paid_amount,
            returned_amount = l.returned_amount, version = l.version,
                update_time = greatest(p.update_time, t.now)
        from locked l, t where p.payout_id = l.payout_id and p.version = l.from_version
        returning p.payout_id, p.version, p.update_time, p.provider, p.net_amount, p.currency,
            l.provider_key),
    history as (
        insert into payout_history (payout_id, version, from_state, to_state, transition_reason,
            booked, actor,
            reason, create_time)
        select s.payout_id, s.version, s.from_state, s.to_state, s.transition_reason, s.booked,
            s.actor,
            s.reason, m.update_time
        from json_to_recordset(cast(:transitions as json)) as s (payout_id text collate "C",
            version int,
            from_state text, to_state text, transition_reason text, booked boolean,
            actor text, reason text) join changed m on m.payout_id = s.payout_id
        returning payout_id, version),
    new_attempt as (
        insert into attempt (kind, operation_id, attempt_number, provider, provider_key, amount,
            currency, outcome,
            provider_reference, failure_reason, decline_code,
            start_time)
        select 'payout', payout_id, 1, provider, provider_key, net_amount, currency, '', '', '',
            '',
            update_time from changed where provider_key <> ''),
    unsent as (  -- before its attempt was started nothing can have been sent
        update operation op set maybe_sent = false from changed m where m.provider_key <> ''
            and op.kind = 'payout' and op.operation_id = m.payout_id),
    waiting as (
        update operation op set next_try_time = 'infinity', lease_until = t.now,
            is_leased = false,
            retry_counts = default, retry_reason = '', detail = '',
            phase = 'AWAITING_APPROVAL', phase_start_time = t.now
        from locked l, t where l.awaits_approval and op.kind = 'payout'
            and op.operation_id = l.payout_id),
    made_due as (  -- due at once, even when another holder releases it
        update operation op set next_try_time = t.now, has_changed = op.has_changed
            or op.lease_token <> l.reporter_lease_token from locked l, t
        where l.lease_token is null and not l.booked and op.kind = 'payout'
            and op.operation_id = l.payout_id
            and (op.next_try_time > t.now or op.lease_token <> l.reporter_lease_token
                and op.next_try_time is not null)),
    done as (delete from operation op
        where op.kind = 'payout'
            and op.operation_id = any (array(select payout_id from locked where booked))),
    scheduled_poll as (
        insert into completed_payout_poll (payout_id, next_poll_time, poll_count)
        select payout_id, t.now + make_interval(secs => poll_after_seconds), 0 from locked, t
            where poll_after_seconds is not null
        on conflict (payout_id) do update set next_poll_time = excluded.next_poll_time),
    {insert_into_outbox("history", "'payouts/' || payout_id")}
    select c.payout_id, c.version, c.update_time, l.holder_token as lease_token,
        sequence as outbox_sequence
    from changed c join locked l on l.payout_id = c.payout_id, outbox_sequence
    """,
)


def transition(
    connection: Connection,
    updates: Sequence[PayoutUpdateRow],
    transitions: Sequence[PayoutTransitionRow],
) -> dict[str, UpdatedPayoutRow]:
    """Applies updates of payouts, one for each.

    Returns the changed payouts. A missing one had lost its lease, or had already changed.
    """
    rows = _TRANSITION.all(
        connection, updates=encode_rows(updates), transitions=encode_rows(transitions)
    )
    return {row.payout_id: row for row in rows}


_LOCKED_OPERATION = (
    "select operation_id from operation where kind = 'payout' and operation_id = any "
    "(cast(:ids as text[])) order by operation_id for update"
)
_LOCK = Query(
    PayoutRow,
    f"""
    with locked_operation as materialized ({_LOCKED_OPERATION})
    select {columns(PayoutRow, "p")} from payout p
    where p.payout_id = any (cast(:ids as text[])) and (select count(*) from locked_operation) >= 0
        order by p.payout_id for update
    """,
)
_REOPEN = text("""
    insert into operation (kind, operation_id, provider, next_try_time, lease_until, lease_token,
        is_leased,
        maybe_sent, lookup_only, retry_reason, detail, payout_batch_id,
        payout_destination_id)
    select 'payout', payout_id, provider, clock(), clock(), nextval('reopen_lease_token'), false,
        true, false,
        '', '', payout_batch_id, payout_destination_id from payout
        where payout_id = any (cast(:ids as text[]))
    order by payout_id on conflict do nothing
""")


def lock(connection: Connection, payout_ids: list[str]) -> dict[str, PayoutRow]:
    """Locks payouts and their operations, so that nothing changes them meanwhile."""
    return {row.payout_id: row for row in _LOCK.all(connection, ids=payout_ids)}


def reopen(connection: Connection, payout_ids: list[str]) -> None:
    """Schedules locked, completed payouts again, under lease tokens that no former holder had."""
    connection.execute(_REOPEN, {"ids": payout_ids})


@dataclass(frozen=True, slots=True)
class PayoutOperationRow(PayoutRow):
    """A payout with the data that its next action needs. `age` of the attempt and `since_sent` are
    in seconds. What belongs to an attempt or to an operation is None without it.
    """

    bank_account_token: str
    provider_key: str | None
    attempt_reference: str | None
    age: Decimal | None
    maybe_sent: bool | None
    lookup_only: bool | None
    since_sent: Decimal | None
    not_found_count: int
    retry_counts: dict[str, int] | None


_LOAD_OPERATIONS = Query(
    PayoutOperationRow,
    f"""
    select {columns(PayoutRow, "p")}, s.bank_account_token, a.provider_key,
        a.provider_reference as attempt_reference,
        extract(epoch from clock() - a.start_time) as age, op.maybe_sent, op.lookup_only,
        extract(epoch from clock() - op.sent_time) as since_sent,
        coalesce(op.not_found_count, 0) as not_found_count, op.retry_counts
    from unnest(cast(:ids as text[])) as g (id) join payout p on p.payout_id = g.id
    join payout_destination s on s.payout_destination_id = p.payout_destination_id
    left join operation op on op.kind = 'payout' and op.operation_id = g.id
    left join attempt a on a.kind = 'payout' and a.operation_id = g.id and a.attempt_number = 1
    order by p.payout_id
    """,
)
_LOCK_UNRESOLVED = text(f"""
    with locked_operation as materialized ({_LOCKED_OPERATION})
    select payout_id from payout p
    where payout_id = any (cast(:ids as text[]))
        and state in ('CREATED', 'READY', 'SUBMITTING', 'SUBMITTED', 'IN_TRANSIT')
        and (select count(*) from locked_operation) >= 0 order by payout_id for update
""")
_LIST_UNSENT = text("""
    select op.operation_id from operation op cross join lateral (
        select p.state from payout p where p.payout_id = op.operation_id offset 0) p
    where op.kind = 'payout' and op.payout_destination_id = :destination
        and op.payout_destination_id <> '' and p.state in ('AWAITING_APPROVAL', 'READY')
    order by op.operation_id
""")


def load_operations(connection: Connection, payout_ids: list[str]) -> Sequence[PayoutOperationRow]:
    """Payouts with the data that their next action needs, by id."""
    return _LOAD_OPERATIONS.all(connection, ids=payout_ids)


def lock_unresolved(connection: Connection, payout_ids: list[str]) -> set[str]:
    """Locks the payouts in progress without a final outcome of the provider, including those not
    yet sent to it.
    """
    return set(connection.execute(_LOCK_UNRESOLVED, {"ids": payout_ids}).scalars())


def list_unsent(connection: Connection, payout_destination_id: str) -> list[str]:
    """The payouts to a destination whose money is held and that have not been sent."""
    return list(connection.execute(_LIST_UNSENT, {"destination": payout_destination_id}).scalars())


class PayoutRetryRow(NamedTuple):
    """A retry of a payout that a caller requested."""

    caller: str
    reason: str


_FIND_RETRY = Query(
    PayoutRetryRow,
    "select {columns} from payout_retry where payout_id = :payout_id and request_id = :request_id",
)
_INSERT_RETRY = text(
    "insert into payout_retry values (:payout_id, :request_id, :caller, :reason, clock())"
)


def find_retry(connection: Connection, payout_id: str, request_id: str) -> PayoutRetryRow | None:
    """The retry with that id."""
    return _FIND_RETRY.one_or_none(connection, payout_id=payout_id, request_id=request_id)


def insert_retry(
    connection: Connection, payout_id: str, request_id: str, caller: str, reason: str
) -> None:
    """Stores a retry of a locked payout."""
    connection.execute(
        _INSERT_RETRY,
        {"payout_id": payout_id, "request_id": request_id, "caller": caller, "reason": reason},
    )


class _PollableRow(NamedTuple):
    payout_id: str
    poll_count: int


_LIST_POLLABLE = Query(
    _PollableRow,
    "select {columns} from completed_payout_poll where next_poll_time <= (select clock()) "
    "order by next_poll_time, payout_id limit :limit",
)
_SCHEDULE_POLLS = text("""
    update completed_payout_poll w
        set next_poll_time = clock() + make_interval(secs => r.delay_seconds),
        poll_count = r.poll_count
    from json_to_recordset(cast(:polls as json))
        as r (payout_id text collate "C", delay_seconds float, poll_count int)
            where w.payout_id = r.payout_id
""")
_STOP_POLLS = text("delete from completed_payout_poll where payout_id = any (cast(:ids as text[]))")


def list_pollable(connection: Connection, limit: int) -> dict[str, int]:
    """Completed payouts that are due for a poll, and the number of polls so far."""
    return {row.payout_id: row.poll_count for row in _LIST_POLLABLE.all(connection, limit=limit)}


def schedule_polls(connection: Connection, polls: Sequence[NextPayoutPoll]) -> None:
    """Schedules polls of payouts, or ends them."""
    connection.execute(
        _SCHEDULE_POLLS,
        {"polls": encode_rows([poll for poll in polls if poll.delay_seconds is not None])},
    )
    connection.execute(
        _STOP_POLLS, {"ids": [poll.payout_id for poll in polls if poll.delay_seconds is None]}
    )
