"""What reconciliation posts to the ledger, and what explains the balances of clearing accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_core.operations.alert import AlertKind
from tallystick_storage.alerts import AlertQuery, event_alert_queries
from tallystick_storage.database import encode_rows
from tallystick_storage.gauges import GaugeQuery, event_gauge_queries
from tallystick_storage.sql import Connection, Query, text


@dataclass(slots=True)
class NewPosting:
    """A posting that the ledger does not have yet. `amount`: by which the account of the statement
    changes; `entries`: account and amount of each, a credit above zero.
    """

    kind: str
    source_id: str
    account: str
    currency: str
    amount: int
    entries: Sequence[Mapping[str, Any]]
    external_reference: str
    effective_time: datetime
    reason: str
    caller: str
    file_number: int | None = None
    break_id: str | None = None


class PostingRow(NamedTuple):
    """A posting."""

    kind: str
    source_id: str
    account: str
    currency: str
    amount: int
    entries: list[dict[str, Any]]
    external_reference: str
    effective_time: datetime
    reason: str
    caller: str
    break_id: str | None
    transaction_id: str
    create_time: datetime

    @property
    def key(self) -> PostingKey:
        """Its place in the order in which postings are sent."""
        return PostingKey(self.create_time, self.kind, self.source_id)


class PostingKey(NamedTuple):
    """The place of a posting in the order in which they are sent."""

    create_time: datetime
    kind: str
    source_id: str


BEFORE_ALL = PostingKey(datetime(1970, 1, 1, tzinfo=UTC), "", "")


@dataclass(frozen=True, slots=True)
class PostedSum:
    """What is posted for a file."""

    kind: str
    currency: str
    count: int
    amount: Decimal


class BalanceRow(NamedTuple):
    """The balances of an account, and what it has not posted yet."""

    account: str
    currency: str
    ledger_balance: Decimal
    statement_balance: Decimal
    unposted: Decimal


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """The open entries of an account of an age: at least `min_age_days`."""

    account: str
    currency: str
    min_age_days: int
    count: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class BreakSumRow:
    """What the breaks of a class explain: entries less lines."""

    account: str
    currency: str
    break_class: str
    count: int
    amount: Decimal


@dataclass(slots=True)
class ClearingReport:
    """What each account has, and what explains it, at one moment."""

    balances: list[BalanceRow] = field(default_factory=list)
    expected: list[ExpectedRow] = field(default_factory=list)
    breaks: list[BreakSumRow] = field(default_factory=list)
    sequence: int = 0
    """Of the last transaction of the ledger that it includes."""


@dataclass(frozen=True, slots=True)
class _ReportRow:
    part: str
    account: str
    currency: str
    min_age_days: int
    break_class: str
    count: int
    amount: Decimal
    ledger_balance: Decimal
    statement_balance: Decimal


_POSTING = ", ".join(PostingRow._fields)
_INSERT = text("""
    insert into ledger_posting (kind, source_id, account, currency, amount, entries,
        external_reference, effective_time, reason, caller, file_number, break_id, is_posted,
        transaction_id, create_time)
    select r.kind, r.source_id, r.account, r.currency, r.amount, r.entries, r.external_reference,
        r.effective_time, r.reason, r.caller, r.file_number, r.break_id, false, '', clock()
    from json_to_recordset(cast(:postings as json)) as r (kind text, source_id text, account text,
        currency text, amount bigint, entries jsonb, external_reference text,
        effective_time timestamptz, reason text, caller text, file_number bigint, break_id text)
    order by r.kind collate "C", r.source_id collate "C"
