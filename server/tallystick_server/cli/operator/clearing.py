"""The command that explains the balances of clearing accounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_core.reconciliation.breaks import BreakClass
from tallystick_server.cli.operator.break_options import AccountOption
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption
from tallystick_server.cli.output import Column, escape, print_json, print_status, print_table

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2


def show_clearing_report(
    ctx: typer.Context,
    account: AccountOption = "",
    address: AddressOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Explain what clearing accounts have in the ledger and in the statements.

    LEDGER plus UNPOSTED equals STATEMENTS plus EXPECTED plus BREAKS. EXPECTED are the entries that
    no file has yet. Exits with 1 if anything is UNEXPLAINED.
    """
    with connect(ctx, address) as calls:
        report = calls.reconciliation.clearing_report(account)
    if as_json:
        from tallystick_server.cli.messages import to_json

        print_json(to_json(report))
    elif report.accounts:
        _print_accounts(report.accounts)
    else:
        print_status(f"There is no clearing account{f' {escape(account)}' if account else ''}.")
    return 1 if any(Decimal(found.unexplained) for found in report.accounts) else 0


def _print_accounts(accounts: Sequence[reconciliation_pb2.ClearingAccount]) -> None:
    """Prints a row for each account and currency. Ages and classes that none has are left out."""
    ages = sorted({part.min_age_days for account in accounts for part in account.expected})
    found_classes = {name for account in accounts for name in _sums_by_class(account)}
    classes = [item for item in BreakClass if item in found_classes]
    headings = [
        *("LEDGER", "UNPOSTED", "STATEMENTS"),
        *_age_headings(ages),
        *(f"BREAKS {item}" for item in classes),
        "UNEXPLAINED",
    ]
    columns = [
        *(Column("ACCOUNT"), Column("CURRENCY")),
        *(Column(heading, align_right=True) for heading in headings),
    ]
    print_table(columns, (_to_row(account, ages, classes) for account in accounts))


def _age_headings(ages: Sequence[int]) -> Iterator[str]:
    """The headings of the sums of expected entries, of which each has its smallest age."""
    for age, next_age in zip(ages, [*ages[1:], None], strict=False):
        if next_age is None:
            yield f"EXPECTED {age}+ DAYS"
        else:
            last = next_age - 1
            yield f"EXPECTED {age} DAYS" if last == age else f"EXPECTED {age}-{last} DAYS"


def _sums_by_class(
    account: reconciliation_pb2.ClearingAccount,
) -> dict[str, reconciliation_pb2.BreakSum]:
    from tallystick_server.cli.messages import to_row

    return {to_row(part, ["break_class"])[0]: part for part in account.breaks}


def _to_row(
    account: reconciliation_pb2.ClearingAccount,
    ages: Sequence[int],
    classes: Sequence[BreakClass],
) -> list[str]:
    """The cells of an account. A sum has the number of its entries or breaks."""
    expected = {part.min_age_days: part for part in account.expected}
    breaks = _sums_by_class(account)
    parts = [*(expected.get(age) for age in ages), *(breaks.get(item) for item in classes)]
    return [
        account.account,
        account.currency,
        account.ledger_balance,
        account.unposted,
        account.statement_balance,
        *(f"{part.amount.amount} ({part.count:,})" if part else "" for part in parts),
        account.unexplained,
    ]
