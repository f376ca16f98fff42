"""Damaged files of any kind are DamagedFile, and nothing else happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick_core.reconciliation.statement import DamagedFile, StatementItem
from tallystick_server.reconciliation.formats.registry import (
    FORMATS,
    Format,
    find_format,
    read_statements,
)
from tallystick_server.reconciliation.formats.text_file import TextFile
from tests.reconciliation import (
    test_adyen_settlement,
    test_canonical_csv,
    test_paypal_stl,
    test_stripe_report,
)
from tests.reconciliation.files import write_file
from tests.reconciliation.paypal_files import Section, paypal_rows, write_rows
from tests.reconciliation.test_canonical_csv import END, LINE, START

_YEN = {"currency": "jpy", "gross": "500", "fee": "0", "net": "500"}
_CHARGE, _REFUND = test_paypal_stl.CHARGE, test_paypal_stl.REFUND
VALID = {
    "adyen_settlement": test_adyen_settlement.report({}, {"Net Currency": "USD"}, {}),
    "canonical_csv": test_canonical_csv.table(START, LINE, END, START, LINE, END),
    "paypal_stl": write_rows(
        paypal_rows(
            Section("A", {"EUR": 5}, [_CHARGE, _REFUND]), Section("B", {"EUR": -5}, [_CHARGE])
        )
    ),
    "stripe_report": test_stripe_report.report({}, _YEN, {}),
}
"""A file of each format with columns."""
HAS_TOTALS = {"canonical_csv", "paypal_stl"}
_PIECES = [
    b"\0", b'"', b",", b"\n", b"\r", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"=", b"-",
    b"9", b".", b"EUR", b"\\", b" ", b"SB", b"END", b"9" * 50, b"\xd9\xa3", b'"' + b"\n" * 9,
]  # fmt: skip


def _read(statement_format: Format, file: TextFile) -> Iterator[StatementItem]:
    return read_statements(file, statement_format, accepts_difference=True)


@pytest.mark.parametrize("name", VALID)
def test_the_format_of_a_file_is_found(tmp_path: Path, name: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file = write_file(tmp_path, VALID[name].encode(encoding))
        assert find_format(file).name == name
        assert list(_read(find_format(file), file))


@pytest.mark.parametrize("name", VALID)
def test_a_mutated_file_is_read_or_damaged(tmp_path: Path, name: str, thorough: bool) -> None:
    damaged = 0
    count = 10_000 if thorough else 500
    statement_format = next(item for item in FORMATS if item.name == name)
    for seed in range(count):
        content = _mutate(random.Random(seed), VALID[name].encode())
        damaged += _is_damaged(statement_format, tmp_path, content, seed)
    assert count / 4 < damaged < count


def _is_damaged(statement_format: Format, folder: Path, content: bytes, seed: int) -> bool:
    item_count = 0
    try:
        for _ in _read(statement_format, write_file(folder, content)):
            item_count += 1
    except DamagedFile:
        assert item_count == 0 or statement_format.name not in HAS_TOTALS, seed
        return True
    return False


def _mutate(seeded: random.Random, content: bytes) -> bytes:
    for _ in range(seeded.randint(1, 3)):
        content = seeded.choice(_MUTATIONS)(seeded, content)
    return content


def _insert(seeded: random.Random, content: bytes) -> bytes:
    place = seeded.randint(0, len(content))
    return content[:place] + seeded.choice(_PIECES) + content[place:]


def _replace(seeded: random.Random, content: bytes) -> bytes:
    place = seeded.randint(0, len(content))
    return content[:place] + seeded.choice(_PIECES) + content[place + 1 :]


def _remove(seeded: random.Random, content: bytes) -> bytes:
    place = seeded.randint(0, len(content))
    return content[:place] + content[place + seeded.randint(1, 20) :]


def _truncate(seeded: random.Random, content: bytes) -> bytes:
    return content[: seeded.randint(0, len(content))]


def _change_lines(seeded: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    place = seeded.randrange(len(lines))
    copies = seeded.choice([0, 2])
    return b"".join([*lines[:place], *lines[place : place + 1] * copies, *lines[place + 1 :]])


def _change_cells(seeded: random.Random, content: bytes) -> bytes:
    cells = content.split(b",")
    first, second = seeded.randrange(len(cells)), seeded.randrange(len(cells))
    cells[first], cells[second] = cells[second], cells[first]
    return b",".join(cells)


def _encode(seeded: random.Random, content: bytes) -> bytes:
    text = content.decode("latin-1")
    return text.encode(seeded.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))


_MUTATIONS = [_insert, _replace, _remove, _truncate, _change_lines, _change_cells, _encode]
