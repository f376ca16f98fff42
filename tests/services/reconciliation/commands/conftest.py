"""A platform with two operators, and the commands that they run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.access import Role
from tallystick_core.reconciliation.statement import LineType
from tests.support.callers import client_of, settings_with_callers, token_of
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    fresh_database,
    run_command,
    serve_platform,
)
from tests.support.reconcile_commands import Run, file_line, write_statement
from tests.support.reconciliation import Provider, breaks_of


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """All services, with the operators alice and bob. Above 100.00 EUR a second one approves."""
    settings = settings_with_callers(
        {
            "alice": ("", {Role.OPERATOR, Role.SERVICE}),
            "bob": ("", {Role.OPERATOR}),
            "viewer": ("", {Role.AUDITOR}),
        },
        retry=FAST_RETRY,
        reconciliation__posting_interval=0.1,
        reconciliation__approval_threshold={"EUR": 100_00},
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("breaks")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


@pytest.fixture
def client(platform: ServedPlatform) -> Iterator[Client]:
    """A client of alice."""
    yield from client_of(platform, "alice")


@pytest.fixture
def run(platform: ServedPlatform) -> Run:
    """Runs commands, by default as alice."""

    def run_as(*arguments: str, name: str = "alice") -> subprocess.CompletedProcess[str]:
        address = ("--address", platform.address)
        return run_command(*arguments, *address, TALLYSTICK_TOKEN=token_of(name))

    return run_as


@pytest.fixture
def reconcile(provider: Provider, run: Run) -> Run:
    """Runs `tallystick reconcile` for the provider of the test."""
    return lambda *arguments: run("reconcile", *arguments, "--provider", provider.name)


@pytest.fixture
def open_breaks(
    client: Client, provider: Provider, reconcile: Run, tmp_path: Path
) -> dict[str, str]:
    """Breaks of a provider: the id of each by its kind. The dispute is 500.00 EUR."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    lines = [
        file_line(9_00, "ch-1", reference="txn-1"),
        file_line(3_00, "ch-9", reference="=2+3"),
        file_line(-500_00, "ch-2", LineType.DISPUTE, reference="dp-1"),
        file_line(20_00, "ch-2"),
    ]
    assert reconcile(write_statement(tmp_path, lines)).returncode == 1
    return {
        reconciliation_pb2.BreakKind.Name(found.kind).removeprefix("BREAK_KIND_"): found.break_id
        for found in breaks_of(client, account=provider.account)
    }
