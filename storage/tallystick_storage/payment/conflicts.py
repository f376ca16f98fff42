"""Provider reports about a charge that conflict with what is stored. They are kept for an operator
and move no money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.next_action import MAX_OPEN_REPORTS
from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, text


@dataclass(slots=True)
class MoneyReport:
    """Money that a provider reports for a charge, in minor units."""

    charge_id: str
    provider: str
    provider_reference: str
    amount: int
    currency: str


@dataclass(slots=True)
class ChargeReport:
    """A report of another kind, in words."""

    charge_id: str
    report: str


class ChargeReportRow(NamedTuple):
    """A stored conflicting report, and who has acknowledged it; "": nobody has."""

    number: int
    report: str
    create_time: datetime
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


# A report that is open, or equal to the latest one, is not stored again: a provider that repeats it
# raises no second alert.
_INSERT = """
    insert into conflicting_report (charge_id, number, report, create_time)
    select c.charge_id, l.number + 1, c.report, clock() from {conflicting} c
    cross join lateral (
        select coalesce(max(p.number), 0) as number,
            count(*) filter (where p.acknowledged_by = '') as open from conflicting_report p
        where p.charge_id = c.charge_id) l
    where l.open < :limit and not exists (
        select from conflicting_report p where p.charge_id = c.charge_id and p.report = c.report
            and (p.acknowledged_by = '' or p.number = l.number))
    order by c.charge_id on conflict do nothing
"""
_INSERT_REPORTS = text(
    _INSERT.format(
        conflicting="""(select distinct on (charge_id) * from json_to_recordset(
            cast(:reports as json)) as r (charge_id text collate "C", report text)
            order by charge_id)"""
    )
)
_INSERT_MONEY_REPORTS = text(
    """
    with r as (
        select distinct on (charge_id) * from json_to_recordset(cast(:reports as json))
            as r (charge_id text collate "C", provider text, provider_reference text,
            amount bigint, currency text) order by charge_id),
    conflicting as (
        select r.charge_id,
            'Succeeded ' || r.provider_reference || ' ' || r.amount || ' ' || r.currency || case
            when m.charge_id <> r.charge_id then ', which is the money of charge ' || m.charge_id
            else ', reported before as ' || k.amount || ' ' || k.currency end as report
        from r join provider_money m on m.provider = r.provider
            and m.provider_reference = r.provider_reference
        left join lateral (
            select a.moved_amount as amount, a.moved_currency as currency from attempt a
            where a.kind = 'charge' and a.operation_id = r.charge_id and a.outcome = 'SUCCEEDED'
                and a.provider_reference = r.provider_reference
            union all
            select u.amount, u.currency from unapplied_charge u
            where u.provider = r.provider and u.provider_reference = r.provider_reference
                and u.charge_id = r.charge_id
            limit 1) k on true
        where m.charge_id <> r.charge_id or (k.amount, k.currency) <> (r.amount, r.currency))"""
    + _INSERT.format(conflicting="conflicting")
)
_LIST_REPORTS = Query(
    ChargeReportRow,
    "select {columns} from conflicting_report where charge_id = :charge_id order by number",
)
_ACKNOWLEDGE = text("""
    update conflicting_report set acknowledged_by = :operator, acknowledge_reason = :reason,
        acknowledge_time = clock()
    where charge_id = :charge_id and number = :number and acknowledged_by = ''
""")


def insert_reports(connection: Connection, reports: Sequence[ChargeReport]) -> None:
    """Stores reports that contradict what is stored."""
    connection.execute(
        _INSERT_REPORTS, {"reports": encode_rows(reports), "limit": MAX_OPEN_REPORTS}
    )


def insert_money_reports(connection: Connection, reports: Sequence[MoneyReport]) -> None:
    """Stores those of the reports that use another charge's money, or report known money with
    another amount.
    """
    connection.execute(
        _INSERT_MONEY_REPORTS, {"reports": encode_rows(reports), "limit": MAX_OPEN_REPORTS}
    )


def list_reports(connection: Connection, charge_id: str) -> list[ChargeReportRow]:
    """The conflicting reports of a charge, oldest first."""
    return _LIST_REPORTS.all(connection, charge_id=charge_id)


def acknowledge(
    connection: Connection, charge_id: str, number: int, operator: str, reason: str
) -> bool:
    """Acknowledges a report that is not acknowledged yet. Returns whether there was one."""
    values = {"charge_id": charge_id, "number": number, "operator": operator, "reason": reason}
    return bool(connection.execute(_ACKNOWLEDGE, values).rowcount)
