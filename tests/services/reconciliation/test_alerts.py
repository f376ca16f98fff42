"""Alerts of ReconciliationService: entries that no statement has, and proposals that nobody
decides.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick_core.access import Role
from tallystick_core.ledger.posting_rules import PostingKind, settlement_lines
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.break_operator import Operator, state_of
from tests.support.callers import settings_with_callers, token_of
from tests.support.platform import eventually, serve_platform
from tests.support.reconciliation import Provider, charge, only_break, post, reconcile

SETTINGS = Settings().replace(
    worker__scan_interval=0.1,
    worker__monitor_interval=0.2,
    reconciliation__posting_interval=0.1,
)


def overdue(client: Client) -> set[str]:
    """The accounts with an open alert."""
    return alerted(client, operator_pb2.ALERT_KIND_ENTRIES_OVERDUE, "clearingAccounts/")


def breaks_overdue(client: Client) -> set[str]:
    """The breaks with an open alert."""
    return alerted(client, operator_pb2.ALERT_KIND_BREAK_OVERDUE, "breaks/")


def alerted(client: Client, kind: operator_pb2.AlertKind.ValueType, collection: str) -> set[str]:
    """The ids of the resources with an open alert of a kind."""
    alerts = client.reconciliation.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
    return {alert.resource_name.removeprefix(collection) for alert in alerts if alert.kind == kind}


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


def test_a_proposal_to_reopen_a_break_that_nobody_decides_raises_an_alert(
    scratch_database: DatabaseUrls,
) -> None:
    """It ends once a second person has decided."""
    settings = settings_with_callers(
        {"ann": ("", {Role.OPERATOR, Role.SERVICE}), "bob": ("", {Role.OPERATOR})},
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
        reconciliation__approval_threshold={"EUR": 0},
        reconciliation__alert_breaks_after=0.3,
    )
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client(token_of("ann")) as anns_client,
        platform.client(token_of("bob")) as bobs_client,
    ):
        ann, bob = Operator(anns_client), Operator(bobs_client)
        provider = Provider(anns_client)
        reconcile(anns_client, provider.account, [charge(5_00, "ch-1")])
        break_id = only_break(anns_client, provider.account).break_id
        ann.resolve(break_id, "ADJUST")
        bob.approve(break_id)
        assert eventually(lambda: not breaks_overdue(anns_client))
        assert state_of(ann.reopen(break_id)) == "AWAITING_REOPENING"
        assert eventually(lambda: breaks_overdue(anns_client) == {break_id})
        bob.reject(break_id)
        assert eventually(lambda: not breaks_overdue(anns_client))
