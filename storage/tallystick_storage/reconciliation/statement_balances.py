"""The balances of statements, as they follow each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tallystick_core.reconciliation.balances import StatementBalances
from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, columns, text

# The statements of other files that those of this file can follow: of its days, and of the last day
# before.
_EARLIER_BALANCES = Query(
    StatementBalances,
    f"""
    with wanted as (
        select currency, min(least(opening_date, closing_date)) as first_day,
            max(greatest(opening_date, closing_date)) as last_day
        from statement where file_number = :file_number group by currency),
    earlier as materialized (
        select {columns(StatementBalances, "p")}, w.first_day, w.last_day
        from statement p join statement_file f on f.file_number = p.file_number
        join wanted w on w.currency = p.currency
        where f.account = :account and f.state = 'RECONCILED' and p.closing_balance is not null),
    day_before as (
        select currency, max(closing_date) as day from earlier
        where closing_date < first_day group by currency)
    select {columns(StatementBalances, "e")} from earlier e
    left join day_before b on b.currency = e.currency
    where e.opening_date between e.first_day and e.last_day
        or e.closing_date between coalesce(b.day, e.first_day) and e.last_day
    """,
)
_STORE_BALANCES = text("""
    update statement s set statement_balance = r.balance
    from json_to_recordset(cast(:balances as json)) as r (number int, balance numeric)
    where s.file_number = :file_number and s.statement_number = r.number
""")


def earlier_balances(
    connection: Connection, account: str, file_number: int
) -> list[StatementBalances]:
    """The statements of other files of an account that those of a file can follow."""
    rows = _EARLIER_BALANCES.all(connection, account=account, file_number=file_number)
    return [
        replace(
            row,
            opening_balance=to_int(row.opening_balance),
            closing_balance=to_int(row.closing_balance),
            statement_balance=to_int(row.statement_balance),
        )
        for row in rows
    ]


def store_statement_balances(
    connection: Connection, file_number: int, balances: Mapping[int, int]
) -> None:
    """Stores the balance of the account with the lines of each statement, by its number."""
    rows = [{"number": number, "balance": str(balance)} for number, balance in balances.items()]
    connection.execute(_STORE_BALANCES, {"file_number": file_number, "balances": encode_rows(rows)})


def to_int(amount: int | None) -> int | None:
    """The database has amounts beyond 64 bits as decimals."""
    return None if amount is None else int(amount)
