"""The steps of the demo that compare the provider's report with the ledger. They need the
look-alike: Stripe pays to the bank only after days.
"""

from __future__ import annotations

import asyncio
import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tallystick import AsyncClient
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.money import format_amount, parse_signed_amount
from tallystick_server.app.configuration import Settings
from tallystick_server.cli.demo_output import print_step, require, wait_until
from tallystick_server.cli.demo_provider import PROVIDER, RunningLookAlike, stripe_of
from tallystick_server.cli.output import print_line
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.reports import StripeReports
from tallystick_server.providers.stripe.statements import StripeStatements
from tallystick_server.reconciliation.formats.messages import (
    content_digest,
    create_request,
    to_messages,
)
from tallystick_server.reconciliation.formats.registry import find_format, read_statements
from tallystick_server.reconciliation.formats.text_file import TextFile

_ACCOUNT = f"psp/{PROVIDER}/clearing"
_KIND_PREFIX, _CLASS_PREFIX = "BREAK_KIND_", "BREAK_CLASS_"
_DIFFERS = reconciliation_pb2.BREAK_KIND_AMOUNT_DIFFERS

Row = dict[str, str]


async def reconcile_report(
    client: AsyncClient, settings: Settings, look_alike: RunningLookAlike
) -> None:
    """Steps 11 and 12: the report of the day is compared with the ledger, with three mismatches
    put into it; then the clearing report explains what is left.
    """
    print_step("11  The provider's report is compared with the ledger, line by line")
    payout = await look_alike.post("/sandbox/automatic_payout", currency="eur")
    amount = format_amount(payout["amount"], "EUR")
    print_line(f"     the provider pays {amount} EUR to the bank as {payout['id']}")
    rows = await _fetch(settings, payout["id"])
    changes = _plant(rows)
    print_line("     three mismatches are put into its report:")
    for text in changes:
        print_line(f"       {text}")
    file = await _reconcile(client, rows, payout["id"])
    print_line(
        f"     {file.line_count} lines: {file.matched_count} agree with the ledger, "
        f"{file.line_count - file.matched_count - file.repeated_count} are in breaks"
    )
    breaks = await _breaks(client, file)
    for item in breaks:
        print_line(f"       {_describe(item)}")
    kinds = {item.kind for item in breaks}
    require(
        {
            reconciliation_pb2.BREAK_KIND_ROUNDING,
            reconciliation_pb2.BREAK_KIND_CHARGE_UNKNOWN,
            _DIFFERS,
        }
        <= kinds,
        "each of these mismatches should be a break",
    )
    await _resolve(client, next(item for item in breaks if item.kind == _DIFFERS))

    print_step("12  The clearing report explains what the ledger has, to the cent")
    await wait_until(lambda: _is_posted(client), "what was decided should be in the ledger")
    await _show_report(client)


async def _fetch(settings: Settings, payout_id: str) -> list[Row]:
    """The rows of the report of a payout to the bank, as the adapter fetches it."""
    stripe = stripe_of(settings)
    if stripe is None:
        raise RuntimeError("the demo runs without Stripe and without its look-alike")
    api = StripeApi(stripe)
    statements = StripeStatements(
        PROVIDER, StripeReports(api), stripe.payout_report, stripe.single_payout_report
    )
    try:
        content = b"".join([part async for part in statements.fetch_payout(payout_id)])
    finally:
        await api.close()
    return list(csv.DictReader(io.StringIO(content.decode())))


def _plant(rows: list[Row]) -> Sequence[str]:
    """Changes the report as a provider might by mistake. Returns what was done."""
    charges = [row for row in rows if row["reporting_category"] == "charge"]
    require(len(charges) >= 2, "the report should have two charges")
    rounded, wrong = charges[:2]
    name = wrong["automatic_payout_id"].removeprefix("po_")[:12]
    unknown = dict(wrong, charge_id="", payment_intent_id=f"pi_unknown_{name}")
    unknown |= {"balance_transaction_id": f"txn_{name}", "payment_metadata[charge_id]": ""}
    _add(rounded, 1)
    _add(wrong, 100)
    rows.append(unknown)
    return (
        f"a charge has 0.01 EUR more: {rounded['payment_intent_id']}",
        f"a charge has 1.00 EUR more: {wrong['payment_intent_id']}",
        f"a charge that nobody knows: {unknown['payment_intent_id']}",
    )


