"""Payout schedules: when and on what terms sellers are paid automatically. The seller "" means
the default schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class NewSchedule:
    """A complete schedule to store; amounts in minor units, `next_time` is its next cut-off."""

    seller_account: str
    currency: str
    interval: str
    weekday: str
    day_of_month: int
    cut_off: str
    time_zone: str
    minimum_amount: int
    fee: int
    reserve: int
    has_own_terms: bool
    """Whether the amounts are the seller's own; otherwise the stored ones are kept."""
    owner: str
    next_time: datetime | None
    caller: str
    traceparent: str
    expected_version: int | None
    """The version that it replaces; 0: none exists; None: any version."""


BACK_OFF = "make_interval(secs => least(power(2, least(failure_count, 10)), 60))"
"""The delay before a failed item is retried, by the number of its failures: from 1 s up to 1 min.
"""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule on its terms: its own, otherwise those of the default. Amounts in minor units."""

    seller_account: str
    currency: str
    interval: str
    weekday: str
    day_of_month: int
    cut_off: str
    time_zone: str
    minimum_amount: int
    fee: int
    reserve: int
    has_own_terms: bool
    owner: str
    next_time: datetime | None
    caller: str
    traceparent: str
    version: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ChangedScheduleRow(ScheduleRow):
    """A schedule that was set, and the outbox row in which it is to be recorded."""

    outbox_sequence: int


@dataclass(frozen=True, slots=True)
class EffectiveScheduleRow(ScheduleRow):
    """The schedule by which a seller is paid in a currency."""

    seller: str
    of_currency: str


class DueScheduleRow(NamedTuple):
    """A schedule that is due; `next_time` is the cut-off that has passed."""

    seller_account: str
    currency: str
    interval: str
    weekday: str
    day_of_month: int
    cut_off: str
    time_zone: str
    next_time: datetime
    caller: str
    traceparent: str
    version: int


class _StoredScheduleRow(NamedTuple):
    interval: str
    weekday: str
    day_of_month: int
    cut_off: str
    time_zone: str
    minimum_amount: int
    fee: int
    reserve: int
    has_own_terms: bool
    owner: str
    version: int


_AMOUNT_COLUMNS = ("minimum_amount", "fee", "reserve")
_TERMS = {
    name: f"case when s.has_own_terms then s.{name} else coalesce(d.{name}, 0) end as {name}"
    for name in _AMOUNT_COLUMNS
}
_RESOURCE_NAME = (
    "'payoutSchedules/' || case seller_account when '' then '-' else seller_account end "
    "|| '/' || currency"
)
_COLUMNS = ", ".join(_TERMS.get(field.name, f"s.{field.name}") for field in fields(ScheduleRow))
_DEFAULT = "left join payout_schedule d on d.seller_account = '' and d.currency = s.currency"

_FIND_EFFECTIVE_SCHEDULES = Query(
    EffectiveScheduleRow,
    f"""
    select {_COLUMNS}, g.seller, g.currency as of_currency
    from unnest(cast(:sellers as text[]), cast(:currencies as text[])) as g (seller, currency)
    cross join lateral (
        select * from payout_schedule p where p.currency = g.currency
            and p.seller_account in (g.seller, '')
        order by p.seller_account desc limit 1) s
    {_DEFAULT}
    """,
)
_UPSERT = Query(
    ChangedScheduleRow,
    f"""
    with new as (
        insert into payout_schedule (seller_account, currency, interval, weekday, day_of_month,
            cut_off, time_zone, minimum_amount, fee, reserve,
            has_own_terms, owner, next_time, next_run_time, caller, traceparent, version,
                update_time)
        select :seller_account, :currency, :interval, :weekday, :day_of_month, :cut_off, :time_zone,
            :minimum_amount, :fee, :reserve, :has_own_terms,
            :owner, cast(:next_time as timestamptz), cast(:next_time as timestamptz), :caller,
                :traceparent, 1, clock()
        where coalesce(cast(:expected_version as bigint), 0) = 0 or exists (
            select from payout_schedule where seller_account = :seller_account
                and currency = :currency)
        on conflict (seller_account, currency) do update set interval = excluded.interval,
            weekday = excluded.weekday,
            day_of_month = excluded.day_of_month, cut_off = excluded.cut_off,
                time_zone = excluded.time_zone,
            minimum_amount = case when excluded.has_own_terms then excluded.minimum_amount
                else payout_schedule.minimum_amount end,
            fee = case when excluded.has_own_terms then excluded.fee else payout_schedule.fee end,
            reserve = case when excluded.has_own_terms then excluded.reserve
                else payout_schedule.reserve end,
            has_own_terms = excluded.has_own_terms or payout_schedule.has_own_terms,
                owner = excluded.owner,
            next_time = case  -- a cut-off that has passed still runs, however late
                when excluded.next_time is not null
                    and payout_schedule.next_time <= (select clock()) then payout_schedule.next_time
                else excluded.next_time end,
            next_run_time = case
                when excluded.next_time is not null
                    and payout_schedule.next_time <= (select clock()) then payout_schedule.next_time
                else excluded.next_time end,
            failure_count = 0,
            caller = excluded.caller, traceparent = excluded.traceparent,
                version = payout_schedule.version + 1,
            update_time = greatest(payout_schedule.update_time, excluded.update_time)
            where (cast(:expected_version as bigint) is null
                or payout_schedule.version = cast(:expected_version as bigint))
                and ((payout_schedule.interval, payout_schedule.weekday,
                    payout_schedule.day_of_month, payout_schedule.cut_off,
                    payout_schedule.time_zone)
                    <> (excluded.interval, excluded.weekday, excluded.day_of_month,
                        excluded.cut_off, excluded.time_zone)
                or payout_schedule.owner <> excluded.owner
                or excluded.has_own_terms
                    and (payout_schedule.minimum_amount, payout_schedule.fee,
                    payout_schedule.reserve, payout_schedule.has_own_terms)
                    <> (excluded.minimum_amount, excluded.fee, excluded.reserve, true))
        returning *),
    {insert_into_outbox("new", _RESOURCE_NAME)}
    select {_COLUMNS}, sequence as outbox_sequence from outbox_sequence, new s {_DEFAULT}
    """,
)
_FIND = Query(
    _StoredScheduleRow,
    f"select {columns(_StoredScheduleRow, 's')} from payout_schedule s "
    "where seller_account = :seller_account and currency = :currency",
)
_LIST_DUE = f"""
    select {columns(DueScheduleRow, "s")} from payout_schedule s
        where next_run_time <= (select clock()) and {{which}}
        order by next_run_time, seller_account, currency limit :limit
