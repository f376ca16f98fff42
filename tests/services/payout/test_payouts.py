"""Pay-out through the API on a real socket, from the wallet to the bank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.history.v1 import history_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.state import PayoutState
from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotFound,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    PayoutOutcome,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import RetryPolicies, RetryPolicy, RetryStrategy
from tallystick_server.payout.booking import PayoutBooking
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_server.payout.poll_completed import CompletedPayoutPoller
from tallystick_server.verify.run import verify
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.operations import Reschedule, reschedule
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout import transfers
from tallystick_storage.sql import Connection, text
from tallystick_storage.webhook_events import SubjectKey
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.errors import error_reason
from tests.support.ledger import list_by_reference
from tests.support.payouts import (
    RETRY,
    create_destination,
    create_payout,
    create_sale,
    get_payout,
    state_name,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    fresh_database,
    payout_worker_of,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


@pytest.fixture(scope="module")
def payout_platform(
    admin_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    payout_provider: ScriptedPayoutProvider,
) -> Iterator[ServedPlatform]:
    """All services with a scripted bank, on a private database: no other process polls another bank
    about these payouts.
    """
    settings = Settings().replace(
        retry=RETRY,
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
        payout__approval_threshold={"EUR": 100_000},
    )
    folder, dependencies = (
        tmp_path_factory.mktemp("paying"),
        Dependencies(payout_providers={"sandbox": payout_provider}),
    )
    with (
        fresh_database(admin_url, folder) as databases,
        serve_platform(databases, settings, dependencies=dependencies) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def payout_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    with payout_platform.client() as sdk_client:
        yield sdk_client


def account_balance(client: Client, account: str) -> str:
    return client.ledger.GetAccount(
        ledger_service_pb2.GetAccountRequest(account=account, currency="EUR")
    ).account.balance


def test_a_payout_is_paid(payout_client: Client) -> None:
    """The hold is captured, the ledger posted, each transition recorded: the wallet loses what the
    bank received plus the fee.
    """
    seller = create_sale(payout_client, "50.00")
    to = create_destination(payout_client, seller)
    payout = create_payout(payout_client, seller, "20.00")
    payout_response = wait_for_state(payout_client, payout.payout_id, "PAID")
    assert [t.transition_reason for t in payout_response.history] == [
        history_pb2.TRANSITION_REASON_CREATED,
        history_pb2.TRANSITION_REASON_FUNDS_HELD,
        history_pb2.TRANSITION_REASON_SENDING,
        history_pb2.TRANSITION_REASON_PROVIDER_OUTCOME,
        history_pb2.TRANSITION_REASON_BOOKED,
    ]
    assert [t.version for t in payout_response.history] == [1, 2, 3, 4, 5]
    assert (
        payout_response.payout.payout_destination_id,
        payout_response.payout.net_amount,
        payout_response.payout.paid_amount,
    ) == (
        to,
        "20.00",
        "20.00",
    )
    (attempt,) = payout_response.attempts
    assert (attempt.provider_key, attempt.outcome) == (
        f"dev-p-{payout.payout_id}-1",
        history_pb2.ATTEMPT_OUTCOME_SUCCEEDED,
    )
    (transfer,) = payout_response.transfers
    assert (transfer.match, transfer.amount) == (payout_pb2.TRANSFER_MATCH_EXACT, "20.00")
    assert wallet_amounts(payout_client, seller) == ("30.00", "0.00", "0.00")
    assert account_balance(payout_client, f"sellers/{seller}") == "30.00"
    hold = payout_client.wallet.GetHold(
        wallet_service_pb2.GetHoldRequest(hold_id=f"payouts/{payout.payout_id}")
    ).hold
    assert (hold.state, hold.captured_amount) == (wallet_pb2.HOLD_STATE_CAPTURED, "20.00")


def test_a_reopened_payout_fences_former_lease_holders(
    payout_platform: ServedPlatform, payout_client: Client
) -> None:
    """A payout that is reopened always gets lease tokens above all earlier ones: a former holder
    can neither change nor reschedule it.
    """
    seller = create_sale(payout_client, "50.00")
    create_destination(payout_client, seller)
    payout_id = create_payout(payout_client, seller, "20.00").payout_id
    wait_for_state(payout_client, payout_id, "PAID")
    max_delay = 1_000_000_000
    """More claims than ever occur."""

    def reopened(connection: Connection) -> tuple[list[int], list[dict[OperationKey, bool]]]:
        tokens, rescheduled = [max_delay], []
        with connection.transaction(force_rollback=True):  # rolled back: the payout stays final
            for _ in range(3):
                store.reopen(connection, [payout_id])
                claimed = connection.execute(
                    text(
                        "update operation set lease_token = lease_token + 1 where operation_id = "
                        ":id returning lease_token"
                    ),
                    {"id": payout_id},
                )
                tokens.append(claimed.scalar_one())
                stale_results = [
                    Reschedule("payout", payout_id, token, 1.0, False, 0, False, {}, "", "", "")
                    for token in (1, 2, *tokens[:-1])
                ]
                rescheduled += [
                    reschedule(connection, [stale_result]) for stale_result in stale_results
                ]
                connection.execute(
                    text(
                        "update operation set lease_token = lease_token + :max_delay where "
                        "operation_id = :id"
                    ),
                    {"id": payout_id, "max_delay": max_delay},
                )
                tokens.append(tokens[-1] + max_delay)
                connection.execute(
                    text("delete from operation where operation_id = :id"), {"id": payout_id}
                )
        return tokens, rescheduled

    due_row: Any = payout_platform.run_in_loop(
        database_of(payout_platform, "payout").transact, reopened
    )
    assert due_row[0] == sorted(set(due_row[0]))
    assert not any(due_row[1])


def test_the_platform_keeps_the_payout_fee(payout_client: Client) -> None:
    """The wallet loses the fee and the amount that the bank receives; the ledger shows both, and
    the terms are those of the seller's schedule.
    """
    seller = create_sale(payout_client, "50.00")
    create_destination(payout_client, seller)
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    payout_client.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(
            seller_account=seller,
            currency="EUR",
            interval=manual,
            minimum_amount="5.00",
            fee="0.35",
            reserve="10.00",
        )
    )
    payout = create_payout(payout_client, seller)
    assert (payout.amount, payout.fee, payout.net_amount) == ("40.00", "0.35", "39.65")
    payout_response = wait_for_state(payout_client, payout.payout_id, "PAID")
    assert payout_response.payout.paid_amount == "39.65"
    assert wallet_amounts(payout_client, seller) == ("10.00", "0.00", "0.00")
    (transaction,) = payout_client.ledger.ListTransactions(
        ledger_service_pb2.ListTransactionsRequest(source_id=payout.payout_id)
    ).transactions
    assert {(entry.account, entry.amount) for entry in transaction.entries} == {
        (f"sellers/{seller}", "40.00"),
        ("payouts/sandbox/clearing", "39.65"),
        ("platform/fees", "0.35"),
    }
    with pytest.raises(TallystickError) as error:
        create_payout(payout_client, seller, "4.99")
    assert error_reason(error) == "AMOUNT_OUT_OF_RANGE"


def test_a_repeat_returns_the_current_payout(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """K1: equal values return the current payout, also where the amount was left open; other values
    and other callers are rejected.
    """
    seller = create_sale(payout_client, "9.00")
    create_destination(payout_client, seller)
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    repeated_payout = create_payout(payout_client, seller, payout_id=payout.payout_id)
    assert (repeated_payout.amount, state_name(repeated_payout)) == ("9.00", "PAID")
    assert [request.payout_id for request in payout_provider.submitted_requests].count(
        payout.payout_id
    ) == 1
    with pytest.raises(TallystickError) as error:
        create_payout(payout_client, seller, "9.00", payout_id=payout.payout_id)
    assert (error_reason(error), error.value.field_violations[0].field) == (
        "IDEMPOTENCY_KEY_REUSED",
        "amount",
    )


@pytest.mark.parametrize(
    ("amount", "with_destination", "reason"),
    [
        ("10.01", True, "INSUFFICIENT_FUNDS"),
        ("1.00", False, "DESTINATION_UNUSABLE"),
        ("0", True, "AMOUNT_OUT_OF_RANGE"),
        ("1.001", True, "AMOUNT_PRECISION"),
    ],
)
def test_a_rejected_request_stores_no_payout(
    payout_client: Client, amount: str, with_destination: bool, reason: str
) -> None:
    """A payout that cannot be made is rejected with its reason and not stored, and its id stays
    free.
    """
    seller = create_sale(payout_client, "10.00")
    if with_destination:
        create_destination(payout_client, seller)
    with pytest.raises(TallystickError) as error:
        create_payout(payout_client, seller, amount, payout_id=(id_ := unique_id("p")))
    assert error_reason(error) == reason
    with pytest.raises(TallystickError) as missing:
        get_payout(payout_client, id_)
    assert error_reason(missing) == "NOT_FOUND"
    assert wallet_amounts(payout_client, seller) == ("10.00", "0.00", "0.00")


def test_a_declined_payout_releases_its_hold(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """FAILED requires a definite answer, and then the hold is released; a faulty account ends the
    destination and its payouts.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].append(
        Declined(PayoutFailure.DESTINATION_REJECTED, "account_closed")
    )
    payout = create_payout(payout_client, seller, "4.00")
    payout_response = wait_for_state(payout_client, payout.payout_id, "FAILED")
    assert (
        payout_response.payout.failure_reason
        == payout_pb2.PAYOUT_FAILURE_REASON_DESTINATION_REJECTED
    )
    assert payout_response.payout.decline_code == "account_closed"
    assert wallet_amounts(payout_client, seller) == ("10.00", "0.00", "0.00")
    current_destination = payout_client.payout.GetPayoutDestination(
        pb.GetPayoutDestinationRequest(payout_destination_id=to)
    ).payout_destination
    assert current_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
    with pytest.raises(TallystickError) as error:
        create_payout(payout_client, seller, "4.00")
    assert error_reason(error) == "DESTINATION_UNUSABLE"