""")
_LIST_DUE = Query(
    PostingRow,
    f"""
    select {_POSTING} from ledger_posting where not is_posted
        and (create_time, kind, source_id) > (:create_time, :kind, :source_id)
    order by create_time, kind, source_id limit :limit
    """,
)
_OF_BREAKS = Query(
    PostingRow,
    f"""
    select {_POSTING} from ledger_posting where break_id = any (cast(:break_ids as text[]))
    order by create_time, kind, source_id
    """,
)
_SUMS = Query(
    PostedSum,
    """
    select kind, currency, count(*) as count, sum(amount) as amount from ledger_posting
    where file_number = :file_number and break_id is null
    group by kind, currency order by kind, currency
    """,
)
_AGES = "unnest(array[1, 2, 3, 5, 10, 30])"  # in days
# The sums of hours, and the single entries of the hours in which an age ends. A time of `times` is
# the first that is younger than an age.
_EXPECTED_PARTS = f"""
    age as materialized (
        select array_agg(time + interval '1 us' order by time) as times,
            array_agg(date_bin('1 hour', time, timestamptz 'epoch')) as hours
        from (select clock() - days * interval '1 day' as time from {_AGES} days) t),
    expected_part as (
        select s.account, s.currency, s.hour as time, s.entry_count, s.amount
        from expected_sum s, age where s.hour <> all (age.hours)
        union all
        select s.account, s.currency, i.effective_time, 1, i.amount
        from expected_sum s, age cross join lateral (
            select i.effective_time, i.amount from open_item i
            where i.account = s.account and i.currency = s.currency
                and i.effective_time >= s.hour and i.effective_time < s.hour + interval '1 hour'
            offset 0) i
        where s.hour = any (age.hours))"""
# the longest of the ages that an entry has reached
_AGE_DAYS = "(array[30, 10, 5, 3, 2, 1, 0])[1 + width_bucket(p.time, (select times from age))]"
# One statement, so that all parts are of the same moment.
_REPORT = Query(
    _ReportRow,
    f"""
    with {_EXPECTED_PARTS},
    waiting as materialized (
        select e.account, p.currency, -sum(e.amount) as amount
        from ledger_posting p
        cross join lateral jsonb_to_recordset(p.entries)
            as e (account text collate "C", amount bigint)
        where not p.is_posted and not (p.kind = 'SETTLEMENT' and e.account = 'banks/transit')
        group by e.account, p.currency),
    report as (
        select 'BALANCE' as part, b.account, b.currency, 0 as min_age_days, '' as break_class,
            0 as count, coalesce(w.amount, 0) as amount, b.ledger_balance, b.statement_balance
        from clearing_balance b
        left join waiting w on w.account = b.account and w.currency = b.currency
        union all
        select 'EXPECTED', p.account, p.currency, {_AGE_DAYS}, '',
            cast(sum(p.entry_count) as bigint), sum(p.amount), 0, 0
        from expected_part p where :account = '' or p.account = :account group by 2, 3, 4
        union all
        select 'BREAK', account, currency, 0, break_class, cast(sum(break_count) as bigint),
            sum(amount), 0, 0
        from break_sum group by account, currency, break_class having sum(break_count) > 0
        union all
        select 'POSITION', '', book, 0, '', sequence, 0, 0, 0 from ledger_position)
    select * from report where :account = '' or account = :account or part = 'POSITION'
    order by account, currency, min_age_days, break_class
    """,
)
_EXPECTED_BY_AGE = f"""
    with {_EXPECTED_PARTS}
    select p.account, p.currency, cast({_AGE_DAYS} as text), sum(p.amount) from expected_part p
    group by 1, 2, 3
"""
_OVERDUE_BREAKS = """
    select 'breaks/' || break_id as resource_name, kind || ' of ' || account as detail
    from break where state in ('OPEN', 'AWAITING_APPROVAL', 'AWAITING_REOPENING')
        and case state when 'AWAITING_REOPENING' then update_time -- it was resolved until then
            else create_time end < (select clock()) - cast(:break_age as interval)
"""
_STUCK_POSTINGS = """
    select 'ledgerPostings/' || source_id as resource_name,
        kind || ' is not in the ledger' as detail
    from ledger_posting where not is_posted
        and create_time < (select clock()) - cast(:posting_age as interval)
