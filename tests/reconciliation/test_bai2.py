"""BAI2: continuations, texts, funds types, control totals, and what is rejected."""

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
from tallystick_server.reconciliation.formats.text_file import TextFile
from tests.reconciliation.writers import BANK_FORMATS, read_bytes

HEAD = "01,BANK,US,261130,0800,F1,,,2/\n02,US,BANK,1,261130,,USD,2/\n"
ACCOUNT = "03,SECRET,,010,0,,,015,1000,,/\n"


def bai2_file(*records: str, account: str = ACCOUNT, amounts: int = 2000, head: str = HEAD) -> str:
    """A file with one account whose amounts have this sum."""
    body = account + "".join(f"{record}\n" for record in records)
    count = body.count("\n") + 1
    return (
        f"{head}{body}49,{amounts},{count}/\n98,{amounts},1,{count + 2}/\n"
        f"99,{amounts},1,{count + 4}/\n"
    )


def read(folder: Path, text: str) -> list[StatementItem]:
    return read_bytes(folder, "bai2", text.encode(), accepts_difference=True)


@pytest.mark.parametrize(
    ("records", "reference", "client_reference", "text", "value_date"),
    [
        (["16,195,1000,,B1,C1,a text, with/commas"], "B1", "C1", "a text, with/commas", None),
        (["16,195,1000,Z,B1,C1,a/", "88,b, c", "88,/d"], "B1", "C1", "a b, c /d", None),
        (["16,195,1000,V,261201,,B1,C1,a"], "B1", "C1", "a", date(2026, 12, 1)),
        (["16,195,1000,S,1,2,3,B1,C1,a"], "B1", "C1", "a", None),
        (["16,195,1000,D,2,1,4,2,6,B1,C1,a"], "B1", "C1", "a", None),
        (["16,195,1000,S,1/", "88,2,3,B1/", "88,C1,a"], "B1", "C1", "a", None),
        (["16,195,1000,,,,/", "88,only text,"], "", "", "only text,", None),
        (["16,195,1000/"], "", "", "", None),
    ],
)
def test_a_transaction(
    tmp_path: Path,
    records: list[str],
    reference: str,
    client_reference: str,
    text: str,
    value_date: date | None,
) -> None:
    """Fields may continue in 88; the last is a text, which may hold commas and slashes."""
    (line,) = [
        item for item in read(tmp_path, bai2_file(*records)) if isinstance(item, StatementLine)
    ]
    assert (line.amount, line.code, line.currency) == (1000, "195", "USD")
    assert (line.reference, line.client_reference, line.text) == (reference, client_reference, text)
    assert (line.booking_date, line.value_date) == (date(2026, 11, 30), value_date)


@pytest.mark.parametrize(
    ("code", "amounts"),
    [("100", [1000]), ("399", [1000]), ("400", [-1000]), ("699", [-1000])],
)
def test_credits_and_debits(tmp_path: Path, code: str, amounts: list[int]) -> None:
    items = read(tmp_path, bai2_file(f"16,{code},1000,Z,,,"))
    assert [item.amount for item in items if isinstance(item, StatementLine)] == amounts


def test_a_record_without_an_amount_is_no_line(tmp_path: Path) -> None:
    items = read(tmp_path, bai2_file("16,890,,,,,a message", amounts=1000))
    assert not [item for item in items if isinstance(item, StatementLine)]


@pytest.mark.parametrize(
    "account",
    [
        "03,1,EUR,010,-100,,,015,+200,,/\n",
        "03,1,EUR,010,-100,,,015,200,,,/\n88,,,072,,,,074,,,/\n",
        "03,1,EUR,010/\n88,-100,2,V,261130,,015,200,0,S,1,2,3/\n",
        "03,1,EUR,,,,,010,-100,,,015,200/\n",
    ],
)
def test_balances(tmp_path: Path, account: str) -> None:
    """They may continue in 88, be left out and have a sign."""
    items = read(tmp_path, bai2_file("16,195,300,,,,", account=account, amounts=400))
    start, end = items[0], items[-1]
    assert isinstance(start, StatementStart)
    assert isinstance(end, StatementEnd)
    assert (start.currency, start.opening_balance) == ("EUR", -100)
    assert (end.closing_balance, end.difference) == (200, 0)


def test_blocks_of_80_columns(tmp_path: Path) -> None:
    """A file without line ends has the length of its records in its header."""
    head = HEAD.replace("F1,,,2", "F1,80,8,2")
    text = bai2_file("16,195,1000,,B1,C1,a text/", head=head)
    blocks = "".join(line.ljust(80) for line in text.splitlines())
    assert read(tmp_path, blocks)[1:2] != []
    (line,) = [item for item in read(tmp_path, blocks) if isinstance(item, StatementLine)]
    assert (line.amount, line.text) == (1000, "a text")


