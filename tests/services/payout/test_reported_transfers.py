"""Reports about completed payouts: polls, conflicting reports and unmatched transfers."""

from __future__ import annotations

from pathlib import Path

import psycopg

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    PayoutLookupOutcome,
    RetryReason,
    Returned,
    Succeeded,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import expect_error_reason
from tests.support.payout_operations import RETRY, payout_alerts
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    get_payout,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    fresh_database,
    is_replayed,
    payouts_of,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


def acknowledge_payout(
    client: Client,
    payout_id: str,
    reason: str = "asked the bank",
    *,
    reference: str = "",
    report_number: int = 0,
    is_replay: bool = False,
) -> payout_pb2.Payout:
    """Acknowledges a transfer by its reference, or a report by its number; `is_replay`: the answer
    is marked as a replay.
    """
    request = pb.AcknowledgePayoutRequest(payout_id=payout_id, reason=reason)
    if reference:
        request.provider_reference = reference
    if report_number:
        request.report_number = report_number
    assert is_replayed(client.payout.AcknowledgePayout, request) == is_replay
    return get_payout(client, payout_id).payout


def is_alert_open(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str, number: int
) -> bool:
    """Whether the alert is open and is the expected occurrence."""
    matching_alerts = payout_alerts(client, kind, payout_id)
    return len(matching_alerts) == number and not matching_alerts[0].HasField("end_time")


def are_alerts_ended(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str, number: int
) -> bool:
    """Whether there were the given number of alerts, and all have ended."""
    matching_alerts = payout_alerts(client, kind, payout_id)
    return len(matching_alerts) == number and all(
        alert.HasField("end_time") for alert in matching_alerts
    )