"""
# MISSING_IN_FILE is for the accounts of providers only: a bank statement does not say which payouts
# and settlements it should have had.
_OVERDUE_ENTRIES = """
    select distinct 'clearingAccounts/' || b.account as resource_name,
        'entries are in no statement' as detail
    from clearing_balance b cross join lateral (
        select from open_item i where i.account = b.account and i.currency = b.currency
            and i.effective_time < (select clock()) - cast(:entry_age as interval) limit 1) i
    where b.account = 'banks/transit' or b.account like 'payouts/%/clearing'
"""


def insert(connection: Connection, postings: Sequence[NewPosting]) -> None:
    """Stores postings that are to be sent to the ledger."""
    if postings:
        connection.execute(_INSERT, {"postings": encode_rows(postings)})


def list_due(connection: Connection, after: PostingKey, limit: int) -> list[PostingRow]:
    """Postings that the ledger does not have yet, oldest first, after one of them."""
    return _LIST_DUE.all(connection, **after._asdict(), limit=limit)


def of_breaks(connection: Connection, break_ids: Sequence[str]) -> list[PostingRow]:
    """The postings for breaks, oldest first."""
    return _OF_BREAKS.all(connection, break_ids=list(break_ids))


def sums_of_file(connection: Connection, file_number: int) -> list[PostedSum]:
    """What is posted for a file, except for its breaks."""
    return _SUMS.all(connection, file_number=file_number)


def clearing_report(connection: Connection, account: str, book: str) -> ClearingReport:
    """The balances of an account, and what explains them; "": of all."""
    report = ClearingReport()
    for row in _REPORT.all(connection, account=account):
        match row.part:
            case "BALANCE":
                report.balances.append(
                    BalanceRow(
                        row.account,
                        row.currency,
                        row.ledger_balance,
                        row.statement_balance,
                        row.amount,
                    )
                )
            case "EXPECTED":
                report.expected.append(
                    ExpectedRow(row.account, row.currency, row.min_age_days, row.count, row.amount)
                )
            case "BREAK":
                report.breaks.append(
                    BreakSumRow(row.account, row.currency, row.break_class, row.count, row.amount)
                )
            case "POSITION" if row.currency == book:
                report.sequence = row.count
    return report


_QUEUES = {
    "BREAK_FINANCE": "break where state = 'OPEN' and break_class = 'FINANCE'",
    "BREAK_INVESTIGATION": "break where state = 'OPEN' and break_class = 'INVESTIGATION'",
    "RESOLUTION_APPROVAL": "break where state = 'AWAITING_APPROVAL'",
    "REOPENING_APPROVAL": "break where state = 'AWAITING_REOPENING'",
}
"""What waits for a person in this service."""


def gauge_queries() -> Sequence[GaugeQuery]:
    """The gauges of this service."""
    return (
        *event_gauge_queries(queues=_QUEUES),
        GaugeQuery("tallystick.clearing.expected", _EXPECTED_BY_AGE),
    )


def alert_queries(
    break_age: float, posting_age: float, entry_age: float, events_age: float
) -> list[AlertQuery]:
    """The conditions for alerts. Ages in seconds."""
    return [
        AlertQuery(
            AlertKind.BREAK_OVERDUE,
            "breaks",
            _OVERDUE_BREAKS,
            {"break_age": f"{break_age} seconds"},
        ),
        AlertQuery(
            AlertKind.ADJUSTMENT_STUCK,
            "ledgerPostings",
            _STUCK_POSTINGS,
            {"posting_age": f"{posting_age} seconds"},
        ),
        AlertQuery(
            AlertKind.ENTRIES_OVERDUE,
            "clearingAccounts",
            _OVERDUE_ENTRIES,
            {"entry_age": f"{entry_age} seconds"},
        ),
        *event_alert_queries(events_age),
    ]
