"""A provider without a section, while charges, payouts and destinations of it are open."""

from __future__ import annotations

import logging

import psycopg
import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.support.charges import WAIT_FOR_ACCEPTANCE
from tests.support.payments import create_payment
from tests.support.payouts import create_destination, create_payout, create_sale, get_payout
from tests.support.platform import eventually, serve_platform, unique_id

_ENVIRONMENT = {
    "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "0",
    "TALLYSTICK_WORKER__SCAN_INTERVAL": "0.1",
    "TALLYSTICK_WORKER__MONITOR_INTERVAL": "0.1",
}


def settings_with(*others: str, new_operations: str = "sandbox") -> Settings:
    """Settings with the sandbox, and with other sandboxes in the process; `new_operations`: the
    provider of new payments and destinations.
    """
    types = {f"TALLYSTICK_PROVIDERS__{name.upper()}__TYPE": "sandbox" for name in others}
    return load(
        {
            **_ENVIRONMENT,
            **types,
            "TALLYSTICK_PROVIDERS__PAYMENT": new_operations,
            "TALLYSTICK_PROVIDERS__PAYOUT": new_operations,
        }
    )


def make_all_due(databases: DatabaseUrls, *schemas: str) -> None:
    """Every operation that waits is due now."""
    with psycopg.connect(databases.admin) as connection:
        for schema in schemas or ("payment", "payout"):
            connection.execute(
                f"update {schema}.operation set next_try_time = now() "
                "where next_try_time > now() and next_try_time < 'infinity'"
            )


def waiting_details(databases: DatabaseUrls) -> list[str]:
    """Why the operations that wait for an unconfigured or failing provider wait."""
    details = []
    for schema in ("payment", "payout"):
        with psycopg.connect(databases.reader(schema)) as connection:
            statement = "select detail from operation where retry_reason = 'CIRCUIT_OPEN'"
            details += [detail for (detail,) in connection.execute(statement)]
    return details


def open_destination(client: Client, seller: str) -> pb.GetPayoutDestinationRequest:
    """A destination whose first verification is pending; the second one succeeds."""
    destination_id = unique_id("d")
    client.payout.CreatePayoutDestination(
        pb.CreatePayoutDestinationRequest(
            payout_destination_id=destination_id,
            seller_account=seller,
            currency="EUR",
            bank_account_token=unique_id("ba_review:"),
        )
    )
    return pb.GetPayoutDestinationRequest(payout_destination_id=destination_id)


def alerted_resources(client: Client) -> list[set[str]]:
    """The resources of the open alerts of PaymentService and of PayoutService."""
    payment_alerts = client.payment.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
    payout_alerts = client.payout.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
    return [{alert.resource_name for alert in alerts} for alerts in (payment_alerts, payout_alerts)]


def test_operations_of_a_removed_provider_wait(
    scratch_database: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    """Charges, payouts, payouts that are not yet sent and verifications of a provider without a
    section wait and raise alerts, while other providers work; nothing fails unexpectedly. With its
    section back they end.
    """
    with (
        serve_platform(
            scratch_database, settings_with("removed", new_operations="removed")
        ) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        create_destination(client, seller, "ba_slow")
        payout = create_payout(client, seller, "4.00", timeout=1.5)
        payment = create_payment(
            client, "5.00", token="tok_pending:paid", wait_for=WAIT_FOR_ACCEPTANCE
        )
        destination = open_destination(client, create_sale(client, "1.00"))
        assert eventually(
            lambda: (
                client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
                == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
            )
        )
        assert eventually(
            lambda: (
                get_payout(client, payout.payout_id).payout.payout_state
                == payout_pb2.PAYOUT_STATE_SUBMITTED
            )
        )

    caplog.clear()
    with (
        serve_platform(scratch_database, settings_with()) as platform,
        platform.client() as client,
    ):
        unsent = create_payout(client, seller, "2.00", timeout=1.5)
        make_all_due(scratch_database)
        assert eventually(lambda: len(waiting_details(scratch_database)) == 4), waiting_details(
            scratch_database
        )
        assert all(
            "the provider removed is not configured" in detail
            for detail in waiting_details(scratch_database)
        )
        assert eventually(
            lambda: all("providers/removed" in found for found in alerted_resources(client))
        )
        assert create_payment(client, "3.00").payment_orders[0].provider == "sandbox"
        states = {
            get_payout(client, payout_id).payout.payout_state
            for payout_id in (payout.payout_id, unsent.payout_id)
        }
        assert states == {
            payout_pb2.PAYOUT_STATE_SUBMITTED,
            payout_pb2.PAYOUT_STATE_CREATED,
        }
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ] == []

    with (
        serve_platform(scratch_database, settings_with("removed")) as platform,
        platform.client() as client,
    ):
        make_all_due(scratch_database)
        assert client.wait_for_payment(payment.checkout_id, 30).is_payment_done

        def have_all_ended() -> bool:
            """The sandbox answers each lookup with the next state."""
            make_all_due(scratch_database, "payout")
            verified = payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
            found = client.payout.GetPayoutDestination(destination).payout_destination
            return found.state == verified and all(
                get_payout(client, payout_id).payout.ledger_updated
                for payout_id in (payout.payout_id, unsent.payout_id)
            )

        assert eventually(have_all_ended)
        assert eventually(
            lambda: not any("providers/removed" in found for found in alerted_resources(client))
        )
    assert verify(scratch_database).passed
