"""The command `tallystick` for people and scripts: help, errors, tables, JSON, colors."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

from tallystick import Client, UnavailableError
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick_server.app import configuration
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import SCHEMAS
from tallystick_server.cli import main, messages
from tallystick_server.cli.operator import calls as operator_calls
from tallystick_server.cli.output import Column, print_table
from tests.support.payments import create_payment
from tests.support.platform import ServedPlatform, eventually, run_command, unique_id
from tests.support.webhooks import new_event, receive

_CLI = [sys.executable, "-m", "tallystick_server.cli.main"]
_ESCAPE = "\x1b["


def _command_paths() -> Iterator[tuple[str, ...]]:
    """Every command and group."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, nested in getattr(command, "commands", {}).items():
            yield from walk(nested, (*path, name))

    return walk(get_command(main.app), ())


def run_in_terminal(*arguments: str, **environment: str) -> str:
    """What the command prints on a terminal of 200 columns."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*_CLI, *arguments],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **environment},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    try:
        while block := os.read(controller, 4096):
            output += block
    except OSError:  # the command has ended
        pass
    finally:
        os.close(controller)
        process.wait(30)
    return output.decode()


@pytest.fixture(scope="module")
def dead_letter_id(client: Client) -> str:
    """A dead letter of the shared platform."""
    payment = create_payment(
        client, "5.00", token="tok_rejected", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
    )
    expected_subject = f"charges/{payment.payment_orders[0].charge_id}"

    def find() -> str:
        request = operator_pb2.ListDeadLettersRequest(page_size=200)
        found = client.pages(client.payment.ListDeadLetters, request, "dead_letters")
        return next((d.dead_letter_id for d in found if d.resource_name == expected_subject), "")

    found_id = eventually(find)
    assert found_id
    return found_id


@pytest.mark.parametrize("path", [*_command_paths()], ids=" ".join)
def test_each_help_describes_its_command_by_an_example(path: tuple[str, ...]) -> None:
    """`--help` of a command exits 0, describes every option, and shows an example."""
    completed = run_command(*path, "--help")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert _ESCAPE not in completed.stdout
    command: Any = get_command(main.app)
    for name in path:
        command = command.commands[name]
    assert all(parameter.help for parameter in command.params if not parameter.hidden)
    assert not hasattr(command, "commands") or path == () or command.help
    if not hasattr(command, "commands"):
        example = completed.stdout.partition("Example")[2]
        assert f"tallystick {' '.join(path)}" in example


def test_help_imports_nothing_slow() -> None:
    """`tallystick --help` imports neither grpc nor aiohttp nor sqlalchemy, which take longer to
    import than the rest of the command.
    """
    program = (
        "import sys\n"
        "from tallystick_server.cli import main\n"
        "try:\n    main.main(['--help'])\n"
        "except SystemExit:\n    print(sorted(sys.modules), file=sys.stderr)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage: tallystick" in completed.stdout
    for slow in ("grpc", "aiohttp", "sqlalchemy", "google.protobuf", "pydantic", "rich"):
        assert f"'{slow}'" not in completed.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "tallystick: Missing command. The commands are serve, migrate, "),
        ("payots", "No such command 'payots'. Did you mean 'payouts'?"),
        ("payouts nothing", "No such command 'nothing'. The commands are list, show, "),
        ("serve", "Missing argument 'SERVICE...'. Choose from: all, payment, "),
        ("serve everything", "'SERVICE...': 'everything' is not one of 'all', 'payment', "),
        ("payouts list --stat PAID", "No such option: --stat (Possible options: --state)"),
        ("payouts list --state GONE", "'--state': 'GONE' is not one of 'CREATED', "),
        ("payouts list --state", "Option '--state' requires an argument."),
        ("payouts approve p-1", "tallystick payouts approve: Missing option '--reason'."),
        ("payouts acknowledge p-1 --reason r", "Give either --transfer REFERENCE or --report"),
        ("payouts acknowledge p-1 --reason r --report 0", "'0' is not a whole number from 1 to"),
        (
            "alerts --service event",
            "'event' is not one of 'payment', 'ledger', 'wallet', 'payout', 'reconciliation'.",
        ),
        ("dead-letters list --service wallet", "'wallet' is not one of 'payment', 'payout'."),
        ("sandbox --port 65536", "'--port': '65536' is not a whole number from 1 to 65535."),
        ("dead-letters retry --reason r", "Give a DEAD_LETTER_ID, or a filter: --cause, "),
        ("dead-letters retry d --all --reason r", "either a DEAD_LETTER_ID or a filter"),
        ("dead-letters retry d --dry-run --reason r", "--dry-run needs a filter"),
        ("dead-letters retry --cause FOO --reason r", "'FOO' is not one of 'REJECTED', 'OUTCOME"),
        (
            "dead-letters retry --all --cause REJECTED --reason r",
            "--all cannot be combined with --cause",
        ),
        ("dead-letters retry --from 2026-01-01 --reason r", "'2026-01-01' is not a time with a"),
    ],
)
def test_wrong_usage_names_the_option_and_what_is_right(arguments: str, expected: str) -> None:
    """Wrong usage is one line on standard error that names the option and the expected value, and
    exit code 2.
    """
    completed = run_command(*arguments.split())
    assert (completed.returncode, completed.stdout) == (2, "")
    assert expected in completed.stderr
    assert completed.stderr.count("\n") == 1


def test_numbers_have_a_default() -> None:
    """An option with a number may be left out: the command then fails for another reason only."""
    completed = run_command("sandbox", "--provider", "nobody")
    assert (completed.returncode, completed.stdout) == (1, "")
    assert "--provider must be the name of a configured sandbox: sandbox." in completed.stderr


def test_an_internal_error_shows_no_traceback_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is one sentence that names its kind and place, but not its text, which
    may hold a secret.
    """

    def fail(**_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(configuration, "load", fail)
    completed = run_command("alerts")
    assert (completed.returncode, completed.stderr.count("\n")) == (1, 1)
    assert "Internal error: ValueError at " in completed.stderr
    assert "secret" not in completed.stderr


def test_an_unreachable_platform_is_one_sentence() -> None:
    """If nothing listens at the address, the command names the address and the remedy at once."""
    start = time.monotonic()
    completed = run_command("alerts", "--address", "127.0.0.1:1")
    assert time.monotonic() - start < 5
    assert (completed.returncode, completed.stdout, completed.stderr.count("\n")) == (1, "", 1)
    assert "Cannot reach the platform at 127.0.0.1:1: " in completed.stderr
    assert "Connection refused" in completed.stderr
    assert "outcome" not in completed.stderr
    assert "--address" in completed.stderr


def test_an_address_that_does_not_answer_is_reported_within_five_seconds() -> None:
    """A connection that nobody serves, as behind a firewall, does not delay the error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        completed = run_command("alerts", "--address", address)
        assert time.monotonic() - start < 5
    assert (completed.returncode, completed.stdout, completed.stderr.count("\n")) == (1, "", 1)
    assert f"Cannot reach the platform at {address}: no answer within 3 s." in completed.stderr


def test_a_listing_is_plain_text_except_on_a_terminal(
    platform: ServedPlatform, dead_letter_id: str
) -> None:
    """In a pipe a listing is plain aligned text with its headings; on a terminal it is formatted,
    without colors if NO_COLOR is set.
    """
    arguments = ("dead-letters", "list", "--address", platform.address)
    headings, *rows = run_command(*arguments).stdout.splitlines()
    assert headings.split() == [
        *("DEAD_LETTER_ID", "CAUSE", "PROVIDER", "TRIES", "CREATE_TIME", "DETAIL")
    ]
    (row,) = (row for row in rows if row.startswith(f"{dead_letter_id} "))
    assert row[headings.index("CAUSE") :].startswith("REJECTED  ")
    assert _ESCAPE not in "".join(rows)
    formatted = run_in_terminal(*arguments)
    assert dead_letter_id in formatted
    assert "─" in formatted
    show = ("dead-letters", "show", dead_letter_id, "--address", platform.address)
    assert f"{_ESCAPE}36m" in run_in_terminal(*show)
    assert f"{_ESCAPE}36m" not in run_in_terminal(*show, NO_COLOR="1")


def test_a_listing_in_json_is_one_object_a_line(
    platform: ServedPlatform, dead_letter_id: str
) -> None:
    """`--json` prints each item as one line with every key, whether it is set or not, and without
    colors even on a terminal.
    """
    arguments = ("dead-letters", "list", "--json", "--address", platform.address)
    values = [json.loads(line) for line in run_command(*arguments).stdout.splitlines()]
    expected_keys = {field.name for field in operator_pb2.DeadLetter.DESCRIPTOR.fields}
    assert all(value.keys() == expected_keys for value in values)
    assert dead_letter_id in [value["dead_letter_id"] for value in values]
    assert _ESCAPE not in run_in_terminal(*arguments)


def test_a_payment_is_explained_as_text_and_as_json(platform: ServedPlatform) -> None:
    """The text has the state, the next step and the story, with times in UTC; `--json` is the
    message. An unknown id is one sentence.
    """
    with platform.client() as client:
        payment = create_payment(client, "5.00")
    arguments = ("explain", payment.payment_orders[0].provider_reference)
    completed = run_command(*arguments, "--address", platform.address)
    first, second, *lines = completed.stdout.splitlines()
    assert first == f"payments/{payment.checkout_id}: PAID"
    assert second.startswith(f"The payment {payment.checkout_id} of dev is PAID.")
    positions = [lines.index(line) for line in ("What happens next", "NOBODY", "What happened")]
    assert positions == sorted(positions)
    assert any(re.fullmatch(r"[-0-9]{10} [:.0-9]{12} UTC  ROUTING", line) for line in lines)
    assert max(map(len, lines)) <= 100
    values = json.loads(run_command(*arguments, "--json", "--address", platform.address).stdout)
    assert values["state"] == "PAID"
    assert values["next_steps"][0]["actor"] == "ACTOR_NOBODY"
    completed = run_command("explain", "missing", "--address", platform.address)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr.rstrip().endswith("There is no payment or payout with the id missing.")


def test_webhook_events_are_listed_shown_and_replayed(platform: ServedPlatform) -> None:
    """The inbox on the command line: a listing by reference, one event, and its replay."""
    reference = unique_id("pi")
    event = new_event(reference=reference)
    with platform.client() as client:
        receive(client.payment, event)
    address = ("--address", platform.address)
    listing = ("webhook-events", "list", "--reference", reference, "--json", *address)
    (line,) = run_command(*listing).stdout.splitlines()
    stored = json.loads(line)
    assert (stored["event_id"], stored["state"]) == (
        event.event_id,
        "WEBHOOK_EVENT_STATE_RECEIVED",
    )
    id_ = stored["webhook_event_id"]
    assert reference in run_command("webhook-events", "show", id_, *address).stdout
    replay = ("webhook-events", "replay", id_, "--reason", "once more", "--json", *address)
    assert json.loads(run_command(*replay).stdout)["state"] == "WEBHOOK_EVENT_STATE_RECEIVED"


def test_an_empty_listing_names_what_is_missing(platform: ServedPlatform) -> None:
    """A listing without items says so on standard error, with its filters; its output is empty,
    with `--json` too.
    """
    for arguments, expected in (
        (("dead-letters", "list", "--service", "payout"), "No open dead letters in the payout"),
        (("alerts", "--service", "wallet"), "No active alerts in the wallet service."),
        (
            ("webhook-events", "list", "--service", "payout", "--state", "CLOSED"),
            "No webhook events in the state CLOSED in the payout service.",
        ),
        (
            ("payouts", "list", "--state", "PAID", "--seller", "nobody"),
            "No payouts in the state PAID for the seller nobody.",
        ),
    ):
        address = ("--address", platform.address)
        completed = run_command(*arguments, *address)
        assert (completed.returncode, completed.stdout) == (0, "")
        assert completed.stderr.startswith(expected)
        completed = run_command(*arguments, "--json", *address)
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


def test_json_has_every_key_at_every_depth() -> None:
    """The JSON of a message always has all keys of the contract, with null for unset fields without
    a default.
    """
    item = payout_pb2.PayoutBatchItem(payout=payout_pb2.Payout(payout_id="p-1"))
    value = messages.to_json(item)
    assert value.keys() == {"payout_id", "seller_account", "payout", "error"}
    assert value["error"] is None
    assert value["payout"].keys() == {f.name for f in payout_pb2.Payout.DESCRIPTOR.fields}
    assert (value["payout"]["fee"], value["payout"]["create_time"]) == ("", None)


def test_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters and line breaks in data are printed escaped, each row on one line."""
    print_table([Column("DETAIL")], [["a\x1b[2Jb\nc"]])
    assert capsys.readouterr().out.splitlines() == ["DETAIL", "a\\x1b[2Jb\\nc"]


def test_a_failed_bulk_retry_reports_its_progress() -> None:
    """If a bulk retry fails before its end, the error states how many dead letters it had
    processed.
    """
    response = operator_pb2.RetryDeadLettersResponse
    responses = iter(
        [response(matched=3), response(matched=2, retried=2, next_page_token="next"), None]
    )

    def retry(_: object) -> Any:
        if (answer := next(responses)) is None:
            raise UnavailableError("The platform has stopped.")
        return answer

    calls = operator_calls.OperatorCalls(
        SimpleNamespace(payment=SimpleNamespace(RetryDeadLetters=retry))  # type: ignore[arg-type]
    )
    selection = operator_calls.DeadLetterFilter(select_all=True)
    with pytest.raises(UnavailableError, match="has stopped; stopped after 2 of 3 dead letters"):
        list(calls.retry_dead_letters("payment", selection, "r", dry_run=False))


def test_migrate_shows_progress_and_prints_json(scratch_database: DatabaseUrls) -> None:
    """`migrate --json` prints one object with the schemas; its progress is on standard error, with
    a line for each schema if there is no terminal.
    """
    completed = run_command(
        "migrate",
        "--json",
        TALLYSTICK_DATABASE__URL=scratch_database.admin,
        TALLYSTICK_DATA_DIR=str(scratch_database.passwords.path.parent),
    )
    assert json.loads(completed.stdout) == {"schemas": [*SCHEMAS], "new_passwords": False}
    assert completed.stderr.splitlines() == [
        f"Migrating schemas: {number} of {len(SCHEMAS)}: {name}"
        for number, name in enumerate(SCHEMAS, 1)
    ]


@pytest.mark.parametrize("arguments", ["--help", "dead-letters list"])
def test_a_closed_pipe_is_no_error(
    platform: ServedPlatform, dead_letter_id: str, arguments: str
) -> None:
    """When the reader of its output has gone, a command ends silently, as by SIGPIPE."""
    with subprocess.Popen(
        [*_CLI, *arguments.split()],
        env={**os.environ, "TALLYSTICK_SERVER__LISTEN": platform.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")
