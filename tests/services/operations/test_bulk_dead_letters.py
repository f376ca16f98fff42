"""Dead letters are retried and closed in bulk, by the thousand."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tallystick import Client, InvalidArgumentError, new_order
from tallystick.error.v1 import reason_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.wallet_fault import WalletFault
from tests.support.failing_bookings import (
    WAIT_FOR_ACCEPTANCE,
    pay_all,
    pay_out_all,
    query_rows,
    retry_settings,
)
from tests.support.platform import eventually, run_command, serve_platform


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
    """The open dead letters of payments."""
    return _list_open(client, client.payment, **criteria)


def open_payout_dead_letters(client: Client, **criteria: Any) -> list[operator_pb2.DeadLetter]:
    """The open dead letters of payouts."""
    return _list_open(client, client.payout, **criteria)


def _list_open(client: Client, service: Any, **criteria: Any) -> list[operator_pb2.DeadLetter]:
    request = operator_pb2.ListDeadLettersRequest(
        state=operator_pb2.DEAD_LETTER_STATE_OPEN,
        filter=operator_pb2.DeadLetterFilter(**criteria),
        page_size=200,
    )
    return list(client.pages(service.ListDeadLetters, request, "dead_letters"))


def retry_dead_letters(
    client: Client, reason: str = "fixed", **values: Any
) -> operator_pb2.RetryDeadLettersResponse:
    request = operator_pb2.RetryDeadLettersRequest(reason=reason, **values)
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
            "select count(*) from operation where next_try_time is not null",
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
        request = operator_pb2.CloseDeadLettersRequest(
            all=True, reason="never came", evidence="their support says so"
        )
        dry = operator_pb2.CloseDeadLettersRequest(
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
            operator_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none")
        )
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [
            (skipped_letter.cause, skipped_letter.error_reason) for skipped_letter in answer.skipped
        ] == [(operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED, reason_pb2.REASON_INVALID_STATE)]
        assert len(open_dead_letters(client)) == 1


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
        retry = operator_pb2.RetryDeadLettersRequest(reason="fixed", dry_run=True)
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
        unresolved_request = operator_pb2.RetryDeadLettersRequest(
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
        early_request = operator_pb2.RetryDeadLettersRequest(
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
        close = operator_pb2.CloseDeadLettersRequest(
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
            operator_pb2.CloseDeadLettersRequest(all=True, reason="no", evidence="none")
        )
        assert (answer.matched, answer.closed, answer.resolved) == (1, 0, 0)
        assert [
            (skipped_letter.cause, skipped_letter.error_reason) for skipped_letter in answer.skipped
        ] == [(operator_pb2.DEAD_LETTER_CAUSE_BOOKING_FAILED, reason_pb2.REASON_INVALID_STATE)]
        assert len(open_payout_dead_letters(client)) == 1


def test_twelve_thousand_dead_letters_are_retried_within_a_minute(
    scratch_database: DatabaseUrls, thorough: bool
) -> None:
    """Each call processes a bounded number, and ignores operations that become dead letters after
    the first call. Unless thorough, 2,000 within ten seconds.
    """
    count = 12_000 if thorough else 2_000
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
                "insert into dead_letter (dead_letter_id, kind, operation_id, number, cause, "
                "detail, retry_count, state, operator, reason, evidence, create_time, provider) "
                "select 'charges-o-x' || n || '-1', 'charge', 'o-x' || n, 1, 'OUTCOME_UNKNOWN', "
                "'', 1, 'OPEN', '', '', '', clock(), 'sandbox' from generate_series(1, %s) n",
                (count,),
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
        assert (retried_count, calls) == (count, count // 500)
        assert time.monotonic() - start_time < count / 200
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
            operator_pb2.RetryDeadLettersRequest(**{"reason": "fixed", **values})
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
