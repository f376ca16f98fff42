"""Rejections and outages of other services, and dead letters by the thousand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tallystick import (
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    TallystickError,
    new_order,
)
from tallystick.error.v1 import reason_pb2
from tallystick.ledger.v1 import ledger_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings, load
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
from tests.support.payouts import create_destination
from tests.support.platform import eventually, payment_worker_of, run_command, serve_platform

WAIT_FOR_ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
FAST_RETRY_POLICY = RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, None)


def query_rows(
    databases: DatabaseUrls, service: str, query: str, *values: object
) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.reader(service).replace("+psycopg", "")) as connection:
        return connection.execute(query, values).fetchall()


@dataclass
class WalletFault:
    """Fails a call to WalletService before its handler runs, as a bug of WalletService would."""

    poison: str = ""
    """A call with an item of this seller, source id or hold fails with INTERNAL."""
    method: str = ""
    """The only method that poison applies to; "": all."""
    error: Exception | None = None
    """The error of every call."""
    calls: list[int] = field(default_factory=list)
    """The number of items of each call."""


@pytest.fixture
def wallet_fault(monkeypatch: pytest.MonkeyPatch) -> WalletFault:
    """Faults in WalletService's own handlers; the service clients are real."""
    fault = WalletFault()

    def break_handler(name: str, items: Callable[[Any], Any]) -> None:
        original = getattr(WalletHandlers, name)

        async def handler(self: WalletHandlers, request: Any, call: Any) -> Any:
            fault.calls.append(len(items(request)))
            if fault.error is not None:
                raise fault.error
            if (
                fault.poison
                and fault.method in ("", name)
                and any(fault.poison in str(item) for item in items(request))
            ):
                raise ValueError("a bug that one item triggers")
            return await original(self, request, call)

        monkeypatch.setattr(WalletHandlers, name, handler)

    break_handler("BatchCredit", lambda request: request.credits)
    break_handler("BatchRelease", lambda request: request.releases)
    break_handler("BatchPlaceHold", lambda request: request.holds)
    break_handler("BatchCaptureHold", lambda request: request.captures)
    return fault


def retry_settings(**overrides: Any) -> Settings:
    retry = {
        ("", RetryReason.BOOKING_UNAVAILABLE): FAST_RETRY_POLICY,
        ("", RetryReason.CALLER_REJECTED): FAST_RETRY_POLICY,
        ("", RetryReason.BOOKING_FAILED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3),
    }
    return Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
        release_delay=3600,
        **overrides,
    )


