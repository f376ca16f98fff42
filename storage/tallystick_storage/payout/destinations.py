"""Payout destinations: where sellers are paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick_core.payout.destination import DestinationState
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, before_parameters
from tallystick_storage.sql import Connection, Row, text

_COLUMNS = """payout_destination_id, caller, owner, fingerprint, seller_account, currency,
    description, provider, traceparent, state, usable_time, decline_code,
    awaits_approval, approved_by, approve_reason, disabled_by, disable_reason, version, create_time,
        update_time"""


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


_FIND = text(
    f"select {_COLUMNS}, bank_account_token from payout_destination where payout_destination_id = "
    "any (cast(:ids as text[]))"
)
_INSERT = text(f"""
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
    select {_COLUMNS}, bank_account_token, false as lookup_only,
        cast(null as jsonb) as retry_counts,
        sequence as outbox_sequence from new, outbox_sequence
""")
_LOCK = text(f"""
    select {_COLUMNS} from payout_destination
        where payout_destination_id = any (cast(:ids as text[]))
        order by payout_destination_id for update
""")
_LOCK_STATES = text("""
    select payout_destination_id, state from payout_destination
        where payout_destination_id = any (cast(:ids as text[]))
        order by payout_destination_id for share
""")
_TRANSITION = text(f"""
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
    select {_COLUMNS}, sequence as outbox_sequence from changed, outbox_sequence
""")
_APPROVE = text(f"""
    with approved as (
        update payout_destination set awaits_approval = false, approved_by = :approved_by,
            approve_reason = :reason, version = version + 1,
            update_time = greatest(update_time, clock()) where payout_destination_id = :id
                returning *),
    {insert_into_outbox("approved", "'payoutDestinations/' || payout_destination_id")}
    select {_COLUMNS}, sequence as outbox_sequence from approved, outbox_sequence
""")
_LOAD_OPERATIONS = text("""
    select s.*, coalesce(op.lookup_only, false) as lookup_only, op.retry_counts
    from unnest(cast(:ids as text[])) as g (id)
    join payout_destination s on s.payout_destination_id = g.id
    left join operation op on op.kind = 'destination_verification' and op.operation_id = g.id
    order by s.payout_destination_id
""")
_LOCK_UNRESOLVED = text("""
    select payout_destination_id from payout_destination
        where payout_destination_id = any (cast(:ids as text[])) and state = 'PENDING_VERIFICATION'
    order by payout_destination_id for update
""")
_FIND_CURRENT = text("""
    select g.seller_account, g.currency, c.payout_destination_id, c.state, c.usable_time,
        c.is_in_cooldown,
        c.awaits_approval, c.bank_account_token, c.provider
    from unnest(cast(:sellers as text[]), cast(:currencies as text[]),
        cast(:owners as text[])) as g (seller_account, currency, owner)
    cross join lateral (
        select d.payout_destination_id, d.state, d.usable_time,
            d.usable_time > (select clock()) as is_in_cooldown, d.awaits_approval,
                d.bank_account_token,
            d.provider
        from payout_destination d
        where d.seller_account = g.seller_account and d.currency = g.currency and d.owner = g.owner
            and d.state not in ('UNUSABLE', 'DISABLED')
        order by (d.state = 'VERIFIED' and not d.awaits_approval
            and d.usable_time <= (select clock())) desc, d.create_time desc,
            d.payout_destination_id desc limit 1) c
""")
_FIND_WITH_READINESS = text("""
    select payout_destination_id, owner, seller_account, currency, state, usable_time,
        usable_time > (select clock()) as is_in_cooldown, awaits_approval,
        bank_account_token, provider
    from payout_destination where payout_destination_id = any (cast(:ids as text[]))
