"""PayPal settlement reports for tests, with right totals and counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from tallystick_core.reconciliation.statement import StatementLine
from tallystick_server.reconciliation.formats.paypal_stl import REQUIRED_COLUMNS

COLUMNS = (*REQUIRED_COLUMNS, "Custom Field", "Consumer ID", "Bank Reference ID")
_OPENING, _CLOSING = "2026/01/30 00:00:00 -0700", "2026/01/30 23:59:59 -0700"


@dataclass(frozen=True)
class Section:
    """An account. `openings`: the opening balance of each currency."""

    account: str
    openings: dict[str, int]
    lines: Sequence[StatementLine]


def paypal_rows(*sections: Section) -> list[list[str]]:
    """The rows of a report."""
    rows = [["RH", "2026/01/31 03:00:00 -0700", "A", "ACCOUNT", "009"], ["FH", "01"]]
    report: dict[str, list[int]] = {}
    for section in sections:
        rows += [["SH", _OPENING, _CLOSING, section.account, ""], list(COLUMNS)]
        rows += [_line_row(line) for line in section.lines]
        for currency, opening in section.openings.items():
            lines = [line for line in section.lines if line.currency == currency]
            totals = _totals(lines)
            closing = opening + sum(line.amount for line in lines)
            rows.append(["SF", currency, *map(str, totals), *_signed(opening), *_signed(closing)])
            sums = report.setdefault(currency, [0] * 4)
            report[currency] = [a + b for a, b in zip(sums, totals, strict=True)]
        rows.append(["SC", str(len(section.lines))])
    count = str(sum(len(section.lines) for section in sections))
    rows += [
        ["RF", currency, *map(str, totals), "CR", "0", "CR", "0"]
        for currency, totals in report.items()
    ]
    return [*rows, ["RC", count], ["FF", count]]


def write_rows(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _totals(lines: Sequence[StatementLine]) -> list[int]:
    gross = [line.gross_amount for line in lines]
    fees = [-line.fee for line in lines]
    return [abs(sum(x for x in amounts if (x > 0) == credit))
            for amounts in (gross, fees) for credit in (True, False)]  # fmt: skip


def _signed(amount: int) -> tuple[str, str]:
    return ("CR" if amount >= 0 else "DR"), str(abs(amount))


def _line_row(line: StatementLine) -> list[str]:
    direction, amount = _signed(line.gross_amount)
    fee_cells = [*_signed(-line.fee), line.currency] if line.fee else ["", "", ""]
    time = f"{line.booking_time:%Y/%m/%d %H:%M:%S} +0000"
    return [
        "SB", line.reference, line.client_reference, line.charge_reference, "TXN", line.code, time,
        time, direction, amount, line.currency, *fee_cells, "", "", line.settlement_reference,
    ]  # fmt: skip
