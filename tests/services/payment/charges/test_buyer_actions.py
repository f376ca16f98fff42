"""Pending charges: buyer actions, reviews and their time limits."""

from __future__ import annotations

from itertools import islice
from threading import Thread

import pytest

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.support.charges import (
    FAST_RETRY_POLICY,
    client_of_platform,
    event_versions,
    failure_reason,
    get_order,
    is_paid,
    scheduled_operation,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import eventually


def test_a_charge_is_cancelled_if_the_buyer_does_not_act_in_time(
    scratch_database: DatabaseUrls,
) -> None:
    """After resolve_by_time the charge is cancelled at the provider, then the order is
    FAILED(EXPIRED); a review continues.
    """
    quick = {("", reason): FAST_RETRY_POLICY for reason in RetryReason}
    settings = Settings().replace(
        retry=quick,
        worker__scan_interval=0.1,
        payment__buyer_action_timeout=0.3,
        payment__review_timeout=0.3,
    )
    with client_of_platform(scratch_database, settings) as client:
        acting = create_payment(client, "5.00", token="tok_pending:action")
        order = acting.payment_orders[0]
        assert (
            order.resolve_by_time.ToNanoseconds() - order.update_time.ToNanoseconds()
            == pytest.approx(0.3e9, rel=0.2)
        )
        reviewed = create_payment(client, "5.00", token="tok_pending:review")
        assert failure_reason(wait_for_final_order(client, acting)) == "EXPIRED"
        assert (
            get_order(client, reviewed).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        )
        assert [state for _, state, _ in charge_log(scratch_database, acting.checkout_id)] == [
            "DECLINED"
        ]


def test_a_pending_order_is_polled_at_its_resolve_by_time(scratch_database: DatabaseUrls) -> None:
    """However long a policy waits between polls, a pending order is polled when resolve_by_time is
    reached, and ends.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)},
        worker__scan_interval=0.1,
        payment__buyer_action_timeout=0.3,
    )
    with client_of_platform(scratch_database, settings) as client:
        assert (
            failure_reason(
                wait_for_final_order(
                    client, create_payment(client, "5.00", token="tok_pending:action")
                )
            )
            == "EXPIRED"
        )


@pytest.mark.parametrize(
    ("token", "first", "then", "url"),
    [
        ("tok_pending:review-action", "PROVIDER_REVIEW", "BUYER_ACTION", True),
        ("tok_pending:action-review", "BUYER_ACTION", "PROVIDER_REVIEW", False),
    ],
)
def test_a_pending_order_shows_its_current_pending_reason(
    scratch_database: DatabaseUrls, token: str, first: str, then: str, url: bool
) -> None:
    """A change of the pending reason is one version with its history row and its event, and is sent
    to watchers. The URL and the buyer's deadline follow the reason, and the same answer again
    changes nothing.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.3, 0.3, None)},
        worker__scan_interval=0.1,
        payment__buyer_action_timeout=3600,
    )
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(client, "5.00", token=token)
        charge = payment.payment_orders[0].charge_id
        orders_seen: list[payment_pb2.PaymentOrder] = []

        def watch() -> None:
            orders_seen.extend(
                version.payment_orders[0]
                for version in islice(client.watch_payment(payment.checkout_id), 2)
            )

        Thread(target=watch, daemon=True).start()
        assert eventually(lambda: len(orders_seen) == 2)
        assert [
            payment_pb2.PendingReason.Name(order.pending_reason).removeprefix("PENDING_REASON_")
            for order in orders_seen
        ] == [first, then]
        assert [order.version for order in orders_seen] == [3, 4]
        assert [bool(order.next_action_url) for order in orders_seen] == [not url, url]
        assert [order.HasField("resolve_by_time") for order in orders_seen] == [not url, url]
        tries = scheduled_operation(scratch_database, charge)
        assert eventually(lambda: scheduled_operation(scratch_database, charge) != tries)
        assert eventually(
            lambda: int(str((scheduled_operation(scratch_database, charge) or (0,))[0])) > 3
        )
        order = get_order(client, payment)
        assert (order.version, order.payment_order_status) == (
            4,
            payment_pb2.PAYMENT_ORDER_STATUS_PENDING,
        )
        history = client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
        ).history
        assert (history[-1].from_state, history[-1].to_state) == ("PENDING", "PENDING")
        assert eventually(
            lambda: (
                event_versions(client, f"paymentOrders/{order.payment_order_id}") == [1, 2, 3, 4]
            )
        )
    assert verify(scratch_database).passed


def test_a_charge_is_not_cancelled_after_the_buyer_acted(scratch_database: DatabaseUrls) -> None:
    """A buyer acts in time, and the bank takes longer than the buyer's deadline: the order stays
    pending, and is paid.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, None)},
        worker__scan_interval=0.1,
        payment__buyer_action_timeout=3.0,
        payment__review_timeout=0.1,
    )
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(
            client, "5.00", token=f"tok_pending:action-{'-'.join(['review'] * 25)}-paid"
        )
        assert is_paid(client, payment)