""")


def insert(
    connection: Connection, new: NewDestinationRow, cooldown_seconds: float, lease_seconds: float
) -> Row[Any] | None:
    """Stores a destination with a cooldown of `cooldown_seconds` seconds. Returns it with the
    outbox row in which it is to be recorded, or None if the id exists.
    """
    values = {field: getattr(new, field) for field in new.__slots__}
    values |= {
        "state": DestinationState.PENDING_VERIFICATION,
        "cooldown_seconds": cooldown_seconds,
        "lease": f"{lease_seconds} seconds",
    }
    return connection.execute(_INSERT, values).one_or_none()


def find(connection: Connection, ids: list[str]) -> dict[str, Row[Any]]:
    return {row.payout_destination_id: row for row in connection.execute(_FIND, {"ids": ids})}


def lock(connection: Connection, ids: list[str]) -> dict[str, Row[Any]]:
    """Locks destinations that are to be changed."""
    return {row.payout_destination_id: row for row in connection.execute(_LOCK, {"ids": ids})}


def lock_states(connection: Connection, ids: list[str]) -> dict[str, DestinationState]:
    """The states of destinations, locked until the transaction ends."""
    return {
        row.payout_destination_id: DestinationState(row.state)
        for row in connection.execute(_LOCK_STATES, {"ids": ids})
    }


def transition(
    connection: Connection, transitions: Sequence[DestinationTransitionRow]
) -> Sequence[Row[Any]]:
    """Applies transitions of locked destinations and ends their verification. Returns each with the
    outbox row in which all are to be recorded.
    """
    return connection.execute(_TRANSITION, {"transitions": encode_rows(transitions)}).all()


def approve(
    connection: Connection, payout_destination_id: str, approved_by: str, reason: str
) -> Row[Any]:
    """Approves a locked destination. Returns it with the outbox row that is to record it."""
    return connection.execute(
        _APPROVE, {"id": payout_destination_id, "approved_by": approved_by, "reason": reason}
    ).one()


def load_operations(connection: Connection, ids: list[str]) -> Sequence[Row[Any]]:
    """Destinations with the data that the next action of their verification needs."""
    return connection.execute(_LOAD_OPERATIONS, {"ids": ids}).all()


def lock_unresolved(connection: Connection, ids: list[str]) -> set[str]:
    """Locks the destinations for which the provider has given no outcome."""
    return set(connection.execute(_LOCK_UNRESOLVED, {"ids": ids}).scalars())


def find_current(
    connection: Connection, keys: Sequence[tuple[str, str]], owners: Mapping[str, str]
) -> dict[tuple[str, str], Row[Any]]:
    """The destination of each (seller, currency) that its owner has: the newest usable one,
    otherwise the newest that has not ended.

    `is_in_cooldown`: its cooldown has not passed.
    """
    owned_keys = [
        (seller, currency, owners[seller]) for seller, currency in keys if seller in owners
    ]
    values = {
        "sellers": [key[0] for key in owned_keys],
        "currencies": [key[1] for key in owned_keys],
        "owners": [key[2] for key in owned_keys],
    }
    return {
        (row.seller_account, row.currency): row for row in connection.execute(_FIND_CURRENT, values)
    }


def find_with_readiness(connection: Connection, ids: Sequence[str]) -> dict[str, Row[Any]]:
    """Destinations by id, with `is_in_cooldown` as in `find_current`."""
    return {
        row.payout_destination_id: row
        for row in connection.execute(_FIND_WITH_READINESS, {"ids": list(ids)})
    }


_LIST = text(f"""
    select {_COLUMNS} from payout_destination
    where (:owner = '' or owner = :owner)
        and (:seller_account = '' or seller_account = :seller_account)
        and (:currency = '' or currency = :currency)
        and (:state = '' or state = :state)
        and (create_time, payout_destination_id) < (coalesce(cast(:before_time as timestamptz),
            'infinity'), :before_id)
    order by create_time desc, payout_destination_id desc limit :limit
""")


def list_destinations(
    connection: Connection, filters: dict[str, str], before: PageKey | None, limit: int
) -> Sequence[Row[Any]]:
    """Destinations, newest first, before a given (create_time, id). An empty filter matches
    everything.
    """
    return connection.execute(_LIST, {**filters, **before_parameters(before), "limit": limit}).all()