GOOD = bai2_file("16,195,1000,,B1,C1,SECRET")
DAMAGED = {
    "version 3": (
        GOOD.replace("F1,,,2/", "F1,,,3/"),
        "line 1, column 1: this is BTRS (BAI version 3), another format; BAI2 (version 2) is "
        "expected",
    ),
    "no version": (
        GOOD.replace("F1,,,2/", "F1/"),
        "line 1, column 1: the eighth field of the file header (01) must be the version, 2",
    ),
    "other text": (
        "a;b;c",
        "line 1, column 1: a record must begin with 01, 02, 03, 16, 49, 88, 98 or 99",
    ),
    "empty": ("", "line 1, column 1: the file must end with a file trailer (99)"),
    "cut off": (GOOD[:-13], "line 6, column 1: the file must end with a file trailer (99)"),
    "continues nothing": (
        "88,a",
        "line 1, column 1: a continuation (88) must follow another record",
    ),
    "order": (HEAD + "16,195,1,,,,\n", "line 3, column 1: the next record must be 03 or 98"),
    "more after the end": (
        GOOD + "01,B/\n",
        "line 8, column 1: the next record must be the end of the file",
    ),
    "two records in a line": (
        GOOD.replace("2/\n02", "2/   02"),
        "line 1, column 1: each record must be in a line of its own",
    ),
    "deletion": (
        GOOD.replace("BANK,1,", "BANK,2,"),
        "line 2, column 1: the group is a deletion; only updates (status 1 of record 02) can be "
        "loaded",
    ),
    "interim": (
        GOOD.replace("USD,2/", "USD,3/"),
        "line 2, column 1: the group is a report of a day that has not ended; a final one is "
        "expected",
    ),
    "date": (
        GOOD.replace("BANK,1,261130", "BANK,1,261131"),
        "line 2, column 14: a date must be a day of the calendar (YYMMDD)",
    ),
    "no account": (
        GOOD.replace("03,SECRET", "03,"),
        "line 3, column 1: an account (03) must have a number",
    ),
    "currency": (
        GOOD.replace("03,SECRET,", "03,SECRET,XXY"),
        "line 3, column 11: a currency must be an ISO 4217 code such as EUR",
    ),
    "balance": (
        GOOD.replace("010,0", "010,0.5"),
        "line 3, column 16: an amount must be a whole number of the currency's smallest unit",
    ),
    "amount": (
        GOOD.replace("195,1000", "195,SECRET"),
        "line 4, column 8: an amount must be a whole number of the currency's smallest unit",
    ),
    "type": (
        GOOD.replace("16,195", "16,700"),
        "line 4, column 4: the type of a transaction must be 100 to 399 (credit) or 400 to 699 "
        "(debit)",
    ),
    "funds type": (
        GOOD.replace("1000,,B1", "1000,X,B1"),
        "line 4, column 13: a funds type must be 0, 1, 2, D, S, V or Z",
    ),
    "availability dates": (
        GOOD.replace("1000,,B1", "1000,D,999999999999999,B1"),
        "line 4, column 15: an amount must have at most 500 availability dates",
    ),
    "total of the account": (
        GOOD.replace("49,2000", "49,2001"),
        "line 5, column 4: the control total (49) must be the sum of all amounts of the account, "
        "2000",
    ),
    "records of the account": (
        GOOD.replace("49,2000,3", "49,2000,4"),
        "line 5, column 9: the number of records (49) must be that of the account, 3",
    ),
    "total of the group": (
        GOOD.replace("98,2000", "98,2001"),
        "line 6, column 4: the control total (98) must be the sum of all amounts of the group, "
        "2000",
    ),
    "accounts of the group": (
        GOOD.replace("98,2000,1", "98,2000,2"),
        "line 6, column 9: the number of accounts (98) must be that of the group, 1",
    ),
    "records of the group": (
        GOOD.replace("98,2000,1,5", "98,2000,1,6"),
        "line 6, column 11: the number of records (98) must be that of the group, 5",
    ),
    "groups of the file": (
        GOOD.replace("99,2000,1", "99,2000,2"),
        "line 7, column 9: the number of groups (99) must be that of the file, 1",
    ),
    "records of the file": (
        GOOD.replace("99,2000,1,7", "99,2000,1,x"),
        "line 7, column 11: a count must be a whole number",
    ),
    "long record": (
        bai2_file("16,195,1000,,,,", *["88," + "a" * 1_000] * 101),
        "a record must have at most 100000 characters",
    ),
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


def test_control_totals_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong count in the last record of the file comes before the first item."""
    path = tmp_path / "statement"
    path.write_text(GOOD.replace("99,2000,1,7", "99,2000,1,8"))
    items = BANK_FORMATS["bai2"].read(TextFile(path))
    with pytest.raises(DamagedFile):
        next(items)
