"""No planted bug is stale, and the table of detections lists each of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation.mutants import BUGS, PlantedBug, apply_bug, fingerprint_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_can_still_be_planted(bug: PlantedBug) -> None:
    """The text that a bug replaces occurs once in its file, and the file still parses with the bug
    in it.
    """
    ast.parse(apply_bug(bug, (ROOT / bug.file).read_text()))


def test_a_stale_bug_is_an_error() -> None:
    """A bug whose source text has changed is reported by name."""
    with pytest.raises(ValueError, match="has gone stale"):
        apply_bug(BUGS[0], "something else")


def test_every_bug_was_noticed() -> None:
    """The table that scripts/mutation wrote lists each bug in its present version."""
    lines = (ROOT / "tests/mutation/KILLED.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    noticed_bugs = {(row[1], row[-2]) for row in rows}
    assert [bug.name for bug in BUGS if (bug.name, fingerprint_of(bug)) not in noticed_bugs] == []
    assert len(BUGS) >= 25
