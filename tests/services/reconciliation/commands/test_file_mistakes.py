"""What the page of reconciliation says to do about a file with the wrong account, or a late one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tallystick import Client
from tallystick_core.reconciliation.statement import LineType
from tests.services.reconciliation.test_balances import plain, send
from tests.support.platform import eventually
from tests.support.reconcile_commands import Run, file_line, write_statement
from tests.support.reconciliation import Provider, clearing

REASON = ("--reason", "the file was sent with the wrong account")


def run_json(run: Run, *arguments: str) -> list[dict[str, Any]]:
    """The objects that a command prints."""
    completed = run(*arguments, "--json")
    assert completed.returncode == 0, completed.stderr
    return [json.loads(line) for line in completed.stdout.splitlines()]


def accept(run: Run, break_id: str) -> None:
    (resolved,) = run_json(run, "breaks", "resolve", break_id, "--accept", *REASON)
    assert resolved["state"] == "BREAK_STATE_RESOLVED"


def test_a_file_with_the_wrong_account_is_corrected(
    client: Client, provider: Provider, run: Run, tmp_path: Path
) -> None:
    """Its breaks are accepted. Lines with the opposite sign take back what it has posted, and the
    two settlements that the bank never had are matched with each other.
    """
    wrong = Provider(client)
    wrong.pay_in(5_00, "other")
    provider.pay_in(10_00, "ch-1")
    lines = [
        file_line(9_70, "ch-1", fee=30),
        file_line(-50, line_type=LineType.FEE, reference="fee-1"),
        file_line(-9_20, line_type=LineType.SETTLEMENT, reference="st-1"),
    ]
    path = write_statement(tmp_path, lines)
    assert run("reconcile", path, "--provider", wrong.name).returncode == 1
    (unknown,) = run_json(run, "breaks", "list", "--account", wrong.account)
    accept(run, unknown["break_id"])
    back = [
        file_line(50, line_type=LineType.FEE, reference="fee-1 taken back"),
        file_line(9_20, line_type=LineType.SETTLEMENT, reference="st-1 taken back"),
    ]
    correction = write_statement(tmp_path / "correction", back, "correction.csv")
    assert run("reconcile", correction, "--provider", wrong.name).returncode == 0
    assert eventually(lambda: clearing(client, wrong.account).ledger_balance == "5.00")
    in_transit = ("--account", "banks/transit", "--currency", "EUR")
    assert eventually(lambda: len(run_json(run, "breaks", "entries", *in_transit)) == 2)
    opened = []
    for entry in run_json(run, "breaks", "entries", *in_transit):
        number = ("--entry", str(entry["entry_number"]))
        to_open = ("open", entry["transaction_id"], *number, "--account", wrong.account)
        opened += run_json(run, "breaks", *to_open, *REASON)
    assert run("breaks", "match", *(item["break_id"] for item in opened), *REASON).returncode == 0
    right = run("reconcile", path, "--provider", provider.name)
    assert right.returncode == 0
    assert f"was reconciled with {wrong.account}" in right.stderr
    assert eventually(lambda: clearing(client, provider.account).ledger_balance == "0.00")
    for account in (wrong.account, provider.account):
        assert clearing(client, account).unexplained == "0.00"
    assert len(run_json(run, "breaks", "entries", *in_transit)) == 1


def test_a_file_that_fills_a_gap_ends_it_by_two_decisions(
    client: Client, provider: Provider, run: Run
) -> None:
    """A file that ends on the day of the statement after the gap opens BALANCE_DIFFERS: the lines
    of both on that day, with the opposite sign.
    """
    send(client, provider, plain(1, 100, [-20]))
    send(client, provider, plain(4, 70, [-5]))
    send(client, provider, plain(2, 80, [-4]), plain(4, 76, [-6]))  # 6 and 5 on that day
    found = run_json(run, "breaks", "list", "--account", provider.account, "--class", "FINANCE")
    amounts = {item["kind"]: item["difference"] for item in found}
    assert amounts == {
        "BREAK_KIND_BALANCE_GAP": "-10.00",
        "BREAK_KIND_BALANCE_DIFFERS": "11.00",
    }
    for item in found:
        accept(run, item["break_id"])
    assert clearing(client, provider.account).unexplained == "0.00"
