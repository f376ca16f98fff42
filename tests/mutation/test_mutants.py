"""No mutant is stale, and the table of results lists each of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, Mutant, apply_mutant, fingerprint_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies(mutant: Mutant) -> None:
    """The text that a mutant replaces occurs once in its file, and the file still parses with the
    mutant.
    """
    ast.parse(apply_mutant(mutant, (ROOT / mutant.file).read_text()))


def test_a_stale_mutant_is_an_error() -> None:
    """A mutant whose source text has changed is reported by name."""
    with pytest.raises(ValueError, match="is stale"):
        apply_mutant(MUTANTS[0], "something else")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_names_tests_that_exist(mutant: Mutant) -> None:
    """Each named test is a folder, a file, or a function of a file. A selection by words could
    match nothing, and a run without a test kills nothing.
    """
    for name in mutant.tests.split():
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        if function:
            definition = rf"^(async )?def {function}\("
            assert re.search(definition, (ROOT / path).read_text(), re.MULTILINE), name


def test_every_mutant_was_killed() -> None:
    """The table that scripts/mutation wrote lists each mutant in its present version."""
    lines = (ROOT / "tests/mutation/KILLED.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| ")]
    killed_mutants = {(row[1], row[-2]) for row in rows}
    assert [
        mutant.name
        for mutant in MUTANTS
        if (mutant.name, fingerprint_of(mutant)) not in killed_mutants
    ] == []
    assert len(MUTANTS) >= 25


def test_the_command_reads_its_options() -> None:
    """A run that no mutant matches ends with one sentence; a bad part is named."""
    for options, sentence in (
        (["--only", "no such mutant"], "no mutant meets the options"),
        (["--part", "3/2"], "'3/2' must be a part such as 2/6"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "tests.mutation", *options],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode != 0
        assert sentence in result.stderr, result.stderr
