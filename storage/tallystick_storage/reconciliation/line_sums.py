"""The sums of the lines and entries of a file, once all its lines have their outcome."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import NamedTuple

from tallystick_storage.reconciliation.statement_files import FileRow
from tallystick_storage.sql import Connection, Query


class LineSums(NamedTuple):
    """The lines of a statement, once none is staged. Amounts in minor units."""

    statement_number: int
    matched_count: int
    repeated_count: int
    amount: Decimal | None
    """By how much the new lines change the balance; None: there are none."""
    fee: Decimal
    """Of the matched lines."""
    last_day: date | None


class AccountSum(NamedTuple):
    """A sum of entries on an account."""

    account: str
    currency: str
    amount: int


class SettlementSum(NamedTuple):
    """What the provider paid to the bank at once."""

    reference: str
    currency: str
    amount: int
    day: date | None
    number: int
    """Of its first line."""
    is_line: bool
    """Whether it is a line of the statement."""


_LINE_SUMS = Query(
    LineSums,
    """
    select statement_number, count(*) filter (where outcome = 'MATCHED') as matched_count,
        count(*) filter (where outcome = 'REPEATED') as repeated_count,
        sum(amount) filter (where outcome <> 'REPEATED') as amount,
        coalesce(sum(case when line_type = 'FEE' then -amount else fee end)
            filter (where outcome = 'MATCHED'), 0) as fee,
        max(booking_date) as last_day
    from statement_line where file_number = :file_number group by statement_number
    """,
)
_OTHER_ACCOUNT_SUMS = Query(
    AccountSum,
    """
    select account, currency, sum(amount) as amount from closed_item
    where file_number = :file_number and match_number is not null and account <> :account
    group by account, currency having sum(amount) <> 0 order by account, currency
    """,
)
_SETTLEMENT_LINES = Query(
    SettlementSum,
    """
    select coalesce(nullif(settlement_reference, ''), reference) as reference, currency,
        amount + fee as amount, coalesce(value_date, booking_date) as day, number, true as is_line
    from statement_line where file_number = :file_number and outcome = 'MATCHED'
        and line_type = 'SETTLEMENT' and amount + fee <> 0 order by number
    """,
)
# A copy or a correction of a line is no money that was paid.
_SETTLEMENT_SUMS = Query(
    SettlementSum,
    """
    with line as (
        select settlement_reference as reference, currency, amount, line_type, number,
            coalesce(value_date, booking_date) as day,
            outcome <> 'REPEATED' and (break_id is null or not exists (
                select from break b where b.break_id = l.break_id
                    and b.kind in ('DUPLICATE_LINE', 'LINE_CORRECTED'))) as is_paid
        from statement_line l where file_number = :file_number and settlement_reference <> '')
    select reference, currency, -sum(amount) filter (where is_paid) as amount,
        max(day) filter (where is_paid) as day, min(number) filter (where is_paid) as number,
        false as is_line
    from line group by reference, currency
    having not bool_or(line_type = 'SETTLEMENT') and sum(amount) filter (where is_paid) <> 0
    order by number
    """,
)


def sum_lines(connection: Connection, file: FileRow) -> dict[int, LineSums]:
    """The sums of the lines of a file, by the number of their statement."""
    rows = _LINE_SUMS.all(connection, file_number=file.file_number)
    return {row.statement_number: row for row in rows}


def other_account_sums(connection: Connection, file: FileRow) -> list[AccountSum]:
    """The entries that the lines of a file match on other accounts than the file's."""
    return _OTHER_ACCOUNT_SUMS.all(connection, file_number=file.file_number, account=file.account)


def settlements(
    connection: Connection, file: FileRow, *, by_reference: bool
) -> list[SettlementSum]:
    """What the provider paid to the bank: the lines that say so, and `by_reference` the sums of the
    lines of each settlement without such a line. Below zero: it left the account.
    """
    found = _SETTLEMENT_LINES.all(connection, file_number=file.file_number)
    if by_reference:
        found += _SETTLEMENT_SUMS.all(connection, file_number=file.file_number)
    return found
