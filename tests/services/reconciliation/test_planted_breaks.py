"""The benchmark `scripts/bench reconcile` at its smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reconcile.client import reconcile
from benchmarks.reconcile.run import break_figures, seed_ledger, write_statement
from benchmarks.reconcile.statement import ACCOUNT, MIN_LINES, parts
from tallystick import Client
from tallystick_core.reconciliation.breaks import BreakKind
from tests.support.platform import ServedPlatform
from tests.support.reconciliation import clearing


def test_each_mismatch_is_found_and_nothing_else(
    platform: ServedPlatform, client: Client, tmp_path: Path
) -> None:
    """A file of a thousand lines has mismatches of 20 kinds: each is one break of its kind and
    class, every other line matches, and the report explains all money.
    """
    path = tmp_path / "statement.csv"
    write_statement(path, MIN_LINES)
    seed_ledger(platform.databases, MIN_LINES)
    result = reconcile(client, ACCOUNT, path)
    figures = break_figures(client, result["statement_file_id"], MIN_LINES)
    assert figures == {"planted": 50, "kinds": 20, "found": 50, "false": 0}
    for currency in ("EUR", "USD"):
        assert float(clearing(client, ACCOUNT, currency).unexplained) == 0


@pytest.mark.parametrize("line_count", [MIN_LINES, 30_000])
def test_a_file_has_the_lines_that_were_asked_for(line_count: int) -> None:
    """Of all kinds of mismatches there are about as many, at most a thousand in all."""
    found = list(parts(line_count))
    assert sum(len(part.lines) for part in found) == line_count
    kinds = [part.kind for part in found if part.kind is not None]
    assert len(kinds) == min(1_000, line_count // 20)
    counts = [kinds.count(kind) for kind in set(kinds)]
    assert max(counts) - min(counts) <= 1
    assert len({(part.kind, part.key) for part in found}) >= len(found) - line_count // 1_000
    assert not {BreakKind.LINE_CORRECTED, BreakKind.BALANCE_GAP} & set(kinds)
