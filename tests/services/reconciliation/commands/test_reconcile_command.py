"""The command `tallystick reconcile`: files, reports, exit codes and errors."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.statement import LineType, StatementLine
from tests.app.test_command_line import run_in_terminal
from tests.support.callers import token_of
from tests.support.platform import ServedPlatform, run_command, unique_id
from tests.support.reconcile_commands import Run, file_line, files_of, write_statement
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    kinds_of,
    only_break,
    stored_rows,
)


def compared_rows(platform: ServedPlatform) -> dict[str, Any]:
    """The rows that a comparison writes, by table. Those of postings change in the background."""
    tables = stored_rows(platform.databases)
    names = ("statement_file", "statement", "staged_line", "statement_line", "break")
    return {name: tables[name] for name in names}


def test_a_file_that_agrees_with_the_ledger_exits_with_0(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """The report has its lines and what is posted, and nothing is on standard error."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(9_70, "ch-1", fee=30)])
    completed = reconcile(path)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout.splitlines() == [
        provider.account,
        "FILE          FORMAT         LINES  MATCHED  REPEATED  BREAKS  UNDECIDED",
        "november.csv  canonical_csv      1        1         0       0          0",
        "",
        "Posted to the ledger",
        "KIND          COUNT  AMOUNT  CURRENCY",
        "PROVIDER_FEE      1   -0.30  EUR",
        "",
    ]
    (file,) = files_of(client, provider.account)
    assert (file.file_name, file.matched_count) == ("november.csv", 1)


def test_breaks_that_need_a_decision_exit_with_1(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """Unless --allow permits them, or they are resolved meanwhile. A repeat of the file changes
    nothing.
    """
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(9_00, "ch-1"), file_line(3_00, "ch-2")])
    first = reconcile(path)
    assert first.returncode == 1
    assert "FINANCE        AMOUNT_DIFFERS      1" in first.stdout
    assert "INVESTIGATION  CHARGE_UNKNOWN      1" in first.stdout
    (file,) = files_of(client, provider.account)
    hint = f"tallystick breaks list --file {file.statement_file_id}"
    assert f"2 breaks of november.csv need a decision: {hint}" in first.stdout
    assert reconcile(path, "--allow", "1").returncode == 1
    repeat = reconcile(path, "--allow", "2")
    assert repeat.returncode == 0
    assert "november.csv was reconciled before, on " in repeat.stdout
    assert repeat.stdout.startswith(first.stdout.partition("\n2 breaks")[0])
    for found in breaks_of(client, account=provider.account):
        client.reconciliation.ResolveBreak(
            pb.ResolveBreakRequest(
                break_id=found.break_id, resolution=reconciliation_pb2.RESOLUTION_ADJUST, reason="r"
            )
        )
    assert reconcile(path).returncode == 0
    assert len(files_of(client, provider.account)) == 1


