"""Automatic payouts of the Stripe look-alike, and their itemised reports."""

from __future__ import annotations

import asyncio
import csv
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from tallystick_core.reconciliation.statement import LineType
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.reports import COLUMNS
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.reconciliation.formats.registry import find_format, read_statements
from tests.reconciliation.files import ends_of, lines_of, write_file
from tests.sandbox.harness import API_KEY, LookAlike, look_alike, set_clock

_COLUMNS = [
    "automatic_payout_id",
    "balance_transaction_id",
    "created",
    "reporting_category",
    "gross",
    "fee",
    "net",
    "currency",
    "charge_id",
    "payment_intent_id",
    "refund_id",
    "transfer_id",
    "payment_metadata[charge_id]",
]


async def _content(server: LookAlike, run: Any) -> str:
    """The file of a completed run."""
    url = f"/v1/files/{run.result.id}/contents"
    assert run.result.url.endswith(url)
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(url, headers={"Authorization": f"Bearer {API_KEY}"})
    assert answer.headers["Content-Type"] == "text/csv"
    assert len(answer.content) == run.result.size
    return answer.text


async def _rows(server: LookAlike, run: Any) -> list[dict[str, str]]:
    """The rows of a completed run's file."""
    return list(csv.DictReader(io.StringIO(await _content(server, run))))


async def _report(server: LookAlike, parameters: dict[str, Any], type_: str) -> Any:
    runs = server.client.v1.reporting.report_runs
    run = await runs.create_async({"report_type": type_, "parameters": parameters})
    assert (run.status, run.result) == ("pending", None)
    return await runs.retrieve_async(run.id)


def test_a_report_has_what_an_automatic_payout_pays(scratch_database: DatabaseUrls) -> None:
    """The report has a row for each balance transaction of the payout, in major units, and their
    net amounts sum to the amount of the payout. Money that comes later is in the next payout.
    """

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(fee_ppm=0, fee_fixed=40)) as server:
            intent = await server.pay(parameters={"metadata": {"charge_id": "order-1"}})
            refund = await server.client.v1.refunds.create_async(
                {"payment_intent": intent.id, "amount": 205}
            )
            transfer = await server.transfer("acct_ok", 300)
            payout = await server.control("automatic_payout", currency="eur")
            await server.pay(amount=700)
            assert payout["amount"] == 1000 - 40 - 205 - 300
            parameters = {"payout": payout["id"], "columns": _COLUMNS}
            report = await _report(server, parameters, "payout_reconciliation.by_id.itemized.1")
            rows = await _rows(server, report)
            assert list(rows[0]) == _COLUMNS
            items = {row["reporting_category"]: row for row in rows}
            assert items["charge"]["payment_intent_id"] == intent.id
            assert items["charge"]["payment_metadata[charge_id]"] == "order-1"
            assert (items["charge"]["gross"], items["charge"]["fee"]) == ("10.00", "0.40")
            assert items["refund"]["refund_id"] == refund.id
            assert items["refund"]["charge_id"] == intent.latest_charge
            assert items["transfer"]["transfer_id"] == transfer.id
            net = sum(Decimal(row["net"]) for row in rows)
            assert net == Decimal(payout["amount"]) / 100
            page = await server.client.v1.balance_transactions.list_async(
                {"payout": payout["id"], "limit": 100}
            )
            assert {item.id for item in page.data if item.source != payout["id"]} == {
                row["balance_transaction_id"] for row in rows
            }
            paid = await server.client.v1.payouts.retrieve_async(payout["id"])
            assert (paid.status, paid.reconciliation_status) == ("paid", "completed")
            assert "payout.reconciliation_completed" in await server.event_types()
            second = await server.control("automatic_payout", currency="eur")
            assert second["amount"] == 660
            assert await server.balance() == {"eur": 0}

    asyncio.run(run())


