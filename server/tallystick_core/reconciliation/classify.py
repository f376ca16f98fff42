"""Classifies the lines of a statement that match nothing, and what they nearly match.

Matching is SQL, in storage/tallystick_storage/reconciliation/matching.py: lines and ledger entries
whose sums, currencies and dates agree. Only the rest, which is small, comes here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from tallystick_core.reconciliation.breaks import BreakKind, Rules
from tallystick_core.reconciliation.statement import LineType


@dataclass(frozen=True, slots=True)
class UnmatchedLine:
    """A line that matches nothing. Amounts are in minor units."""

    number: int
    """Its position among the lines of the file, from 1."""
    line_type: LineType
    currency: str
    amount: int
    fee: int
    booking_date: date | None
    reference: str
    charge_reference: str
    client_reference: str
    is_correction: bool = False
    """An earlier file had a line of this type and reference, or this one if it is booked."""
    is_repeated: bool = False
    """This file has an earlier line with the same values."""
    settlement_reference: str = ""
    is_charge_taken: bool = False
    """The ledger has its charge or payout, and that entry is with another line or in a break."""
    is_order_taken: bool = False
    """So has it the order or payout that our id names, maybe by another charge."""

    @property
    def gross_amount(self) -> int:
        """Before the fee."""
        return self.amount + self.fee


@dataclass(frozen=True, slots=True)
class OpenItem:
    """A ledger entry that no statement has yet. `amount`: debit less credit, as a statement has
    it.
    """

    sequence: int
    entry_number: int
    line_type: LineType
    """Of the lines that it can match."""
    account: str
    currency: str
    amount: int
    effective_date: date
    external_reference: str
    client_reference: str
    """The id of what was booked."""
    book: str = "main"


@dataclass(frozen=True, slots=True)
class FoundBreak:
    """Lines and entries that do not agree."""

    kind: BreakKind
    currency: str
    difference: int
    """What the statement has more than the ledger, in `currency`: before fees."""
    detail: str
    lines: Sequence[UnmatchedLine] = ()
    items: Sequence[OpenItem] = ()


_BY_TYPE = {
    LineType.REFUND: BreakKind.REFUND_NOT_BOOKED,
    LineType.REFUND_FAILURE: BreakKind.REFUND_NOT_BOOKED,
    LineType.DISPUTE: BreakKind.DISPUTE_NOT_BOOKED,
    LineType.DISPUTE_REVERSAL: BreakKind.DISPUTE_NOT_BOOKED,
    LineType.RESERVE: BreakKind.RESERVE,
    LineType.TRANSFER: BreakKind.TRANSFER,
    LineType.CONVERSION: BreakKind.CONVERSION,
    LineType.ADJUSTMENT: BreakKind.PROVIDER_ADJUSTMENT,
    LineType.SETTLEMENT_FAILURE: BreakKind.SETTLEMENT_FAILED,
    LineType.BANK_ENTRY: BreakKind.BANK_ENTRY_UNKNOWN,
    LineType.OTHER: BreakKind.LINE_UNKNOWN,
    # these are booked as they are, and never come here
    LineType.FEE: BreakKind.LINE_UNKNOWN,
    LineType.SETTLEMENT: BreakKind.LINE_UNKNOWN,
}
"""What a line is that the ledger has no entry for, if that depends on its type alone."""
_DETAILS = {
    BreakKind.CHARGE_NOT_BOOKED: "a charge of ours that the ledger does not have yet",
    BreakKind.CHARGE_UNKNOWN: "a charge that is not ours, or another one of a paid order",
    BreakKind.PAYOUT_NOT_BOOKED: "a payout of ours that the ledger does not have yet",
    BreakKind.PAYOUT_UNKNOWN: "a payout that is not ours, or another one of a paid payout",
    BreakKind.ROUNDING: "file and ledger differ by a rounding",
    BreakKind.AMOUNT_DIFFERS: "file and ledger have different amounts",
    BreakKind.CURRENCY_DIFFERS: "file and ledger have different currencies",
    BreakKind.SIGN_DIFFERS: "file and ledger have opposite signs",
    BreakKind.DATE_DIFFERS: "file and ledger have dates too far apart",
    BreakKind.FEE_DIFFERS: "the fee is no likely part of the charge",
    BreakKind.DUPLICATE_LINE: "the ledger has it once, with another line or in another break",
    BreakKind.LINE_CORRECTED: "an earlier line had it with other values",
    BreakKind.REFUND_NOT_BOOKED: "a refund that the ledger does not have",
    BreakKind.DISPUTE_NOT_BOOKED: "a dispute that the ledger does not have",
    BreakKind.RESERVE: "the provider withheld money, or gave it back",
    BreakKind.TRANSFER: "a transfer between accounts at the provider",
    BreakKind.CONVERSION: "a conversion between currencies",
    BreakKind.PROVIDER_ADJUSTMENT: "a correction of the provider",
    BreakKind.SETTLEMENT_FAILED: "the bank returned a settlement",
    BreakKind.BANK_ENTRY_UNKNOWN: "a booking of the bank that fits nothing",
    BreakKind.LINE_UNKNOWN: "a line with a word that is not known",
    BreakKind.MISSING_IN_FILE: "a ledger entry that no file has",
}


@dataclass(slots=True)
class _Group:
    """Lines that name the same thing, and the entries that it has."""

    lines: list[UnmatchedLine] = field(default_factory=list)
    items: Sequence[OpenItem] = ()


def classify_lines(
    lines: Iterable[UnmatchedLine], items: Iterable[OpenItem], rules: Rules
) -> list[FoundBreak]:
    """The breaks of lines that match nothing: each line is in exactly one, and each entry in at
    most one. `items`: the open entries that have a reference or an id of the lines.
    """
    return [
        found_break for group in _group(lines, items) for found_break in _classify(group, rules)
    ]


def find_agreeing(
    lines: Iterable[UnmatchedLine], items: Iterable[OpenItem], rules: Rules
) -> list[tuple[Sequence[UnmatchedLine], Sequence[OpenItem]]]:
    """The lines and entries that agree in all, as far as a rule lets them differ. `items`: entries
    that have a reference or an id of the lines.
    """
    return [
        (group.lines, group.items)
        for group in _group(lines, items)
        if group.items
        and _kind_of_group(group.lines, group.items, rules) is BreakKind.DATE_DIFFERS
        and _are_dates_near(group.lines, group.items, rules)
    ]


def _group(lines: Iterable[UnmatchedLine], items: Iterable[OpenItem]) -> Iterable[_Group]:
    """The lines that name the same entries, with them; others are alone."""
    by_reference, by_client_reference = _index(items)
    groups: dict[object, _Group] = {}
    for line in sorted(lines, key=lambda line: line.number):
        found = _find_items(line, by_reference, by_client_reference)
        key: object = (found[0].sequence, found[0].entry_number) if found else ("line", line.number)
        group = groups.setdefault(key, _Group(items=found))
        group.lines.append(line)
    return groups.values()


def missing_in_file(item: OpenItem) -> FoundBreak:
    """The break of an entry that no statement has, although it should have come."""
    return _found(BreakKind.MISSING_IN_FILE, items=[item])


_Index = Mapping[tuple[LineType, str], list[OpenItem]]


def _index(items: Iterable[OpenItem]) -> tuple[_Index, _Index]:
    """Groups of entries, by external reference and by our id. Entries that share a reference are
    one charge; each is in one group.
    """
    by_reference: dict[tuple[LineType, str], list[OpenItem]] = {}
    by_client_reference: dict[tuple[LineType, str], list[OpenItem]] = {}
    for item in sorted(items, key=lambda item: (item.sequence, item.entry_number)):
        id_key = (item.line_type, item.client_reference)
        if item.external_reference:
            key = (item.line_type, item.external_reference)
            group = by_reference.setdefault(key, [])
            by_client_reference.setdefault(id_key, group)
        else:
            group = by_client_reference.setdefault(id_key, [])
        group.append(item)
    return by_reference, by_client_reference


def _find_items(
    line: UnmatchedLine, by_reference: _Index, by_client_reference: _Index
) -> Sequence[OpenItem]:
    """The entries that a line names: by the reference of its charge, by its own, by that of the
    settlement that a bank paid or returned, by our id.
    """
    references = [line.charge_reference, line.reference]
    if line.line_type in (LineType.BANK_ENTRY, LineType.SETTLEMENT_FAILURE):
        references.append(line.settlement_reference)
    for reference in references:
        found = by_reference.get((line.line_type, reference))
        if reference and found:
            return found
    own_id = our_id(line.line_type, line.client_reference)
    return by_client_reference.get((line.line_type, own_id), ()) if own_id else ()


def our_id(line_type: str, client_reference: str) -> str:
    """The id of what was booked, from the id that the platform gave to the provider: the charge of
    one order is "o-" and the order's id.
    """
    return client_reference.removeprefix("o-" if line_type == LineType.CHARGE else "")


def _classify(group: _Group, rules: Rules) -> Iterable[FoundBreak]:
    if not group.items:
        for line in group.lines:
            yield _found(_kind_of_line(line), [line])
        return
    lines: list[UnmatchedLine] = []
    copies: list[UnmatchedLine] = []
    for line in group.lines:
        (copies if lines and line.is_repeated else lines).append(line)
    yield _found(_kind_of_group(lines, group.items, rules), lines, group.items)
    for line in copies:
        yield _found(BreakKind.DUPLICATE_LINE, [line])


def _kind_of_line(line: UnmatchedLine) -> BreakKind:
    """The kind of a line that names no open entry."""
    if line.is_repeated:
        return BreakKind.DUPLICATE_LINE
    if line.is_correction:
        return BreakKind.LINE_CORRECTED
    has_reference = bool(line.charge_reference or line.reference)
    if line.is_charge_taken or (line.is_order_taken and not has_reference):
        return BreakKind.DUPLICATE_LINE
    is_ours = bool(line.client_reference) and not line.is_order_taken
    match line.line_type:
        case LineType.CHARGE:
            return BreakKind.CHARGE_NOT_BOOKED if is_ours else BreakKind.CHARGE_UNKNOWN
        case LineType.PAYOUT | LineType.PAYOUT_RETURN:
            return BreakKind.PAYOUT_NOT_BOOKED if is_ours else BreakKind.PAYOUT_UNKNOWN
    return _BY_TYPE[line.line_type]


def _kind_of_group(
    lines: Sequence[UnmatchedLine], items: Sequence[OpenItem], rules: Rules
) -> BreakKind:
    """The kind of lines that name open entries, which do not agree with them."""
    if lines[0].line_type is LineType.SETTLEMENT_FAILURE:
        return BreakKind.SETTLEMENT_FAILED  # it takes its settlement back, and agrees with it
    if {line.currency for line in lines} != {item.currency for item in items}:
        return BreakKind.CURRENCY_DIFFERS
    gross = sum(line.gross_amount for line in lines)
    booked = sum(item.amount for item in items)
    if gross != booked:
        if gross == -booked:
            return BreakKind.SIGN_DIFFERS
        if abs(gross - booked) > rules[BreakKind.ROUNDING].limit or not _are_dates_near(
            lines, items, rules
        ):
            return BreakKind.AMOUNT_DIFFERS
    if not all(is_fee_likely(line.fee, line.gross_amount, rules) for line in lines):
        return BreakKind.FEE_DIFFERS
    return BreakKind.DATE_DIFFERS if gross == booked else BreakKind.ROUNDING


def _are_dates_near(
    lines: Sequence[UnmatchedLine], items: Sequence[OpenItem], rules: Rules
) -> bool:
    """Whether all dates are as near as those of a match must be; a line may have none."""
    days = [line.booking_date for line in lines if line.booking_date is not None]
    days += [item.effective_date for item in items]
    return (max(days) - min(days)).days <= rules[BreakKind.DATE_DIFFERS].limit


def is_fee_likely(fee: int, gross_amount: int, rules: Rules) -> bool:
    """Whether a fee may be right: not below zero, and at most the rule's part of the amount."""
    limit = rules[BreakKind.FEE_DIFFERS].limit
    return 0 <= 100 * fee <= limit * abs(gross_amount)


def _found(
    kind: BreakKind, lines: Sequence[UnmatchedLine] = (), items: Sequence[OpenItem] = ()
) -> FoundBreak:
    currency = lines[0].currency if lines else items[0].currency
    difference = sum(line.gross_amount for line in lines if line.currency == currency) - sum(
        item.amount for item in items if item.currency == currency
    )
    return FoundBreak(kind, currency, difference, _DETAILS[kind], tuple(lines), tuple(items))
