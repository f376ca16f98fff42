"""Breaks are written to a spreadsheet, and the decisions in it are read back and applied."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tallystick import Client, UnavailableError
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.cli.operator.decisions import read_decisions
from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls
from tallystick_server.cli.spreadsheet import to_cell
from tests.support.reconcile_commands import Run, file_line, write_statement
from tests.support.reconciliation import Provider

Row = dict[str, str]
DIFFERS, UNKNOWN, DISPUTE = "AMOUNT_DIFFERS", "CHARGE_UNKNOWN", "DISPUTE_NOT_BOOKED"


def read_sheet(path: Path) -> dict[str, Row]:
    """The rows of a sheet, by the kind of their breaks."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["kind"]: row for row in csv.DictReader(file)}


def decide(
    path: Path, decisions: Mapping[str, tuple[str, str]], *, delimiter: str = ",", bom: bool = True
) -> str:
    """Writes decisions and reasons, by kind, into a sheet as a spreadsheet does; returns it."""
    rows = read_sheet(path)
    decided = path.with_name("decided.csv")
    encoding = "utf-8-sig" if bom else "utf-8"
    with decided.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, rows[DIFFERS].keys(), delimiter=delimiter)
        writer.writeheader()
        for kind, row in rows.items():
            row["decision"], row["reason"] = decisions.get(kind, ("", ""))
            writer.writerow(row)
    return str(decided)


@pytest.fixture
def sheet(provider: Provider, open_breaks: dict[str, str], run: Run, tmp_path: Path) -> Path:
    """The exported breaks of a provider."""
    path = tmp_path / "breaks.csv"
    completed = run("breaks", "export", str(path), "--account", provider.account)
    assert (completed.returncode, completed.stdout) == (0, "")
    assert completed.stderr == f"3 unresolved breaks of {provider.account} are in {path}.\n"
    assert open_breaks.keys() == read_sheet(path).keys()
    return path


def state_of(client: Client, break_id: str) -> tuple[str, int]:
    """The state of a break, and its version."""
    found = client.reconciliation.GetBreak(
        pb.GetBreakRequest(break_id=break_id)
    ).reconciliation_break
    return {1: "OPEN", 2: "AWAITING_APPROVAL", 3: "RESOLVED"}[found.state], found.version


def results(completed: Any) -> list[tuple[str, str]]:
    """Each row of the result: its decision, and what became of it."""
    rows = map(json.loads, completed.stdout.splitlines())
    return sorted((row["decision"], row["result"]) for row in rows)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+2", "'=1+2"),
        ("+49 30", "'+49 30"),
        ("-", "'-"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-12.30", "-12.30"),
        ("a=b", "a=b"),
        ("", ""),
        ("\t=1", "\\t=1"),
        ("a\nb", "a\\nb"),
    ],
)
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    """What a spreadsheet would calculate begins with an apostrophe; numbers stay numbers."""
    assert to_cell(text) == cell


def test_a_sheet_has_what_a_decision_needs(
    sheet: Path, open_breaks: dict[str, str], provider: Provider
) -> None:
    """A row for each break, with the references of its lines and entries, as no formulas; the two
    last columns are empty.
    """
    rows = read_sheet(sheet)
    differs, unknown = rows[DIFFERS], rows[UNKNOWN]
    assert differs["break_id"] == open_breaks[DIFFERS]
    assert (differs["break_class"], differs["state"]) == ("FINANCE", "OPEN")
    assert (differs["account"], differs["difference"]) == (provider.account, "-1.00")
    assert (differs["currency"], differs["age_days"], differs["assignee"]) == ("EUR", "0", "")
    assert differs["references"].startswith("txn-1 ch-1 po-")
    assert differs["detail"] == "file and ledger have different amounts"
    assert unknown["references"] == "'=2+3 ch-9"
    assert [*differs][-2:] == ["decision", "reason"]
    assert {(row["decision"], row["reason"]) for row in rows.values()} == {("", "")}


