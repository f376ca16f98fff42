"""Rejections and outages of other services: an item that fails delays no other, and becomes a dead
letter.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tallystick import Client, TallystickError, new_order
from tallystick.ledger.v1 import ledger_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.ledger.handlers import LedgerHandlers
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    RetryPolicies,
    RetryPolicy,
    RetryStrategy,
)
from tallystick_server.verify.run import verify
from tallystick_server.wallet.handlers import WalletHandlers
from tests.fakes.wallet_fault import WalletFault
from tests.support.failing_bookings import (
    WAIT_FOR_ACCEPTANCE,
    pay_all,
    pay_out_all,
    query_rows,
    retry_settings,
)
from tests.support.payouts import create_destination
from tests.support.platform import eventually, payments_of, serve_platform


def count_booked(databases: DatabaseUrls) -> int:
    return int(
        query_rows(
            databases,
            "payment",
            "select count(*) from payment_order where wallet_updated and ledger_updated",
        )[0][0]
    )


def test_one_failing_item_delays_no_other_and_is_dead_lettered(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """Of 50 orders that are booked together one makes WalletService fail. The other 49 are booked;
    that one is retried by its policy, then dead-lettered.
    """
    wallet_fault.poison = "poison"
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        pay_all(client, "a", ["poison" if number == 7 else f"s{number}" for number in range(50)])
        assert eventually(lambda: count_booked(scratch_database) == 49)
        dead_letter_query = "select resource_name, cause, retry_count, detail from dead_letter"
        assert eventually(lambda: query_rows(scratch_database, "payment", dead_letter_query))
        ((subject, cause, tries, detail),) = query_rows(
            scratch_database, "payment", dead_letter_query
        )
        assert (subject, cause, tries) == ("charges/o-o-a-7", "BOOKING_FAILED", 3)
        assert detail.startswith(
            "tallystick.wallet.v1.WalletService/BatchCredit was rejected: INTERNAL"
        )
        wallet_fault.poison = ""
        (dead_letter,) = client.payment.ListDeadLetters(
            operator_pb2.ListDeadLettersRequest()
        ).dead_letters
        client.payment.RetryDeadLetter(
            operator_pb2.RetryDeadLetterRequest(
                dead_letter_id=dead_letter.dead_letter_id, reason="fixed"
            )
        )
        assert eventually(lambda: count_booked(scratch_database) == 50)
    assert verify(scratch_database).passed


def test_a_seller_that_the_wallet_fails_on_rejects_no_other_payment(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of payments whose sellers' owners are looked up together one makes WalletService fail. Only
    that payment must be retried by its caller; the others are accepted.
    """
    original, all_wait, claim_sizes = WalletHandlers.BatchClaimSellers, asyncio.Event(), list[int]()

    async def claim(self: WalletHandlers, request: Any, call: Any) -> Any:
        claim_sizes.append(len(request.claims))
        async with asyncio.timeout(30):
            await all_wait.wait()
        if any(item.seller_account == "poison" for item in request.claims):
            raise ValueError("a bug that one item triggers")
        return await original(self, request, call)

    async def open_() -> None:
        all_wait.set()

    monkeypatch.setattr(WalletHandlers, "BatchClaimSellers", claim)

    def pay(client: Client, number: int) -> str:
        order = new_order(
            f"o-{number}", "ann", "poison" if number == 7 else f"s{number}", "1.00", "EUR"
        )
        try:
            client.create_payment(
                f"c-{number}", [order], credit_card_info="tok_visa", wait_for=WAIT_FOR_ACCEPTANCE
            )
        except TallystickError as error:
            return error.reason
        return ""

    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client(tries=1) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        claim_batcher = payments_of(platform).seller_owners.seller_claim_batcher
        calls = [pool.submit(pay, client, number) for number in range(20)]
        assert eventually(lambda: claim_batcher.queue_length + sum(claim_sizes) >= 20)
        platform.run_in_loop(open_)
        assert [call.result(60) for call in calls] == [
            "DEPENDENCY_UNAVAILABLE" if number == 7 else "" for number in range(20)
        ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ApiError(ErrorReason.SHUTTING_DOWN, "away"), "ORDER_STUCK"),
        (ApiError(ErrorReason.METHOD_UNKNOWN, "an older release"), "CALLER_REJECTED"),
        (ApiError(ErrorReason.CREDENTIALS_INVALID, "a wrong token"), "CALLER_REJECTED"),
    ],
)
def test_booking_is_retried_without_limit_during_an_outage(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault, error: Exception, kind: str
) -> None:
    """During an outage of WalletService, or while it rejects our calls, no dead letters are
    created, whatever the policy's limit of tries. Orders wait, an alert is raised, and they are
    booked once WalletService is available.
    """
    wallet_fault.error = error
    bounded = {
        ("", RetryReason.BOOKING_UNAVAILABLE): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2),
        ("", RetryReason.CALLER_REJECTED): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2),
    }
    settings = retry_settings().replace(retry=bounded, payment__alert_after={"SUCCESS": 0.2})
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        pay_all(client, "a", [f"s{number}" for number in range(20)])
        reason = "BOOKING_UNAVAILABLE" if kind == "ORDER_STUCK" else kind
        tried = "select count(*) from operation where (retry_counts ->> %s)::int > 3"
        assert eventually(
            lambda: query_rows(scratch_database, "payment", tried, reason)[0][0] == 20, 60
        )
        kinds = {
            alert.kind
            for alert in client.payment.ListAlerts(
                operator_pb2.ListAlertsRequest(page_size=200)
            ).alerts
        }
        assert operator_pb2.AlertKind.Value(f"ALERT_KIND_{kind}") in kinds
        assert query_rows(scratch_database, "payment", "select count(*) from dead_letter") == [(0,)]
        wallet_fault.error = None
        assert eventually(lambda: count_booked(scratch_database) == 20, 30)
        assert eventually(
            lambda: not client.payment.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
        )


