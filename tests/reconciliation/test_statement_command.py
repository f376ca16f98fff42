"""The command `tallystick statement`: the sums of a file, or why it is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tallystick_server.reconciliation.formats.canonical_csv import COLUMNS
from tests.reconciliation import test_stripe_report
from tests.support.platform import run_command

_MT940 = """\
:20:STARTUMS
:25:12345678/0100033626
:28C:00001/001
:60F:C261128EUR1000,00
:61:2611291129C25,50NTRFREF-1
:61:2611291129D0,50NCHGREF-2
:62F:C261129EUR{closing}
-
"""


def write(folder: Path, closing: str = "1025,00") -> str:
    """The path of a statement with this closing balance."""
    path = folder / "november.sta"
    path.write_text(_MT940.format(closing=closing))
    return str(path)


def test_a_statement_is_shown_with_its_sums(tmp_path: Path) -> None:
    """One row, with the last characters of the account only."""
    result = run_command("statement", write(tmp_path))
    assert result.returncode == 0, result.stderr
    heading, row = result.stdout.splitlines()
    assert heading.split()[:4] == ["account", "period", "lines", "opening"]
    assert "…3626" in row
    assert "12345678" not in result.stdout
    for text in ("1000.00", "25.00", "1025.00", "0.00", "EUR", "BANK_ENTRY 2"):
        assert text in row


def test_a_statement_can_be_read_by_programs(tmp_path: Path) -> None:
    result = run_command("statement", write(tmp_path), "--json")
    answer = json.loads(result.stdout)
    assert (answer["file"], answer["format"]) == ("november.sta", "mt940")
    (statement,) = answer["statements"]
    assert statement["lines"] == 2
    assert statement["opening_balance"] == "1000.00"
    assert statement["total"] == "25.00"
    assert statement["closing_balance"] == "1025.00"
    assert statement["difference"] == "0.00"
    assert statement["types"] == {"BANK_ENTRY": 2}


def test_a_statement_that_does_not_balance_needs_a_decision(tmp_path: Path) -> None:
    """The error names the difference; a person may accept it."""
    path = write(tmp_path, closing="1026,00")
    result = run_command("statement", path)
    assert result.returncode == 1
    assert result.stderr == (
        "tallystick: november.sta, line 7, column 1: the opening balance and 2 lines must make "
        "the closing balance; they differ by 1.00 EUR.\n"
    )
    accepted = run_command("statement", path, "--accept-difference", "--json")
    assert json.loads(accepted.stdout)["statements"][0]["difference"] == "1.00"


def test_a_report_without_rows_has_no_statements(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(test_stripe_report.report())
    completed = run_command("statement", str(path))
    assert (completed.returncode, completed.stdout) == (0, "")
    assert completed.stderr == "empty.csv has no statements.\n"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    completed = run_command("statement", str(tmp_path))
    assert completed.returncode == 2
    assert "is a directory" in completed.stderr


def test_a_file_of_no_format_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear bank,\n")
    result = run_command("statement", str(path))
    assert result.returncode == 1
    assert "letter.txt, line 1, column 1: the file must have one of these formats:" in result.stderr
    missing = run_command("statement", str(tmp_path / "nothing"))
    assert missing.returncode != 0
    assert "nothing" in missing.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (
            b"sep=;\r\nrecord;currency\r\n",
            "the line sep= must be removed, and cells must be separated by commas",
        ),
        (
            ";".join(COLUMNS).encode() + b"\n",
            "cells must be separated by commas",
        ),
        (
            ",".join(COLUMNS).encode("utf-16-le"),
            "a text must not contain NUL; UTF-16 needs a byte order mark",
        ),
    ],
    ids=["empty", "sep=", "semicolons", "UTF-16"],
)
def test_a_file_of_a_spreadsheet_gets_a_helpful_error(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    completed = run_command("statement", str(path))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.startswith("tallystick: a.csv, line 1, column ")
    assert completed.stderr.endswith(f": {expected}.\n")