def test_breaks_that_the_platform_resolves_exit_with_0(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """A rounding, and a charge that the ledger will have, need nobody."""
    provider.pay_in(10_00, "ch-1")
    lines = [file_line(10_01, "ch-1"), file_line(4_00, "ch-2", client_reference="o-order")]
    completed = reconcile(write_statement(tmp_path, lines))
    assert completed.returncode == 0
    assert "need a decision" not in completed.stdout
    (file,) = files_of(client, provider.account)
    assert kinds_of(file) == {"CHARGE_NOT_BOOKED": 1, "ROUNDING": 1}


def test_a_preview_stores_nothing(
    platform: ServedPlatform, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """It lists the breaks that would be opened, and has the exit code that the file would have."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    lines = [file_line(9_00, "ch-1"), file_line(19_50, "ch-2", fee=50), file_line(3_00, "ch-3")]
    path = write_statement(tmp_path, [*lines, file_line(4_00, client_reference="o-order")])
    stored = compared_rows(platform)
    completed = reconcile(path, "--preview")
    assert (completed.returncode, completed.stderr) == (1, "")
    *_, last_line = completed.stdout.splitlines()
    assert last_line == "This is a preview. Nothing is stored."
    assert "Breaks that would be opened" in completed.stdout
    rows = [line.split() for line in completed.stdout.splitlines()]
    assert ["FINANCE", "AMOUNT_DIFFERS", "-1.00", "EUR"] in [row[:4] for row in rows]
    assert "Would be posted to the ledger" in completed.stdout
    assert "PROVIDER_FEE      1   -0.50  EUR" in completed.stdout
    assert "breaks list" not in completed.stdout
    for report in ("json", "csv"):
        again = reconcile(path, "--preview", "--report", report, "--allow", "2")
        assert again.returncode == 0
        assert "This is a preview. Nothing is stored." in again.stderr
    assert compared_rows(platform) == stored
    assert reconcile(path).returncode == 1
    repeat = reconcile(path, "--preview")
    assert repeat.returncode == 1
    assert "was reconciled before" in repeat.stdout
    assert "would" not in repeat.stdout.lower(), "nothing is left to do"
    assert repeat.stdout.endswith("This is a preview. Nothing is stored.\n")


def test_a_damaged_file_stores_nothing(
    platform: ServedPlatform, client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """The error names the place. A file before it is not sent either, and a corrected file may have
    the same name.
    """
    provider.pay_in(10_00, "ch-1")
    lines = [file_line(1_00, f"ch-{number}") for number in range(3_000)]
    good = write_statement(tmp_path, lines, "good.csv")
    damaged = Path(write_statement(tmp_path, lines, "damaged.csv"))
    text = damaged.read_text(encoding="utf-8")
    damaged.write_text(text.replace("ch-2999", "ch-" + "9" * 300), encoding="utf-8")
    stored = compared_rows(platform)
    completed = reconcile(good, str(damaged))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr == (
        "tallystick: damaged.csv, line 3002, column 17: charge_reference must have at most 255 "
        "characters.\n"
    )
    assert compared_rows(platform) == stored
    write_statement(tmp_path, [file_line(10_00, "ch-1")], "damaged.csv")
    assert reconcile(str(damaged)).returncode == 0
    (file,) = files_of(client, provider.account)
    assert file.file_name == "damaged.csv"


def test_a_difference_of_balances_needs_a_reason(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """The error names the option. With it the difference is a break with the reason; a file that
    balances does not get the reason.
    """
    provider.pay_in(10_00, "ch-1")
    good = write_statement(tmp_path, [file_line(10_00, "ch-1")], "good.csv", difference=0)
    bad = write_statement(tmp_path, [], "bad.csv", difference=50)
    completed = reconcile(good, bad)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.endswith(
        "they differ by 0.50 EUR. --accept-difference REASON accepts that.\n"
    )
    completed = reconcile(good, bad, "--accept-difference", "error of the bank")
    assert completed.returncode == 1
    found = only_break(client, provider.account)
    assert found.kind == reconciliation_pb2.BREAK_KIND_BALANCE_DIFFERS
    assert (found.difference, "error of the bank" in found.detail) == ("0.50", True)
    reasons = {
        file.file_name: file.difference_reason for file in files_of(client, provider.account)
    }
    assert reasons == {"good.csv": "", "bad.csv": "error of the bank"}
    assert "was reconciled before" in reconcile(good).stdout
    for arguments in ((), ("--accept-difference", "another reason"), ("--preview",)):
        repeat = reconcile(bad, *arguments)
        assert repeat.returncode == 1
        assert "bad.csv was reconciled before" in repeat.stdout


def test_a_rejected_file_does_not_hide_those_before_it(
    provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """The report has the files that are stored; the error follows on standard error."""
    provider.pay_in(10_00, "ch-1")
    first = write_statement(tmp_path / "a", [file_line(10_00, "ch-1")])
    second = write_statement(tmp_path / "b", [file_line(11_00, "ch-1")])
    completed = reconcile(first, second, "--report", "json")
    assert completed.returncode == 1
    (file,) = json.loads(completed.stdout)["files"]
    assert file["matched_count"] == "1"
    assert "IDEMPOTENCY_KEY_REUSED: november.csv: file_name was used" in completed.stderr


def test_several_files_have_one_report(provider: Provider, reconcile: Run, tmp_path: Path) -> None:
    """Each row names its file; --allow counts for each file alone."""
    paths = []
    for number in (1, 2):
        provider.pay_in(10_00, f"ch-{number}")
        lines = [file_line(10_00, f"ch-{number}"), file_line(1_00, f"other-{number}")]
        paths.append(write_statement(tmp_path, lines, f"{number}.csv"))
    completed = reconcile(*paths, "--allow", "1")
    assert completed.returncode == 0
    for number in (1, 2):
        assert f"{number}.csv  canonical_csv      2        1" in completed.stdout
        assert f"{number}.csv  INVESTIGATION  CHARGE_UNKNOWN      1" in completed.stdout


def test_the_json_report_is_one_object(provider: Provider, reconcile: Run, tmp_path: Path) -> None:
    """It has the keys of the messages, and what the exit code follows from."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(9_00, "ch-1")])
    completed = reconcile(path, "--report", "json")
    report = json.loads(completed.stdout)
    assert completed.stdout.count("\n") == 1
    assert (report["account"], report["preview"]) == (provider.account, False)
    assert (report["allowed"], report["passed"], completed.returncode) == (0, False, 1)
    (file,) = report["files"]
    assert (file["format"], file["line_count"], file["is_repeat"]) == ("canonical_csv", "1", False)
    assert file["undecided_count"] == 1
    (found,) = file["breaks"]
    assert (found["kind"], found["difference"]) == ("BREAK_KIND_AMOUNT_DIFFERS", "-1.00")
    assert found.keys() >= {field.name for field in reconciliation_pb2.Break.DESCRIPTOR.fields}


def test_the_csv_report_has_a_row_for_each_break(
    provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """No cell is a formula; a negative amount stays a number."""
    provider.pay_in(10_00, "ch-1")
    lines = [file_line(9_00, "ch-1"), file_line(-2_00, "", LineType.RESERVE)]
    path = write_statement(tmp_path, lines, "=1+2.csv")
    completed = reconcile(path, "--report", "csv")
    assert completed.returncode == 1
    rows = sorted(csv.DictReader(io.StringIO(completed.stdout)), key=lambda row: row["kind"])
    assert [(row["kind"], row["break_class"], row["difference"]) for row in rows] == [
        ("AMOUNT_DIFFERS", "FINANCE", "-1.00"),
        ("RESERVE", "FINANCE", "-2.00"),
    ]
    assert {row["file_name"] for row in rows} == {"'=1+2.csv"}
    assert {row["state"] for row in rows} == {"OPEN"}


def test_a_bank_is_named_by_its_account(run: Run, tmp_path: Path) -> None:
    """The ledger need not have the account yet: a bank's account begins with its first file."""
    account = f"banks/{unique_id('b')}"
    path = write_statement(tmp_path, [file_line(5_00, "", LineType.BANK_ENTRY)])
    completed = run("reconcile", path, "--account", account)
    assert completed.returncode == 1
    assert completed.stdout.startswith(f"{account}\n")
    assert "BANK_ENTRY_UNKNOWN" in completed.stdout


def test_a_provider_that_the_ledger_lacks_is_rejected(
    platform: ServedPlatform, provider: Provider, run: Run, tmp_path: Path
) -> None:
    """A mistyped name opens no breaks; the error lists the right ones."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(10_00, "ch-1")])
    stored = compared_rows(platform)
    completed = run("reconcile", path, "--provider", "strpe")
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "The ledger has no account psp/strpe/clearing." in completed.stderr
    assert provider.account in completed.stderr
    assert compared_rows(platform) == stored


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Give either --provider NAME or --account ACCOUNT."),
        ("--provider p --account banks/b", "Give either --provider NAME or --account ACCOUNT."),
        ("--provider a/b", 'the account of --provider must be "psp/{provider}/clearing"'),
        (
            "--account banks/transit",
            '--account must be "psp/{provider}/clearing" or "banks/{bank}"',
        ),
        ("--provider p --allow -1", "'-1' is not a whole number from 0 to 1000000."),
        (
            f"--provider p --accept-difference {'x' * 256}",
            "--accept-difference must have at most 255 characters, and no card number.",
        ),
        (
            "--provider p --accept-difference 4242424242424242",
            "--accept-difference must have at most 255 characters, and no card number.",
        ),
        ("--provider p --report xml", "'xml' is not one of 'text', 'json', 'csv'."),
    ],
)
def test_wrong_usage_names_the_option(arguments: str, expected: str, tmp_path: Path) -> None:
    """It is one line, with exit code 2, before anything is sent."""
    completed = run_command("reconcile", write_statement(tmp_path, []), *arguments.split())
    assert (completed.returncode, completed.stdout) == (2, "")
    assert expected in completed.stderr
    assert completed.stderr.count("\n") == 1


def test_a_missing_file_and_an_unreachable_platform_are_named(tmp_path: Path) -> None:
    missing = run_command("reconcile", str(tmp_path / "no.csv"), "--provider", "p")
    assert missing.returncode == 2
    assert "no.csv" in missing.stderr
    path = write_statement(tmp_path, [])
    address = ("--address", "127.0.0.1:1")
    unreachable = run_command("reconcile", path, "--provider", "p", *address)
    assert (unreachable.returncode, unreachable.stdout) == (1, "")
    assert "Cannot reach the platform at 127.0.0.1:1: " in unreachable.stderr


def test_a_terminal_shows_the_progress(
    platform: ServedPlatform, provider: Provider, tmp_path: Path
) -> None:
    """Of reading and of sending; the report is a formatted table."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(10_00, "ch-1")])
    arguments = ("reconcile", path, "--provider", provider.name, "--address", platform.address)
    output = run_in_terminal(*arguments, TALLYSTICK_TOKEN=token_of("alice"))
    assert "Reading november.csv" in output
    assert "comparing it with the ledger" in output
    assert "─" in output


def lines_for(provider: Provider, count: int) -> list[StatementLine]:
    """Charges that the ledger has."""
    provider.pay_in(count, "ch-all")
    return [file_line(1, "ch-all", reference=f"txn-{number}") for number in range(count)]


def test_a_long_file_is_sent_in_chunks(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """Each line arrives once."""
    path = write_statement(tmp_path, lines_for(provider, 12_000))
    assert reconcile(path).returncode == 0
    (file,) = files_of(client, provider.account)
    assert (file.line_count, file.matched_count) == (12_000, 12_000)
