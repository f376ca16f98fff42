"""The commands `tallystick breaks`, `clearing` and `break-rules`, for two operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.reconciliation.statement import LineType
from tests.app.test_command_line import run_in_terminal
from tests.support.callers import token_of
from tests.support.platform import ServedPlatform, run_command
from tests.support.reconcile_commands import Run, file_line, write_statement
from tests.support.reconciliation import Provider, posted_clearing, transactions_of


def listed(run: Run, provider: Provider, *arguments: str) -> set[str]:
    """The ids of the breaks of a provider that a list has."""
    completed = run("breaks", "list", "--account", provider.account, "--json", *arguments)
    assert completed.returncode == 0
    return {json.loads(line)["break_id"] for line in completed.stdout.splitlines()}


def resolve(run: Run, break_id: str, *arguments: str, name: str = "alice") -> dict[str, Any]:
    """Resolves a break, and returns it."""
    completed = run("breaks", "resolve", break_id, "--reason", "r", "--json", *arguments, name=name)
    assert completed.returncode == 0, completed.stderr
    found: dict[str, Any] = json.loads(completed.stdout)
    return found


def test_breaks_are_listed_by_filters(
    provider: Provider, open_breaks: dict[str, str], run: Run
) -> None:
    """By default those that are not resolved, also those that await approval, newest first."""
    unknown, dispute = open_breaks["CHARGE_UNKNOWN"], open_breaks["DISPUTE_NOT_BOOKED"]
    differs = open_breaks["AMOUNT_DIFFERS"]
    resolve(run, unknown, "--accept")
    resolve(run, dispute, "--adjust")
    run("breaks", "assign", differs, "--to", "bob")
    assert listed(run, provider) == {differs, dispute}
    assert listed(run, provider, "--all") == {differs, dispute, unknown}
    assert listed(run, provider, "--state", "RESOLVED") == {unknown}
    assert listed(run, provider, "--state", "AWAITING_APPROVAL") == {dispute}
    assert listed(run, provider, "--class", "FINANCE") == {differs, dispute}
    assert listed(run, provider, "--kind", "AMOUNT_DIFFERS") == {differs}
    assert listed(run, provider, "--assignee", "bob") == {differs}
    table = run("breaks", "list", "--account", provider.account).stdout.splitlines()
    assert table[0].split() == [
        *("BREAK_ID", "KIND", "CLASS", "DIFFERENCE", "DAYS", "STATE", "ACCOUNT", "ASSIGNEE")
    ]
    assert [line.split()[0] for line in table[1:]] == [dispute, differs]
    (row,) = (line.split() for line in table if line.startswith(f"{differs} "))
    assert row == [
        *(differs, "AMOUNT_DIFFERS", "FINANCE", "-1.00", "EUR", "0", "OPEN"),
        *(provider.account, "bob"),
    ]


def test_an_empty_list_names_its_filters(run: Run) -> None:
    """On standard error; the output is empty."""
    filters = ("--kind", "RESERVE", "--class", "FINANCE", "--assignee", "carol")
    completed = run("breaks", "list", *filters)
    assert (completed.returncode, completed.stdout) == (0, "")
    expected = "No unresolved breaks of the class FINANCE of the kind RESERVE assigned to carol.\n"
    assert completed.stderr == expected
    completed = run("breaks", "list", "--state", "RESOLVED", "--account", "banks/none")
    assert completed.stderr == "No RESOLVED breaks of banks/none.\n"


def test_a_terminal_shows_common_values_once(
    platform: ServedPlatform, provider: Provider, open_breaks: dict[str, str]
) -> None:
    """So that a table of breaks fits 80 columns."""
    output = run_in_terminal(
        *("breaks", "list", "--account", provider.account, "--address", platform.address),
        TALLYSTICK_TOKEN=token_of("alice"),
        COLUMNS="80",
    )
    assert output.count(provider.account) == 1
    (row,) = (line for line in output.splitlines() if open_breaks["AMOUNT_DIFFERS"] in line)
    assert row.split()[1:] == ["AMOUNT_DIFFERS", "FINANCE", "-1.00", "EUR", "0"]


def test_a_break_is_shown_with_lines_entries_and_history(
    client: Client, open_breaks: dict[str, str], run: Run
) -> None:
    """The lines have the name of their file; `--json` is the message."""
    break_id = open_breaks["AMOUNT_DIFFERS"]
    assert run("breaks", "comment", break_id, "asked the bank", name="bob").returncode == 0
    printed = run("breaks", "show", break_id)
    assert printed.returncode == 0
    fields, lines, entries, history = printed.stdout.split("\n\n")
    assert "difference         -1.00\n" in fields
    title, headings, line = lines.splitlines()
    assert (title, headings.split()[0]) == ("Lines of statements", "FILE")
    assert line.split()[:5] == ["november.csv", "3", "CHARGE", "charge", "9.00"]
    assert line.split()[-2:] == ["txn-1", "ch-1"]
    title, headings, entry = entries.splitlines()
    assert (title, "FEE" in headings.split()) == ("Ledger entries", False)
    assert entry.split()[1:4] == ["PAY_IN", "10.00", "EUR"]
    title, _, found, comment = history.splitlines()
    assert (title, found.split()[1:3]) == ("History", ["FOUND", "tallystick"])
    assert comment.split()[1:] == ["COMMENTED", "bob", "asked", "the", "bank"]
    values = json.loads(run("breaks", "show", break_id, "--json").stdout)
    assert values["lines"][0]["line"]["reference"] == "txn-1"
    assert values.keys() == {field.name for field in reconciliation_pb2.Break.DESCRIPTOR.fields}


def test_a_break_is_assigned_resolved_and_opened_again(
    open_breaks: dict[str, str], run: Run
) -> None:
    """Each command prints the break as it is then."""
    break_id = open_breaks["AMOUNT_DIFFERS"]
    for arguments, assignee in ((("--to", "bob"), "bob"), (("--nobody",), "")):
        assigned = run("breaks", "assign", break_id, *arguments, "--json")
        assert json.loads(assigned.stdout)["assignee"] == assignee
    for option, resolution in (("adjust", "ADJUST"), ("write-off", "WRITE_OFF")):
        resolved = resolve(run, break_id, f"--{option}")
        assert (resolved["state"], resolved["resolution"]) == (
            "BREAK_STATE_RESOLVED",
            f"RESOLUTION_{resolution}",
        )
        reopened = run("breaks", "reopen", break_id, "--reason", "wrong", "--json")
        assert json.loads(reopened.stdout)["state"] == "BREAK_STATE_OPEN"


def test_a_second_operator_approves_or_rejects(open_breaks: dict[str, str], run: Run) -> None:
    """The author cannot."""
    break_id = open_breaks["DISPUTE_NOT_BOOKED"]
    assert resolve(run, break_id, "--adjust")["state"] == "BREAK_STATE_AWAITING_APPROVAL"
    by_author = run("breaks", "approve", break_id, "--reason", "fine")
    assert (by_author.returncode, "SECOND_APPROVER_REQUIRED" in by_author.stderr) == (1, True)
    rejected = run("breaks", "reject", break_id, "--reason", "no", "--json", name="bob")
    assert json.loads(rejected.stdout)["state"] == "BREAK_STATE_OPEN"
    resolve(run, break_id, "--write-off")
    approved = run("breaks", "approve", break_id, "--reason", "fine", "--json", name="bob")
    assert json.loads(approved.stdout)["state"] == "BREAK_STATE_RESOLVED"


def test_breaks_that_agree_together_are_matched(
    provider: Provider, run: Run, reconcile: Run, tmp_path: Path
) -> None:
    """If they do not, the error has the difference."""
    provider.pay_in(10_00, "ch-1")
    lines = [file_line(4_00, "a"), file_line(6_00, "b"), file_line(7_00, "c")]
    lines.append(file_line(-7_00, "d", LineType.RESERVE))
    reconcile(write_statement(tmp_path, lines))
    by_amount = {
        values["difference"]: values["break_id"]
        for values in map(
            json.loads,
            run("breaks", "list", "--account", provider.account, "--json").stdout.splitlines(),
        )
    }
    wrong = run("breaks", "match", by_amount["4.00"], by_amount["-7.00"], "--reason", "r")
    assert (wrong.returncode, "-3.00 EUR more" in wrong.stderr) == (1, True)
    right = run("breaks", "match", by_amount["7.00"], by_amount["-7.00"], "--reason", "r")
    assert right.returncode == 0
    assert right.stdout.count("RESOLVED") == 2
    assert listed(run, provider) == {by_amount["4.00"], by_amount["6.00"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("list --all --state OPEN", "Give either --state or --all."),
        ("list --class FINANCES", "'FINANCES' is not one of 'AUTOMATIC', 'FINANCE',"),
        ("list --kind X", "'X' is not one of 'CHARGE_NOT_BOOKED', "),
        ("assign b", "Give either --to NAME or --nobody."),
        ("assign b --to a --nobody", "Give either --to NAME or --nobody."),
        ("resolve b --reason r", "Give one of --adjust, --accept and --write-off."),
        ("resolve b --reason r --adjust --accept", "Give one of --adjust, --accept and"),
        ("resolve b --adjust", "Missing option '--reason'."),
        ("match --reason r", "Missing argument 'BREAK_ID'."),
        ("import no.csv", "'no.csv' does not exist."),
    ],
)
def test_wrong_usage_of_breaks_names_the_option(arguments: str, expected: str) -> None:
    """It is one line, with exit code 2."""
    completed = run_command("breaks", *arguments.split())
    assert (completed.returncode, completed.stdout) == (2, "")
    assert expected in completed.stderr
    assert completed.stderr.count("\n") == 1


def test_an_unknown_break_and_a_missing_role_are_named(
    open_breaks: dict[str, str], run: Run
) -> None:
    missing = run("breaks", "show", "f0-0")
    assert (missing.returncode, "NOT_FOUND" in missing.stderr) == (1, True)
    break_id = open_breaks["AMOUNT_DIFFERS"]
    assert run("breaks", "show", break_id, name="viewer").returncode == 0
    denied = run("breaks", "resolve", break_id, "--accept", "--reason", "r", name="viewer")
    assert (denied.returncode, "PERMISSION_DENIED" in denied.stderr) == (1, True)


def test_the_clearing_report_explains_each_balance(
    client: Client, provider: Provider, open_breaks: dict[str, str], run: Run
) -> None:
    """In one row with expected entries by age and breaks by class; nothing is unexplained."""
    provider.pay_in(5_00, "ch-next")
    posted_clearing(client, provider.account)
    completed = run("clearing", "--account", provider.account)
    assert completed.returncode == 0
    headings, row = completed.stdout.splitlines()
    assert headings.split("  ")[0] == "ACCOUNT"
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells == [
        *(provider.account, "EUR", "35.00", "0.00", "-468.00", "5.00 (1)"),
        *("501.00 (2)", "-3.00 (1)", "0.00"),
    ]
    for heading in ("EXPECTED 30+ DAYS", "BREAKS FINANCE", "BREAKS INVESTIGATION", "UNEXPLAINED"):
        assert heading in headings
    (account,) = json.loads(run("clearing", "--account", provider.account, "--json").stdout)[
        "accounts"
    ]
    assert (account["ledger_balance"], account["unexplained"]) == ("35.00", "0.00")
    assert provider.account in run("clearing").stdout
    nothing = run("clearing", "--account", "banks/none")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert nothing.stderr == "There is no clearing account banks/none.\n"


def test_an_unexplained_balance_exits_with_1(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    open_breaks: dict[str, str],
    run: Run,
) -> None:
    """The report still has it."""
    posted_clearing(client, provider.account)
    change = (
        "update reconciliation.clearing_balance set statement_balance = statement_balance + %s "
        "where account = %s"
    )
    with psycopg.connect(platform.databases.admin, autocommit=True) as admin:
        admin.execute(change, (-7, provider.account))
        completed = run("clearing", "--account", provider.account)
        admin.execute(change, (7, provider.account))
    assert (completed.returncode, completed.stderr) == (1, "")
    assert completed.stdout.splitlines()[1].endswith("  0.07")
    assert run("clearing", "--account", provider.account).returncode == 0


def test_rules_are_listed_and_set(run: Run) -> None:
    """What is not given stays as it is; the author of a version is printed."""
    listing = run("break-rules", "list").stdout
    assert "DATE_DIFFERS         FINANCE        10 days        built in\n" in listing
    set_limit = run("break-rules", "set", "DATE_DIFFERS", "--limit", "12", "--reason", "slow bank")
    assert "limit        12\n" in set_limit.stdout
    run("break-rules", "set", "DATE_DIFFERS", "--class", "INVESTIGATION", "--reason", "new")
    (rule,) = (
        values
        for line in run("break-rules", "list", "--json").stdout.splitlines()
        if (values := json.loads(line))["kind"] == "BREAK_KIND_DATE_DIFFERS"
    )
    assert (rule["break_class"], rule["limit"], rule["version"]) == (
        "BREAK_CLASS_INVESTIGATION",
        12,
        3,
    )
    listing = run("break-rules", "list").stdout
    assert "DATE_DIFFERS         INVESTIGATION  12 days        alice, version 3: new\n" in listing


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("set ROUNDING --reason r", "Give --class, --limit or both."),
        ("set RESERVE --limit 2 --reason r", "RESERVE has no limit; those with one are ROUNDING, "),
        ("set ROUNDING --limit -1 --reason r", "'-1' is not a whole number from 0 to 365."),
        (
            "set ROUNDING --limit 101 --reason r",
            "The limit of ROUNDING must be at most 100 minor units.",
        ),
        ("set NOTHING --limit 1 --reason r", "'NOTHING' is not one of 'CHARGE_NOT_BOOKED',"),
    ],
)
def test_wrong_usage_of_rules_names_the_option(arguments: str, expected: str) -> None:
    completed = run_command("break-rules", *arguments.split())
    assert (completed.returncode, completed.stdout) == (2, "")
    assert expected in completed.stderr


def test_a_break_is_opened_for_a_ledger_entry(
    client: Client, provider: Provider, open_breaks: dict[str, str], run: Run
) -> None:
    """By its transaction, for the statements of an account; then it can be matched."""
    assert open_breaks
    provider.pay_in(3_00, "ch-8")
    transaction_id = transactions_of(client, provider.account)[-1].transaction_id
    of_account = ("--account", provider.account, "--currency", "EUR")
    found = json.loads(run("breaks", "entries", *of_account, "--json").stdout)
    assert (found["transaction_id"], found["entry_number"]) == (transaction_id, 1)
    assert transaction_id in run("breaks", "entries", *of_account, "--min-age", "1").stdout
    arguments = ("open", transaction_id, "--account", provider.account, "--reason", "same charge")
    completed = run("breaks", *arguments, "--entry", "2")
    assert completed.returncode == 1
    assert "entry_number must be 1" in completed.stderr
    completed = run("breaks", *arguments, "--json")
    assert completed.returncode == 0, completed.stderr
    none = run("breaks", "entries", *of_account)
    assert (none.stdout, none.stderr) == ("", f"{provider.account} has no such entry in EUR.\n")
    opened = json.loads(completed.stdout)
    assert (opened["kind"], opened["difference"]) == ("BREAK_KIND_MISSING_IN_FILE", "-3.00")
    unknown = open_breaks["CHARGE_UNKNOWN"]
    completed = run("breaks", "match", unknown, opened["break_id"], "--reason", "same charge")
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("RESOLVED") == 2