def test_a_wallet_that_fails_on_every_item_counts_as_unavailable(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """When WalletService fails on each item of a large batch individually, no item counts as the
    cause: none uses up its tries.
    """
    wallet_fault.error = ValueError("its database is read-only")
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        pay_all(client, "a", [f"s{number}" for number in range(30)])
        assert eventually(
            lambda: (
                query_rows(
                    scratch_database,
                    "payment",
                    "select count(*) from operation where retry_reason = 'BOOKING_UNAVAILABLE'",
                )[0][0]
                > 0
            )
        )
        wallet_fault.error = None
        assert eventually(
            lambda: (
                count_booked(scratch_database)
                == 30
                - query_rows(scratch_database, "payment", "select count(*) from dead_letter")[0][0]
            ),
            30,
        )
    assert count_booked(scratch_database) >= 22


def test_a_hold_that_the_wallet_fails_on_delays_no_other_payout(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """Of payouts whose holds are placed together one makes WalletService fail. The others are paid;
    that one is a dead letter in CREATED, and continues when requeued.
    """
    wallet_fault.poison = "p-poison"
    with (
        serve_platform(scratch_database, retry_settings().replace(release_delay=0)) as platform,
        platform.client() as client,
    ):
        sellers = [f"s{number}" for number in range(10)]
        pay_all(client, "a", sellers)
        assert eventually(lambda: count_booked(scratch_database) == 10)
        for seller in sellers:
            create_destination(client, seller)

        def pay_out(number: int) -> None:
            payout_id = "p-poison" if number == 3 else f"p-{number}"
            request = payout_service_pb2.CreatePayoutRequest(
                payout_id=payout_id, seller_account=f"s{number}", amount="1.00", currency="EUR"
            )
            client.payout.CreatePayout(request)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(pay_out, range(10)))
        assert eventually(
            lambda: (
                query_rows(
                    scratch_database,
                    "payout",
                    "select count(*) from payout where state = 'PAID' and booked",
                )[0][0]
                == 9
            )
        )
        dead_letter_query = "select resource_name, cause, retry_count from dead_letter"
        assert eventually(
            lambda: (
                query_rows(scratch_database, "payout", dead_letter_query)
                == [("payouts/p-poison", "BOOKING_FAILED", 3)]
            )
        )
        wallet_fault.poison = ""
        (dead_letter,) = client.payout.ListDeadLetters(
            operator_pb2.ListDeadLettersRequest()
        ).dead_letters
        client.payout.RetryDeadLetter(
            operator_pb2.RetryDeadLetterRequest(
                dead_letter_id=dead_letter.dead_letter_id, reason="fixed"
            )
        )
        assert eventually(
            lambda: (
                query_rows(
                    scratch_database,
                    "payout",
                    "select count(*) from payout where state = 'PAID' and booked",
                )[0][0]
                == 10
            )
        )
    assert verify(scratch_database).passed


def test_a_payout_that_the_wallet_fails_on_delays_no_other(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """WalletService fails on the capture of one of several payouts that are booked together. The
    others are booked; that one is a dead letter with its money held, and is booked once an operator
    requeues it.
    """
    wallet_fault.poison, wallet_fault.method = "p-poison", "BatchCaptureHold"
    with (
        serve_platform(scratch_database, retry_settings().replace(release_delay=0)) as platform,
        platform.client() as client,
    ):
        pay_out_all(client, [*(f"p-{number}" for number in range(9)), "p-poison"])
        booked_payouts = "select count(*) from payout where state = 'PAID' and booked"
        assert eventually(
            lambda: query_rows(scratch_database, "payout", booked_payouts)[0][0] == 9, 30
        )
        dead_letter_query = "select resource_name, cause, retry_count from dead_letter"
        assert eventually(
            lambda: (
                query_rows(scratch_database, "payout", dead_letter_query)
                == [("payouts/p-poison", "BOOKING_FAILED", 3)]
            ),
            30,
        )
        assert query_rows(
            scratch_database, "wallet", "select count(*) from hold where state = 'OPEN'"
        ) == [(1,)]
        wallet_fault.poison = ""
        many = operator_pb2.RetryDeadLettersRequest(
            filter=operator_pb2.DeadLetterFilter(
                cause=operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED
            ),
            reason="fixed",
        )
        assert client.payout.RetryDeadLetters(many).retried == 1
        assert eventually(
            lambda: query_rows(scratch_database, "payout", booked_payouts)[0][0] == 10, 30
        )
        assert query_rows(
            scratch_database,
            "wallet",
            "select count(*) from wallet_entry where kind = 'HOLD_CAPTURED'",
        ) == [(10,)]
    assert verify(scratch_database).passed


def test_a_release_that_the_wallet_fails_on_delays_no_other(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """Of deliveries one makes WalletService fail. The others are released; that one is retried with
    longer waits, raises an alert, and is finally released.
    """
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        pay_all(client, "a", ["seller"] * 10)
        assert eventually(lambda: count_booked(scratch_database) == 10)
        wallet_fault.poison = "o-a-3"
        for number in range(10):
            client.payment.ConfirmDelivery(
                payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=f"o-a-{number}")
            )
        waiting_query = (
            "select payment_order_id, retry_count >= 2, rejection_message like '%%INTERNAL%%' "
            "from pending_release"
        )
        assert eventually(
            lambda: (
                query_rows(scratch_database, "payment", waiting_query) == [("o-a-3", True, True)]
            )
        )
        alerts = client.payment.ListAlerts
        assert eventually(
            lambda: (
                [alert.kind for alert in alerts(operator_pb2.ListAlertsRequest()).alerts]
                == [operator_pb2.ALERT_KIND_RELEASE_STUCK]
            )
        )
        wallet_fault.poison = ""
        assert eventually(lambda: not query_rows(scratch_database, "payment", waiting_query), 30)
    assert verify(scratch_database).passed


def test_an_unapplied_charge_that_the_ledger_fails_on_delays_no_other(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of unapplied charges one makes LedgerService fail. The others are booked; that one is retried
    and finally booked.
    """
    original, poison = LedgerHandlers.BatchPost, [""]

    async def post(self: LedgerHandlers, request: Any, call: Any) -> Any:
        causes = [
            posting.source_id
            for posting in request.postings
            if posting.kind == ledger_pb2.TRANSACTION_KIND_UNAPPLIED
        ]
        if causes and poison == [""]:
            poison[0] = causes[0]
        if set(causes) & set(poison):
            raise ValueError("a bug that one posting triggers")
        return await original(self, request, call)

    monkeypatch.setattr(LedgerHandlers, "BatchPost", post)
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        for number, amount in enumerate(("11.00", "12.00", "13.00")):
            order = new_order(f"o-{number}", "ann", "seller", amount, "EUR")
            client.create_payment(f"c-{number}", [order], credit_card_info="tok_other_amount")
        booked_query = "select count(*) from unapplied_charge where ledger_updated"
        assert eventually(lambda: query_rows(scratch_database, "payment", booked_query) == [(2,)])
        assert eventually(
            lambda: (
                query_rows(
                    scratch_database, "payment", "select retry_count >= 2 from booking_rejection"
                )
                == [(True,)]
            )
        )
        poison.clear()
        assert eventually(
            lambda: query_rows(scratch_database, "payment", booked_query) == [(3,)], 30
        )
        assert query_rows(
            scratch_database, "payment", "select count(*) from booking_rejection"
        ) == [(0,)]
    assert verify(scratch_database).passed


def test_booking_retries_cannot_be_limited() -> None:
    """A policy with a limit of tries for `booking_unavailable` is rejected with its own reason."""
    with pytest.raises(StartupError, match="booking_unavailable must have max_tries 0"):
        load({"TALLYSTICK_RETRY": "booking_unavailable=exponential:1:60:60"})
    assert RetryPolicies().policy_for("sandbox", RetryReason.BOOKING_UNAVAILABLE).max_tries is None
    assert DEFAULT_POLICIES[RetryReason.BOOKING_FAILED].max_tries == 30