def test_a_submitted_payout_is_polled_until_final(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """SUBMITTED and IN_TRANSIT are valid answers; the provider is polled until the state is
    final.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].extend(
        [
            Submitted("tr_a"),
            Submitted("tr_a"),
            InTransit("tr_a"),
            Unknown("lost"),
            Succeeded(unique_id("tr"), 1000, "EUR"),
        ]
    )
    payout = create_payout(payout_client, seller)
    payout_response = wait_for_state(payout_client, payout.payout_id, "PAID")
    states = [t.to_state for t in payout_response.history]
    assert states == ["CREATED", "READY", "SUBMITTING", "SUBMITTED", "IN_TRANSIT", "PAID", "PAID"]


def test_a_lost_answer_never_pays_twice(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """After an unknown outcome the same key is sent again, and the payout that was made under it is
    found.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].extend([Unknown("lost"), Unknown("lost")])
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    assert {
        request.key
        for request in payout_provider.submitted_requests
        if request.payout_id == payout.payout_id
    } == {f"dev-p-{payout.payout_id}-1"}


@pytest.mark.parametrize("detail", ["status 500 \0", "\ud800", "\n\x1b[2J"], ids=ascii)
def test_an_answer_with_an_unstorable_text_is_retried(
    payout_client: Client, payout_provider: ScriptedPayoutProvider, detail: str
) -> None:
    """An answer with a text that cannot be stored or displayed counts as a try: the payout is paid
    without waiting for its lease to expire.
    """
    seller = create_sale(payout_client, "10.00")
    payout_provider.script[create_destination(payout_client, seller)].append(
        Unknown(detail, RetryReason.SERVER_ERROR)
    )
    wait_for_state(payout_client, create_payout(payout_client, seller).payout_id, "PAID")