def test_a_conflicting_report_is_acknowledged(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Acknowledging ends the alert and moves no money; the same report again raises nothing, a
    different one raises another alert.
    """
    with (
        polling_platform.client(token_of("approver")) as approver,
        polling_platform.client(token_of("operator")) as operator,
        polling_platform.client(token_of("shop")) as shop,
    ):
        seller, reference, kind = (
            create_sale(approver, "10.00"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT,
        )
        to = create_destination(approver, seller)
        payout_provider.script[to].extend(
            [Succeeded(reference, 1000, "EUR"), Declined(PayoutFailure.PROVIDER_DECLINED, "late")]
        )
        id_ = create_payout(approver, seller).payout_id
        assert eventually(lambda: is_alert_open(operator, kind, id_, 1))
        (report,) = wait_for_state(operator, id_, "PAID").conflicting_reports
        assert (report.number, report.report, report.acknowledged_by) == (1, "Declined late", "")
        assert (
            expect_error_reason(lambda: acknowledge_payout(shop, id_, report_number=1))
            == "PERMISSION_DENIED"
        )
        before = get_payout(operator, id_).payout
        after = acknowledge_payout(operator, id_, report_number=1)
        acknowledge_payout(operator, id_, report_number=1, is_replay=True)
        assert (
            expect_error_reason(lambda: acknowledge_payout(operator, id_, "other", report_number=1))
            == "IDEMPOTENCY_KEY_REUSED"
        )
        assert after.version == before.version + 1
        before.version = after.version
        before.update_time.CopyFrom(after.update_time)
        assert after == before
        payout_response = get_payout(operator, id_)
        assert [
            (conflicting_report.acknowledged_by, conflicting_report.acknowledge_reason)
            for conflicting_report in payout_response.conflicting_reports
        ] == [("operator", "asked the bank")]
        assert payout_response.conflicting_reports[0].acknowledge_time == after.update_time
        assert (
            payout_response.history[-1].transition_reason,
            payout_response.history[-1].actor,
            payout_response.history[-1].reason,
        ) == (
            history_pb2.TRANSITION_REASON_ACKNOWLEDGED,
            "operator",
            "asked the bank",
        )
        assert eventually(
            lambda: (
                [
                    event.aggregate_version
                    for event in operator.events(aggregate_id=f"payouts/{id_}")
                ][-1]
                == after.version
            )
        )
        assert eventually(lambda: are_alerts_ended(operator, kind, id_, 1))
        payout_provider.script[id_].extend(
            [Declined(PayoutFailure.PROVIDER_DECLINED, "late")] * 2
            + [Declined(PayoutFailure.PROVIDER_DECLINED, "risk")]
        )
        assert eventually(lambda: is_alert_open(operator, kind, id_, 2))
        assert [
            conflicting_report.report
            for conflicting_report in wait_for_state(operator, id_, "PAID").conflicting_reports
        ] == [
            "Declined late",
            "Declined risk",
        ]
        assert payout_alerts(operator, kind, id_)[0].detail == "Declined risk"
        acknowledge_payout(operator, id_, report_number=2)
        assert eventually(lambda: are_alerts_ended(operator, kind, id_, 2))
        assert wallet_amounts(operator, seller) == ("0.00", "0.00", "0.00")


def test_a_report_repeated_after_another_raises_an_alert(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Reports A, B and A again are each acknowledged before the next: the second A raises an alert,
    and continued reports of the same content raise one.
    """
    with (
        polling_platform.client(token_of("approver")) as approver,
        polling_platform.client(token_of("operator")) as operator,
    ):
        seller, reference, kind = (
            create_sale(approver, "10.00"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT,
        )
        to = create_destination(approver, seller)
        payout_provider.script[to].append(Succeeded(reference, 1000, "EUR"))
        id_ = create_payout(approver, seller).payout_id
        for number, code in enumerate(("a", "b", "a"), 1):
            payout_provider.script[id_].extend(
                [Declined(PayoutFailure.PROVIDER_DECLINED, code)] * 3
            )
            assert eventually(lambda number=number: is_alert_open(operator, kind, id_, number))  # type: ignore[misc]
            wait_for_state(operator, id_, "PAID")
            acknowledge_payout(operator, id_, report_number=number)
            assert eventually(lambda number=number: are_alerts_ended(operator, kind, id_, number))  # type: ignore[misc]
        assert [report.report for report in get_payout(operator, id_).conflicting_reports] == [
            "Declined a",
            "Declined b",
            "Declined a",
        ]


class LookupRecordingProvider(ScriptedPayoutProvider):
    """Records the polls about completed payouts."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_up_ids: list[str] = []

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        self.looked_up_ids.append(request.payout_id)
        return await super().look_up(request)


def test_one_process_at_a_time_polls_completed_payouts(admin_url: str, tmp_path: Path) -> None:
    """Of two processes one polls the provider about completed payouts; the other takes over once
    the first has not renewed its lease for some seconds.
    """
    own_provider, other_provider = LookupRecordingProvider(), LookupRecordingProvider()
    often = Settings().replace(
        retry={
            **RETRY,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(
                RetryStrategy.FIXED, 0.0, 0.0, 1_000_000
            ),
        },
        worker__scan_interval=0.1,
    )
    seldom = often.replace(worker__scan_interval=3600)
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(
            databases,
            seldom,
            dependencies=Dependencies(payout_providers={"sandbox": other_provider}),
        ) as other_platform,
    ):
        payouts = payouts_of(other_platform)
        with (
            serve_platform(
                databases,
                often,
                dependencies=Dependencies(payout_providers={"sandbox": own_provider}),
            ) as platform,
            platform.client() as client,
        ):
            seller = create_sale(client, "20.00")
            create_destination(client, seller)
            wait_for_state(client, create_payout(client, seller, "5.00").payout_id, "PAID")
            assert eventually(lambda: own_provider.looked_up_ids)
            other_platform.run_in_loop(payouts.polling.run_once)
            assert other_provider.looked_up_ids == []
        with psycopg.connect(databases.admin) as connection:
            update_rows(
                connection,
                "update payout.leader_lease set lease_until = now() where name like 'poll %'",
            )
        other_platform.run_in_loop(payouts.polling.run_once)
        assert len(other_provider.looked_up_ids) == 1


def test_an_unmatched_transfer_is_acknowledged(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Acknowledging a transfer ends its alert and moves no money; another transfer, or a return of
    the same one, raises another alert.
    """
    with (
        polling_platform.client(token_of("approver")) as approver,
        polling_platform.client(token_of("operator")) as operator,
    ):
        seller, first, second, kind = (
            create_sale(approver, "10.00"),
            unique_id("tr"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_UNMATCHED_TRANSFER,
        )
        to = create_destination(approver, seller)
        payout_provider.script[to].append(Succeeded(first, 501, "EUR"))
        id_ = create_payout(approver, seller, "5.00").payout_id
        assert eventually(lambda: is_alert_open(operator, kind, id_, 1))
        wait_for_state(operator, id_, "FAILED")
        acknowledge_payout(operator, id_, reference=first)
        acknowledge_payout(operator, id_, reference=first, is_replay=True)
        assert (
            expect_error_reason(lambda: acknowledge_payout(operator, id_, "other", reference=first))
            == "IDEMPOTENCY_KEY_REUSED"
        )
        (transfer,) = get_payout(operator, id_).transfers
        assert (transfer.acknowledged_by, transfer.acknowledge_reason) == (
            "operator",
            "asked the bank",
        )
        assert eventually(lambda: are_alerts_ended(operator, kind, id_, 1))
        assert wallet_amounts(operator, seller) == ("4.99", "0.00", "0.00")
        payout_provider.script[id_].append(Succeeded(second, 100, "EUR"))
        assert eventually(lambda: is_alert_open(operator, kind, id_, 2))
        assert payout_alerts(operator, kind, id_)[0].detail == f"DUPLICATE {second}"
        wait_for_state(operator, id_, "FAILED")
        acknowledge_payout(operator, id_, reference=second)
        assert eventually(lambda: are_alerts_ended(operator, kind, id_, 2))
        payout_provider.script[id_].append(Returned(first, 501, "EUR"))
        assert eventually(lambda: is_alert_open(operator, kind, id_, 3))
        payout_response = wait_for_state(operator, id_, "FAILED")
        assert [finding.acknowledged_by for finding in payout_response.transfers] == [
            "",
            "operator",
        ]
        assert [
            row.actor
            for row in payout_response.history
            if row.transition_reason == history_pb2.TRANSITION_REASON_ACKNOWLEDGED
        ] == [
            "operator",
            "operator",
        ]
        acknowledge_payout(operator, id_, "the bank returned it", reference=first)
        assert eventually(lambda: are_alerts_ended(operator, kind, id_, 3))
        assert wallet_amounts(operator, seller) == ("9.00", "0.00", "0.00")


def test_invalid_acknowledgements_of_payouts_are_rejected(
    shop_client: Client, operator_client: Client
) -> None:
    """An unknown subject is NOT_FOUND, a missing field FIELD_REQUIRED, and with nothing to
    acknowledge the call is INVALID_STATE.
    """
    seller = create_sale(shop_client, "10.00")
    create_destination(shop_client, seller)
    id_ = wait_for_state(
        shop_client, create_payout(shop_client, seller).payout_id, "PAID"
    ).payout.payout_id
    reference = get_payout(shop_client, id_).transfers[0].provider_reference
    assert (
        expect_error_reason(
            lambda: acknowledge_payout(operator_client, "p-nobody", report_number=1)
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(
            lambda: acknowledge_payout(operator_client, id_, reference="tr_unknown")
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, reference=reference))
        == "INVALID_STATE"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, report_number=1))
        == "INVALID_STATE"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, report_number=-1))
        == "FIELD_INVALID"
    )
    assert expect_error_reason(lambda: acknowledge_payout(operator_client, id_)) == "FIELD_REQUIRED"
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, " ", report_number=1))
        == "FIELD_REQUIRED"
    )
    assert (
        expect_error_reason(
            operator_client.payout.AcknowledgePayout,
            pb.AcknowledgePayoutRequest(payout_id=id_, provider_reference="", reason="r"),
        )
        == "FIELD_REQUIRED"
    )
