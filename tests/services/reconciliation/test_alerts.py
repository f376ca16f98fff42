"""Alerts of ReconciliationService about entries of the ledger that no statement has."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick_core.ledger.posting_rules import PostingKind, settlement_lines
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.platform import eventually, serve_platform
from tests.support.reconciliation import Provider, charge, post, reconcile

SETTINGS = Settings().replace(
    worker__scan_interval=0.1,
    worker__monitor_interval=0.2,
    reconciliation__posting_interval=0.1,
)


def overdue(client: Client) -> set[str]:
    """The accounts with an open alert."""
    alerts = client.reconciliation.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
    return {
        alert.resource_name.removeprefix("clearingAccounts/")
        for alert in alerts
        if alert.kind == operator_pb2.ALERT_KIND_ENTRIES_OVERDUE
    }


@pytest.mark.parametrize("currency", ["EUR", "JPY"])
def test_payouts_and_settlements_that_no_statement_has_raise_an_alert(
    scratch_database: DatabaseUrls, currency: str
) -> None:
    """They are never MISSING_IN_FILE. There is one alert for each account, and it ends once a
    statement has the entries. What moved today may still come.
    """
    with serve_platform(scratch_database, SETTINGS) as platform, platform.client() as client:
        late, new = Provider(client, "late"), Provider(client, "new")
        late.payout(10_00, "tr-1")
        late.payout(20_00, "tr-2")
        new.payout(30_00, "tr-3", time=datetime.now(UTC))
        late.pay_in(40_00, "ch-1")
        lines = settlement_lines(late.account, currency, 5_00)
        post(client, PostingKind.SETTLEMENT, "set-1", lines, "set-1")
        assert eventually(lambda: overdue(client) == {late.payouts_account, "banks/transit"})
        reconcile(
            client,
            late.account,
            [
                charge(-10_00, line_type="PAYOUT", reference="tr-1"),
                charge(-20_00, line_type="PAYOUT", reference="tr-2"),
            ],
        )
        assert eventually(lambda: overdue(client) == {"banks/transit"})
        bank_line = charge(5_00, line_type="BANK_ENTRY", reference="set-1", currency=currency)
        reconcile(client, "banks/main", [bank_line])
        assert eventually(lambda: not overdue(client))
