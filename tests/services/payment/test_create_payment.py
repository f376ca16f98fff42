"""Pay-in through the SDK on a real socket, from the call to the ledger."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AlreadyExistsError, Client, NotFoundError, TallystickError, new_order
from tallystick.history.v1 import history_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.access import Caller, Role
from tallystick_core.ledger.posting_rules import buyer_shard
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.payment.confirm_delivery import DeliveryConfirmation
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.verify.run import verify
from tests.support.payments import charge_log, create_payment
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    payment_worker_of,
    serve_platform,
    unique_id,
)


def order_statuses(payment: payment_pb2.Payment) -> list[str]:
    return [
        payment_pb2.PaymentOrderStatus.Name(order.payment_order_status).removeprefix(
            "PAYMENT_ORDER_STATUS_"
        )
        for order in payment.payment_orders
    ]


def test_a_checkout_with_two_sellers_is_paid(client: Client, platform: ServedPlatform) -> None:
    """Both orders succeed with both flags, wallets and ledger contain what money.md defines, and
    the provider charged each order once.
    """
    payment = create_payment(client, "24.90", "9.50")
    assert payment.is_payment_done
    assert payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
    for order in payment.payment_orders:
        assert order.wallet_updated
        assert order.ledger_updated
        assert order.provider_reference
        wallet = client.wallet.GetWallet(
            wallet_service_pb2.GetWalletRequest(seller_account=order.seller_account, currency="EUR")
        ).wallet
        assert (wallet.available, wallet.balance, wallet.pending) == (
            order.amount,
            order.amount,
            "0.00",
        )
        request = ledger_service_pb2.ListTransactionsRequest(source_id=order.payment_order_id)
        (transaction,) = client.ledger.ListTransactions(request).transactions
        assert transaction.kind == ledger_pb2.TRANSACTION_KIND_PAY_IN
        lines = [
            (e.account, ledger_pb2.Direction.Name(e.direction)[10:], e.amount)
            for e in transaction.entries
        ]
        assert lines == [
            ("psp/sandbox/clearing", "DEBIT", order.amount),
            (buyer_shard("buyer-1"), "CREDIT", order.amount),
            (buyer_shard("buyer-1"), "DEBIT", order.amount),
            (f"sellers/{order.seller_account}", "CREDIT", order.amount),
        ]
    assert [
        (state, amount) for _, state, amount in charge_log(platform.databases, payment.checkout_id)
    ] == [("SUCCEEDED", 2490), ("SUCCEEDED", 950)]


def test_history_and_attempts_are_complete(client: Client) -> None:
    """P4: NOT_STARTED, EXECUTING, SUCCESS, booked; one attempt under the key that money.md
    defines.
    """
    order = create_payment(client, "1.00").payment_orders[0]
    response = client.payment.GetPaymentOrder(
        payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    )
    assert [(h.version, h.transition_reason) for h in response.history] == [
        (1, history_pb2.TRANSITION_REASON_CREATED),
        (2, history_pb2.TRANSITION_REASON_RISK_PASSED),
        (3, history_pb2.TRANSITION_REASON_PROVIDER_OUTCOME),
        (4, history_pb2.TRANSITION_REASON_BOOKED),
    ]
    (attempt,) = response.attempts
    assert attempt.provider_key == f"dev-o-{order.payment_order_id}-1"
    assert attempt.outcome == history_pb2.ATTEMPT_OUTCOME_SUCCEEDED
    assert attempt.end_time.ToNanoseconds() >= attempt.start_time.ToNanoseconds()


@pytest.mark.parametrize(
    ("token", "captured"),
    [("tok_visa", "7.50"), ("tok_decline", "0.00"), ("tok_other_amount", "0.00")],
)
def test_an_order_is_captured_when_it_succeeds(client: Client, token: str, captured: str) -> None:
    """P8: an order shows its whole amount as captured once it is SUCCESS, in answers and events,
    and nothing before or without it; nothing is refunded or disputed.
    """
    order = create_payment(client, "7.50", token=token).payment_orders[0]
    assert order.captured_amount == captured
    aggregate = f"paymentOrders/{order.payment_order_id}"
    assert eventually(lambda: len([*client.events(aggregate_id=aggregate)]) == order.version)
    events = [*client.events(aggregate_id=aggregate)]
    assert [event.payment_order.captured_amount for event in events] == [
        captured if event.aggregate_version > 2 else "0.00" for event in events
    ]
    for message in (order, *(event.payment_order for event in events)):
        assert (message.refunded_amount, message.disputed_amount) == ("0.00", "0.00")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("tok_decline", "PROVIDER_DECLINED"),
        ("tok_decline:insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("tok_decline:expired_card", "PAYMENT_METHOD_INVALID"),
        ("tok_other_amount", "PROVIDER_MISMATCH"),
    ],
)
def test_a_decline_is_no_error_and_has_its_reason(client: Client, token: str, reason: str) -> None:
    """A decline is not an error; nothing is credited for it."""
    payment = create_payment(client, "5.00", token=token)
    assert payment.payment_state == payment_pb2.PAYMENT_STATE_FAILED
    (order,) = payment.payment_orders
    assert payment_pb2.FailureReason.Name(order.failure_reason) == f"FAILURE_REASON_{reason}"
    with pytest.raises(NotFoundError):
        client.wallet.GetWallet(
            wallet_service_pb2.GetWalletRequest(seller_account=order.seller_account, currency="EUR")
        )


@pytest.mark.parametrize(
    ("token", "reason"),
    [("tok_pending", "PROVIDER_REVIEW"), ("tok_pending:action", "BUYER_ACTION")],
)
def test_a_pending_charge_is_answered_with_pending(client: Client, token: str, reason: str) -> None:
    """A pending charge is answered immediately with PENDING and its pending reason."""
    start_time = time.monotonic()
    payment = create_payment(client, "5.00", token=token)
    assert time.monotonic() - start_time < 5
    assert order_statuses(payment) == ["PENDING"]
    order = payment.payment_orders[0]
    assert payment_pb2.PendingReason.Name(order.pending_reason) == f"PENDING_REASON_{reason}"
    assert bool(order.next_action_url) == (reason == "BUYER_ACTION")
    # The provider is polled.
    assert client.get_payment(payment.checkout_id).payment_orders[0].HasField("next_try_time")
    assert payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN


@pytest.mark.parametrize("fault", ["lost_before", "lost_after", "error_before", "error_after"])
def test_an_unknown_outcome_is_resolved_under_the_same_key(
    client: Client, platform: ServedPlatform, fault: str
) -> None:
    """A lost answer causes neither a second charge nor a failure: the same key is sent again until
    the outcome is known.
    """
    payment = create_payment(client, "5.00", token=f"tok_{fault}")
    assert payment.is_payment_done
    ((key, state, amount),) = charge_log(platform.databases, payment.checkout_id)
    assert (key, state, amount) == (f"dev-o-{payment.checkout_id}-0-1", "SUCCEEDED", 500)


def test_an_outcome_that_stays_unknown_stays_executing(client: Client) -> None:
    """If a provider always replays a 5xx, the order stays EXECUTING with the time of its next
    attempt, and is never FAILED.
    """
    payment = create_payment(
        client, "5.00", token="tok_error_stored", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
    )
    request = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )

    def unknown(after: Timestamp) -> payment_service_pb2.GetPaymentOrderResponse | None:
        answer = client.payment.GetPaymentOrder(request)
        due = answer.payment_order.next_try_time
        return (
            answer
            if answer.attempts[0].outcome == history_pb2.ATTEMPT_OUTCOME_UNKNOWN
            and due.ToNanoseconds() > after.ToNanoseconds()
            else None
        )

    first = eventually(lambda: unknown(Timestamp()))
    assert first is not None
    # It has been sent again, and will be sent once more.
    current_response = eventually(lambda: unknown(first.payment_order.next_try_time))
    assert current_response is not None
    assert len(current_response.attempts) == 1
    assert (
        current_response.payment_order.payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
    )
    assert current_response.payment_order.HasField("next_try_time")
    assert current_response.payment_order.attempt_count == 1


def test_orders_charged_together_are_one_charge(client: Client, platform: ServedPlatform) -> None:
    """COMBINED: one request for the sum under the checkout's key, one reference on every order,
    each order booked separately.
    """
    payment = create_payment(
        client, "3.00", "4.00", "5.00", charge_mode=payment_pb2.CHARGE_MODE_COMBINED
    )
    assert payment.is_payment_done
    assert {o.charge_id for o in payment.payment_orders} == {f"c-{payment.checkout_id}"}
    assert len({o.provider_reference for o in payment.payment_orders}) == 1
    assert charge_log(platform.databases, payment.checkout_id) == [
        (f"dev-c-{payment.checkout_id}-1", "SUCCEEDED", 1200)
    ]


def test_the_fee_goes_to_the_platform(client: Client) -> None:
    """The seller gets the amount minus the fee, and the platform the fee."""
    checkout = unique_id("c")
    payment = client.create_payment(
        checkout,
        [new_order(f"{checkout}-1", "b", f"s-{checkout}", "10.00", "EUR", platform_fee="1.25")],
        credit_card_info="tok_visa",
    )
    assert payment.payment_orders[0].platform_fee == "1.25"
    request = ledger_service_pb2.GetAccountRequest(account=f"sellers/s-{checkout}", currency="EUR")
    assert client.ledger.GetAccount(request).account.balance == "8.75"


def test_a_repeat_returns_the_current_payment(client: Client, platform: ServedPlatform) -> None:
    """K1: orders in another sequence and amounts in another notation are the same payment; it is
    charged once, and marked as replayed.
    """
    checkout = unique_id("c")
    first = [
        new_order(f"{checkout}-{n}", "b", f"s-{checkout}", amount, "EUR")
        for n, amount in ((1, "10"), (2, "2.50"))
    ]
    repeated_orders = [
        new_order(f"{checkout}-{n}", "b", f"s-{checkout}", amount, "EUR")
        for n, amount in ((2, "2.5"), (1, "10.00"))
    ]
    paid_payment = client.create_payment(checkout, first, credit_card_info="tok_visa")
    request = payment_service_pb2.CreatePaymentRequest(
        checkout_id=checkout, payment_orders=repeated_orders, credit_card_info="tok_visa"
    )
    response, call = client.payment.CreatePayment.with_call(request)
    assert response.payment == paid_payment
    assert dict(call.trailing_metadata())["tallystick-replayed"] == "true"
    assert len(charge_log(platform.databases, checkout)) == 2


def test_a_reused_key_is_rejected(client: Client, platform: ServedPlatform) -> None:
    """K1: other values are rejected with the first field that differs, and nothing changes."""
    checkout = unique_id("c")
    paid_payment = create_payment(client, "1.00", checkout_id=checkout)
    with pytest.raises(AlreadyExistsError) as error:
        create_payment(client, "2.00", checkout_id=checkout)
    assert error.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert error.value.metadata == {"field": "payment_orders[0].amount"}
    other_checkout_id = unique_id("c")
    with pytest.raises(AlreadyExistsError) as error:
        client.create_payment(
            other_checkout_id,
            [new_order(f"{checkout}-0", "b", "s", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
    assert error.value.metadata == {"field": "payment_orders[0].payment_order_id"}
    with pytest.raises(NotFoundError):
        client.get_payment(other_checkout_id)
    mixed = [
        new_order(f"{checkout}-0", "b", "s", "1.00", "EUR"),
        new_order("0-first-by-id", "b", "s", "1.00", "EUR"),
    ]
    with pytest.raises(AlreadyExistsError) as error:
        client.create_payment(unique_id("c"), mixed, credit_card_info="tok_visa")
    assert error.value.field_violations[0].field == "payment_orders[0].payment_order_id"
    assert client.get_payment(checkout) == paid_payment
    assert len(charge_log(platform.databases, checkout)) == 1


def test_a_hundred_simultaneous_clicks_are_one_charge(platform: ServedPlatform) -> None:
    """K2: a hundred concurrent identical calls create one payment and one charge, and get a hundred
    equal answers.
    """
    checkout = unique_id("c")
    with platform.client() as client, ThreadPoolExecutor(100) as pool:
        responses = list(
            pool.map(lambda _: create_payment(client, "7.00", checkout_id=checkout), range(100))
        )
    assert all(answer == responses[0] for answer in responses)
    assert responses[0].is_payment_done
    assert len(charge_log(platform.databases, checkout)) == 1


def test_a_hundred_bodies_for_one_key_are_one_payment(platform: ServedPlatform) -> None:
    """K1, K2: of a hundred concurrent bodies with one key one is accepted and ninety-nine are
    rejected.
    """
    checkout = unique_id("c")

    def click(number: int) -> str:
        try:
            return (
                create_payment(client, f"{number + 1}.00", checkout_id=checkout)
                .payment_orders[0]
                .amount
            )
        except AlreadyExistsError as error:
            return error.reason

    with platform.client() as client, ThreadPoolExecutor(100) as pool:
        responses = list(pool.map(click, range(100)))
    assert responses.count("IDEMPOTENCY_KEY_REUSED") == 99
    assert len(charge_log(platform.databases, checkout)) == 1


def test_waiting_for_acceptance_returns_immediately(client: Client) -> None:
    """ACCEPTANCE: the call returns before the provider answers; the payment continues."""
    payment = create_payment(
        client, "1.00", token="tok_delay:400", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
    )
    assert order_statuses(payment) == ["EXECUTING"]
    assert client.wait_for_payment(payment.checkout_id, 10).is_payment_done


def test_a_call_at_its_deadline_returns_the_payment_in_progress(client: Client) -> None:
    """RESULT: the call never ends with DEADLINE_EXCEEDED; it may return a payment that is still in
    progress.
    """
    checkout = unique_id("c")
    request = payment_service_pb2.CreatePaymentRequest(
        checkout_id=checkout,
        payment_orders=[new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")],
        credit_card_info="tok_delay:1500",
    )
    payment = client.payment.CreatePayment(request, timeout=1.0).payment
    assert order_statuses(payment) == ["EXECUTING"]
    assert client.wait_for_payment(checkout, 10).is_payment_done


def test_a_cancelled_call_changes_nothing(client: Client, platform: ServedPlatform) -> None:
    """If the caller hangs up, the payment is still accepted, charged once and booked."""
    checkout = unique_id("c")
    request = payment_service_pb2.CreatePaymentRequest(
        checkout_id=checkout,
        payment_orders=[new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")],
        credit_card_info="tok_delay:300",
    )

    def accepted() -> bool:
        try:
            return client.get_payment(checkout).checkout_id == checkout
        except NotFoundError:
            return False

    with grpc.insecure_channel(platform.address) as channel:
        call: Any = payment_service_pb2_grpc.PaymentServiceStub(channel).CreatePayment.future(
            request, timeout=10
        )
        assert eventually(accepted)
        assert call.cancel()  # the call to the provider is in flight
    assert client.wait_for_payment(checkout, 10).is_payment_done
    assert len(charge_log(platform.databases, checkout)) == 1


def test_a_watch_streams_from_the_current_version_to_the_last(client: Client) -> None:
    """The first message is the current version, versions increase, the last is final, and the
    stream ends.
    """
    payment = create_payment(
        client, "1.00", token="tok_delay:300", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
    )
    versions_seen = list(client.watch_payment(payment.checkout_id))
    assert versions_seen[0].version == payment.version
    assert [p.version for p in versions_seen] == sorted({p.version for p in versions_seen})
    assert versions_seen[-1].payment_state == payment_pb2.PAYMENT_STATE_PAID
    assert list(client.watch_payment(payment.checkout_id, versions_seen[-1].version)) == []


def test_lists_page_through_everything_newest_first(client: Client) -> None:
    """Pages contain each payment once, newest first; a page token is valid only for its filters."""
    seller = unique_id("s")
    checkouts = [unique_id("c") for _ in range(5)]
    for checkout in checkouts:
        client.create_payment(
            checkout,
            [new_order(f"{checkout}-1", "b", seller, "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
    request = payment_service_pb2.ListPaymentsRequest(seller_account=seller, page_size=2)
    assert [
        p.checkout_id for p in client.pages(client.payment.ListPayments, request, "payments")
    ] == checkouts[::-1]
    token = client.payment.ListPayments(request).next_page_token
    with pytest.raises(TallystickError) as error:
        client.payment.ListPayments(
            payment_service_pb2.ListPaymentsRequest(seller_account=unique_id("s"), page_token=token)
        )
    assert error.value.reason == "PAGE_TOKEN_INVALID"


def test_risk_rules_and_rates_are_configurable(scratch_database: DatabaseUrls) -> None:
    """A rejected order is FAILED with its reason and is never sent to the provider; the others
    continue; fees follow the rates.
    """
    settings = Settings().replace(
        risk__amount_limits={"EUR": 10_000},
        risk__velocity_limit=3,
        risk__blocked_accounts=frozenset({"mallory"}),
        risk__blocked_countries=frozenset({"XY"}),
        payment__fee_rate=25_000,
        payment__seller_fee_rates={"s-dear": 100_000},
        release_delay=3600,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        mixed = client.create_payment(
            "c-1",
            [
                new_order("o-1", "ann", "s-1", "100.01", "EUR"),
                new_order("o-2", "ann", "s-dear", "100.00", "EUR"),
                new_order("o-3", "ann", "mallory", "1.00", "EUR"),
            ],
            credit_card_info="tok_visa",
        )
        reasons = [
            payment_pb2.FailureReason.Name(o.failure_reason).removeprefix("FAILURE_REASON_")
            for o in mixed.payment_orders
        ]
        assert reasons == ["RISK_AMOUNT_LIMIT", "UNSPECIFIED", "RISK_BLOCKED_ACCOUNT"]
        assert mixed.payment_state == payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
        assert mixed.payment_orders[1].platform_fee == "10.00"
        late_payment = client.create_payment(
            "c-2", [new_order("o-4", "ann", "s-1", "1.00", "EUR")], credit_card_info="tok_visa"
        )
        assert (
            late_payment.payment_orders[0].failure_reason
            == payment_pb2.FAILURE_REASON_RISK_VELOCITY
        )
        far = client.create_payment(
            "c-3",
            [new_order("o-5", "bob", "s-1", "1.00", "EUR")],
            credit_card_info="tok_visa",
            buyer_country="XY",
        )
        assert (
            far.payment_orders[0].failure_reason == payment_pb2.FAILURE_REASON_RISK_BLOCKED_COUNTRY
        )
        assert far.payment_state == payment_pb2.PAYMENT_STATE_FAILED
        blocked_payment = client.create_payment(
            "c-4",
            [
                new_order("o-6", "cid", "s-1", "200.00", "EUR"),
                new_order("o-7", "cid", "s-2", "1.00", "EUR"),
            ],
            credit_card_info="tok_visa",
            charge_mode=payment_pb2.CHARGE_MODE_COMBINED,
            partial_failure_policy=payment_pb2.PARTIAL_FAILURE_POLICY_ALL_OR_NOTHING,
        )
        assert (
            blocked_payment.payment_orders[1].failure_reason
            == payment_pb2.FAILURE_REASON_SIBLING_FAILED
        )
        wallet = client.wallet.GetWallet(
            wallet_service_pb2.GetWalletRequest(seller_account="s-dear", currency="EUR")
        ).wallet
        assert (wallet.pending, wallet.available) == ("90.00", "0.00")
        assert len(charge_log(scratch_database, "")) == 1
        assert verify(scratch_database).passed


def test_a_clock_that_steps_back_stops_no_payment(scratch_database: DatabaseUrls) -> None:
    """T1: when the database's clock steps back, as after a failover, operations in progress are
    recorded and booked; times of an order never decrease.
    """
    behind = (
        "create or replace function payment.clock() returns timestamptz language sql volatile as "
        "$$select clock_timestamp() - interval '1 hour'$$"
    )
    with serve_platform(scratch_database) as platform, platform.client() as client:
        accepted = create_payment(
            client, "5.00", token="tok_delay:300", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
        )
        with psycopg.connect(scratch_database.admin, autocommit=True) as connection:
            connection.execute(behind)
        paid_payment = client.wait_for_payment(accepted.checkout_id, timeout=10)
        (before,), (after,) = accepted.payment_orders, paid_payment.payment_orders
        assert paid_payment.is_payment_done
        assert after.update_time.ToNanoseconds() >= before.update_time.ToNanoseconds()


def test_a_confirmed_delivery_makes_the_sellers_money_available(
    scratch_database: DatabaseUrls,
) -> None:
    """ConfirmDelivery releases the money that was paid for the order, once, despite crashes in
    between; unpaid orders cannot be delivered.
    """

    def confirm(order_id: str) -> payment_service_pb2.ConfirmDeliveryResponse:
        return client.payment.ConfirmDelivery(
            payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order_id)
        )

    def money(seller: str) -> tuple[str, str]:
        wallet = client.wallet.GetWallet(
            wallet_service_pb2.GetWalletRequest(seller_account=seller, currency="EUR")
        ).wallet
        return wallet.pending, wallet.available

    with (
        serve_platform(
            scratch_database, Settings().replace(release_delay=3600, worker__scan_interval=0.1)
        ) as platform,
        platform.client() as client,
    ):
        orders = [
            new_order("o-1", "ann", "s-1", "10.00", "EUR", platform_fee="1.00"),
            new_order("o-2", "ann", "s-2", "5.00", "EUR"),
        ]
        client.create_payment("c-1", orders, credit_card_info="tok_visa")
        client.create_payment(
            "c-2", [new_order("o-3", "ann", "s-1", "1.00", "EUR")], credit_card_info="tok_decline"
        )
        assert (money("s-1"), money("s-2")) == (("9.00", "0.00"), ("5.00", "0.00"))
        with ThreadPoolExecutor(10) as callers:
            confirmed = {
                order.payment_order.SerializeToString()
                for order in callers.map(lambda _: confirm("o-1"), range(10))
            }
        assert len(confirmed) == 1
        assert confirm("o-1").payment_order.HasField("delivery_confirmed_time")
        assert eventually(lambda: money("s-1") == ("0.00", "9.00"))
        order_response = client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id="o-1")
        )
        assert [(step.version, step.transition_reason) for step in order_response.history][3:] == [
            (4, history_pb2.TRANSITION_REASON_BOOKED),
            (5, history_pb2.TRANSITION_REASON_DELIVERY_CONFIRMED),
        ]
        for order_id, reason in (
            ("o-3", "INVALID_STATE"),
            ("o-9", "NOT_FOUND"),
            ("", "FIELD_REQUIRED"),
        ):
            with pytest.raises(TallystickError) as error:
                confirm(order_id)
            assert error.value.reason == reason

        async def note_and_die() -> None:
            assert await DeliveryConfirmation(
                database_of(platform, "payment"), ServiceClient(), "unix:nowhere"
            ).run(["o-2"]) == [True]

        platform.run_in_loop(note_and_die)
        assert eventually(lambda: money("s-2") == ("0.00", "5.00"))
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_a_rejected_release_raises_an_alert_and_delays_no_other(
    scratch_database: DatabaseUrls,
) -> None:
    """One delivery whose money cannot be released raises an alert; others are still confirmed and
    released.
    """
    settings = Settings().replace(
        release_delay=3600, worker__scan_interval=0.1, worker__monitor_interval=0.2
    )
    alerts = operator_pb2.ListAlertsRequest()
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
        psycopg.connect(scratch_database.admin, autocommit=True) as admin,
    ):
        admin.execute(
            "insert into payment.pending_release values ('ghost', 'ann', '', '2026-01-01')"
        )
        assert eventually(
            lambda: (
                [alert.resource_name for alert in client.payment.ListAlerts(alerts).alerts]
                == ["paymentOrders/ghost"]
            )
        )
        client.create_payment(
            "c-1", [new_order("o-1", "ann", "s-1", "10.00", "EUR")], credit_card_info="tok_visa"
        )
        client.payment.ConfirmDelivery(
            payment_service_pb2.ConfirmDeliveryRequest(payment_order_id="o-1")
        )
        wallet_request = wallet_service_pb2.GetWalletRequest(seller_account="s-1", currency="EUR")
        assert eventually(
            lambda: client.wallet.GetWallet(wallet_request).wallet.available == "10.00"
        )
        assert [alert.kind for alert in client.payment.ListAlerts(alerts).alerts] == [
            operator_pb2.ALERT_KIND_RELEASE_STUCK
        ]
        admin.execute("delete from payment.pending_release")
        assert eventually(lambda: not client.payment.ListAlerts(alerts).alerts)


def test_another_callers_payments_are_not_found(scratch_database: DatabaseUrls) -> None:
    """S3: another caller's payment is NOT_FOUND, its ids are ALREADY_EXISTS, its lists are empty;
    an operator sees all.
    """
    team = frozenset({Role.TEAM})
    tokens = {
        "token-of-shop-aaaa": Caller("shop-a", team),
        "token-of-shop-bbbb": Caller("shop-b", team),
        "token-of-operator-": Caller("ops", frozenset({Role.OPERATOR})),
        "token-of-both-----": Caller("both", team | {Role.OPERATOR}),
        "token-of-platform-": Caller("platform", frozenset({Role.SERVICE})),
    }
    settings = Settings().replace(
        authentication="tokens", callers=tokens, service_token="token-of-platform-"
    )
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client("token-of-shop-aaaa") as our_client,
        platform.client("token-of-shop-bbbb") as their_client,
        platform.client("token-of-both-----") as both_client,
        platform.client("token-of-operator-") as ops,
    ):
        paid_payment = create_payment(our_client, "1.00")
        order = paid_payment.payment_orders[0].payment_order_id
        for call in (
            lambda: their_client.get_payment(paid_payment.checkout_id),
            lambda: their_client.payment.GetPaymentOrder(
                payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order)
            ),
            lambda: list(their_client.watch_payment(paid_payment.checkout_id)),
            # A caller with both roles can see others' payments as an operator, but cannot cancel or
            # confirm them as a team.
            lambda: both_client.payment.CancelPayment(
                payment_service_pb2.CancelPaymentRequest(
                    checkout_id=paid_payment.checkout_id, reason="r"
                )
            ),
            lambda: both_client.payment.ConfirmDelivery(
                payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order)
            ),
        ):
            with pytest.raises(NotFoundError):
                call()
        assert both_client.get_payment(paid_payment.checkout_id) == paid_payment
        for checkout, first in (
            (paid_payment.checkout_id, unique_id("o")),
            (unique_id("c"), order),
        ):
            with pytest.raises(AlreadyExistsError) as error:
                their_client.create_payment(
                    checkout,
                    [new_order(first, "b", "s", "1.00", "EUR")],
                    credit_card_info="tok_visa",
                )
            assert error.value.reason == "ALREADY_EXISTS"
            assert error.value.metadata == {}
        assert (
            list(
                their_client.payment.ListPayments(
                    payment_service_pb2.ListPaymentsRequest()
                ).payments
            )
            == []
        )
        assert ops.get_payment(paid_payment.checkout_id) == paid_payment


def test_operations_of_a_stopped_process_are_finished_by_another(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """A scan of another process finishes operations that a stopped process left in progress,
    without a second charge.
    """
    settings = Settings().replace(
        worker__lease_duration=4,
        providers__timeout=1,
        worker__scan_interval=0.1,
        server__shutdown_grace_period=0,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        for number in range(20):
            create_payment(
                client,
                "1.00",
                token="tok_delay:900",
                checkout_id=f"c-{number}",
                wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
            )
        platform.run_in_loop(_cancel_operations, platform)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        for number in range(20):
            assert client.wait_for_payment(f"c-{number}", 30).is_payment_done
        assert len(charge_log(scratch_database, "c-")) == 20
        report = verify(scratch_database)
        assert report.passed, report.as_text()


def test_a_page_ends_at_a_mebibyte(client: Client) -> None:
    """A page of payments with long texts ends before the size limit; the pages together contain
    each payment once.
    """
    seller, text = unique_id("s"), "🙂" * 1024
    for n in range(3):
        order = new_order(f"{seller}-{n}", "b", seller, "1.00", "EUR")
        client.create_payment(
            f"{seller}-{n}", [order], credit_card_info="tok_visa", buyer_info=text, seller_info=text
        )
    list_request = payment_service_pb2.ListPaymentsRequest(seller_account=seller)
    assert [
        p.checkout_id for p in client.pages(client.payment.ListPayments, list_request, "payments")
    ] == [f"{seller}-{n}" for n in (2, 1, 0)]


async def _cancel_operations(platform: ServedPlatform) -> None:
    """Stops the worker as a crash would: no charge in progress is completed."""
    for task in payment_worker_of(platform).tasks:
        task.cancel()


def test_ten_thousand_payments_from_three_hundred_callers(
    scratch_database: DatabaseUrls, thorough: bool
) -> None:
    """300 callers make 10,000 concurrent calls (1,000 unless thorough), a fifth of which are
    repeats. Each order is charged once, every payment completes, and verify passes.
    """
    numbers = [n if n % 5 else max(n - 5, 1) for n in range(10_000 if thorough else 1_000)]
    lock, next_number = threading.Lock(), iter(numbers)
    failures: list[str] = []

    def caller() -> None:
        while True:
            with lock:
                number = next(next_number, None)
            if number is None:
                return
            try:
                if not create_payment(
                    client, f"{1 + number % 9}.00", checkout_id=f"c-{number}"
                ).is_payment_done:
                    failures.append(f"c-{number} is not done")
            except TallystickError as error:
                failures.append(f"c-{number}: {error}")

    with serve_platform(scratch_database) as platform, platform.client() as client:
        threads = [threading.Thread(target=caller) for _ in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert not any(thread.is_alive() for thread in threads)
    assert not failures, failures[:5]
    assert len(charge_log(scratch_database, "c-")) == len(set(numbers))
    report = verify(scratch_database)
    assert report.passed, report.as_text()
