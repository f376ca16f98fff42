"""Payout destinations: where sellers are paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.payout.destination import DestinationState
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, before_parameters
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """A destination without the token of its bank account."""

    payout_destination_id: str
    caller: str
    owner: str
    fingerprint: bytes
    seller_account: str
    currency: str
    description: str
    provider: str
    traceparent: str
    state: str
    usable_time: datetime
    decline_code: str
    awaits_approval: bool
    approved_by: str
    approve_reason: str
    disabled_by: str
    disable_reason: str
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ChangedDestinationRow(DestinationRow):
    """A destination that has changed, and the outbox row in which it is to be recorded."""

    outbox_sequence: int


@dataclass(frozen=True, slots=True)
class DestinationAccountRow(DestinationRow):
    """A destination with the token of its bank account."""

    bank_account_token: str


@dataclass(frozen=True, slots=True)
class VerificationRow(DestinationAccountRow):
    """A destination with the data that the next action of its verification needs. `retry_counts`
    None: no retries, or no operation.
    """

    lookup_only: bool
    retry_counts: dict[str, int] | None


@dataclass(frozen=True, slots=True)
class InsertedDestinationRow(VerificationRow):
    """A new destination, and the outbox row in which it is to be recorded."""

    outbox_sequence: int


class DestinationReadinessRow(NamedTuple):
    """Whether a destination can be paid to. `is_in_cooldown`: its cooldown has not passed."""

    payout_destination_id: str
    owner: str
    seller_account: str
    currency: str
    state: str
    usable_time: datetime
    is_in_cooldown: bool
    awaits_approval: bool
    bank_account_token: str
    provider: str


@dataclass(slots=True)
class NewDestinationRow:
    """A destination to store, pending; `fingerprint` in hex."""

    payout_destination_id: str
    caller: str
    owner: str
    fingerprint: str
    seller_account: str
    currency: str
    bank_account_token: str
    description: str
    provider: str
    traceparent: str
    awaits_approval: bool


@dataclass(slots=True)
class DestinationTransitionRow:
    """A transition of a locked destination."""

    payout_destination_id: str
    state: str
    decline_code: str = ""
    disabled_by: str = ""
    disable_reason: str = ""


_FIND = Query(
    DestinationAccountRow,
    "select {columns} from payout_destination where payout_destination_id = any (cast(:ids as "
    "text[]))",
)
_INSERT = Query(
    InsertedDestinationRow,
    f"""
    with new as (
        insert into payout_destination (payout_destination_id, caller, owner, fingerprint,
            seller_account, currency, bank_account_token, description,
            provider, traceparent, state, usable_time, decline_code, awaits_approval, approved_by,
                approve_reason, disabled_by, disable_reason, version,
            create_time, update_time)
        select :payout_destination_id, :caller, :owner, decode(:fingerprint, 'hex'),
            :seller_account, :currency, :bank_account_token, :description,
            :provider, :traceparent, :state,
                t.now + make_interval(secs => cast(:cooldown_seconds as float)),
                '', :awaits_approval, '', '', '', '', 1, t.now, t.now
        from (select clock() as now) t
        on conflict do nothing returning *),
    new_operation as (
        insert into operation (kind, operation_id, provider, next_try_time, lease_until,
            lease_token, is_leased,
            maybe_sent, lookup_only, retry_reason, detail, phase)
        select 'destination_verification', payout_destination_id, provider, create_time,
            create_time + cast(:lease as interval), 1, true, false, false, '', '', 'VERIFYING'
            from new),
    {insert_into_outbox("new", "'payoutDestinations/' || payout_destination_id", "1")}
    select {columns(DestinationAccountRow)}, false as lookup_only,
        cast(null as jsonb) as retry_counts,
        sequence as outbox_sequence from new, outbox_sequence
    """,
)
_LOCK = Query(
    DestinationRow,
    """
    select {columns} from payout_destination
        where payout_destination_id = any (cast(:ids as text[]))
        order by payout_destination_id for update
    """,
)


class _StateRow(NamedTuple):
    payout_destination_id: str
    state: str


_LOCK_STATES = Query(
    _StateRow,
    """
    select {columns} from payout_destination
    where payout_destination_id = any (cast(:ids as text[]))
    order by payout_destination_id for share
    """,
)
_TRANSITION = Query(
    ChangedDestinationRow,
    f"""
    with changed as (
        update payout_destination d set state = r.state, decline_code = r.decline_code,
            disabled_by = r.disabled_by, disable_reason = r.disable_reason,
            verified_time = case when r.state = 'VERIFIED' then t.now
                else d.verified_time end, version = d.version + 1,
            update_time = greatest(d.update_time, t.now)
        from json_to_recordset(cast(:transitions as json))
            as r (payout_destination_id text, state text, decline_code text, disabled_by text,
            disable_reason text),
            (select clock() as now) t
        where d.payout_destination_id = r.payout_destination_id returning d.*),
    done as (delete from operation where kind = 'destination_verification'
        and operation_id = any (array(select payout_destination_id from changed))),
    {insert_into_outbox("changed", "'payoutDestinations/' || payout_destination_id")}
    select {columns(DestinationRow)}, sequence as outbox_sequence from changed, outbox_sequence
    """,
)
_APPROVE = Query(
    ChangedDestinationRow,
    f"""
    with approved as (
        update payout_destination set awaits_approval = false, approved_by = :approved_by,
            approve_reason = :reason, version = version + 1,
            update_time = greatest(update_time, clock()) where payout_destination_id = :id
                returning *),
    {insert_into_outbox("approved", "'payoutDestinations/' || payout_destination_id")}
    select {columns(DestinationRow)}, sequence as outbox_sequence from approved, outbox_sequence
    """,
)
_LOAD_OPERATIONS = Query(
    VerificationRow,
    f"""
    select {columns(DestinationAccountRow, "s")},
        coalesce(op.lookup_only, false) as lookup_only, op.retry_counts
    from unnest(cast(:ids as text[])) as g (id)
    join payout_destination s on s.payout_destination_id = g.id
    left join operation op on op.kind = 'destination_verification' and op.operation_id = g.id
    order by s.payout_destination_id
    """,
)
_LOCK_UNRESOLVED = text("""
    select payout_destination_id from payout_destination
        where payout_destination_id = any (cast(:ids as text[])) and state = 'PENDING_VERIFICATION'
    order by payout_destination_id for update