def pay_all(client: Client, prefix: str, sellers: list[str]) -> None:
    """Concurrent paid orders, one for each seller."""

    def pay(number: int) -> None:
        order = new_order(f"o-{prefix}-{number}", "ann", sellers[number], "1.00", "EUR")
        client.create_payment(
            f"c-{prefix}-{number}",
            [order],
            credit_card_info="tok_delay:300",
            wait_for=WAIT_FOR_ACCEPTANCE,
        )

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(pay, range(len(sellers))))


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
        assert detail.startswith("tallystick.wallet.v1.BatchCredit was rejected: INTERNAL")
        wallet_fault.poison = ""
        (dead_letter,) = client.payment.ListDeadLetters(
            payment_service_pb2.ListDeadLettersRequest()
        ).dead_letters
        client.payment.RetryDeadLetter(
            payment_service_pb2.RetryDeadLetterRequest(
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
        platform.client(attempts=1) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        claim_batcher = payment_worker_of(platform).seller_owners.claim_batcher
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
                payment_service_pb2.ListAlertsRequest(page_size=200)
            ).alerts
        }
        assert operator_pb2.AlertKind.Value(f"ALERT_KIND_{kind}") in kinds
        assert query_rows(scratch_database, "payment", "select count(*) from dead_letter") == [(0,)]
        wallet_fault.error = None
        assert eventually(lambda: count_booked(scratch_database) == 20, 30)
        assert eventually(
            lambda: not client.payment.ListAlerts(payment_service_pb2.ListAlertsRequest()).alerts
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
            payout_service_pb2.ListDeadLettersRequest()
        ).dead_letters
        client.payout.RetryDeadLetter(
            payout_service_pb2.RetryDeadLetterRequest(
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


def pay_out_all(client: Client, payout_ids: Sequence[str], token: str = "") -> None:
    """Concurrent payouts with the given ids, each to a seller `s{n}` with earlier sales; `token`:
    of their destinations' bank accounts.
    """
    pay_all(client, "sale", [f"s{number}" for number in range(len(payout_ids))])
    for number in range(len(payout_ids)):
        create_destination(client, f"s{number}", f"{token}:{number}" if token else "")

    def create_payout(number: int) -> None:
        request = payout_service_pb2.CreatePayoutRequest(
            payout_id=payout_ids[number], seller_account=f"s{number}", amount="1.00", currency="EUR"
        )
        assert eventually(lambda: try_create(request), 30)

    def try_create(request: payout_service_pb2.CreatePayoutRequest) -> bool:
        try:
            client.payout.CreatePayout(request)
        except FailedPreconditionError as error:  # the sale is not in the wallet yet
            assert error.reason == "INSUFFICIENT_FUNDS"
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(create_payout, range(len(payout_ids))))


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
        many = payout_service_pb2.RetryDeadLettersRequest(
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
                [alert.kind for alert in alerts(payment_service_pb2.ListAlertsRequest()).alerts]
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
    with pytest.raises(StartupError, match="booking_unavailable must have max_attempts 0"):
        load({"TALLYSTICK_RETRY": "booking_unavailable=exponential:1:60:60"})
    assert (
        RetryPolicies().policy_for("sandbox", RetryReason.BOOKING_UNAVAILABLE).max_attempts is None
    )
    assert DEFAULT_POLICIES[RetryReason.BOOKING_FAILED].max_attempts == 30


def create_dead_letters(
    client: Client, prefix: str, count: int, token: str = "tok_rejected"
) -> None:
    """The given number of dead letters with one cause."""

    def pay(number: int) -> None:
        order = new_order(f"o-{prefix}-{number}", "ann", "seller", "1.00", "EUR")
        client.create_payment(
            f"c-{prefix}-{number}", [order], credit_card_info=token, wait_for=WAIT_FOR_ACCEPTANCE
        )

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(pay, range(count)))


def open_dead_letters(client: Client, **criteria: Any) -> list[operator_pb2.DeadLetter]:
    request = payment_service_pb2.ListDeadLettersRequest(
        state=operator_pb2.DEAD_LETTER_STATE_OPEN,
        filter=operator_pb2.DeadLetterFilter(**criteria),
        page_size=200,
    )
    return list(client.pages(client.payment.ListDeadLetters, request, "dead_letters"))


def retry_dead_letters(
    client: Client, reason: str = "fixed", **values: Any
) -> payment_service_pb2.RetryDeadLettersResponse:
    request = payment_service_pb2.RetryDeadLettersRequest(reason=reason, **values)
    return client.payment.RetryDeadLetters(request)


def test_dead_letters_are_retried_in_bulk_by_filter(scratch_database: DatabaseUrls) -> None:
    """A dry run counts and lists dead letters and changes nothing. Then those that match the filter
    are requeued, with operator, reason and event; the rest stay.
    """
    quick = Settings().replace(
        retry={("", RetryReason.OUTCOME_UNKNOWN): RetryPolicy(RetryStrategy.CANCEL)},
        worker__scan_interval=60,
    )
    with serve_platform(scratch_database, quick) as platform, platform.client() as client:
        create_dead_letters(client, "a", 12)
        assert eventually(lambda: len(open_dead_letters(client)) == 12)
        letter_filter = operator_pb2.DeadLetterFilter(
            cause=operator_pb2.DEAD_LETTER_CAUSE_REJECTED, provider="sandbox"
        )
        dry_run_response = retry_dead_letters(client, filter=letter_filter, dry_run=True)
        assert (
            dry_run_response.matched,
            len(dry_run_response.sample),
            dry_run_response.next_page_token,
        ) == (12, 12, "")
        assert [
            (count.cause, count.provider, count.count) for count in dry_run_response.counts
        ] == [(operator_pb2.DEAD_LETTER_CAUSE_REJECTED, "sandbox", 12)]
        assert len(open_dead_letters(client, cause=operator_pb2.DEAD_LETTER_CAUSE_REJECTED)) == 12
        assert (
            retry_dead_letters(
                client,
                filter=operator_pb2.DeadLetterFilter(
                    cause=operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
                ),
            ).matched
            == 0
        )
        assert open_dead_letters(client, cause=operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN) == []
        middle = sorted(
            open_dead_letters(client),
            key=lambda dead_letter: dead_letter.create_time.ToNanoseconds(),
        )[6].create_time
        assert (
            len(open_dead_letters(client, from_time=middle))
            + len(open_dead_letters(client, until_time=middle))
            == 12
        )
        early_response = retry_dead_letters(
            client, filter=operator_pb2.DeadLetterFilter(until_time=middle)
        )
        late_response = retry_dead_letters(
            client, filter=operator_pb2.DeadLetterFilter(from_time=middle)
        )
        assert (
            early_response.retried + late_response.retried,
            early_response.skipped[:],
            late_response.skipped[:],
        ) == (12, [], [])
        assert retry_dead_letters(client, all=True).matched == 0, "a repeat finds nothing to do"
        ends = "select state, operator <> '', reason, count(*) from dead_letter group by 1, 2, 3"
        assert query_rows(scratch_database, "payment", ends) == [("RETRIED", True, "fixed", 12)]
        assert query_rows(
            scratch_database,
            "payment",
            "select count(*) from operation where next_attempt_time is not null",
        ) == [(12,)]
        ended_query = (
            "select count(*) from event where aggregate_id like 'deadLetters/%%' and "
            "aggregate_version = 2"
        )
        assert eventually(lambda: query_rows(scratch_database, "event", ended_query) == [(12,)])
    assert verify(scratch_database).passed


def test_closing_in_bulk_equals_closing_individually(scratch_database: DatabaseUrls) -> None:
    """Bulk closing asks the provider about each operation, as closing one does. Unknown operations
    fail, known outcomes are applied instead, and operations that wait for WalletService are skipped
    with the reason.
    """
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        create_dead_letters(client, "a", 25)
        assert eventually(lambda: len(open_dead_letters(client)) == 25, 30)
        request = payment_service_pb2.CloseDeadLettersRequest(
            all=True, reason="never came", evidence="their support says so"
        )
        dry = payment_service_pb2.CloseDeadLettersRequest(
            all=True, reason="never came", evidence="x", dry_run=True
        )
        assert (
            client.payment.CloseDeadLetters(dry).matched,
            len(client.payment.CloseDeadLetters(dry).sample),
        ) == (25, 20)
        assert len(open_dead_letters(client)) == 25
        first = client.payment.CloseDeadLetters(request)
        assert (first.matched, first.closed, first.skipped[:]) == (20, 20, [])
        request.page_token = first.next_page_token
        second = client.payment.CloseDeadLetters(request)
        assert (second.matched, second.closed, second.next_page_token) == (5, 5, "")
        ends = "select state, reason, evidence, count(*) from dead_letter group by 1, 2, 3"
        assert query_rows(scratch_database, "payment", ends) == [
            ("CLOSED", "never came", "their support says so", 25)
        ]
    assert verify(scratch_database).passed


def test_closing_in_bulk_skips_charged_operations(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """A charge that was made and cannot be booked is never closed: it is skipped with the same
    error as when it is closed alone.
    """
    wallet_fault.poison = "poison"
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):
        pay_all(client, "a", ["poison", "s1"])
        assert eventually(
            lambda: (
                [dead_letter.cause for dead_letter in open_dead_letters(client)]
                == [operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED]
            )
        )
        answer = client.payment.CloseDeadLetters(
            payment_service_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none")
        )
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [
            (skipped_letter.cause, skipped_letter.error_reason) for skipped_letter in answer.skipped
        ] == [(operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED, reason_pb2.REASON_INVALID_STATE)]
        assert len(open_dead_letters(client)) == 1


def open_payout_dead_letters(client: Client, **criteria: Any) -> list[operator_pb2.DeadLetter]:
    request = payout_service_pb2.ListDeadLettersRequest(
        state=operator_pb2.DEAD_LETTER_STATE_OPEN,
        filter=operator_pb2.DeadLetterFilter(**criteria),
        page_size=200,
    )
    return list(client.pages(client.payout.ListDeadLetters, request, "dead_letters"))


def test_dead_letters_of_payouts_are_retried_and_closed_in_bulk(
    scratch_database: DatabaseUrls,
) -> None:
    """Bulk actions on payouts work as those on charges. A dry run counts and changes nothing, and a
    filter leaves the others unchanged. Requeued payouts that are rejected again are new dead
    letters. Closing goes page by page, releases the money, and has no effect when repeated.
    """
    payouts = [f"p-{number:02}" for number in range(25)]
    with (
        serve_platform(scratch_database, retry_settings().replace(release_delay=0)) as platform,
        platform.client() as client,
    ):
        pay_out_all(client, payouts, "ba_rejected")
        assert eventually(lambda: len(open_payout_dead_letters(client)) == 25, 60)
        retry = payout_service_pb2.RetryDeadLettersRequest(reason="fixed", dry_run=True)
        retry.filter.CopyFrom(
            operator_pb2.DeadLetterFilter(
                cause=operator_pb2.DEAD_LETTER_CAUSE_REJECTED, provider="sandbox"
            )
        )
        dry = client.payout.RetryDeadLetters(retry)
        assert (dry.matched, dry.retried, len(dry.sample), dry.next_page_token) == (25, 0, 20, "")
        assert [(count.cause, count.provider, count.count) for count in dry.counts] == [
            (operator_pb2.DEAD_LETTER_CAUSE_REJECTED, "sandbox", 25)
        ]
        unresolved_request = payout_service_pb2.RetryDeadLettersRequest(
            filter=operator_pb2.DeadLetterFilter(
                cause=operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
            ),
            reason="fixed",
        )
        assert client.payout.RetryDeadLetters(unresolved_request).matched == 0
        assert query_rows(
            scratch_database, "payout", "select count(*) from dead_letter where state <> 'OPEN'"
        ) == [(0,)]
        middle = sorted(
            open_payout_dead_letters(client),
            key=lambda dead_letter: dead_letter.create_time.ToNanoseconds(),
        )[12].create_time
        before = len(open_payout_dead_letters(client, until_time=middle))
        early_request = payout_service_pb2.RetryDeadLettersRequest(
            filter=operator_pb2.DeadLetterFilter(until_time=middle), reason="fixed"
        )
        answer = client.payout.RetryDeadLetters(early_request)
        assert (answer.matched, answer.retried, answer.skipped[:]) == (before, before, [])
        ends = (
            "select state, operator <> '', reason, count(*) from dead_letter where state <> "
            "'OPEN' group by 1, 2, 3"
        )
        assert query_rows(scratch_database, "payout", ends) == [("RETRIED", True, "fixed", before)]
        assert eventually(lambda: len(open_payout_dead_letters(client)) == 25, 60), (
            "those that were tried again are rejected again"
        )
        close = payout_service_pb2.CloseDeadLettersRequest(
            all=True, reason="never came", evidence="their support says so", dry_run=True
        )
        assert client.payout.CloseDeadLetters(close).matched == 25
        assert len(open_payout_dead_letters(client)) == 25
        close.dry_run = False
        first = client.payout.CloseDeadLetters(close)
        assert (first.matched, first.closed, first.skipped[:]) == (20, 20, [])
        close.page_token = first.next_page_token
        second = client.payout.CloseDeadLetters(close)
        assert (second.matched, second.closed, second.next_page_token) == (5, 5, "")
        close.page_token = ""
        assert client.payout.CloseDeadLetters(close).matched == 0
        failed = (
            "select count(*) from payout where state = 'FAILED' and failure_reason = "
            "'CLOSED_BY_OPERATOR' and booked"
        )
        assert eventually(lambda: query_rows(scratch_database, "payout", failed) == [(25,)], 30)
        assert query_rows(
            scratch_database, "wallet", "select sum(balance), sum(held) from wallet"
        ) == [(2500, 0)]
    assert verify(scratch_database).passed


def test_closing_payouts_in_bulk_skips_paid_ones(
    scratch_database: DatabaseUrls, wallet_fault: WalletFault
) -> None:
    """A payout that was paid and cannot be booked is never closed: it is skipped with the same
    error as when it is closed alone.
    """
    wallet_fault.poison, wallet_fault.method = "p-poison", "BatchCaptureHold"
    with (
        serve_platform(scratch_database, retry_settings().replace(release_delay=0)) as platform,
        platform.client() as client,
    ):
        pay_out_all(client, ["p-0", "p-poison"])
        assert eventually(
            lambda: (
                [dead_letter.cause for dead_letter in open_payout_dead_letters(client)]
                == [operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED]
            ),
            30,
        )
        answer = client.payout.CloseDeadLetters(
            payout_service_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none")
        )
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [
            (skipped_letter.cause, skipped_letter.error_reason) for skipped_letter in answer.skipped
        ] == [(operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED, reason_pb2.REASON_INVALID_STATE)]
        assert len(open_payout_dead_letters(client)) == 1


def test_twelve_thousand_dead_letters_are_retried_within_a_minute(
    scratch_database: DatabaseUrls,
) -> None:
    """Each call processes a bounded number, and ignores operations that become dead letters after
    the first call.
    """
    with (
        serve_platform(scratch_database, Settings().replace(worker__scan_interval=600)) as platform,
        platform.client() as client,
    ):
        create_dead_letters(client, "a", 1)
        assert eventually(lambda: len(open_dead_letters(client)) == 1)
        with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
            # Rows without a payment; only their number matters.
            admin.execute("set session_replication_role = replica")
            admin.execute("set search_path = payment")
            admin.execute(
                "insert into dead_letter (dead_letter_id, resource_name, number, cause, detail, "
                "retry_count, state, operator, reason, evidence, create_time, provider) select "
                "'charges-o-x' || n || '-1', 'charges/o-x' || n, 1, 'OUTCOME_UNKNOWN', '', 1, "
                "'OPEN', '', '', '', clock(), 'sandbox' from generate_series(1, 12000) n"
            )
        start_time, token, retried_count, calls = time.monotonic(), "", 0, 0
        while token or not calls:
            answer = retry_dead_letters(
                client,
                filter=operator_pb2.DeadLetterFilter(
                    cause=operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
                ),
                page_token=token,
            )
            token, retried_count, calls = (
                answer.next_page_token,
                retried_count + answer.retried,
                calls + 1,
            )
        assert (retried_count, calls) == (12_000, 24)
        assert time.monotonic() - start_time < 60
        assert [dead_letter.cause for dead_letter in open_dead_letters(client)] == [
            operator_pb2.DEAD_LETTER_CAUSE_REJECTED
        ]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "filter"),
        ({"filter": {"cause": 99}}, "filter.cause"),
        ({"filter": {"provider": "no provider"}}, "filter.provider"),
        ({"filter": {"cause": operator_pb2.DEAD_LETTER_CAUSE_REJECTED}, "all": True}, "all"),
        (
            {"filter": {"from_time": {"seconds": 2}, "until_time": {"seconds": 1}}},
            "filter.until_time",
        ),
        ({"filter": {"from_time": {"seconds": -1 << 40}}}, "filter.from_time"),
        ({"all": True, "reason": ""}, "reason"),
        ({"all": True, "page_token": "x"}, "page_token"),
    ],
)
def test_bulk_calls_name_the_invalid_field(
    client: Client, values: dict[str, Any], field: str
) -> None:
    """A filter without a criterion, with an unknown cause or with an invalid time is rejected with
    its own reason, and nothing is changed.
    """
    with pytest.raises(InvalidArgumentError) as error:
        client.payment.RetryDeadLetters(
            payment_service_pb2.RetryDeadLettersRequest(**{"reason": "fixed", **values})
        )
    assert [violation.field for violation in error.value.field_violations] == [field]


