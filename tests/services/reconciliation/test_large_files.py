"""The time that a large file takes, and may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import pytest

from tallystick import Client, ClientSettings
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_storage.reconciliation import matching
from tallystick_storage.sql import Connection, connect
from tests.support.platform import ServedPlatform
from tests.support.reconciliation import Provider, charge, reconcile

_SECONDS = 30.0
"""Far more than each file takes. Row by row, 16,000 lines took more than a minute."""

_Lines = Sequence[reconciliation_pb2.StatementLine]


def _of_one_charge(provider: Provider, name: str) -> _Lines:
    """All lines are parts of one charge."""
    count = 16_000
    provider.pay_in(10 * count, f"ch-{name}")
    return [charge(10, f"ch-{name}", reference=f"txn-{name}-{number}") for number in range(count)]


def _of_one_amount(provider: Provider, name: str) -> _Lines:
    """Lines and charges have only their amount in common."""
    count = 4_000
    provider.pay_in_all(10, [""] * count)
    return [charge(10, text=f"{name} {number}") for number in range(count)]


@pytest.mark.parametrize("make_lines", [_of_one_charge, _of_one_amount])
def test_statistics_of_empty_tables_do_not_slow_a_file_down(
    platform: ServedPlatform,
    provider: Provider,
    make_lines: Callable[[Provider, str], _Lines],
) -> None:
    """A first file leaves its tables empty, and PostgreSQL counts their rows just then. It takes
    the lines and entries of the next file for a single one.
    """
    settings = ClientSettings(deadlines={"ReconcileStatementFile": _SECONDS})
    with Client(platform.address, settings=settings) as client:
        with psycopg.connect(platform.databases.admin, autocommit=True) as connection:
            # a vacuum may give the empty pages back, and then nothing is known of the table
            connection.execute(
                "alter table reconciliation.staged_line set (autovacuum_enabled = false)"
            )
        reconcile(client, provider.account, make_lines(provider, "first"))
        with psycopg.connect(platform.databases.admin, autocommit=True) as connection:
            connection.execute(
                "analyze reconciliation.staged_line, reconciliation.ledger_item, "
                "reconciliation.open_item"
            )
            estimates = connection.execute(
                "select relpages > 0, reltuples::int from pg_class where oid = "
                "'reconciliation.staged_line'::regclass"
            ).fetchall()
        assert estimates == [(True, 0)]
        lines = make_lines(provider, "next")
        file = reconcile(client, provider.account, lines).statement_file
    assert file.matched_count == len(lines)


def test_a_comparison_may_take_a_minute_between_statements(platform: ServedPlatform) -> None:
    """Other transactions end after a second, which is too short to classify 50,000 lines."""
    url = platform.databases.service("reconciliation")
    with connect(url, Connection) as connection, connection.transaction():
        matching.allow_big_statements(connection)
        idle_timeout = connection.execute("show idle_in_transaction_session_timeout").scalar_one()
    assert idle_timeout == "1min"


def test_statistics_of_empty_tables_do_not_slow_down_the_end_of_breaks(
    platform: ServedPlatform, provider: Provider, thorough: bool
) -> None:
    """No break was open, and no entry, when PostgreSQL counted them. It takes the breaks that wait
    for charges, and the charges, for a single one.
    """
    count = 12_000 if thorough else 2_000
    settings = ClientSettings(deadlines={"ReconcileStatementFile": _SECONDS})
    with Client(platform.address, settings=settings) as client:
        reconcile(client, provider.account, _of_one_amount(provider, "matched"))
        with psycopg.connect(platform.databases.admin, autocommit=True) as connection:
            connection.execute(
                "analyze reconciliation.break, reconciliation.ledger_item, "
                "reconciliation.open_item, reconciliation.statement_line, "
                "reconciliation.closed_item"
            )
        provider.pay_in_all(10, [f"ch-open-{number}" for number in range(count)])
        lines = [
            charge(10, f"ch-waits-{number}", client_reference=f"o-waits-{number}")
            for number in range(count)
        ]
        reconcile(client, provider.account, lines)
    settings = ClientSettings(deadlines={"ReconcileStatementFile": _SECONDS / 3})
    with Client(platform.address, settings=settings) as client:
        provider.pay_in(10, "ch-waits-7")
        file = reconcile(client, provider.account, []).statement_file
    assert file.line_count == 0