def test_an_export_does_not_replace_a_file(
    sheet: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have decisions. One that fails leaves no file."""
    content = sheet.read_bytes()
    completed = run("breaks", "export", str(sheet))
    assert completed.returncode == 1
    assert f"{sheet} exists already; name another file." in completed.stderr
    assert sheet.read_bytes() == content

    def fail(*_: object) -> None:
        raise UnavailableError("gone")

    monkeypatch.setattr(ReconciliationCalls, "show_break", fail)
    assert run("breaks", "export", str(tmp_path / "new.csv")).returncode == 1
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize(("delimiter", "bom"), [(",", True), (";", True), ("\t", False)])
def test_decisions_are_applied_once(
    client: Client,
    sheet: Path,
    open_breaks: dict[str, str],
    run: Run,
    delimiter: str,
    bom: bool,
) -> None:
    """Whatever the spreadsheet separates cells by. A dry run changes nothing, and a repeat applies
    nothing again, also after an approval.
    """
    decisions = {DIFFERS: ("adjust", "fee of the bank"), DISPUTE: ("WRITE_OFF", "it is lost")}
    path = decide(sheet, decisions, delimiter=delimiter, bom=bom)
    dry_run = run("breaks", "import", path, "--dry-run", "--json")
    assert (dry_run.returncode, dry_run.stderr) == (0, "This is a dry run. Nothing was changed.\n")
    assert results(dry_run) == [("ADJUST", "can be applied"), ("WRITE_OFF", "can be applied")]
    assert state_of(client, open_breaks[DIFFERS]) == ("OPEN", 1)
    first = run("breaks", "import", path)
    assert (first.returncode, first.stderr) == (0, "")
    headings, *rows = (line.split() for line in first.stdout.splitlines())
    assert headings == ["LINE", "BREAK_ID", "DECISION", "RESULT", "ERROR"]
    assert sorted(row[1:] for row in rows) == [
        [open_breaks[DIFFERS], "ADJUST", "RESOLVED"],
        [open_breaks[DISPUTE], "WRITE_OFF", "AWAITING_APPROVAL"],
    ]
    expected = [("ADJUST", "applied before"), ("WRITE_OFF", "applied before")]
    assert results(run("breaks", "import", path, "--json")) == expected
    approval = ("--reason", "I have seen it")
    assert run("breaks", "approve", open_breaks[DISPUTE], *approval, name="bob").returncode == 0
    assert results(run("breaks", "import", path, "--json")) == expected
    assert state_of(client, open_breaks[DIFFERS]) == ("RESOLVED", 2)
    assert state_of(client, open_breaks[DISPUTE]) == ("RESOLVED", 3)


def test_resolutions_are_approved_and_rejected_by_a_sheet(
    client: Client, provider: Provider, sheet: Path, open_breaks: dict[str, str], run: Run
) -> None:
    """A resolution that the platform rejects does not stop the others, and the exit code is 1."""
    path = decide(sheet, {DIFFERS: ("ACCEPT", "r"), DISPUTE: ("WRITE_OFF", "r")})
    assert run("breaks", "import", path).returncode == 0
    sheet.unlink()
    filters = ("--all", "--account", provider.account)
    assert run("breaks", "export", str(sheet), *filters).returncode == 0
    rows = read_sheet(sheet)
    assert (rows[DISPUTE]["state"], rows[DISPUTE]["resolution"]) == (
        "AWAITING_APPROVAL",
        "WRITE_OFF",
    )
    path = decide(sheet, {DISPUTE: ("APPROVE", "fine"), UNKNOWN: ("ACCEPT", "small")})
    by_author = run("breaks", "import", path, "--json")
    assert by_author.returncode == 1
    assert results(by_author) == [("ACCEPT", "RESOLVED"), ("APPROVE", "rejected")]
    assert "SECOND_APPROVER_REQUIRED" in by_author.stdout
    rejection = decide(sheet, {DISPUTE: ("REJECT", "ask first")})
    assert results(run("breaks", "import", rejection, "--json", name="bob")) == [("REJECT", "OPEN")]
    assert results(run("breaks", "import", rejection, "--json", name="bob")) == [
        ("REJECT", "applied before")
    ]
    assert state_of(client, open_breaks[DISPUTE])[0] == "OPEN"


def test_a_sheet_approves_what_it_shows(
    client: Client, provider: Provider, sheet: Path, open_breaks: dict[str, str], run: Run
) -> None:
    """A resolution that was proposed after the export is not approved by it; nor by a command that
    names another version.
    """
    dispute = open_breaks[DISPUTE]
    resolve = ("breaks", "resolve", dispute, "--reason", "r")
    assert run(*resolve, "--adjust").returncode == 0
    sheet.unlink()
    filters = ("--all", "--account", provider.account)
    assert run("breaks", "export", str(sheet), *filters).returncode == 0
    assert read_sheet(sheet)[DISPUTE]["version"] == "2"
    assert run("breaks", "reject", dispute, "--reason", "no").returncode == 0
    assert run(*resolve, "--write-off").returncode == 0
    path = decide(sheet, {DISPUTE: ("APPROVE", "as exported")})
    imported = run("breaks", "import", path, "--json", name="bob")
    assert (imported.returncode, results(imported)) == (1, [("APPROVE", "rejected")])
    assert "VERSION_MISMATCH" in imported.stdout
    approve = ("breaks", "approve", dispute, "--reason", "seen")
    completed = run(*approve, "--version", "2", name="bob")
    assert completed.returncode == 1
    assert "expected_version must be 4" in completed.stderr
    assert state_of(client, dispute) == ("AWAITING_APPROVAL", 4)
    assert run(*approve, "--version", "4", name="bob").returncode == 0
    assert state_of(client, dispute) == ("RESOLVED", 5)


def test_an_error_anywhere_applies_nothing(
    client: Client, sheet: Path, open_breaks: dict[str, str], run: Run
) -> None:
    """Each error names the line and the column; all are shown at once."""
    before = {break_id: state_of(client, break_id) for break_id in open_breaks.values()}
    lines = {kind: number for number, kind in enumerate(read_sheet(sheet), 2)}
    path = decide(
        sheet,
        {
            DIFFERS: ("ADJUST", "r"),
            UNKNOWN: ("ACCEPTED", "x" * 256),
            DISPUTE: ("", "only a reason"),
        },
    )
    completed = run("breaks", "import", path)
    assert (completed.returncode, completed.stdout) == (1, "")
    *errors, summary = completed.stderr.splitlines()
    allowed = "ADJUST, ACCEPT, WRITE_OFF, APPROVE, REJECT, or empty"
    assert sorted(errors) == sorted(
        [
            f"decided.csv, line {lines[UNKNOWN]}, column decision: it must be one of {allowed}.",
            f"decided.csv, line {lines[UNKNOWN]}, column reason: it must have at most 255 "
            "characters.",
            f"decided.csv, line {lines[DISPUTE]}, column decision: it must be one of {allowed}.",
        ]
    )
    assert summary == "tallystick: decided.csv has 3 errors. Nothing was changed."
    path = decide(sheet, {DIFFERS: ("ADJUST", "r"), DISPUTE: ("APPROVE", "r")})
    completed = run("breaks", "import", path)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.splitlines()[0] == (
        f"decided.csv, line {lines[DISPUTE]}, column decision: the break is OPEN, and must be "
        "AWAITING_APPROVAL or AWAITING_REOPENING for APPROVE."
    )
    text = Path(path).read_text(encoding="utf-8-sig").replace(open_breaks[DISPUTE], "f0-1")
    Path(path).write_text(text.replace("APPROVE", "ADJUST"), encoding="utf-8")
    completed = run("breaks", "import", path)
    assert f"line {lines[DISPUTE]}, column break_id: there is no break f0-1." in completed.stderr
    assert {break_id: state_of(client, break_id) for break_id in open_breaks.values()} == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("kind", "ROUNDING"),
        ("account", "psp/x/clearing"),
        ("difference", "999.99"),
        ("currency", "USD"),
    ],
)
def test_a_row_with_values_of_another_break_is_an_error(
    client: Client,
    sheet: Path,
    open_breaks: dict[str, str],
    run: Run,
    column: str,
    value: str,
) -> None:
    """Its decision would be about another break: some columns were sorted alone, or edited."""
    path = Path(decide(sheet, {DIFFERS: ("ADJUST", "r")}))
    row = read_sheet(sheet)[DIFFERS]
    line = [*read_sheet(sheet)].index(DIFFERS) + 2
    rows = path.read_text(encoding="utf-8-sig").splitlines()
    cells = rows[line - 1].split(",")
    cells[[*row].index(column)] = value
    rows[line - 1] = ",".join(cells)
    path.write_text("\n".join(rows))
    for arguments in (("--dry-run",), ()):
        completed = run("breaks", "import", str(path), *arguments)
        assert (completed.returncode, completed.stdout) == (1, "")
        assert completed.stderr.splitlines()[0] == (
            f"decided.csv, line {line}, column {column}: it must be {row[column]}, as it is of "
            f"{row['break_id']}."
        )
    assert state_of(client, open_breaks[DIFFERS]) == ("OPEN", 1)


@pytest.mark.parametrize("difference", ["-1", "-1,00", "-1.0"])
def test_a_spreadsheet_may_write_a_number_otherwise(
    provider: Provider, open_breaks: dict[str, str], run: Run, tmp_path: Path, difference: str
) -> None:
    """With fewer zeros, or a decimal comma. Empty columns at the right are ignored."""
    path = tmp_path / "d.csv"
    path.write_text(
        "break_id;difference;account;decision;reason;;\n"
        f"{open_breaks[DIFFERS]};{difference};{provider.account};ACCEPT;r;;\n"
    )
    completed = run("breaks", "import", str(path), "--dry-run", "--json")
    assert (completed.returncode, results(completed)) == (0, [("ACCEPT", "can be applied")])


def test_a_break_about_balances_can_only_be_accepted(
    provider: Provider, reconcile: Run, run: Run, tmp_path: Path
) -> None:
    """Nothing can be posted for it, so the check of the file finds another decision."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(10_00, "ch-1")], difference=50)
    assert reconcile(path, "--accept-difference", "error of the bank").returncode == 1
    sheet = tmp_path / "breaks.csv"
    run("breaks", "export", str(sheet), "--account", provider.account)
    (row,) = read_sheet(sheet).values()
    sheet.write_text(f"break_id,decision,reason\n{row['break_id']},WRITE_OFF,r\n")
    completed = run("breaks", "import", str(sheet))
    assert completed.returncode == 1
    expected = "breaks.csv, line 2, column decision: it must be ACCEPT for BALANCE_DIFFERS"
    assert expected in completed.stderr
    sheet.write_text(f"break_id,decision,reason\n{row['break_id']},ACCEPT,r\n")
    assert run("breaks", "import", str(sheet)).returncode == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["line 1, column break_id: the first row must name the columns"]),
        ("break_id,note\n", ["line 1, column decision: the column is missing"]),
        (
            "break_id,decision,reason\nb-1,ADJUST,r,x\n",
            ["line 2, column 4: the row has more cells"],
        ),
        ("break_id,decision,reason\n,ADJUST,r\n", ["line 2, column break_id: it is required"]),
        ("break_id,decision,reason\nb-1,ADJUST\n", ["line 2, column reason: it is required with"]),
        (
            'break_id,decision,reason\nb-1,ADJUST,"two\nlines"\nb-1,ACCEPT,r\n',
            ["line 4, column break_id: line 2 has a decision about the same break"],
        ),
        ('break_id,decision,reason\nb-1,ADJUST,"r\n', ["line 2, column 1: a text must end with"]),
        (
            "break_id,decision,reason,Decision\nb-1,ADJUST,r,ACCEPT\n",
            ["line 1, column decision: the column must be unique"],
        ),
        (
            "break_id,decision,reason\nb-1,ADJUST,card 4242424242424242\n",
            ["line 2, column reason: it must not contain a card number"],
        ),
    ],
)
def test_a_sheet_that_cannot_be_read_is_an_error(
    content: str, expected: list[str], tmp_path: Path
) -> None:
    """Lines are those of the file, also after a text with a line break."""
    path = tmp_path / "d.csv"
    path.write_text(content, encoding="utf-8")
    _, problems = read_decisions(path)
    assert [str(problem) for problem in problems][: len(expected)] == [
        next((str(problem) for problem in problems if str(problem).startswith(text)), f"no {text}")
        for text in expected
    ]


