"""Lines one by one, as blocks of lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date

from tallystick_core.money import format_amount
from tallystick_core.reconciliation.packed_lines import LineBlock
from tallystick_core.reconciliation.statement import (
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)

_MAX_LINES = 500


def in_blocks(
    items: Iterable[StatementItem | LineBlock],
) -> Iterator[StatementStart | LineBlock | StatementEnd]:
    """The items, with consecutive lines in blocks."""
    lines: list[StatementLine] = []
    for item in items:
        if isinstance(item, StatementLine):
            lines.append(item)
            if len(lines) < _MAX_LINES:
                continue
        if lines:
            yield _to_block(lines)
            lines = []
        if not isinstance(item, StatementLine):
            yield item


def _to_block(lines: Sequence[StatementLine]) -> LineBlock:
    rows = [
        (
            str(line.line_number),
            line.line_type.value,
            line.code,
            format_amount(line.amount, line.currency),
            line.currency,
            format_amount(line.fee, line.currency) if line.fee else "",
            format_date(line.booking_date),
            format_date(line.value_date),
            line.reference,
            line.charge_reference,
            line.client_reference,
            line.settlement_reference,
            format_optional_amount(line.original_amount, line.original_currency),
            line.original_currency,
            line.text,
        )
        for line in lines
    ]
    return LineBlock(list(zip(*rows, strict=True)), sum(line.amount for line in lines))


def format_optional_amount(amount: int | None, currency: str) -> str:
    """An amount as the API has it; "": there is none."""
    return "" if amount is None else format_amount(amount, currency)


def format_date(day: date | None) -> str:
    """A date as the API has it; "": there is none."""
    return "" if day is None else day.isoformat()
