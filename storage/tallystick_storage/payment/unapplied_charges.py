"""Unapplied charges: detected when the outcome is recorded, booked afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, before_parameters
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class NewUnappliedCharge:
    """Money that a provider took and that fits no order, in minor units."""

    unapplied_charge_id: str
    charge_id: str
    checkout_id: str
    caller: str
    traceparent: str
    provider: str
    provider_reference: str
    amount: int
    currency: str
    cause: str


@dataclass(frozen=True, slots=True)
class UnappliedChargeRow:
    """A stored unapplied charge, and who has acknowledged it; "": nobody has."""

    unapplied_charge_id: str
    charge_id: str
    checkout_id: str
    caller: str
    traceparent: str
    provider: str
    provider_reference: str
    amount: int
    currency: str
    cause: str
    ledger_updated: bool
    version: int
    create_time: datetime
    update_time: datetime
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


@dataclass(frozen=True, slots=True)
class ChangedUnappliedChargeRow(UnappliedChargeRow):
    """The new version of a charge, and the outbox row in which it is to be recorded."""

    outbox_sequence: int


# Money of another charge keeps its charge, and money that is stored keeps its first amount;
# `conflicts` reports both. The attempt is locked, so its charge claims no money meanwhile.
_INSERT = Query(
    ChangedUnappliedChargeRow,
    f"""
    with fits_none as (
        select r.* from json_to_recordset(cast(:charges as json))
            as r (unapplied_charge_id text collate "C", charge_id text, checkout_id text,
            caller text, traceparent text, provider text, provider_reference text, amount bigint,
            currency text, cause text)
        where not exists (
            select from provider_money m where m.provider = r.provider
                and m.provider_reference = r.provider_reference and m.charge_id <> r.charge_id)),
    new as (
        insert into unapplied_charge (unapplied_charge_id, charge_id, checkout_id, caller,
            traceparent, provider, provider_reference, amount, currency,
            cause, ledger_updated, version, create_time, update_time)
        select unapplied_charge_id, charge_id, checkout_id, caller, traceparent, provider,
            provider_reference, amount, currency, cause, false, 1, t.now, t.now
        from fits_none, (select clock() as now) t
            order by unapplied_charge_id
        on conflict do nothing returning *),
    {insert_into_outbox("new", "'unappliedCharges/' || unapplied_charge_id", "1")}
    select {columns(UnappliedChargeRow)}, sequence as outbox_sequence
        from new, outbox_sequence
    """,
)
_LIST_UNBOOKED = Query(
    UnappliedChargeRow,
    """
    select {columns} from unapplied_charge u where not ledger_updated
        and not exists (select from booking_rejection b
            where b.unapplied_charge_id = u.unapplied_charge_id
            and b.next_try_time > (select clock()))
    order by create_time, unapplied_charge_id limit :limit
    """,
)
_MARK_BOOKING_REJECTED = text("""
    with recorded as (
        insert into booking_rejection (unapplied_charge_id, rejection_message, retry_count,
            next_try_time)
        select r.id, r.message, 1, clock() + interval '1 second'
            from json_to_recordset(cast(:rejections as json))
                as r (id text collate "C", message text)
            order by r.id
        on conflict (unapplied_charge_id) do update
            set rejection_message = excluded.rejection_message,
            retry_count = booking_rejection.retry_count + 1,
            next_try_time = clock() + least(power(2, least(booking_rejection.retry_count, 9)),
                300) * interval '1 second'
        returning unapplied_charge_id, retry_count)
    select unapplied_charge_id from recorded where retry_count = 1 order by unapplied_charge_id
