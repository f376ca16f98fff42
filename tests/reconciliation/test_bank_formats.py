"""What all bank formats have in common: they keep a statement as it was written, and damaged files
are rejected without a trace of their content.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    StatementLine,
    StatementStart,
    UnbalancedStatement,
)
from tallystick_server.reconciliation.formats.registry import find_format
from tallystick_server.reconciliation.formats.text_file import TextFile
from tests.reconciliation.writers import (
    WRITERS,
    Entry,
    Statement,
    read_bytes,
)

DAY = date(2026, 11, 30)
ENTRIES = (
    Entry(125_00, DAY, DAY, "BANK1", "order-1", "SECRETNAME pays"),
    Entry(-30_05, DAY, DAY, "BANK2", "payout-1", "SECRETNAME is paid"),
    Entry(7, DAY, DAY, "BANK3", "order-2", "SECRETNAME"),
)
STATEMENT = Statement("DE02SECRETACCOUNT", "EUR", -50_00, DAY, ENTRIES)


class Unbalanced(Statement):
    """Its closing balance is a cent too high."""

    @property
    def closing_balance(self) -> int:
        return super().closing_balance + 1


MUTATION_LIMIT_SECONDS = 10
MEMORY_LIMIT_BYTES = 4_000_000

amounts = st.integers(-(10**12), 10**12)
days = st.dates(date(2001, 1, 1), date(2078, 12, 31))
references = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", max_size=16).filter(
    lambda text: text not in {"EREF", "KREF", "MARF", "PREF", "NONREF", "NOTPROVIDED"}
)
texts = st.text("ABC abc ,.?&<>äß€0123", max_size=60).map(lambda text: " ".join(text.split()))


@st.composite
def entries(draw: st.DrawFn, day: date) -> Entry:
    value_date = day + timedelta(days=draw(st.integers(-100, 100)))
    return Entry(draw(amounts), day, value_date, draw(references), draw(references), draw(texts))


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    day = draw(days)
    return Statement(
        draw(st.text("ABCDE0123456789", min_size=5, max_size=34)),
        draw(st.sampled_from(["EUR", "JPY", "KWD", "USD"])),
        draw(amounts),
        day,
        tuple(draw(st.lists(entries(day), max_size=12))),
    )


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(written=st.lists(statements(), min_size=1, max_size=3))
def test_a_written_statement_is_read_again(
    tmp_path: Path, name: str, written: list[Statement]
) -> None:
    """Accounts, balances, amounts, dates, references and texts survive each format."""
    items = read_bytes(tmp_path, name, WRITERS[name](tuple(written)).encode())
    starts = [item for item in items if isinstance(item, StatementStart)]
    ends = [item for item in items if isinstance(item, StatementEnd)]
    lines = [item for item in items if isinstance(item, StatementLine)]
    assert [(item.account, item.currency, item.opening_balance) for item in starts] == [
        (item.account, item.currency, item.opening_balance) for item in written
    ]
    assert [(item.line_count, item.closing_balance, item.difference) for item in ends] == [
        (len(item.entries), item.closing_balance, 0) for item in written
    ]
    assert [
        Entry(
            line.amount,
            line.booking_date or DAY,
            line.value_date or DAY,
            line.reference,
            line.client_reference,
            line.text,
        )
        for line in lines
    ] == [entry for statement in written for entry in statement.entries]


@pytest.mark.parametrize("name", WRITERS)
def test_the_format_of_a_file_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "statement"
    path.write_text(WRITERS[name]((STATEMENT,)))
    assert find_format(TextFile(path)).name == name


@pytest.mark.parametrize("name", WRITERS)
def test_a_statement_that_does_not_balance_needs_a_person(tmp_path: Path, name: str) -> None:
    """The difference is shown; the statement is read if it is accepted."""
    content = WRITERS[name]((Unbalanced(**vars(STATEMENT)),))
    with pytest.raises(UnbalancedStatement) as rejection:
        read_bytes(tmp_path, name, content.encode())
    assert "differ by 0.01 EUR" in str(rejection.value)
    assert rejection.value.difference == 1
    items = read_bytes(tmp_path, name, content.encode(), accepts_difference=True)
    end = items[-1]
    assert isinstance(end, StatementEnd)
    assert end.difference == 1


@pytest.mark.parametrize("name", WRITERS)
def test_a_mutated_file_is_read_or_damaged(tmp_path: Path, name: str, thorough: bool) -> None:
    """Nothing but DamagedFile is raised, without content of the file, soon and in little memory."""
    seeded_random = random.Random(name)
    statement = replace(STATEMENT, entries=ENTRIES * 4)
    original = WRITERS[name]((statement, statement)).encode()
    damaged_count = peak = 0
    tracemalloc.start()
    try:
        for _ in range(10_000 // 3 if thorough else 500 // 3):
            content = mutate(original, seeded_random)
            tracemalloc.reset_peak()
            traced_before = tracemalloc.get_traced_memory()[0]
            began = time.monotonic()
            try:
                read_bytes(tmp_path, name, content, accepts_difference=True)
            except DamagedFile as error:
                damaged_count += 1
                assert "SECRET" not in str(error)
                assert error.line >= 1
                assert error.column >= 1
            assert time.monotonic() - began < MUTATION_LIMIT_SECONDS
            peak = max(peak, tracemalloc.get_traced_memory()[1] - traced_before)
    finally:
        tracemalloc.stop()
    assert damaged_count > 20
    assert peak < MEMORY_LIMIT_BYTES


def mutate(content: bytes, seeded_random: random.Random) -> bytes:
    """One to four changes: bytes, a piece left out, doubled or moved, or the end cut off."""
    changed = bytearray(content)
    for _ in range(seeded_random.randint(1, 4)):
        begin = seeded_random.randrange(len(changed))
        end = min(len(changed), begin + seeded_random.randint(1, 60))
        match seeded_random.randrange(6):
            case 0:
                changed[begin] = seeded_random.randrange(256)
            case 1 if len(changed) > 200:
                del changed[begin:end]
            case 2:
                changed[begin:begin] = changed[begin:end]
            case 3:
                place = seeded_random.randrange(len(changed))
                changed[place:place] = changed[begin:end]
            case 4:
                changed[begin:begin] = seeded_random.choice(_INSERTED)
            case _ if len(changed) > 200 and seeded_random.random() < 0.3:
                del changed[-seeded_random.randint(1, 100) :]
            case _:
                changed[begin] ^= 1 << seeded_random.randrange(8)
    return bytes(changed)


_INSERTED = [
    b"-", b"0", b"9" * 50, b",", b"\0", b"\r", b"\n", b"\xff\xfe", b"\xef\xbb\xbf", b"<",
    b"</Stmt>", b"&#x0;", b"<!DOCTYPE a>", b":61:", b":62F:", b":20:", b"\n-\n", b"88,",
    b"\n49,0,0/\n", b"/",
    b"D,999999999999,", b"\xc3\x28", b"?20", b" " * 5_000,
]  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_long_statement_takes_bounded_memory(tmp_path: Path, name: str) -> None:
    """A file of some megabytes keeps only what it reads at the moment."""
    statement = replace(STATEMENT, entries=ENTRIES * 1_500)
    path = tmp_path / "statement"
    path.write_text(WRITERS[name]((statement,)))
    bank_format = find_format(TextFile(path))
    tracemalloc.start()
    try:
        count = sum(1 for _ in bank_format.read(TextFile(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4_502
    assert peak < 3_000_000