""")
_FIND_CURRENT = Query(
    DestinationReadinessRow,
    f"""
    select {columns(DestinationReadinessRow, "c")}
    from unnest(cast(:sellers as text[]), cast(:currencies as text[]),
        cast(:owners as text[])) as g (seller_account, currency, owner)
    cross join lateral (
        select d.*, d.usable_time > (select clock()) as is_in_cooldown from payout_destination d
        where d.seller_account = g.seller_account and d.currency = g.currency and d.owner = g.owner
            and d.state not in ('UNUSABLE', 'DISABLED')
        order by (d.state = 'VERIFIED' and not d.awaits_approval
            and d.usable_time <= (select clock())) desc, d.create_time desc,
            d.payout_destination_id desc limit 1) c
    """,
)
_FIND_WITH_READINESS = Query(
    DestinationReadinessRow,
    """
    select {columns} from (
        select d.*, d.usable_time > (select clock()) as is_in_cooldown from payout_destination d) d
    where payout_destination_id = any (cast(:ids as text[]))
    """,
)


def insert(
    connection: Connection, new: NewDestinationRow, cooldown_seconds: float, lease_seconds: float
) -> InsertedDestinationRow | None:
    """Stores a destination with a cooldown of `cooldown_seconds` seconds. Returns None if the id
    exists.
    """
    return _INSERT.one_or_none(
        connection,
        state=DestinationState.PENDING_VERIFICATION,
        cooldown_seconds=cooldown_seconds,
        lease=f"{lease_seconds} seconds",
        **{field: getattr(new, field) for field in new.__slots__},
    )


def find(connection: Connection, ids: list[str]) -> dict[str, DestinationAccountRow]:
    return {row.payout_destination_id: row for row in _FIND.all(connection, ids=ids)}


def lock(connection: Connection, ids: list[str]) -> dict[str, DestinationRow]:
    """Locks destinations that are to be changed."""
    return {row.payout_destination_id: row for row in _LOCK.all(connection, ids=ids)}


def lock_states(connection: Connection, ids: list[str]) -> dict[str, DestinationState]:
    """The states of destinations, locked until the transaction ends."""
    return {
        row.payout_destination_id: DestinationState(row.state)
        for row in _LOCK_STATES.all(connection, ids=ids)
    }


def transition(
    connection: Connection, transitions: Sequence[DestinationTransitionRow]
) -> Sequence[ChangedDestinationRow]:
    """Applies transitions of locked destinations and ends their verification."""
    return _TRANSITION.all(connection, transitions=encode_rows(transitions))


def approve(
    connection: Connection, payout_destination_id: str, approved_by: str, reason: str
) -> ChangedDestinationRow:
    """Approves a locked destination."""
    return _APPROVE.one(
        connection, id=payout_destination_id, approved_by=approved_by, reason=reason
    )


def load_operations(connection: Connection, ids: list[str]) -> Sequence[VerificationRow]:
    """Destinations with the data that the next action of their verification needs."""
    return _LOAD_OPERATIONS.all(connection, ids=ids)


def lock_unresolved(connection: Connection, ids: list[str]) -> set[str]:
    """Locks the destinations for which the provider has given no outcome."""
    return set(connection.execute(_LOCK_UNRESOLVED, {"ids": ids}).scalars())


def find_current(
    connection: Connection, keys: Sequence[tuple[str, str]], owners: Mapping[str, str]
) -> dict[tuple[str, str], DestinationReadinessRow]:
    """The destination of each (seller, currency) that its owner has: the newest usable one,
    otherwise the newest that has not ended.
    """
    owned_keys = [
        (seller, currency, owners[seller]) for seller, currency in keys if seller in owners
    ]
    rows = _FIND_CURRENT.all(
        connection,
        sellers=[key[0] for key in owned_keys],
        currencies=[key[1] for key in owned_keys],
        owners=[key[2] for key in owned_keys],
    )
    return {(row.seller_account, row.currency): row for row in rows}


def find_with_readiness(
    connection: Connection, ids: Sequence[str]
) -> dict[str, DestinationReadinessRow]:
    """Destinations by id."""
    return {
        row.payout_destination_id: row
        for row in _FIND_WITH_READINESS.all(connection, ids=list(ids))
    }


_LIST = Query(
    DestinationRow,
    """
    select {columns} from payout_destination
    where (:owner = '' or owner = :owner)
        and (:seller_account = '' or seller_account = :seller_account)
        and (:currency = '' or currency = :currency)
        and (:state = '' or state = :state)
        and (create_time, payout_destination_id) < (coalesce(cast(:before_time as timestamptz),
            'infinity'), :before_id)
    order by create_time desc, payout_destination_id desc limit :limit
    """,
)


class DestinationFilter(NamedTuple):
    """Which destinations to list; "" does not filter."""

    owner: str
    seller_account: str
    currency: str
    state: str


def list_destinations(
    connection: Connection, filters: DestinationFilter, before: PageKey | None, limit: int
) -> Sequence[DestinationRow]:
    """Destinations, newest first, before a given (create_time, id)."""
    return _LIST.all(connection, limit=limit, **filters._asdict(), **before_parameters(before))
