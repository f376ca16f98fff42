"""Operators' acknowledgements of unmatched transfers and of conflicting provider reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.payout.state import PayoutTransitionReason
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, text


@dataclass(slots=True)
class NewReport:
    """A provider report that conflicts with an earlier one; `number` counts the reports of the
    payout.
    """

    payout_id: str
    number: int
    report: str


class PayoutReportRow(NamedTuple):
    """A stored conflicting report, and who has acknowledged it; "": nobody has."""

    payout_id: str
    number: int
    report: str
    create_time: datetime
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


_LOAD_REPORTS = Query(
    PayoutReportRow,
    "select {columns} from conflicting_report where payout_id = any (cast(:ids as text[])) "
    "order by payout_id, number",
)
_INSERT_REPORTS = text("""
    insert into conflicting_report (payout_id, number, report, create_time)
    select payout_id, number, report, t.now
    from json_to_recordset(cast(:reports as json))
        as r (payout_id text collate "C", number int, report text), (select clock() as now) t
        order by payout_id, number
""")


def load_reports(
    connection: Connection, payout_ids: Sequence[str]
) -> dict[str, list[PayoutReportRow]]:
    """The conflicting reports of payouts, oldest first, by payout id. Payouts without any are
    missing.
    """
    by_payout: dict[str, list[PayoutReportRow]] = {}
    for row in _LOAD_REPORTS.all(connection, ids=list(payout_ids)):
        by_payout.setdefault(row.payout_id, []).append(row)
    return by_payout


def insert_reports(connection: Connection, reports: Sequence[NewReport]) -> None:
    """Stores conflicting reports of locked payouts."""
    connection.execute(_INSERT_REPORTS, {"reports": encode_rows(reports)})


class AcknowledgedPayoutRow(NamedTuple):
    """The version of a payout that an acknowledgement made, and the outbox row in which it is to be
    recorded.
    """

    version: int
    update_time: datetime
    outbox_sequence: int


_ACKNOWLEDGE = f"""
    with p as materialized (
        update payout p set version = p.version + 1, update_time = greatest(p.update_time, t.now)
        from (select clock() as now) t where p.payout_id = :payout_id and p.booked
            returning p.payout_id, p.version, p.state, p.update_time),
    history as (
        insert into payout_history (payout_id, version, from_state, to_state, transition_reason,
            booked, actor,
            reason, create_time)
        select payout_id, version, state, state, '{PayoutTransitionReason.ACKNOWLEDGED}', true,
            :operator, :reason, update_time from p),
    acknowledged as (
        update {{table}} a set acknowledged_by = :operator, acknowledge_reason = :reason,
            acknowledge_time = p.update_time
        from p where a.payout_id = p.payout_id and a.{{key}} = :key),
    {insert_into_outbox("p", "'payouts/' || payout_id")}
    select p.version, p.update_time, sequence as outbox_sequence from p, outbox_sequence
"""
_ACKNOWLEDGE_TRANSFER = Query(
    AcknowledgedPayoutRow, _ACKNOWLEDGE.format(table="transfer", key="provider_reference")
)
_ACKNOWLEDGE_REPORT = Query(
    AcknowledgedPayoutRow, _ACKNOWLEDGE.format(table="conflicting_report", key="number")
)


def acknowledge_transfer(
    connection: Connection, payout_id: str, provider_reference: str, operator: str, reason: str
) -> Sequence[AcknowledgedPayoutRow]:
    """Acknowledges an unmatched transfer of a locked, booked payout, as a new version of the
    payout.
    """
    return _ACKNOWLEDGE_TRANSFER.all(
        connection,
        payout_id=payout_id,
        key=provider_reference,
        operator=operator,
        reason=reason,
    )


def acknowledge_report(
    connection: Connection, payout_id: str, number: int, operator: str, reason: str
) -> Sequence[AcknowledgedPayoutRow]:
    """Acknowledges a conflicting report of a locked, booked payout, as a new version of the
    payout.
    """
    return _ACKNOWLEDGE_REPORT.all(
        connection, payout_id=payout_id, key=number, operator=operator, reason=reason
    )