def test_a_payout_unknown_to_the_bank_is_sent_again(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A bank that fails more often than the policy allows, and then does not know the payout,
    receives it again under the same key: it is paid once.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    fails = Unknown("500", RetryReason.SERVER_ERROR)
    payout_provider.script[to].extend([fails, fails, NotFound(), fails, NotFound()])
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    assert [
        request.key
        for request in payout_provider.submitted_requests
        if request.payout_id == payout.payout_id
    ] == [f"dev-p-{payout.payout_id}-1"] * 4
    assert not open_dead_letters(payout_client, payout.payout_id)


def test_an_unsent_payout_is_sent_after_any_outage(
    scratch_database: DatabaseUrls,
) -> None:
    """K3: a provider that was unreachable until after the key window is looked up once, and
    receives the payout because it does not know it. No operator is needed, and it is paid once.
    """
    payout_provider, away, actions = ScriptedPayoutProvider(), [True], list[NextAction]()
    submit, look_up = payout_provider.submit, payout_provider.look_up

    async def submit_when_reached(requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        if away[0]:
            return [NotSent("nobody listens")] * len(requests)
        actions.append(NextAction.SEND)
        return await submit(requests)

    async def record_look_up(request: PayoutRequest) -> PayoutLookupOutcome:
        actions.append(NextAction.LOOK_UP)
        return await look_up(request)

    payout_provider.submit, payout_provider.look_up = submit_when_reached, record_look_up  # type: ignore[method-assign]
    payout_provider.key_window = 4.5
    settings = Settings().replace(
        retry={
            ("", reason): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 1000)
            for reason in RetryReason
        },
        worker__scan_interval=0.1,
        worker__lease_duration=2.5,
        providers__timeout=0.1,
    )
    with (
        serve_platform(
            scratch_database,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        ) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        payout = create_payout(
            client, seller, payout_destination_id=create_destination(client, seller)
        )
        assert eventually(lambda: actions, 15), "it was not looked up"
        away[0] = False
        wait_for_state(client, payout.payout_id, "PAID")
        assert [action for action in actions if action is NextAction.SEND] == [NextAction.SEND]
    assert verify(scratch_database).passed


def test_lookups_of_a_payout_name_its_reference(
    payout_client: Client, payout_provider: ScriptedPayoutProvider, payout_platform: ServedPlatform
) -> None:
    """The provider's reference of a submitted payout is stored: lookups name it, also after one
    without an answer, and it finds the payout before and after the money has moved.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    reference = unique_id("tr")
    payout_provider.script[to].extend(
        [Submitted(reference), Unknown("lost"), *[InTransit(reference)] * 50]
    )
    payout = create_payout(payout_client, seller)

    def find_payout() -> str | None:
        key = SubjectKey("sandbox", reference, "")
        reported: dict[SubjectKey, str] = payout_platform.run_in_loop(
            database_of(payout_platform, "payout").load,
            partial(transfers.find_reported, keys=[key]),
        )
        return reported.get(key)

    wait_for_state(payout_client, payout.payout_id, "IN_TRANSIT")
    assert find_payout() == payout.payout_id
    payout_provider.script[to].appendleft(Succeeded(reference, 1000, "EUR"))
    wait_for_state(payout_client, payout.payout_id, "PAID")
    assert find_payout() == payout.payout_id
    assert {
        request.reference
        for request in payout_provider.lookup_requests
        if request.payout_id == payout.payout_id
    } == {reference}


def test_a_returned_payout_is_credited_once(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """RETURNED credits the returned amount, also a partial one, at any time and once despite
    repeats; the fee is not returned.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    reference = unique_id("tr")
    returned_outcome = Returned(reference, 600, "EUR", "account_closed")
    payout_provider.script[to].extend(
        [Succeeded(reference, 1000, "EUR"), returned_outcome, returned_outcome, returned_outcome]
    )
    payout = create_payout(payout_client, seller)
    payout_response = wait_for_state(payout_client, payout.payout_id, "RETURNED")
    assert (
        payout_response.payout.paid_amount,
        payout_response.payout.returned_amount,
        payout_response.payout.decline_code,
    ) == (
        "10.00",
        "6.00",
        "account_closed",
    )
    assert wallet_amounts(payout_client, seller) == ("6.00", "0.00", "0.00")
    assert account_balance(payout_client, f"sellers/{seller}") == "6.00"
    # Both postings carry the provider's reference, and the time at which each was reported.
    (transfer,) = payout_response.transfers
    returned, paid = list_by_reference(payout_client, reference)
    assert (returned.kind, returned.effective_time) == (
        ledger_pb2.TRANSACTION_KIND_PAYOUT_RETURN,
        transfer.return_time,
    )
    assert (paid.kind, paid.effective_time) == (
        ledger_pb2.TRANSACTION_KIND_PAYOUT,
        transfer.create_time,
    )


def test_a_payout_paid_after_failure_is_debited_unconditionally(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A payout that is paid after FAILED stays FAILED. The wallet is still debited, the amount that
    is not available becomes owed, and an alert is raised.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    reference = unique_id("tr")
    payout_provider.script[to].append(Declined(PayoutFailure.PROVIDER_DECLINED, "risk"))
    payout_id = unique_id("p")
    # Polls without an answer do not count, so none is used up when the payout turns out to be paid.
    payout_provider.silent_payout_ids.add(payout_id)
    payout = create_payout(payout_client, seller, payout_id=payout_id)
    wait_for_state(payout_client, payout.payout_id, "FAILED")
    second = create_payout(payout_client, seller, "8.00")
    wait_for_state(payout_client, second.payout_id, "PAID")
    payout_provider.script[payout.payout_id].extend([Succeeded(reference, 1000, "EUR")] * 6)
    payout_provider.silent_payout_ids.remove(payout_id)
    assert eventually(
        lambda: get_payout(payout_client, payout.payout_id).payout.paid_amount == "10.00"
    )
    payout_response = wait_for_state(payout_client, payout.payout_id, "FAILED")
    assert payout_response.transfers[0].match == payout_pb2.TRANSFER_MATCH_AFTER_FAILURE
    assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "8.00")
    assert account_balance(payout_client, f"sellers/{seller}") == "-8.00"
    assert eventually(
        lambda: (
            (operator_pb2.ALERT_KIND_UNMATCHED_TRANSFER, f"payouts/{payout.payout_id}")
            in open_alerts(payout_client)
        ),
        15,
    )


def open_alerts(client: Client) -> set[tuple[operator_pb2.AlertKind.ValueType, str]]:
    listed_alerts = client.payout.ListAlerts(operator_pb2.ListAlertsRequest(page_size=200)).alerts
    return {(alert.kind, alert.resource_name) for alert in listed_alerts}


def test_a_payout_of_another_amount_is_a_mismatch(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A payout that paid another amount is FAILED(PROVIDER_MISMATCH), and the seller is debited
    with the paid amount.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].append(Succeeded(unique_id("tr"), 501, "EUR"))
    payout = create_payout(payout_client, seller, "5.00")
    payout_response = wait_for_state(payout_client, payout.payout_id, "FAILED")
    assert (
        payout_response.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_PROVIDER_MISMATCH
    )
    assert wallet_amounts(payout_client, seller) == ("4.99", "0.00", "0.00")
    assert account_balance(payout_client, f"sellers/{seller}") == "4.99"


def test_a_late_failure_report_of_a_paid_payout_raises_an_alert(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """Only a return credits a paid payout's money; a later report of failure changes nothing and
    raises an alert.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].extend(
        [
            Succeeded(unique_id("tr"), 1000, "EUR"),
            *[Declined(PayoutFailure.PROVIDER_DECLINED, "late")] * 3,
        ]
    )
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    assert eventually(
        lambda: (
            (operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT, f"payouts/{payout.payout_id}")
            in open_alerts(payout_client)
        ),
        15,
    )
    wait_for_state(payout_client, payout.payout_id, "PAID")
    assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "0.00")


def test_a_second_partial_return_raises_an_alert(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """After a partial return the provider is still polled; a further return under the same
    reference raises an alert.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    reference = unique_id("tr")
    payout_provider.script[to].extend(
        [
            Succeeded(reference, 1000, "EUR"),
            Returned(reference, 100, "EUR"),
            *[Returned(reference, 1000, "EUR")] * 3,
        ]
    )
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "RETURNED")
    assert eventually(
        lambda: (
            (operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT, f"payouts/{payout.payout_id}")
            in open_alerts(payout_client)
        ),
        15,
    )
    assert (
        wait_for_state(payout_client, payout.payout_id, "RETURNED").payout.returned_amount == "1.00"
    )
    assert wallet_amounts(payout_client, seller) == ("1.00", "0.00", "0.00")


def test_a_report_during_booking_is_booked_immediately(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A report that arrives between the wallet change and the flag makes a new version of the
    payout; it is booked again immediately, not when its lease expires.
    """
    post, payout_id, reference = PayoutBooking.post, unique_id("p"), unique_id("tr")
    error_names: list[object] = []

    async def report_during_booking(booking: PayoutBooking, movements: Sequence[Any]) -> Any:
        item = next(
            (
                entry.payout
                for entry in movements
                if entry.payout_id == payout_id and entry.payout.state is PayoutState.RETURNED
            ),
            None,
        )
        if item is not None and not error_names:
            error_names.append(
                await payout_worker_of(payout_platform).record(
                    item, Returned(reference, 1000, "EUR")
                )
            )
        return await post(booking, movements)

    monkeypatch.setattr(PayoutBooking, "post", report_during_booking)
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].extend(
        [Succeeded(reference, 1000, "EUR"), *[Returned(reference, 100, "EUR")] * 3]
    )
    create_payout(payout_client, seller, payout_id=payout_id)
    assert wait_for_state(payout_client, payout_id, "RETURNED").payout.returned_amount == "1.00"
    assert error_names
    assert wallet_amounts(payout_client, seller) == ("1.00", "0.00", "0.00")


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (ApiError(ErrorReason.DEPENDENCY_UNAVAILABLE, "away", retry_after=1.0), 0.0),
        (ApiError(ErrorReason.INVALID_STATE, "no"), 600.0),
        (ValueError(), 600.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_poll_that_cannot_be_recorded_is_repeated(
    payout_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
    error: Exception,
    delay: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the database is unavailable a payout is polled again immediately and no error is
    recorded for it; an invalid answer delays no other payout.
    """
    database = database_of(payout_platform, "payout")
    look_up = payout_worker_of(payout_platform).call_provider
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    policies = RetryPolicies(
        {("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)}
    )

    async def record(_item: PayoutOperation, _outcome: object) -> object:
        raise error

    async def look() -> store.NextPayoutPoll:
        rows = await database.read(
            lambda connection: store.load_operations(connection, [payout.payout_id])
        )
        return await CompletedPayoutPoller(
            database, look_up, policies, record, record, lambda _: True
        ).poll(operations_from_rows(rows, {}, "")[0], 3)

    assert payout_platform.run_in_loop(look) == store.NextPayoutPoll(payout.payout_id, delay, 3)
    assert bool(
        [
            log_record
            for log_record in caplog.records
            if log_record.levelname == "ERROR" and payout.payout_id in log_record.getMessage()
        ]
    ) == (delay > 0)


@pytest.mark.parametrize(
    "answer",
    [
        Succeeded("tr", 1000, "eur"),
        Succeeded("tr", 0, "EUR"),
        Succeeded("", 1000, "EUR"),
        Returned("tr", 1000, ""),
    ],
    ids=repr,
)
def test_an_answer_with_invalid_money_is_inconclusive(
    payout_client: Client, payout_provider: ScriptedPayoutProvider, answer: PayoutOutcome
) -> None:
    """An answer with an invalid currency, no amount or no reference is not conclusive: the payout
    is sent again under its key.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller)
    payout_provider.script[to].extend([answer] * 2)
    payout = create_payout(payout_client, seller)
    assert wait_for_state(payout_client, payout.payout_id, "PAID").payout.paid_amount == "10.00"
    assert account_balance(payout_client, f"sellers/{seller}") == "0.00"


def test_an_answer_about_another_payout_dead_letters_only_its_own(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A reference that belongs to another payout cannot be stored. Only that payout waits for an
    operator; the others are paid. Closed on evidence while the provider repeats its answer, it
    returns the money to the seller; further reports of that reference raise an alert, and move
    nothing.
    """
    sellers = [create_sale(payout_client, "10.00") for _ in range(8)]
    places = [create_destination(payout_client, seller) for seller in sellers]
    first = create_payout(payout_client, sellers[0])
    reference = wait_for_state(payout_client, first.payout_id, "PAID").payout.provider_reference
    payout_provider.script[places[1]].extend([Succeeded(reference, 1000, "EUR")] * 50)
    with ThreadPoolExecutor(8) as pool:
        payouts = list(
            pool.map(lambda seller: create_payout(payout_client, seller, timeout=2), sellers[1:])
        )
    for payout in payouts[1:]:
        wait_for_state(payout_client, payout.payout_id, "PAID")
    assert eventually(lambda: open_dead_letters(payout_client, payouts[0].payout_id))
    (dead_letter,) = open_dead_letters(payout_client, payouts[0].payout_id)
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
    assert state_name(get_payout(payout_client, payouts[0].payout_id).payout) == "SUBMITTING"
    many = operator_pb2.CloseDeadLettersRequest(
        filter=operator_pb2.DeadLetterFilter(
            cause=operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
        ),
        reason="x",
        evidence="y",
    )
    assert dead_letter.dead_letter_id in {
        skipped_letter.dead_letter_id
        for skipped_letter in payout_client.payout.CloseDeadLetters(many).skipped
    }
    close = operator_pb2.CloseDeadLetterRequest(
        dead_letter_id=dead_letter.dead_letter_id,
        reason="its bank has nothing",
        evidence="ticket 7",
    )
    assert (
        payout_client.payout.CloseDeadLetter(close).dead_letter.state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    wait_for_state(payout_client, payouts[0].payout_id, "FAILED")
    assert wallet_amounts(payout_client, sellers[1]) == ("10.00", "0.00", "0.00")
    alerts = operator_pb2.ListAlertsRequest(page_size=200)
    assert eventually(
        lambda: [
            skipped_letter
            for skipped_letter in payout_client.payout.ListAlerts(alerts).alerts
            if skipped_letter.resource_name == f"payouts/{payouts[0].payout_id}"
        ]
    )
    (report,) = get_payout(payout_client, payouts[0].payout_id).conflicting_reports
    assert reference in report.report
    assert wallet_amounts(payout_client, sellers[1]) == ("10.00", "0.00", "0.00")
    payout_client.payout.AcknowledgePayout(
        pb.AcknowledgePayoutRequest(payout_id=payouts[0].payout_id, report_number=1, reason="seen")
    )


def open_dead_letters(client: Client, payout_id: str) -> list[operator_pb2.DeadLetter]:
    dead_letters = client.payout.ListDeadLetters(
        operator_pb2.ListDeadLettersRequest(
            state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
        )
    ).dead_letters
    return [
        dead_letter
        for dead_letter in dead_letters
        if dead_letter.resource_name == f"payouts/{payout_id}"
    ]


def test_of_fifty_concurrent_payouts_of_a_balance_one_is_paid(
    payout_client: Client, thorough: bool
) -> None:
    """Of fifty concurrent payouts of a wallet's whole balance one is paid in every round. The
    others are rejected or FAILED, and the balance is zero, not negative. Ten rounds, a hundred if
    thorough.
    """

    def create_one(seller: str) -> str:
        try:
            return create_payout(payout_client, seller, "10.00").payout_id
        except TallystickError as error:
            assert error.reason == "INSUFFICIENT_FUNDS"
            return ""

    with ThreadPoolExecutor(50) as pool:
        for _ in range(100 if thorough else 10):
            seller = create_sale(payout_client, "10.00")
            create_destination(payout_client, seller)
            ids = [id_ for id_ in pool.map(create_one, [seller] * 50) if id_]
            ends = [state_name(payout_client.wait_for_payout(id_, 30)) for id_ in ids]
            assert ends.count("PAID") == 1
            assert set(ends) <= {"PAID", "FAILED"}
            assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "0.00")
            assert account_balance(payout_client, f"sellers/{seller}") == "0.00"


def test_the_whole_database_verifies(scratch_database: DatabaseUrls) -> None:
    """After a return of more than was paid, and a transfer in another currency, every check of
    `tallystick verify` passes.
    """
    payout_provider = ScriptedPayoutProvider()
    settings, dependencies = (
        Settings().replace(retry=RETRY, worker__scan_interval=0.1),
        Dependencies(payout_providers={"sandbox": payout_provider}),
    )
    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        to = create_destination(client, seller)
        reference = unique_id("tr")
        payout_provider.script[to].extend(
            [
                Succeeded(reference, 1000, "EUR"),
                Returned(reference, 1001, "EUR"),
                Succeeded(unique_id("tr"), 5, "USD"),
            ]
        )
        payout = create_payout(client, seller)
        assert eventually(lambda: len(get_payout(client, payout.payout_id).transfers) == 2)
        assert eventually(lambda: get_payout(client, payout.payout_id).payout.ledger_updated)
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_an_outcome_recorded_without_the_lease_is_booked_immediately(
    scratch_database: DatabaseUrls,
) -> None:
    """A payout whose answer is recorded while another process holds it is booked as soon as that
    process releases it, not at its next attempt in ten minutes.
    """
    payout_provider, later = (
        ScriptedPayoutProvider(),
        {("", RetryReason.NO_ANSWER): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5)},
    )
    settings, dependencies = (
        Settings().replace(retry=later, worker__scan_interval=0.1),
        Dependencies(payout_providers={"sandbox": payout_provider}),
    )
    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        payout_provider.script[create_destination(client, seller)].append(Unknown("lost"))
        payout_id = create_payout(client, seller, timeout=2.0).payout_id
        payout_worker = payout_worker_of(platform)
        with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
            waiting_query = (
                "select from payout.operation where operation_id = %s and retry_reason = "
                "'NO_ANSWER' and lease_until <= now()"
            )
            assert eventually(
                lambda: admin.execute(waiting_query, (payout_id,)).fetchone() is not None
            )
            row = admin.execute(
                "update payout.operation set lease_until = now() + interval '100 seconds', "
                "lease_token = lease_token + 1, is_leased = true "
                "where operation_id = %s returning lease_token",
                (payout_id,),
            ).fetchone()
        assert row is not None

        async def answer() -> None:
            items = [
                operations_from_rows(
                    await database_of(platform, "payout").read(
                        lambda connection: store.load_operations(connection, [payout_id])
                    ),
                    {payout_id: token},
                    "dev",
                )[0]
                for token in (0, row[0])
            ]
            await payout_worker.record(items[0], Succeeded("late", 1000, "EUR"))
            rescheduler = Rescheduler(
                database_of(platform, "payout"),
                RetryPolicies(settings.retry),
                payout_worker.kinds,
            )
            await rescheduler.run(
                [FailedStep(items[1], RetryReason.NO_ANSWER, "lost", NextAction.LOOK_UP)]
            )

        platform.run_in_loop(answer)
        wait_for_state(client, payout_id, "PAID")


def test_a_failure_before_the_attempt_proves_no_sending(scratch_database: DatabaseUrls) -> None:
    """A payout that was marked as sent before its attempt began still fails, and releases its
    money, if its provider is never reached.
    """
    thrice = {
        ("", reason): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 3) for reason in RetryReason
    }
    with (
        serve_platform(
            scratch_database,
            Settings().replace(
                retry=thrice, worker__scan_interval=0.1, payout__approval_threshold={"EUR": 100}
            ),
        ) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "50.00")
        create_destination(client, seller, "ba_unreachable:99")
        payout = create_payout(client, seller, "50.00")
        assert (
            state_name(wait_for_state(client, payout.payout_id, "AWAITING_APPROVAL").payout)
            == "AWAITING_APPROVAL"
        )
        operation_id = payout.payout_id
        # The state that a process leaves when it crashes while it places the hold.
        with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
            update_rows(
                admin,
                "update payout.operation set maybe_sent = true where operation_id = %s",
                (operation_id,),
            )
            admin.execute("set session_replication_role = replica")
            update_rows(
                admin,
                "update payout.payout set caller = 'another' where payout_id = %s",
                (payout.payout_id,),
            )
        client.payout.ApprovePayout(
            pb.ApprovePayoutRequest(payout_id=payout.payout_id, reason="right")
        )
        assert (
            wait_for_state(client, payout.payout_id, "FAILED").payout.failure_reason
            == payout_pb2.PAYOUT_FAILURE_REASON_PROVIDER_UNREACHABLE
        )
        assert wallet_amounts(client, seller) == ("50.00", "0.00", "0.00")


def test_a_removed_provider_delays_no_other(scratch_database: DatabaseUrls) -> None:
    """Payouts of a removed provider wait, raise an alert that names it, do not delay the polls of
    others, and can be cancelled before they are sent.
    """
    soon = {("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.5, 0.5, 300)}
    with (
        serve_platform(
            scratch_database,
            Settings().replace(retry=soon, worker__scan_interval=0.1, worker__monitor_interval=0.2),
        ) as platform,
        platform.client() as client,
    ):
        old, new = create_sale(client, "50.00"), create_sale(client, "50.00")
        create_destination(client, old)
        create_destination(client, new, "ba_returned:2")
        removed_payout_id = create_payout(client, old, "10.00").payout_id
        wait_for_state(client, removed_payout_id, "PAID")
        with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
            admin.execute("set session_replication_role = replica")
            update_rows(
                admin,
                "update payout.payout set provider = 'oldbank' where payout_id = %s",
                (removed_payout_id,),
            )
            update_rows(
                admin,
                "update payout.payout_destination set provider = 'oldbank' where seller_account = "
                "%s",
                (old,),
            )
        wait_for_state(client, create_payout(client, new, "50.00").payout_id, "RETURNED")
        waiting_payout_id = create_payout(client, old, "10.00", timeout=2.0).payout_id
        assert eventually(
            lambda: [
                a
                for a in client.payout.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
                if a.resource_name == "providers/oldbank"
            ]
        )
        assert state_name(client.get_payout(waiting_payout_id)) == "CREATED"
        cancelled = pb.CancelPayoutRequest(payout_id=waiting_payout_id, reason="the bank is gone")
        for _ in range(2):
            client.payout.CancelPayout(cancelled)
        wait_for_state(client, waiting_payout_id, "CANCELLED")
        assert wallet_amounts(client, old) == ("40.00", "0.00", "0.00")