def test_the_command_line_retries_and_closes_in_bulk(scratch_database: DatabaseUrls) -> None:
    """A dry run, then the work page by page with progress, and a report as text or JSON; an id
    together with a filter is rejected.
    """
    with (
        serve_platform(scratch_database, retry_settings()) as platform,
        platform.client() as client,
    ):

        def command(*arguments: str) -> tuple[int, str, str]:
            completed = run_command(*arguments, "--address", platform.address)
            return completed.returncode, completed.stdout, completed.stderr

        create_dead_letters(client, "a", 23)
        assert eventually(lambda: len(open_dead_letters(client)) == 23, 30)
        why = ("--reason", "r", "--evidence", "e")
        code, out, _ = command(
            "dead-letters",
            "close",
            "--cause",
            "REJECTED",
            "--reason",
            "r",
            "--evidence",
            "e",
            "--dry-run",
        )
        assert (code, out.splitlines()[:2]) == (
            0,
            ["23 matched: nothing was changed", ""],
        )
        _, out, _ = command("dead-letters", "close", "--all", "--json", "--dry-run", *why)
        preview = json.loads(out)
        assert preview["counts"] == [
            {"cause": "DEAD_LETTER_CAUSE_REJECTED", "provider": "sandbox", "count": 23}
        ]
        code, out, progress = command(
            "dead-letters",
            "close",
            "--from",
            "2026-01-01T00:00:00Z",
            "--reason",
            "r",
            "--evidence",
            "e",
            "--json",
        )
        report = json.loads(out)
        assert (code, report["matched"], report["closed"], report["skipped"]) == (0, 23, 23, [])
        assert list(report) == list(preview)
        assert (preview["dry_run"], len(preview["sample"])) == (True, 20)
        assert progress.splitlines() == [
            "Closing dead letters: 20 of 23: 20 closed, 0 resolved, 0 skipped",
            "Closing dead letters: 23 of 23: 23 closed, 0 resolved, 0 skipped",
        ]
        code, _, wrong = command("dead-letters", "retry", "o-x-1", "--all", "--reason", "r")
        assert (code, "either a DEAD_LETTER_ID or a filter" in wrong) == (2, True)
        assert open_dead_letters(client) == []