def test_a_report_is_a_statement_of_its_payout(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """The platform reads the file: its lines sum to the amount of the payout that they name."""

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(fee_ppm=0, fee_fixed=40)) as server:
            await server.pay(parameters={"metadata": {"charge_id": "order-1"}})
            await server.transfer("acct_ok", 300)
            payout = await server.control("automatic_payout", currency="eur")
            columns = [*COLUMNS, "payment_metadata[charge_id]"]
            parameters = {"payout": payout["id"], "columns": columns}
            report = await _report(server, parameters, "payout_reconciliation.by_id.itemized.1")
            file = write_file(tmp_path, await _content(server, report))
        items = list(read_statements(file, find_format(file)))
        lines = {line.line_type: line for line in lines_of(items)}
        assert lines.keys() == {LineType.CHARGE, LineType.PAYOUT}
        assert {line.settlement_reference for line in lines.values()} == {payout["id"]}
        assert [end.total for end in ends_of(items)] == [payout["amount"]]
        charge = lines[LineType.CHARGE]
        assert (charge.amount, charge.fee, charge.client_reference) == (960, 40, "order-1")

    asyncio.run(run())


def test_an_interval_selects_payouts(scratch_database: DatabaseUrls) -> None:
    """A report of an interval has the automatic payouts that were made in it, and no manual ones.
    Times are shown in the zone of the run.
    """

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            payouts = []
            for day in range(3):
                set_clock(scratch_database, f"{day} days")
                await server.pay("pm_card_bypassPending")
                payouts.append(await server.control("automatic_payout", currency="eur"))
            await server.pay("pm_card_bypassPending")
            await server.client.v1.payouts.create_async({"amount": 100, "currency": "eur"})
            parameters = {
                "interval_start": payouts[1]["created"],
                "interval_end": payouts[2]["created"],
                "timezone": "Asia/Tokyo",
                "columns": ["automatic_payout_id", "created", "created_utc"],
            }
            report = await _report(server, parameters, "payout_reconciliation.itemized.7")
            rows = await _rows(server, report)
            assert {row["automatic_payout_id"] for row in rows} == {payouts[1]["id"]}
            assert all(row["created"] != row["created_utc"] for row in rows)
            assert "reporting.report_run.succeeded" in await server.event_types()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("type_", "parameters"),
    [
        ("payout_reconciliation.itemized.7", {}),
        ("payout_reconciliation.itemized.7", {"interval_start": 1, "interval_end": "x"}),
        (
            "payout_reconciliation.itemized.7",
            {"interval_start": 1, "interval_end": 2, "columns": ["nothing"]},
        ),
        (
            "payout_reconciliation.itemized.7",
            {"interval_start": 1, "interval_end": 2, "timezone": "../etc/passwd"},
        ),
        ("payout_reconciliation.by_id.itemized.1", {"payout": "po_nobody"}),
        ("balance.summary.1", {"interval_start": 1, "interval_end": 2}),
    ],
)
def test_a_report_that_cannot_be_made_is_rejected(
    database: DatabaseUrls, type_: str, parameters: dict[str, Any]
) -> None:
    """Missing intervals, unknown columns, zones, payouts and report types have an error."""

    async def run() -> None:
        async with look_alike(database) as server:
            with pytest.raises(stripe.InvalidRequestError):
                await server.client.v1.reporting.report_runs.create_async(
                    {"report_type": type_, "parameters": parameters}
                )

    asyncio.run(run())


def test_a_slow_report_succeeds_by_itself(scratch_database: DatabaseUrls) -> None:
    """A run is pending for the time of the rules, and can be made to fail meanwhile."""

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(report_seconds=600)) as server:
            runs = server.client.v1.reporting.report_runs
            parameters = {
                "report_type": "payout_reconciliation.itemized.7",
                "parameters": {"interval_start": 1, "interval_end": 2},
            }
            first, second = [await runs.create_async(parameters) for _ in range(2)]
            assert (await runs.retrieve_async(first.id)).status == "pending"
            await server.control("advance", id=second.id, status="failed", reason="No data.")
            set_clock(scratch_database, "601 seconds")
            await server.sandbox.advance_due()
            assert (await runs.retrieve_async(first.id)).status == "succeeded"
            assert (await runs.retrieve_async(second.id)).error == "No data."

    asyncio.run(run())
