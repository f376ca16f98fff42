"""The lines of a provider's file, the ledger's entries that they agree with, and the mismatches
that are planted between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_core.reconciliation.statement import (
    LineType,
    OpenStatement,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_storage.reconciliation.ledger_items import ItemRow

ACCOUNT = "psp/bench/clearing"
MIN_LINES = 1_000
_MAX_PLANTED = 1_000
_LINES_PER_PLANTED = 20
_FIRST_DAY = date(2026, 3, 2)
_DAYS = 7
BOOK = "bench"
"""The book of the ledger's entries. Its own book is empty."""


@dataclass(frozen=True, slots=True)
class Part:
    """Lines and entries that belong together. `kind`: of the break that they must be, or None."""

    kind: BreakKind | None
    lines: Sequence[StatementLine]
    items: Sequence[ItemRow]

    @property
    def key(self) -> str:
        """What identifies the break: the reference of its line, or else the id of its entry."""
        return self.lines[0].reference if self.lines else self.items[0].source_id


def parts(line_count: int) -> Iterator[Part]:
    """The parts of a file with this number of lines. The planted ones are spread evenly."""
    planted_count = min(_MAX_PLANTED, line_count // _LINES_PER_PLANTED)
    kinds = list(_PLANTED)
    number = written = planted = 0
    while written < line_count:
        part = _agreeing(number, line_count)
        if planted * line_count <= written * planted_count and planted < planted_count:
            kind = kinds[planted % len(kinds)]
            lines, items = _PLANTED[kind](part.lines[0], part.items[0])
            part = Part(kind, lines, items)
            planted += 1
        yield part
        number += 1
        written += len(part.lines)


def statement_items(line_count: int) -> Iterator[StatementItem]:
    """The statements of the file: one in euros, and one with the lines in another currency."""
    others: list[StatementLine] = []

    def in_euros() -> Iterator[StatementLine]:
        for part in parts(line_count):
            for line in part.lines:
                if line.currency == "EUR":
                    yield line
                else:
                    others.append(line)

    yield from _statement("EUR", in_euros())
    yield from _statement("USD", others)


def _statement(
    currency: str, lines: Iterator[StatementLine] | Sequence[StatementLine]
) -> Iterator[StatementItem]:
    statement = OpenStatement(StatementStart(1, "acct_bench", currency))
    yield statement.start
    yield from map(statement.add, lines)
    yield statement.end(1, None, None)


def _agreeing(number: int, line_count: int) -> Part:
    """A charge that file and ledger have. Nearly all lines name the charge; of a thousand, ten have
    its id as their own reference, ten name our order only, and one names nothing.
    """
    scattered = number * 0x9E3779B97F4A7C15 % 2**64  # ids of providers are not dense
    amount = 1_00 + scattered % 200_00
    charge_id, order_id = f"ch_{number:09d}{scattered:016x}", f"po_{scattered:016x}"
    day = _FIRST_DAY + timedelta(days=number * _DAYS // (line_count + 1))
    line = StatementLine(
        line_number=1,
        line_type=LineType.CHARGE,
        code="charge",
        amount=amount - amount * 3 // 100,
        currency="EUR",
        fee=amount * 3 // 100,
        booking_date=day,
        value_date=day + timedelta(days=2),
        reference=f"txn_{number:09d}{scattered:016x}",
        charge_reference=charge_id,
        client_reference=f"o-{order_id}",
        text="Payment for an order",
    )
    if number % 100 == 0:
        line = replace(line, reference=charge_id, charge_reference="", client_reference="")
    elif number % 100 == 1:
        line = replace(line, charge_reference="")
    elif number % 1000 == 2:
        amount = 1_000_000_00 + number
        line = replace(
            line, amount=amount, fee=0, reference="", charge_reference="", client_reference=""
        )
    item = ItemRow(
        BOOK,
        number + 1,
        1,
        ACCOUNT,
        "EUR",
        amount,
        PostingKind.PAY_IN,
        order_id,
        charge_id,
        datetime.combine(day, time(hour=number % 24), UTC),
        LineType.CHARGE,
    )
    return Part(None, [line], [item])


_Parts = tuple[Sequence[StatementLine], Sequence[ItemRow]]
_Plant = Callable[[StatementLine, ItemRow], _Parts]


def _changed(**values: object) -> _Plant:
    """The line has other values than the ledger."""
    return lambda line, item: ([replace(_named(line, item), **values)], [item])  # type: ignore[arg-type]


def _amount_off_by(difference: int) -> _Plant:
    def plant(line: StatementLine, item: ItemRow) -> _Parts:
        return [replace(_named(line, item), amount=line.amount + difference)], [item]

    return plant


def _only_line(line_type: LineType, *, is_ours: bool = False) -> _Plant:
    """The ledger does not have the line."""

    def plant(line: StatementLine, item: ItemRow) -> _Parts:
        client_reference = line.client_reference or f"o-{item.source_id}" if is_ours else ""
        named = replace(_named(line, item), client_reference=client_reference)
        return [replace(named, line_type=line_type, fee=0)], []

    return plant


def _named(line: StatementLine, item: ItemRow) -> StatementLine:
    """The line with all references, whichever it has."""
    return replace(
        line,
        reference=f"txn_planted_{item.sequence}",
        charge_reference=item.external_reference,
        client_reference="",
    )


def _opposite(line: StatementLine, item: ItemRow) -> _Parts:
    return [replace(_named(line, item), amount=-item.amount, fee=0)], [item]


def _twice(line: StatementLine, item: ItemRow) -> _Parts:
    return [_named(line, item)] * 2, [item]


def _high_fee(line: StatementLine, item: ItemRow) -> _Parts:
    fee = item.amount * 6 // 10
    return [replace(_named(line, item), amount=item.amount - fee, fee=fee)], [item]


def _old_entry(line: StatementLine, item: ItemRow) -> _Parts:
    return [_named(line, item)], [item._replace(effective_time=_long_before(item))]


def _only_entry(_line: StatementLine, item: ItemRow) -> _Parts:
    return [], [item._replace(effective_time=_long_before(item))]


def _long_before(item: ItemRow) -> datetime:
    return item.effective_time - timedelta(days=30)


_PLANTED: Mapping[BreakKind, _Plant] = {
    BreakKind.CHARGE_NOT_BOOKED: _only_line(LineType.CHARGE, is_ours=True),
    BreakKind.CHARGE_UNKNOWN: _only_line(LineType.CHARGE),
    BreakKind.PAYOUT_NOT_BOOKED: _only_line(LineType.PAYOUT, is_ours=True),
    BreakKind.PAYOUT_UNKNOWN: _only_line(LineType.PAYOUT),
    BreakKind.ROUNDING: _amount_off_by(1),
    BreakKind.AMOUNT_DIFFERS: _amount_off_by(250),
    BreakKind.CURRENCY_DIFFERS: _changed(currency="USD"),
    BreakKind.SIGN_DIFFERS: _opposite,
    BreakKind.DATE_DIFFERS: _old_entry,
    BreakKind.FEE_DIFFERS: _high_fee,
    BreakKind.DUPLICATE_LINE: _twice,
    BreakKind.REFUND_NOT_BOOKED: _only_line(LineType.REFUND),
    BreakKind.DISPUTE_NOT_BOOKED: _only_line(LineType.DISPUTE),
    BreakKind.RESERVE: _only_line(LineType.RESERVE),
    BreakKind.TRANSFER: _only_line(LineType.TRANSFER),
    BreakKind.CONVERSION: _only_line(LineType.CONVERSION),
    BreakKind.PROVIDER_ADJUSTMENT: _only_line(LineType.ADJUSTMENT),
    BreakKind.SETTLEMENT_FAILED: _only_line(LineType.SETTLEMENT_FAILURE),
    BreakKind.LINE_UNKNOWN: _only_line(LineType.OTHER),
    BreakKind.MISSING_IN_FILE: _only_entry,
}
"""How a break of each kind is planted. LINE_CORRECTED and BALANCE_GAP need an earlier file, and
BALANCE_DIFFERS needs a reason of a person. BANK_ENTRY_UNKNOWN is for the accounts of banks.
"""
