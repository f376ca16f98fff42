"""Files of which very much matches nothing: the wrong file, or one whose lines the ledger lacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tallystick import Client, InvalidArgumentError
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.reconciliation import reconcile as reconcile_module
from tests.support.platform import ServedPlatform
from tests.support.reconciliation import (
    DAY,
    Provider,
    breaks_of,
    charge,
    clearing,
    file_request,
    kinds_of,
    reconcile,
    statement,
    stored_rows,
)
from tests.support.statement_items import add


def test_a_file_that_fits_nothing_is_rejected(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If most charges match nothing, and they are more than MAX_BREAKS, it is the wrong file:
    nothing is stored.
    """
    monkeypatch.setattr(reconcile_module, "MAX_BREAKS", 2)
    for number in range(2):
        provider.pay_in(10_00, f"ch-{number}")
    lines = [charge(10_00, f"ch-{number}") for number in range(2)]
    lines += [charge(1_00 + number, f"no-{number}") for number in range(3)]
    items = statement(lines)
    request = file_request(provider.account, items)
    client.reconciliation.CreateStatementFile(request)
    add(client, request.statement_file_id, items)
    client.reconciliation.GetClearingReport(pb.GetClearingReportRequest())
    stored = stored_rows(platform.databases)
    with pytest.raises(InvalidArgumentError, match="of its 5 charges.* 3 match nothing"):
        client.reconcile_statement_file(request, items)
    assert stored_rows(platform.databases) == stored
    monkeypatch.setattr(reconcile_module, "MAX_BREAKS", 3)
    file = client.reconcile_statement_file(request, items).statement_file
    assert sum(kinds_of(file).values()) == 3


def test_lines_that_never_match_reject_no_file(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider reports refunds, which the ledger does not have: as many as there are, page by
    page. Half of the charges may match nothing, too.
    """
    monkeypatch.setattr(reconcile_module, "MAX_BREAKS", 2)
    monkeypatch.setattr(reconcile_module, "_REST_PAGE", 3)
    for number in range(4):
        provider.pay_in(10_00, f"ch-{number}")
    lines = [charge(10_00, f"ch-{number}") for number in range(8)]
    lines += [
        charge(-1_00, f"ch-{number}", line_type="REFUND", reference=f"re-{number}")
        for number in range(20)
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert file.matched_count == 4
    assert kinds_of(file) == {"CHARGE_UNKNOWN": 4, "REFUND_NOT_BOOKED": 20}
    assert clearing(client, provider.account).unexplained == "0.00"


def test_lines_that_differ_from_their_entries_are_few(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in memory, so a file that has too many of them is rejected."""
    monkeypatch.setattr(reconcile_module, "MAX_NAMING_LINES", 2)
    for number in range(3):
        provider.pay_in(10_00, f"ch-{number}")
    lines = [charge(11_00, f"ch-{number}") for number in range(3)]
    with pytest.raises(InvalidArgumentError, match="more than 2 of its lines name entries"):
        reconcile(client, provider.account, lines)
    file = reconcile(client, provider.account, lines[:2]).statement_file
    assert kinds_of(file) == {"AMOUNT_DIFFERS": 2}


def test_very_many_overdue_entries_are_spread_over_files(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file opens breaks of the oldest entries, and the next file of the others."""
    monkeypatch.setattr(reconcile_module, "MAX_BREAKS", 2)
    for number in (2, 0, 1, 3):
        provider.pay_in(10_00, f"ch-{number}", time=DAY + timedelta(days=number))
    found = []
    for day in ("2026-05-01", "2026-05-02", "2026-05-03"):
        file = reconcile(client, provider.account, [], closing_date=day).statement_file
        found.append(sum(kinds_of(file).values()))
    assert found == [2, 2, 0]
    references = [
        item.ledger_items[0].external_reference
        for item in breaks_of(client, account=provider.account)
    ]
    assert (set(references[:2]), set(references[2:])) == ({"ch-0", "ch-1"}, {"ch-2", "ch-3"})
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_date_in_the_future_makes_nothing_overdue(client: Client, provider: Provider) -> None:
    """A single wrong date does not say that entries of today should have come."""
    provider.pay_in(10_00, "ch-1", time=datetime.now(UTC))
    line_ = charge(-1, line_type="FEE", reference="fee-1", booking_date="2199-12-31")
    file = reconcile(client, provider.account, [line_], closing_date="2199-12-31").statement_file
    assert kinds_of(file) == {}
