"""The classification of lines that match nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.reconciliation.breaks import BUILT_IN_RULES, BreakKind
from tallystick_core.reconciliation.classify import (
    FoundBreak,
    OpenItem,
    UnmatchedLine,
    classify_lines,
    is_fee_likely,
    our_id,
)
from tallystick_core.reconciliation.statement import LineType

RULES = {rule.kind: rule for rule in BUILT_IN_RULES}
DAY = date(2026, 3, 10)
ITEM = OpenItem(7, 1, LineType.CHARGE, "psp/p/clearing", "EUR", 10_00, DAY, "ch-1", "po-1")
LINE = UnmatchedLine(1, LineType.CHARGE, "EUR", 10_00, 0, DAY, "", "ch-1", "")

_references = st.sampled_from(["", "r-1", "r-2", "r-3"])
_ids = st.sampled_from(["po-1", "po-2", "po-3"])
_types = st.sampled_from([LineType.CHARGE, LineType.PAYOUT, LineType.REFUND, LineType.BANK_ENTRY])
_currencies = st.sampled_from(["EUR", "USD"])
_amounts = st.sampled_from([10_00, 10_01, -10_00, 3_00, 7_00, MAX_AMOUNT])
_lines = st.lists(
    st.builds(
        UnmatchedLine,
        number=st.integers(1, 10**6),
        line_type=st.one_of(_types, st.sampled_from(LineType)),
        currency=_currencies,
        amount=_amounts,
        fee=st.sampled_from([0, 30, -1, 9_00]),
        booking_date=st.none() | st.dates(date(2026, 1, 1), date(2026, 6, 1)),
        reference=_references,
        charge_reference=_references,
        client_reference=st.sampled_from(["", "po-1", "o-po-2", "other"]),
        is_correction=st.booleans(),
        is_repeated=st.booleans(),
        settlement_reference=_references,
    ),
    max_size=8,
    unique_by=lambda line: line.number,
)
_items = st.lists(
    st.builds(
        OpenItem,
        sequence=st.integers(1, 20),
        entry_number=st.integers(1, 3),
        line_type=_types,
        account=st.sampled_from(["psp/p/clearing", "payouts/p/clearing"]),
        currency=_currencies,
        amount=_amounts,
        effective_date=st.dates(date(2026, 1, 1), date(2026, 6, 1)),
        external_reference=_references,
        client_reference=_ids,
    ),
    max_size=8,
    unique_by=lambda item: (item.sequence, item.entry_number),
)


@given(_lines, _items)
@settings(max_examples=300)
def test_each_line_is_in_one_break_and_no_entry_in_two(
    lines: list[UnmatchedLine], items: list[OpenItem]
) -> None:
    """For any lines and entries, whatever references they share."""
    breaks = classify_lines(lines, items, RULES)
    assert Counter(line for found in breaks for line in found.lines) == Counter(lines)
    in_breaks = Counter(item for found in breaks for item in found.items)
    assert max(in_breaks.values(), default=0) <= 1
    assert set(in_breaks) <= set(items)
    assert all(found.lines and found.detail for found in breaks)


@given(_lines, _items)
@settings(max_examples=200)
def test_the_difference_is_what_the_lines_have_more(
    lines: list[UnmatchedLine], items: list[OpenItem]
) -> None:
    """Before fees, in the currency of the first line; never more than lines and entries say."""
    for found in classify_lines(lines, items, RULES):
        of_lines = sum(line.amount + line.fee for line in found.lines if _is_in(found, line))
        of_items = sum(item.amount for item in found.items if _is_in(found, item))
        assert found.currency == found.lines[0].currency
        assert found.difference == of_lines - of_items


def _is_in(found: FoundBreak, part: UnmatchedLine | OpenItem) -> bool:
    return part.currency == found.currency


@given(_lines, _items, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_the_order_of_lines_and_entries_changes_nothing(
    lines: list[UnmatchedLine], items: list[OpenItem], random: object
) -> None:
    """The same lines and entries give the same breaks, in the order of the file."""
    breaks = classify_lines(lines, items, RULES)
    shuffled_lines, shuffled_items = lines.copy(), items.copy()
    random.shuffle(shuffled_lines)  # type: ignore[attr-defined]
    random.shuffle(shuffled_items)  # type: ignore[attr-defined]
    assert classify_lines(shuffled_lines, shuffled_items, RULES) == breaks
    assert classify_lines(iter(lines), iter(items), RULES) == breaks


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"amount": 9_00}, BreakKind.AMOUNT_DIFFERS),
        ({"amount": 10_01}, BreakKind.ROUNDING),
        ({"amount": 9_99}, BreakKind.ROUNDING),
        ({"amount": 10_02}, BreakKind.AMOUNT_DIFFERS),
        ({"amount": -10_00}, BreakKind.SIGN_DIFFERS),
        ({"currency": "USD"}, BreakKind.CURRENCY_DIFFERS),
        ({"amount": 4_00, "fee": 6_00}, BreakKind.FEE_DIFFERS),
        ({"amount": 10_30, "fee": -30}, BreakKind.FEE_DIFFERS),
        ({"booking_date": DAY + timedelta(days=11)}, BreakKind.DATE_DIFFERS),
        ({"booking_date": DAY - timedelta(days=11)}, BreakKind.DATE_DIFFERS),
        ({"charge_reference": "ch-9"}, BreakKind.CHARGE_UNKNOWN),
        ({"charge_reference": "", "reference": "ch-1", "amount": 1}, BreakKind.AMOUNT_DIFFERS),
        (
            {"charge_reference": "", "client_reference": "o-po-1", "amount": 1},
            BreakKind.AMOUNT_DIFFERS,
        ),
        ({"charge_reference": "ch-9", "client_reference": "po-9"}, BreakKind.CHARGE_NOT_BOOKED),
        ({"charge_reference": "ch-9", "is_correction": True}, BreakKind.LINE_CORRECTED),
        ({"charge_reference": "ch-9", "is_repeated": True}, BreakKind.DUPLICATE_LINE),
        ({"line_type": LineType.PAYOUT}, BreakKind.PAYOUT_UNKNOWN),
        (
            {"line_type": LineType.PAYOUT_RETURN, "client_reference": "pay-1"},
            BreakKind.PAYOUT_NOT_BOOKED,
        ),
    ],
)
def test_what_a_line_differs_in_is_its_kind(changes: dict[str, object], kind: BreakKind) -> None:
    """The ledger has a charge of 10.00; the line is as `changes` say."""
    (found,) = classify_lines([replace(LINE, **changes)], [ITEM], RULES)  # type: ignore[arg-type]
    assert found.kind is kind


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"amount": 1_01, "fee": 9_00}, BreakKind.FEE_DIFFERS),
        ({"amount": 10_31, "fee": -30}, BreakKind.FEE_DIFFERS),
        ({"amount": 10_01, "booking_date": DAY + timedelta(days=99)}, BreakKind.AMOUNT_DIFFERS),
        ({"amount": 10_01, "booking_date": None}, BreakKind.ROUNDING),
    ],
)
def test_a_rounding_differs_in_nothing_else(changes: dict[str, object], kind: BreakKind) -> None:
    """The platform adjusts roundings by itself, so a doubtful fee or date must not pass as one."""
    (found,) = classify_lines([replace(LINE, **changes)], [ITEM], RULES)  # type: ignore[arg-type]
    assert found.kind is kind


def test_a_line_of_a_bank_names_its_settlement() -> None:
    """The bank pays another amount than the provider said: the settlement is in the break."""
    line = UnmatchedLine(
        1, LineType.BANK_ENTRY, "EUR", 9_60, 0, DAY, "", "", "", settlement_reference="set-1"
    )
    item = replace(
        ITEM,
        line_type=LineType.BANK_ENTRY,
        account="banks/transit",
        amount=9_70,
        external_reference="set-1",
    )
    (found,) = classify_lines([line], [item], RULES)
    assert (found.kind, found.difference, found.items) == (
        BreakKind.AMOUNT_DIFFERS,
        -10,
        (item,),
    )


def test_entries_that_cancel_out_are_not_a_wrong_sign() -> None:
    """Zero is its own opposite: such lines and entries differ in their dates."""
    items = [ITEM, replace(ITEM, sequence=8, amount=-10_00)]
    lines = [LINE, replace(LINE, number=2, amount=-10_00)]
    lines = [replace(line, booking_date=DAY + timedelta(days=99)) for line in lines]
    (found,) = classify_lines(lines, items, RULES)
    assert (found.kind, found.difference) == (BreakKind.DATE_DIFFERS, 0)


def test_the_parts_of_a_charge_are_one_break() -> None:
    """Lines that name the same charge are compared with its entries together."""
    lines = [replace(LINE, amount=4_00), replace(LINE, number=2, amount=5_00)]
    (found,) = classify_lines(lines, [ITEM], RULES)
    assert (found.kind, found.difference) == (BreakKind.AMOUNT_DIFFERS, -1_00)
    assert [line.number for line in found.lines] == [1, 2]


def test_a_copy_of_a_line_that_differs_is_a_break_of_its_own() -> None:
    """The first line is compared with the entry; each copy is a duplicate."""
    lines = [replace(LINE, amount=9_00, number=number) for number in (1, 2, 3)]
    lines[1:] = [replace(line, is_repeated=True) for line in lines[1:]]
    kinds = [found.kind for found in classify_lines(lines, [ITEM], RULES)]
    assert kinds == [
        BreakKind.AMOUNT_DIFFERS,
        BreakKind.DUPLICATE_LINE,
        BreakKind.DUPLICATE_LINE,
    ]


@pytest.mark.parametrize("line_type", LineType)
def test_each_type_of_line_has_a_kind(line_type: LineType) -> None:
    """Also those that are booked as they are, if a rule of theirs is violated."""
    (found,) = classify_lines([replace(LINE, line_type=line_type)], [], RULES)
    assert found.kind in BreakKind


@given(st.integers(-(10**18), 10**18), st.integers(-(10**18), 10**18))
def test_a_likely_fee_is_a_part_of_the_charge(fee: int, gross_amount: int) -> None:
    """Not below zero, and at most half of the charge; a charge of zero has no fee."""
    assert is_fee_likely(fee, gross_amount, RULES) == (0 <= 2 * fee <= abs(gross_amount))


@pytest.mark.parametrize(
    ("line_type", "client_reference", "id_"),
    [
        (LineType.CHARGE, "o-po-1", "po-1"),
        (LineType.CHARGE, "po-1", "po-1"),
        (LineType.CHARGE, "", ""),
        (LineType.CHARGE, "o-o-1", "o-1"),
        (LineType.PAYOUT, "o-1", "o-1"),
    ],
)
def test_the_id_that_a_provider_echoes_is_ours(
    line_type: LineType, client_reference: str, id_: str
) -> None:
    """A charge of one order is "o-" and the order's id; a payout has its own id."""
    assert our_id(line_type, client_reference) == id_
