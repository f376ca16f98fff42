"""Payout schedules: when and on what terms sellers are paid automatically. The seller "" means
the default schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Row, text


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

_TERMS = """case when s.has_own_terms then s.minimum_amount
    else coalesce(d.minimum_amount, 0) end as minimum_amount,
    case when s.has_own_terms then s.fee else coalesce(d.fee, 0) end as fee, case
        when s.has_own_terms
        then s.reserve else coalesce(d.reserve, 0) end as reserve"""
_RESOURCE_NAME = (
    "'payoutSchedules/' || case seller_account when '' then '-' else seller_account end "
    "|| '/' || currency"
)
_COLUMNS = f"""s.seller_account, s.currency, s.interval, s.weekday, s.day_of_month, s.cut_off,
    s.time_zone, {_TERMS}, s.has_own_terms, s.owner, s.next_time,
    s.caller, s.traceparent, s.version, s.update_time"""
_DEFAULT = "left join payout_schedule d on d.seller_account = '' and d.currency = s.currency"

_FIND_EFFECTIVE_SCHEDULES = text(f"""
    select g.seller, g.currency as of_currency, {_COLUMNS}
    from unnest(cast(:sellers as text[]), cast(:currencies as text[])) as g (seller, currency)
    cross join lateral (
        select * from payout_schedule p where p.currency = g.currency
            and p.seller_account in (g.seller, '')
        order by p.seller_account desc limit 1) s
    {_DEFAULT}
""")
_UPSERT = text(f"""
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
""")
_AMOUNT_COLUMNS = ("minimum_amount", "fee", "reserve")
_FIND = text(
    "select * from payout_schedule where seller_account = :seller_account and currency = :currency"
)
_LIST_DUE = """
    select * from payout_schedule where next_run_time <= (select clock()) and {which}
        order by next_run_time, seller_account, currency limit :limit
"""  # separate statements, because each needs its partial index
_LIST_DUE_DEFAULTS, _LIST_DUE_OF_SELLERS = (
    text(_LIST_DUE.format(which="seller_account = ''")),
    text(_LIST_DUE.format(which="seller_account <> ''")),
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
_ADVANCE = text(f"""
    with {_LOCK_UNCHANGED}
    update payout_schedule s set next_time = l.next_time, next_run_time = l.next_time,
        failure_count = 0
    from l where s.seller_account = l.seller_account and s.currency = l.currency
    returning s.seller_account, s.currency
""")
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
) -> dict[tuple[str, str], Row[Any]]:
    """The effective schedule of each (seller, currency): its own, otherwise the default. Those
    without any are missing.
    """
    values = {
        "sellers": [seller for seller, _ in keys],
        "currencies": [currency for _, currency in keys],
    }
    return {
        (row.seller, row.of_currency): row
        for row in connection.execute(_FIND_EFFECTIVE_SCHEDULES, values)
    }


def upsert(connection: Connection, new: NewSchedule) -> Row[Any] | None:
    """Stores a schedule. Returns it with the outbox row in which it is to be recorded. Returns None
    if equal values are stored already or the current version is not the expected one.
    """
    return connection.execute(
        _UPSERT, {field: getattr(new, field) for field in new.__slots__}
    ).one_or_none()


def compare_stored(connection: Connection, new: NewSchedule) -> tuple[int, bool]:
    """The version of the stored schedule (0: none), and whether its values equal the new ones."""
    row = connection.execute(
        _FIND, {"seller_account": new.seller_account, "currency": new.currency}
    ).one_or_none()
    if row is None:
        return 0, False
    columns = (
        "interval",
        "weekday",
        "day_of_month",
        "cut_off",
        "time_zone",
        "owner",
        *(_AMOUNT_COLUMNS if new.has_own_terms else ()),
    )
    is_equal = all(getattr(row, name) == getattr(new, name) for name in columns)
    return row.version, is_equal and (row.has_own_terms or not new.has_own_terms)


def list_due(connection: Connection, limit: int, *, defaults_only: bool) -> Sequence[Row[Any]]:
    """Schedules whose cut-off has passed and that are due, in the order in which they are due:
    defaults, or those of single sellers.
    """
    return connection.execute(
        _LIST_DUE_DEFAULTS if defaults_only else _LIST_DUE_OF_SELLERS, {"limit": limit}
    ).all()


def advance(
    connection: Connection, times: Sequence[tuple[Row[Any], datetime | None]]
) -> set[tuple[str, str]]:
    """Sets the next cut-offs of schedules that have not changed since they were read. Returns their
    (seller, currency); the others stay as they are.
    """
    items = [_identify_read(row) | {"next_time": next_time} for row, next_time in times]
    return {
        (row.seller_account, row.currency)
        for row in connection.execute(_ADVANCE, {"times": encode_rows(items)})
    }


def reschedule(connection: Connection, schedules: Sequence[Row[Any]]) -> None:
    """Reschedules those whose run failed, with the same delays as batches. Schedules that changed
    meanwhile stay as they are.
    """
    connection.execute(
        _RESCHEDULE, {"times": encode_rows([_identify_read(row) for row in schedules])}
    )


def _identify_read(row: Row[Any]) -> dict[str, Any]:
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
