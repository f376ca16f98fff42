"""The bank files that others have published are read as an independent reader reads them, or are
rejected. `python -m tests.reconciliation.test_samples` rewrites the table of the results.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import bai2.bai2
import mt940
import pytest

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    StatementLine,
    StatementStart,
    UnbalancedStatement,
)
from tallystick_server.reconciliation.formats.registry import read_statements
from tallystick_server.reconciliation.formats.text_file import TextFile
from tests.reconciliation.writers import BANK_FORMATS
from tests.support.platform import ROOT

PAGE = ROOT / "docs" / "testing" / "statement-samples.md"
SAMPLES = next(
    (
        folder / "shared" / "samples"
        for folder in (ROOT.parent, ROOT.parent.parent)
        if (folder / "shared" / "samples").is_dir()
    ),
    ROOT.parent / "shared" / "samples",
)
FORMAT_OF_FOLDER = {
    "bai2": "bai2",
    "camt052_054": "camt053",
    "camt053": "camt053",
    "mt940": "mt940",
    "mt942": "mt940",
}
FILES = [path for folder in FORMAT_OF_FOLDER for path in sorted((SAMPLES / folder).glob("*"))]
NOT_HERE = f"NOT RUN: the published samples are not here ({SAMPLES})"


@dataclass(frozen=True)
class Result:
    """What a file has, or why it is rejected."""

    statement_count: int = 0
    line_count: int = 0
    sums: tuple[tuple[str, int], ...] = ()
    difference: str = ""
    rejection: str = ""


def read_sample(path: Path) -> Result:
    """A statement that does not balance is accepted, with its difference."""
    bank_format = BANK_FORMATS[FORMAT_OF_FOLDER[path.parent.name]]
    difference = ""
    try:
        try:
            items = list(read_statements(TextFile(path), bank_format))
        except UnbalancedStatement as error:
            difference = error.expected.rpartition("differ by ")[2]
            items = list(read_statements(TextFile(path), bank_format, accepts_difference=True))
    except DamagedFile as error:
        return Result(rejection=f"line {error.line}, column {error.column}: {error.expected}")
    sums: Counter[str] = Counter()
    for item in items:
        if isinstance(item, StatementLine):
            sums[item.currency] += item.amount
        elif isinstance(item, StatementStart):
            sums[item.currency] += 0
    return Result(
        sum(isinstance(item, StatementEnd) for item in items),
        sum(isinstance(item, StatementLine) for item in items),
        tuple(sorted(sums.items())),
        difference,
    )


@contextmanager
def _no_logs() -> Iterator[None]:
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _minor_units(amount: Decimal, currency: str) -> int:
    return int(amount.scaleb(EXPONENTS[currency]))


def read_mt940_independently(path: Path) -> tuple[int, int | None]:
    """The number of entries, and their sum in minor units by the library mt-940, if it reads as
    many. It counts RC as a credit and RD as a debit, so the sign is that of the mark here.
    """
    text = path.read_bytes().decode("utf-8", "replace").lstrip("\ufeff")
    count = len(re.findall(r"(?:^|[\r\n])\x01?:61:", text))
    try:
        with _no_logs():
            transactions = mt940.parse(text)
    except (RuntimeError, ValueError, ArithmeticError, AttributeError, TypeError):
        return count, None
    if len(transactions.transactions) != count:
        return count, None
    total = 0
    for transaction in transactions.transactions:
        amount = transaction.data["amount"]
        sign = 1 if transaction.data["status"] in {"C", "RD"} else -1
        total += sign * abs(_minor_units(amount.amount, amount.currency))
    return count, total


def read_camt_independently(path: Path) -> tuple[int, int]:
    """The number of lines and their sum in minor units, by ElementTree."""
    count = total = 0
    for entry in ElementTree.parse(path).iterfind(".//{*}Ntry"):
        amount = entry.find("{*}Amt")
        assert amount is not None
        sign = 1 if entry.findtext("{*}CdtDbtInd") == "CRDT" else -1
        entry_amount = _minor_units(Decimal(amount.text or ""), amount.attrib["Ccy"])
        total += sign * entry_amount
        parts = []
        for details in entry.iterfind("{*}NtryDtls/{*}TxDtls"):
            part = details.find("{*}Amt")
            if part is None:
                part = details.find("{*}AmtDtls/{*}TxAmt/{*}Amt")
            if part is not None:
                parts.append(_minor_units(Decimal(part.text or ""), part.attrib["Ccy"]))
        count += len(parts) if sum(parts) == entry_amount else 1
    return count, total


def read_bai2_independently(path: Path) -> tuple[int, int]:
    """The number of transactions and their sum in minor units, by the library bai2."""
    parsed = bai2.bai2.parse_from_string(path.read_text(), check_integrity=True)
    transactions = [
        transaction
        for group in parsed.children
        for account in group.children
        for transaction in account.children
    ]
    amounts = [
        transaction.amount * (1 if transaction.type_code.code < "400" else -1)
        for transaction in transactions
    ]
    return len(transactions), sum(amounts)


@pytest.mark.skipif(not FILES, reason=NOT_HERE)
@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_sample_is_read_as_an_independent_reader_reads_it(path: Path) -> None:
    """The number of lines and their sum are the same, unless the file is rejected."""
    result = read_sample(path)
    if path.parent.name in {"camt052_054", "mt942"}:
        assert re.search(r": this is (camt\.05[24]|MT942), ", result.rejection)
    if result.rejection:
        return
    reader = {
        "bai2": read_bai2_independently,
        "camt053": read_camt_independently,
        "mt940": read_mt940_independently,
    }[path.parent.name]
    count, total = reader(path)
    assert result.line_count == count
    assert total in {None, sum(amount for _, amount in result.sums)}


_HEAD = """\
# Published bank files

What Tallystick reads of bank files that others have published as test data. They are in
`../shared/samples`, next to the repository, and not part of it. The formats are described in
[statement formats](../reference/statement-formats.md).
`python -m tests.reconciliation.test_samples` generates this page, and
`test_the_table_of_samples_is_up_to_date` compares it.

- **rejected**: the file is not what an import expects; the text is what an operator reads.
- **difference**: a statement of the file does not balance (the first one is shown), as many samples
  were shortened by their authors. It is read after an operator has accepted the difference.

"""


def page() -> str:
    """The page of the results."""
    results = [(path, read_sample(path)) for path in FILES]
    rejected_count = sum(bool(result.rejection) for _, result in results)
    difference_count = sum(bool(result.difference) for _, result in results)
    rows = "".join(
        f"| {path.parent.name} | `{path.name}` | {_cells(result)} |\n" for path, result in results
    )
    return (
        f"{_HEAD}Of {len(results)} files, {rejected_count} are rejected and {difference_count} are "
        "read with an accepted difference.\n\n"
        "| folder | file | statements | lines | sum | difference | rejected |\n"
        f"|---|---|---|---|---|---|---|\n{rows}"
    )


def _cells(result: Result) -> str:
    if result.rejection:
        return f"| | | | {result.rejection}"
    sums = ", ".join(f"{format_amount(amount, name)} {name}" for name, amount in result.sums)
    return f"{result.statement_count} | {result.line_count} | {sums} | {result.difference} |"


@pytest.mark.skipif(not FILES, reason=NOT_HERE)
def test_the_table_of_samples_is_up_to_date() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    if not FILES:
        raise SystemExit(NOT_HERE)
    PAGE.write_text(page())
