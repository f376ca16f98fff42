"""MT940: pages, marks, references, structured texts, and what is rejected."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tests.reconciliation.writers import read_bytes


def message(
    *entries: str,
    opening: str = ":60F:C261129EUR0,",
    closing: str = ":62F:C261130EUR10,00",
    head: str = ":20:S1\n:25:SECRET/1\n:28C:7/1",
) -> str:
    return "\n".join([head, opening, *entries, closing, "-\n"])


def read(folder: Path, text: str) -> list[StatementItem]:
    return read_bytes(folder, "mt940", text.encode(), accepts_difference=True)


def line_of(folder: Path, *fields: str) -> StatementLine:
    """The only line of a statement with these fields."""
    (line,) = [x for x in read(folder, message(*fields)) if isinstance(x, StatementLine)]
    return line


@pytest.mark.parametrize(
    ("mark", "amount", "code"),
    [
        ("C", 1000, "NTRF"),
        ("D", -1000, "NTRF"),
        ("RC", -1000, "RC NTRF"),
        ("RD", 1000, "RD NTRF"),
        ("CR", 1000, "NTRF"),
        ("DR", -1000, "NTRF"),
        ("RCR", -1000, "RC NTRF"),
    ],
)
def test_marks_and_reversals(tmp_path: Path, mark: str, amount: int, code: str) -> None:
    """RC and RD are reversals; a letter after the mark is of the currency."""
    line = line_of(tmp_path, f":61:2611301129{mark}10,NTRFREF1//BANK1")
    assert (line.amount, line.code) == (amount, code)
    assert (line.client_reference, line.reference) == ("REF1", "BANK1")


@pytest.mark.parametrize(
    ("dates", "value_date", "booking_date"),
    [
        ("2611301129", date(2026, 11, 30), date(2026, 11, 29)),
        ("261130", date(2026, 11, 30), date(2026, 11, 30)),
        ("261130    ", date(2026, 11, 30), date(2026, 11, 30)),
        ("2701021231", date(2027, 1, 2), date(2026, 12, 31)),
        ("2612310102", date(2026, 12, 31), date(2027, 1, 2)),
        ("2602300302", date(2026, 2, 28), date(2026, 3, 2)),
        ("2402300302", date(2024, 2, 29), date(2024, 3, 2)),
        ("9912310101", date(1999, 12, 31), date(2000, 1, 1)),
    ],
)
def test_dates(tmp_path: Path, dates: str, value_date: date, booking_date: date) -> None:
    """The year of the booking is the nearest; 30 February is its last day."""
    line = line_of(tmp_path, f":61:{dates}C10,NTRFNONREF")
    assert (line.value_date, line.booking_date) == (value_date, booking_date)


@pytest.mark.parametrize(
    ("entry", "text", "client_reference", "shown_text"),
    [
        (
            "NTRFNONREF",
            "166?00GUTSCHRIFT?20EREF+ORDER?21 1?22SVWZ+For the\n chair?32ANN?33E?30BIC",
            "ORDER 1",
            "GUTSCHRIFT ANN E ORDER 1 For the chair",
        ),
        ("NTRFKREF+", "166?00A?20KREF+K1 MREF+M1?21SVWZ+B", "K1", "A K1 M1 B"),
        ("NTRFREF9", "166?20EREF+NOTPROVIDED?21SVWZ+C", "REF9", "NOTPROVIDED C"),
        (
            "NTRFNONREF",
            "/TRTP/SEPA/EREF/ORD\nER2/REMI/D/",
            "ORDER2",
            "/TRTP/SEPA/EREF/ORD ER2/REMI/D/",
        ),
        ("NTRFREF3", "free\ntext", "REF3", "free text"),
        ("NTRFREF4      NAME", "E", "REF4", "E NAME"),
        ("NTRFREF5//B\nmore", "F\n:12:30 o'clock", "REF5", "F :12:30 o'clock more"),
        ("NONREF", "G", "", "G"),
        ("NTRFEREF", "H", "", "H"),
    ],
)
def test_references_and_texts(
    tmp_path: Path, entry: str, text: str, client_reference: str, shown_text: str
) -> None:
    line = line_of(tmp_path, f":61:261130C10,{entry}", f":86:{text}")
    assert (line.client_reference, line.text) == (client_reference, shown_text)


def test_pages_are_one_statement(tmp_path: Path) -> None:
    """Opened by 60F, closed by 62F, with interim balances between; another one follows."""
    text = (
        "\x01{1:F01BANK}{2:I940BANK}{4:\r\n"
        + message(":61:261130C1,NTRFA", closing=":62M:C261130EUR1,")
        + message(":61:261130C2,NTRFB", opening=":60M:C261130EUR1,", closing=":62M:C261130EUR3,")
        + message(":61:261130C7,NTRFC", opening=":60M:C261130EUR3,")
        + message(opening=":60F:C261130EUR10,")
    )
    items = read(tmp_path, text)
    assert [type(item).__name__ for item in items] == [
        *["StatementStart", "StatementLine", "StatementLine", "StatementLine", "StatementEnd"],
        *["StatementStart", "StatementEnd"],
    ]
    end = items[4]
    assert isinstance(end, StatementEnd)
    assert (end.line_count, end.total, end.difference) == (3, 1000, 0)
    assert (end.closing_balance, end.closing_date) == (1000, date(2026, 11, 30))


def test_a_page_by_itself_is_a_statement(tmp_path: Path) -> None:
    """The others are in other files, or of another account."""
    page = message(opening=":60M:C261130EUR1,", closing=":62M:C261130EUR1,")
    items = read(tmp_path, page + page.replace("SECRET/1", "SECRET/2"))
    starts = [item for item in items if isinstance(item, StatementStart)]
    assert [(start.account, start.opening_balance) for start in starts] == [
        ("SECRET/1", 100),
        ("SECRET/2", 100),
    ]


def test_what_is_about_the_statement_is_no_entry(tmp_path: Path) -> None:
    text = message(":86:first", ":61:261130C10,NTRFA", ":86:a", ":86:b").replace(
        "-\n", ":64:C261130EUR10,\n:65:C261201EUR10,\n:86:SECRET\n-}{5:}\n"
    )
    (line,) = [item for item in read(tmp_path, text) if isinstance(item, StatementLine)]
    assert line.text == "a"


INTERIM = "this is MT942, a report of a day that has not ended; an MT940 statement is expected"
BALANCE = (
    "a balance must be C or D, a date (YYMMDD), a currency and an amount, such as C261130EUR1234,56"
)
ENTRY = ":61:261130C10,NTRFA"
DAMAGED = {
    "MT942 by its header": (
        "{1:F01BANK}{2:O942BANK}{4:\n" + message(),
        f"line 1, column 1: {INTERIM}",
    ),
    "MT942 by a field": (message(":34F:EURD0,"), f"line 5, column 1: {INTERIM}"),
    "other text": (
        "a;b;c\n",
        "line 1, column 1: the file must be MT940, whose statements begin with :20:",
    ),
    "empty": ("", "line 1, column 1: the file must be MT940, whose statements begin with :20:"),
    "no account": (
        message(head=":20:S1"),
        "line 2, column 1: a statement must name its account (:25:)",
    ),
    "no opening balance": (
        message(opening=":28C:1", closing=":64:"),
        "line 6, column 1: the statement that ends here must have an opening balance (:60F:)",
    ),
    "no closing balance": (
        message(closing=":64:C261130EUR10,"),
        "line 6, column 1: the statement that ends here must have a closing balance (:62F:)",
    ),
    "cut off": (
        message(ENTRY, ENTRY)[:70],
        "line 5, column 1: the statement that ends here must have a closing balance (:62F:)",
    ),
    "entry too early": (
        ":20:S1\n" + ENTRY,
        "line 2, column 1: :61: must come between the opening and the closing balance",
    ),
    "field too early": (
        ":25:1\n" + message(),
        "line 1, column 1: :25: must come before the opening balance of a message that begins with "
        ":20:",
    ),
    "closed twice": (
        message(closing=":62F:C261130EUR10,\n:62F:C261130EUR10,"),
        "line 6, column 1: :62F: must come after an opening balance",
    ),
    "balance": (message(opening=":60F:X261129EUR0,"), f"line 4, column 6: {BALANCE}"),
    "currency": (
        message(opening=":60F:C261129XXY0,"),
        "line 4, column 6: a currency must be an ISO 4217 code such as EUR",
    ),
    "other currency": (
        message(closing=":62F:C261130USD10,"),
        "line 5, column 6: the closing balance must be in EUR, as the opening one",
    ),
    "date": (
        message(":61:261131C10,NTRFA"),
        "line 5, column 5: a date must be a day of the calendar (YYMMDD)",
    ),
    "entry": (
        message(":61:261130X10,NTRFSECRET"),
        "line 5, column 5: an entry must be a date (YYMMDD), C, D, RC or RD, an amount and a type, "
        "such as 261130D12,50NTRF",
    ),
    "decimals": (
        message(":61:261130C10,001NTRFA"),
        "line 5, column 5: an amount in EUR must have at most 2 decimals",
    ),
    "missing page": (
        message(closing=":62M:C261130EUR1,") + message(opening=":60M:C261130EUR2,"),
        "line 10, column 6: a page must open (:60M:) with the balance that closed the last one "
        "(:62M:); a page is missing",
    ),
    "NUL": (message("\0"), "a text must not contain NUL; UTF-16 needs a byte order mark"),
    "long line": (message("a" * 70_000), "a line must have at most 65536 characters"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_rejected(tmp_path: Path, damage: str) -> None:
    """With the place and what was expected, and without content of the file."""
    text, expected = DAMAGED[damage]
    with pytest.raises(DamagedFile) as rejection:
        read(tmp_path, text)
    assert str(rejection.value).endswith(expected)
    assert str(rejection.value).startswith("statement, line ")
    assert "SECRET" not in str(rejection.value)
