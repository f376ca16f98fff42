"""What `tallystick reconcile` takes as one file: its content and account, whatever its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tallystick import AbortedError, Client, _statements
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import StatementLine
from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls
from tests.reconciliation import test_stripe_report
from tests.support.platform import ServedPlatform, run_command, unique_id
from tests.support.reconcile_commands import Run, file_line, files_of, write_statement
from tests.support.reconciliation import Provider, lines_of

FIRST = [file_line(9_00, "ch-1")]
SECOND = [file_line(10_00, "ch-1"), file_line(5_00, "ch-2")]


@pytest.mark.parametrize(
    "content", [FIRST, SECOND, [*SECOND, *FIRST]], ids=["first", "second", "third"]
)
def test_a_file_that_changes_while_it_is_sent_is_not_reconciled(
    client: Client,
    provider: Provider,
    reconcile: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: list[StatementLine],
) -> None:
    """Its content would not be that of its hash. The next run sends it as it is then: with the
    first content again, the one that it was changed to, or another.
    """
    monkeypatch.setattr(_statements, "_MAX_BYTES", 1)  # so each item is sent alone
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, FIRST)
    find_file = ReconciliationCalls.find_file

    def change(calls: ReconciliationCalls, file_id: str) -> Any:
        write_statement(tmp_path, SECOND)
        return find_file(calls, file_id)

    with monkeypatch.context() as patch:
        patch.setattr(ReconciliationCalls, "find_file", change)
        completed = reconcile(path)
    assert (completed.returncode, completed.stdout) == (1, "")
    expected = "november.csv was changed while it was sent. It is not reconciled; run the command"
    assert expected in completed.stderr
    (file,) = files_of(client, provider.account)
    assert file.state == reconciliation_pb2.STATEMENT_FILE_STATE_LOADING
    write_statement(tmp_path, content)
    assert reconcile(path, "--allow", "9").returncode == 0
    file, *_ = files_of(client, provider.account)
    assert file.state == reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
    amounts = [found.line.amount for found in lines_of(client, file.statement_file_id)]
    assert amounts == [format_amount(line.amount, "EUR") for line in content]


def test_the_same_content_has_the_name_that_was_given(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> None:
    """Two empty reports are the same file. The second is reported as what it is, also if both are
    in one command.
    """
    provider.pay_in(10_00, "ch-1")
    path = Path(write_statement(tmp_path, [file_line(10_00, "ch-1")], "first.csv"))
    copies = [path.with_name(name) for name in ("second.csv", "third.csv")]
    for copy in copies:
        copy.write_bytes(path.read_bytes())
    completed = reconcile(str(path), str(copies[0]))
    assert completed.returncode == 0
    assert "second.csv  canonical_csv      1        1" in completed.stdout
    assert "second.csv has the content of first.csv, which was reconciled on " in completed.stdout
    completed = reconcile(str(copies[1]), "--report", "json")
    (file,) = json.loads(completed.stdout)["files"]
    assert (file["file_name"], file["first_file_name"]) == ("third.csv", "first.csv")
    assert "third.csv has the content of first.csv" in completed.stderr
    assert len(files_of(client, provider.account)) == 1


def test_a_conflict_names_the_other_file(
    provider: Provider, reconcile: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are compared one after the other. The error says what to do."""
    provider.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(10_00, "ch-1")])

    def conflict(*_: object, **__: object) -> None:
        raise AbortedError("The transaction kept conflicting.", reason="CONFLICT")

    monkeypatch.setattr(ReconciliationCalls, "reconcile_file", conflict)
    completed = reconcile(path)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert (
        "CONFLICT: november.csv: Another file may be compared at the moment. Run the command again "
        "once it has ended. "
    ) in completed.stderr


def test_a_file_of_another_account_is_named(
    client: Client, provider: Provider, reconcile: Run, run: Run, tmp_path: Path
) -> None:
    """It may have been sent to the wrong account, now or before."""
    provider.pay_in(10_00, "ch-1")
    other = Provider(client)
    other.pay_in(10_00, "ch-1")
    path = write_statement(tmp_path, [file_line(10_00, "ch-1")])
    assert reconcile(path).stderr == ""
    completed = run("reconcile", path, "--provider", other.name, "--preview")
    warning = f"Warning: november.csv was reconciled with {provider.account}, on "
    assert completed.stderr.startswith(warning)
    assert completed.stderr.endswith(f". Check whether it is about {other.account}.\n")
    assert reconcile(path).stderr == ""


def test_the_report_of_a_provider_is_not_about_a_bank(
    platform: ServedPlatform, client: Client, run: Run, tmp_path: Path
) -> None:
    """It is rejected before anything is sent."""
    path = tmp_path / "report.csv"
    path.write_text(test_stripe_report.report({}))
    account = f"banks/{unique_id('b')}"
    completed = run("reconcile", str(path), "--account", account)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr == (
        f"tallystick: report.csv is a report of a provider (stripe_report), and {account} is the "
        "account of a bank: use --provider NAME.\n"
    )
    assert files_of(client, account) == []


@pytest.mark.parametrize(
    "name",
    [b"4242424242424242.csv", b"a\\b.csv", b"a\nb.csv", b"a\x1b[31m.csv", b"\xff.csv"],
    ids=["card number", "backslash", "line feed", "escape sequence", "not UTF-8"],
)
def test_a_file_whose_name_cannot_be_stored_must_be_renamed(
    provider: Provider, reconcile: Run, tmp_path: Path, name: bytes
) -> None:
    """The error is one line, which shows the name without control characters."""
    path = Path(write_statement(tmp_path, []))
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    path.rename(bad)
    completed = reconcile(bad)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.endswith(
        "csv: rename the file. Its name must have at most 255 printable characters of UTF-8, no "
        "backslash and no card number.\n"
    )
    assert completed.stderr.count("\n") == 1
    assert completed.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize("command", [("reconcile", "--provider", "p"), ("statement",)])
def test_a_pipe_is_rejected(provider: Provider, run: Run, tmp_path: Path, command: Any) -> None:
    """A file is read several times; the command does not wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    first, *options = command
    if options:
        provider.pay_in(10_00, "ch-1")
        options[-1] = provider.name
        completed = run(first, str(tmp_path / "pipe"), *options)
    else:
        completed = run_command(first, str(tmp_path / "pipe"))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert "pipe must be a regular file, not a pipe or a device." in completed.stderr