"""  # separate statements, because each needs its partial index
_LIST_DUE_DEFAULTS, _LIST_DUE_OF_SELLERS = (
    Query(DueScheduleRow, _LIST_DUE.format(which="seller_account = ''")),
    Query(DueScheduleRow, _LIST_DUE.format(which="seller_account <> ''")),
)
_LOCK_UNCHANGED = """
    l as materialized (
        select s.seller_account, s.currency, r.next_time from payout_schedule s
        join json_to_recordset(cast(:times as json))
            as r (seller_account text collate "C", currency text collate "C", version int,
            old_time timestamptz,
            next_time timestamptz)
            on s.seller_account = r.seller_account and s.currency = r.currency
                and s.version = r.version and s.next_time = r.old_time
        order by s.seller_account, s.currency for update of s)
"""


class _ScheduleKeyRow(NamedTuple):
    seller_account: str
    currency: str


_ADVANCE = Query(
    _ScheduleKeyRow,
    f"""
    with {_LOCK_UNCHANGED}
    update payout_schedule s set next_time = l.next_time, next_run_time = l.next_time,
        failure_count = 0
    from l where s.seller_account = l.seller_account and s.currency = l.currency
    returning s.seller_account, s.currency
    """,
)
_RESCHEDULE = text(f"""
    with {_LOCK_UNCHANGED}
    update payout_schedule s set failure_count = s.failure_count + 1,
        next_run_time = clock() + {BACK_OFF}
    from l where s.seller_account = l.seller_account and s.currency = l.currency
