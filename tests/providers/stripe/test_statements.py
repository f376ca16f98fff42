"""Statements of Stripe: a report is requested, and its file is received as a whole."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from tallystick_core.provider.statement_source import StatementUnavailable
from tallystick_core.reconciliation.statement import LineType
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.errors import NotConnected
from tallystick_server.providers.stripe.reports import StripeReports
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.providers.stripe.statements import COLUMNS, StripeStatements
from tallystick_server.reconciliation.formats.registry import find_format, read_statements
from tests.providers.stripe.scripted_stripe import Answer, ScriptedTransport, api_of, error
from tests.providers.stripe.test_reports import CREATE, FILE, READ, run_of
from tests.reconciliation.files import lines_of, write_file
from tests.sandbox.harness import API_KEY, look_alike

_DAY = date(2026, 11, 29)
_TYPE = "payout_reconciliation.itemized.7"
_SINGLE_TYPE = "payout_reconciliation.by_id.itemized.1"


def fetch(transport: ScriptedTransport, timeout_seconds: float = 60.0) -> bytes:
    """The file of a day."""
    reports = StripeReports(api_of(transport))
    statements = StripeStatements(
        "stripe", reports, _TYPE, _SINGLE_TYPE, timeout_seconds, poll_seconds=0.0
    )

    async def run() -> bytes:
        return b"".join([part async for part in statements.fetch(_DAY, _DAY)])

    return asyncio.run(run())


def test_a_statement_is_fetched_once_stripe_has_written_it() -> None:
    """It covers the whole day in UTC. A repeat has the same key, so it is the same report."""
    transport = ScriptedTransport()
    transport.script(CREATE, run_of("pending"))
    transport.script(
        READ, run_of("pending"), run_of("succeeded", result={"id": "file_1", "url": ""})
    )
    transport.script(FILE, Answer(body=b"a,b\n1,2\n"))
    assert fetch(transport) == b"a,b\n1,2\n"
    (sent,) = transport.sent(CREATE)
    assert sent.key == f"stripe-statement-{_TYPE}-2026-11-29-2026-11-29"
    assert (
        int(sent.values["parameters[interval_end]"])
        - int(sent.values["parameters[interval_start]"])
        == 86_400
    )


@pytest.mark.parametrize(
    ("create", "read", "text"),
    [
        (NotConnected("down"), None, "no connection to Stripe"),
        (error(500, "api_error"), None, "status 500"),
        (run_of("failed"), None, "failed"),
        (run_of("pending"), error(500, "api_error"), "status 500"),
    ],
)
def test_a_statement_that_cannot_be_fetched_has_a_reason(create: Any, read: Any, text: str) -> None:
    """No connection, an error of Stripe, or a report that failed."""
    transport = ScriptedTransport()
    transport.script(CREATE, create)
    if read is not None:
        transport.script(READ, read)
    with pytest.raises(StatementUnavailable, match=text):
        fetch(transport)


def test_a_statement_that_takes_too_long_is_not_waited_for() -> None:
    """The command ends, and a later one finds the report by its key."""
    transport = ScriptedTransport()
    transport.script(CREATE, run_of("pending"))
    with pytest.raises(StatementUnavailable, match="is not written yet"):
        fetch(transport, timeout_seconds=0.0)


def test_the_statement_of_the_look_alike_is_read(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """The columns that are asked for are those that the format reads: each line names the charge
    or transfer as the ledger has it.
    """

    async def run() -> bytes:
        async with look_alike(scratch_database, StripeRules(fee_ppm=0, fee_fixed=40)) as server:
            intent = await server.pay(parameters={"metadata": {"charge_id": "o-po-1"}})
            transfer = await server.transfer("acct_ok", 300)
            payout = await server.control("automatic_payout", currency="eur")
            api = StripeApi(StripeSettings(api_key=API_KEY, url=server.url, files_url=server.url))
            statements = StripeStatements(
                "stripe", StripeReports(api), _TYPE, _SINGLE_TYPE, poll_seconds=0.0
            )
            today = datetime.now(UTC).date()
            content = b"".join([part async for part in statements.fetch(today, today)])
            single = b"".join([part async for part in statements.fetch_payout(payout["id"])])
            await api.close()
            assert single == content
            expected[:] = [(LineType.CHARGE, intent.id), (LineType.PAYOUT, transfer.id)]
            return content

    expected: list[tuple[LineType, str]] = []
    file = write_file(tmp_path, asyncio.run(run()))
    items = list(read_statements(file, find_format(file)))
    assert items
    lines = lines_of(items)
    assert sorted((line.line_type, line.charge_reference) for line in lines) == sorted(expected)
    assert {line.client_reference for line in lines if line.line_type is LineType.CHARGE} == {
        "o-po-1"
    }
    with file.open() as content:
        assert content.readline().decode().strip().split(",") == list(COLUMNS)
