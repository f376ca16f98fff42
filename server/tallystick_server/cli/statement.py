"""The command that reads statements of providers and banks, and checks their sums."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tallystick_server.app.errors import StartupError
from tallystick_server.cli.output import Column, escape, print_json, print_status, print_table
from tallystick_server.cli.runner import example

if TYPE_CHECKING:
    from tallystick_core.reconciliation.statement import StatementEnd, StatementItem, StatementStart

_COLUMNS = (
    Column("account"),
    Column("period"),
    Column("lines", align_right=True),
    Column("opening", align_right=True),
    Column("total", align_right=True),
    Column("closing", align_right=True),
    Column("difference", align_right=True),
    Column("currency"),
    Column("types", can_wrap=True),
)


@dataclass
class _Summary:
    """One statement without its lines."""

    start: StatementStart
    types: Counter[str] = field(default_factory=Counter)
    end: StatementEnd | None = None


def add_statement_command(app: typer.Typer, panel: str) -> None:
    """Adds the command to a panel of the help."""
    app.command(rich_help_panel=panel, epilog=example("tallystick statement july.sta"))(statement)


def statement(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A statement or settlement file.",
            exists=True,
            dir_okay=False,
        ),
    ],
    accept_difference: Annotated[
        bool,
        typer.Option(
            "--accept-difference", help="Show a statement whose balances and lines differ."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a statement of a provider or a bank, and show its sums. Nothing is stored.

    Knows camt.053, MT940, BAI2, Stripe's payout reconciliation report, PayPal's settlement report,
    Adyen's settlement details, and the platform's own CSV. A damaged file is rejected as a whole,
    with the line and what was expected.
    """
    from tallystick_server.reconciliation.formats.registry import find_format, read_statements
    from tallystick_server.reconciliation.formats.text_file import TextFile

    text_file = TextFile(file)
    with readable(file):
        format_ = find_format(text_file)
        items = read_statements(text_file, format_, accepts_difference=accept_difference)
        summaries = list(_summarize(items))
    if as_json:
        statements = [_as_dict(summary) for summary in summaries]
        print_json({"file": file.name, "format": format_.name, "statements": statements})
    else:
        print_table(_COLUMNS, map(_as_row, summaries))
        if not summaries:
            print_status(f"{escape(file.name)} has no statements.")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raises StartupError if the block cannot read the file, or finds it damaged. Files are read
    several times, which a pipe does not permit.
    """
    from tallystick_core.reconciliation.statement import DamagedFile

    name = escape(str(file))
    try:
        if not S_ISREG(os.stat(file).st_mode):
            raise StartupError(f"{name} must be a regular file, not a pipe or a device.")
        yield
    except DamagedFile as error:
        raise StartupError(f"{escape(str(error))}.") from None
    except OSError as error:
        raise StartupError(f"{name} cannot be read: {error.strerror or error}.") from None


def _summarize(items: Iterable[StatementItem]) -> Iterator[_Summary]:
    from tallystick_core.reconciliation.statement import (
        StatementEnd,
        StatementLine,
        StatementStart,
    )

    summary: _Summary | None = None
    for item in items:
        match item:
            case StatementStart():
                summary = _Summary(item)
            case StatementLine() if summary is not None:
                summary.types[item.line_type] += 1
            case StatementEnd() if summary is not None:
                summary.end = item
                yield summary


def _as_dict(summary: _Summary) -> dict[str, Any]:
    """A statement for programs: amounts as decimal text, None where the file has none."""
    from tallystick_core.money import format_amount
    from tallystick_core.reconciliation.statement import masked_account

    start, end = summary.start, summary.end
    if end is None:
        raise ValueError("a statement without an end")

    def amount(value: int | None) -> str | None:
        return None if value is None else format_amount(value, start.currency)

    return {
        "account": masked_account(start.account),
        "statement_id": start.statement_id,
        "currency": start.currency,
        "opening_date": start.opening_date and start.opening_date.isoformat(),
        "closing_date": end.closing_date and end.closing_date.isoformat(),
        "lines": end.line_count,
        "opening_balance": amount(start.opening_balance),
        "total": amount(end.total),
        "closing_balance": amount(end.closing_balance),
        "difference": amount(end.difference),
        "types": dict(sorted(summary.types.items())),
    }


def _as_row(summary: _Summary) -> list[str]:
    values = _as_dict(summary)
    types = ", ".join(f"{name} {count}" for name, count in values["types"].items())
    return [
        values["account"] or "-",
        " to ".join(filter(None, (values["opening_date"], values["closing_date"]))) or "-",
        str(values["lines"]),
        values["opening_balance"] or "-",
        values["total"],
        values["closing_balance"] or "-",
        values["difference"] or "-",
        values["currency"],
        types,
    ]