""")
_SELLERS_WITH_SCHEDULE = text(
    "select seller_account from payout_schedule where currency = :currency and seller_account = "
    "any (cast(:sellers as text[]))"
)


def find_effective_schedules(
    connection: Connection, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], EffectiveScheduleRow]:
    """The effective schedule of each (seller, currency): its own, otherwise the default. Those
    without any are missing.
    """
    rows = _FIND_EFFECTIVE_SCHEDULES.all(
        connection,
        sellers=[seller for seller, _ in keys],
        currencies=[currency for _, currency in keys],
    )
    return {(row.seller, row.of_currency): row for row in rows}


def upsert(connection: Connection, new: NewSchedule) -> ChangedScheduleRow | None:
    """Stores a schedule. Returns None if equal values are stored already or the current version is
    not the expected one.
    """
    return _UPSERT.one_or_none(
        connection, **{field: getattr(new, field) for field in new.__slots__}
    )


def compare_stored(connection: Connection, new: NewSchedule) -> tuple[int, bool]:
    """The version of the stored schedule (0: none), and whether its values equal the new ones."""
    row = _FIND.one_or_none(connection, seller_account=new.seller_account, currency=new.currency)
    if row is None:
        return 0, False
    compared_names = (
        "interval",
        "weekday",
        "day_of_month",
        "cut_off",
        "time_zone",
        "owner",
        *(_AMOUNT_COLUMNS if new.has_own_terms else ()),
    )
    is_equal = all(getattr(row, name) == getattr(new, name) for name in compared_names)
    return row.version, is_equal and (row.has_own_terms or not new.has_own_terms)


def list_due(
    connection: Connection, limit: int, *, defaults_only: bool
) -> Sequence[DueScheduleRow]:
    """Schedules whose cut-off has passed and that are due, in the order in which they are due:
    defaults, or those of single sellers.
    """
    query = _LIST_DUE_DEFAULTS if defaults_only else _LIST_DUE_OF_SELLERS
    return query.all(connection, limit=limit)


def advance(
    connection: Connection, times: Sequence[tuple[DueScheduleRow, datetime | None]]
) -> set[tuple[str, str]]:
    """Sets the next cut-offs of schedules that have not changed since they were read. Returns their
    (seller, currency); the others stay as they are.
    """
    items = [_identify_read(row) | {"next_time": next_time} for row, next_time in times]
    return {
        (row.seller_account, row.currency)
        for row in _ADVANCE.all(connection, times=encode_rows(items))
    }


def reschedule(connection: Connection, schedules: Sequence[DueScheduleRow]) -> None:
    """Reschedules those whose run failed, with the same delays as batches. Schedules that changed
    meanwhile stay as they are.
    """
    connection.execute(
        _RESCHEDULE, {"times": encode_rows([_identify_read(row) for row in schedules])}
    )


def _identify_read(row: DueScheduleRow) -> dict[str, Any]:
    """The values that show whether a schedule has changed since it was read."""
    return {
        "seller_account": row.seller_account,
        "currency": row.currency,
        "version": row.version,
        "old_time": row.next_time,
    }


def find_sellers_with_schedule(
    connection: Connection, sellers: list[str], currency: str
) -> set[str]:
    """The given sellers that have their own schedule in the currency."""
    return set(
        connection.execute(
            _SELLERS_WITH_SCHEDULE, {"sellers": sellers, "currency": currency}
        ).scalars()
    )