def test_columns_have_any_order_and_rows_without_decisions_are_left_out(
    run: Run, tmp_path: Path
) -> None:
    """Headings may have other capitals; a file without decisions does nothing."""
    path = tmp_path / "d.csv"
    path.write_text("Reason,x,DECISION,Break_ID\n,,,\n\nr,,Accept,b-1\n,1,,b-2\n", encoding="utf-8")
    rows, problems = read_decisions(path)
    assert problems == []
    assert [(row.line, row.break_id, row.decision, row.reason) for row in rows] == [
        (4, "b-1", "ACCEPT", "r")
    ]
    path.write_text("break_id,decision,reason\nb-1,,\n", encoding="utf-8")
    completed = run("breaks", "import", str(path))
    assert (completed.returncode, completed.stdout) == (0, "")
    assert completed.stderr == "d.csv has no decisions.\n"


def test_a_lost_connection_shows_what_was_applied(
    sheet: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run applies the rest."""
    path = decide(sheet, {DIFFERS: ("ACCEPT", "r"), UNKNOWN: ("ACCEPT", "r")})
    resolve_break = ReconciliationCalls.resolve_break
    calls = 0

    def resolve_one(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise UnavailableError("The connection is gone.")
        return resolve_break(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ReconciliationCalls, "resolve_break", resolve_one)
        completed = run("breaks", "import", path, "--json")
    assert completed.returncode == 1
    assert results(completed) == [("ACCEPT", "RESOLVED")]
    assert "The connection is gone" in completed.stderr
    assert results(run("breaks", "import", path, "--json")) == [
        ("ACCEPT", "RESOLVED"),
        ("ACCEPT", "applied before"),
    ]