""")
_CLEAR_REJECTIONS = text(
    "delete from booking_rejection where unapplied_charge_id = any (cast(:ids as text[]))"
)
_MARK_BOOKED = Query(
    ChangedUnappliedChargeRow,
    f"""
    with l as materialized (
        select unapplied_charge_id from unapplied_charge
            where unapplied_charge_id = any (cast(:ids as text[])) and not ledger_updated
        order by unapplied_charge_id for update),
    booked as (
        update unapplied_charge u set ledger_updated = true, version = 2,
            update_time = greatest(u.update_time, clock())
        from l where u.unapplied_charge_id = l.unapplied_charge_id returning u.*),
    {insert_into_outbox("booked", "'unappliedCharges/' || unapplied_charge_id", "2")}
    select {columns(UnappliedChargeRow)}, sequence as outbox_sequence
        from booked, outbox_sequence
    """,
)
_ACKNOWLEDGE = Query(
    ChangedUnappliedChargeRow,
    f"""
    with l as materialized (
        select unapplied_charge_id from unapplied_charge where unapplied_charge_id = :id
            and ledger_updated and acknowledged_by = '' for update),
    acknowledged as (
        update unapplied_charge u set acknowledged_by = :operator, acknowledge_reason = :reason,
            acknowledge_time = greatest(u.update_time, t.now),
            version = 3, update_time = greatest(u.update_time, t.now)
        from l, (select clock() as now) t where u.unapplied_charge_id = l.unapplied_charge_id
            returning u.*),
    {insert_into_outbox("acknowledged", "'unappliedCharges/' || unapplied_charge_id", "3")}
    select {columns(UnappliedChargeRow)}, sequence as outbox_sequence
        from acknowledged, outbox_sequence
    """,
)
_FIND = Query(
    UnappliedChargeRow,
    "select {columns} from unapplied_charge where unapplied_charge_id = :id",
)
_LIST = f"""
    select {columns(UnappliedChargeRow)} from unapplied_charge
    where {{which}}
        and (create_time, unapplied_charge_id) < (coalesce(cast(:before_time as timestamptz),
        'infinity'), :before_id)
    order by create_time desc, unapplied_charge_id desc limit :limit
"""
_LIST_OPEN, _LIST_ALL = (
    Query(UnappliedChargeRow, _LIST.format(which="acknowledged_by = ''")),
    Query(UnappliedChargeRow, _LIST.format(which="true")),
)


def insert(
    connection: Connection, charges: Sequence[NewUnappliedCharge]
) -> list[ChangedUnappliedChargeRow]:
    """Stores the charges that fit no order; returns them, all with the same outbox row. Their
    attempts must be locked.
    """
    return _INSERT.all(connection, charges=encode_rows(charges))


_EXISTS = text(
    "select exists (select from unapplied_charge where checkout_id = :checkout_id "
    "and acknowledge_time is null)"
)


def exists_for_checkout(connection: Connection, checkout_id: str) -> bool:
    """Whether a payment has an unapplied charge that no operator has acknowledged."""
    return bool(connection.execute(_EXISTS, {"checkout_id": checkout_id}).scalar_one())


def list_unbooked(connection: Connection, limit: int) -> list[UnappliedChargeRow]:
    """Unapplied charges to post to the ledger now, oldest first."""
    return _LIST_UNBOOKED.all(connection, limit=limit)


def mark_booked(connection: Connection, ids: Sequence[str]) -> list[ChangedUnappliedChargeRow]:
    """Marks charges as booked. Returns those that were not booked before, all with the same outbox
    row.
    """
    connection.execute(_CLEAR_REJECTIONS, {"ids": list(ids)})
    return _MARK_BOOKED.all(connection, ids=list(ids))


def mark_booking_rejected(connection: Connection, messages: Mapping[str, str]) -> list[str]:
    """Stores the ledger's rejection by id, and schedules a retry after 1 s, doubling up to 300 s.
    Returns the charges that it had not rejected before.
    """
    if not messages:
        return []
    items = encode_rows(
        [{"id": id_, "message": message or "rejected"} for id_, message in sorted(messages.items())]
    )
    return list(connection.execute(_MARK_BOOKING_REJECTED, {"rejections": items}).scalars())


def acknowledge(
    connection: Connection, unapplied_charge_id: str, operator: str, reason: str
) -> list[ChangedUnappliedChargeRow]:
    """Acknowledges a booked charge that is not acknowledged yet. Returns it, or nothing."""
    return _ACKNOWLEDGE.all(connection, id=unapplied_charge_id, operator=operator, reason=reason)


def find(connection: Connection, unapplied_charge_id: str) -> UnappliedChargeRow | None:
    return _FIND.one_or_none(connection, id=unapplied_charge_id)


class UnappliedChargeFilter(NamedTuple):
    """Which unapplied charges to list."""

    include_acknowledged: bool


def list_unapplied_charges(
    connection: Connection, filters: UnappliedChargeFilter, before: PageKey | None, limit: int
) -> list[UnappliedChargeRow]:
    """Unapplied charges, newest first, before a given (create_time, id)."""
    query = _LIST_ALL if filters.include_acknowledged else _LIST_OPEN
    return query.all(connection, limit=limit, **before_parameters(before))