def _add(row: Row, minor_units: int) -> None:
    for column in ("gross", "net"):
        amount = parse_signed_amount(row[column], "EUR") + minor_units
        row[column] = format_amount(amount, "EUR")


async def _reconcile(
    client: AsyncClient, rows: Sequence[Row], payout_id: str
) -> reconciliation_pb2.StatementFile:
    """Sends the report as `tallystick reconcile` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{payout_id}.csv"
        await asyncio.to_thread(_write, path, rows)
        file = TextFile(path)
        format_ = find_format(file)
        items = to_messages(read_statements(file, format_))
        request = create_request(path.name, content_digest(path), format_.name, _ACCOUNT)
        response = await client.reconcile_statement_file(request, items)
    return response.statement_file


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


async def _breaks(
    client: AsyncClient, file: reconciliation_pb2.StatementFile
) -> list[reconciliation_pb2.Break]:
    """The breaks of a file, the automatic ones first."""
    request = pb.ListBreaksRequest(statement_file_id=file.statement_file_id)
    pages = client.pages(client.reconciliation.ListBreaks, request, "breaks")
    return sorted([item async for item in pages], key=lambda item: (item.break_class, item.kind))


def _describe(item: reconciliation_pb2.Break) -> str:
    break_class = reconciliation_pb2.BreakClass.Name(item.break_class).removeprefix(_CLASS_PREFIX)
    kind = reconciliation_pb2.BreakKind.Name(item.kind).removeprefix(_KIND_PREFIX)
    state = reconciliation_pb2.BreakState.Name(item.state).removeprefix("BREAK_STATE_")
    return f"{break_class:<13}  {kind:<15} {item.difference:>6} {item.currency}  {state}"


async def _resolve(client: AsyncClient, item: reconciliation_pb2.Break) -> None:
    """Finance accepts what the provider says, and the ledger is adjusted."""
    request = pb.ResolveBreakRequest(
        break_id=item.break_id,
        resolution=reconciliation_pb2.RESOLUTION_ADJUST,
        reason="the provider confirms the amount",
    )
    resolved = (await client.reconciliation.ResolveBreak(request)).reconciliation_break
    print_line(
        f"     finance adjusts the ledger for the charge with 1.00 more: {resolved.break_id}"
    )


async def _report(client: AsyncClient) -> Sequence[reconciliation_pb2.ClearingAccount]:
    response = await client.reconciliation.GetClearingReport(pb.GetClearingReportRequest())
    return response.accounts


async def _is_posted(client: AsyncClient) -> bool:
    return all(not _is_nonzero(account.unposted) for account in await _report(client))


async def _show_report(client: AsyncClient) -> None:
    print_line("     in EUR                    ledger  statements  expected  breaks  unexplained")
    for account in await _report(client):
        currency = account.currency
        expected = sum(_minor(item.amount.amount, currency) for item in account.expected)
        breaks = sum(_minor(item.amount.amount, currency) for item in account.breaks)
        print_line(
            f"     {account.account:<23} {account.ledger_balance:>8} ="
            f"{account.statement_balance:>10} {format_amount(expected, currency):>9} "
            f"{format_amount(breaks, currency):>7} {account.unexplained:>12}"
        )
        require(
            not _is_nonzero(account.unexplained),
            f"the clearing report should explain {account.account}",
        )


def _is_nonzero(amount: str) -> bool:
    return bool(amount.strip("-0."))


def _minor(amount: str, currency: str) -> int:
    return parse_signed_amount(amount, currency)
