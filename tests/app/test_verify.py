"""`tallystick verify` names the corrupted row."""

from __future__ import annotations

import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from types import SimpleNamespace
from uuid import UUID

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tallystick import Client, FailedPreconditionError, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2, reconciliation_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.roles import role_names
from tallystick_server.app.services import SERVICES
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import load_queries, run_checks, verify
from tallystick_storage.verify import Reader
from tests.support.payouts import wait_until_booked
from tests.support.platform import eventually, fresh_database, run_command, serve_platform
from tests.support.reconciliation import charge, posted_clearing, reconcile
from tests.support.rows import update_rows
from tests.tampering.run import Tampering

# Operations retry without a limit: on a slow machine a limit would dead-letter them before the rows
# are corrupted.
RETRY = {
    ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 5),
    ("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, None),
}


def unrelayed_count(databases: DatabaseUrls) -> int:
    """The number of transactions that are still in an outbox."""
    with psycopg.connect(databases.admin) as connection:
        row = connection.execute(
            "select (select count(*) from payment.outbox) + (select count(*) from wallet.outbox) + "
            "(select count(*) from payout.outbox) + (select count(*) from ledger.outbox) + "
            "(select count(*) from reconciliation.outbox)"
        ).fetchone()
    return int(row[0]) if row else 0


@pytest.fixture(scope="module")
def filled_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database with payments in each final state, a hold, and statements; all events have been
    published.
    """
    with fresh_database(admin_url, tmp_path_factory.mktemp("verify")) as databases:
        settings = Settings().replace(
            retry=RETRY,
            payout__approval_threshold={"EUR": 400},
            payout__destination_cooldown=0,
            reconciliation__posting_interval=0.2,
        )
        with serve_platform(databases, settings) as platform, platform.client() as client:
            for number in range(3):
                orders = [
                    new_order(
                        f"o-{number}-{index}",
                        "b",
                        f"s-{index}",
                        "10.00",
                        "EUR",
                        platform_fee="1.00",
                    )
                    for index in range(2)
                ]
                client.create_payment(f"c-{number}", orders, credit_card_info="tok_visa")
            client.create_payment(
                "c-declined",
                [new_order("o-declined", "b", "s-0", "1.00", "EUR")],
                credit_card_info="tok_decline",
            )
            client.create_payment(
                "c-pending",
                [new_order("o-pending", "b", "s-0", "1.00", "EUR")],
                credit_card_info="tok_pending",
            )
            client.create_payment(
                "c-action",
                [new_order("o-action", "b", "s-0", "1.00", "EUR")],
                credit_card_info="tok_pending:action",
            )
            client.create_payment(
                "c-other",
                [new_order("o-other", "b", "s-0", "1.00", "EUR")],
                credit_card_info="tok_other_amount",
            )
            client.create_payment(
                "c-rejected",
                [new_order("o-rejected", "b", "s-0", "1.00", "EUR")],
                credit_card_info="tok_rejected",
                wait_for=2,
            )
            delay = Duration(seconds=3600)
            client.wallet.SetWalletPolicy(
                wallet_service_pb2.SetWalletPolicyRequest(
                    seller_account="s-slow", currency="EUR", release_delay=delay
                )
            )
            assert eventually(lambda: is_booked(databases))
            confirm_delivery_in_past(databases, client, "o-2-0")
            client.create_payment(
                "c-slow",
                [new_order("o-slow", "b", "s-slow", "1.00", "EUR")],
                credit_card_info="tok_visa",
            )
            hold = wallet_service_pb2.NewHold(
                hold_id="h",
                caller="t",
                seller_account="s-0",
                amount="1.00",
                currency="EUR",
                purpose=wallet_pb2.HOLD_PURPOSE_RESERVE,
            )
            client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
            create_payouts(client)
            reconcile_statements(client)
            assert eventually(lambda: not unrelayed_count(databases))
        yield databases
        report = verify(databases)
        assert report.passed, f"a corruption was not undone: {report.as_text()}"


def confirm_delivery_in_past(databases: DatabaseUrls, client: Client, order_id: str) -> None:
    """Confirms a delivery while the database's clock is an hour behind."""
    clock_sql = (
        "create or replace function payment.clock() returns timestamptz language sql volatile as "
        "$$select clock_timestamp() {}$$"
    )
    order_request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
    assert eventually(
        lambda: client.payment.GetPaymentOrder(order_request).payment_order.ledger_updated
    )
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(clock_sql.format("- interval '1 hour'"))
        try:
            client.payment.ConfirmDelivery(
                payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order_id)
            )
        finally:
            connection.execute(clock_sql.format(""))


def create_payouts(client: Client) -> None:
    """Payouts in each final state, of seller s-1: paid, returned, declined, paid after failure,
    waiting for approval, and a destination in review.
    """
    for name, token, amount in (
        ("paid", "ba_ok", "1.00"),
        ("returned", "ba_returned_part", "2.00"),
        ("declined", "ba_decline", "1.50"),
        ("late", "ba_paid_late", "0.50"),
        ("waiting", "ba_ok", "5.00"),
        ("slow", "ba_slow:3600", "1.00"),
    ):
        ids = {"payout_destination_id": f"d-{name}", "seller_account": "s-1", "currency": "EUR"}
        client.payout.CreatePayoutDestination(
            payout_service_pb2.CreatePayoutDestinationRequest(**ids, bank_account_token=token)
        )
        get_request = payout_service_pb2.GetPayoutDestinationRequest(
            payout_destination_id=f"d-{name}"
        )
        assert eventually(
            lambda: client.payout.GetPayoutDestination(get_request).payout_destination.state == 2  # noqa: B023
        )
        client.payout.CreatePayout(
            payout_service_pb2.CreatePayoutRequest(payout_id=f"x-{name}", amount=amount, **ids)
        )
    ids = {"payout_destination_id": "d-review", "seller_account": "s-1", "currency": "EUR"}
    client.payout.CreatePayoutDestination(
        payout_service_pb2.CreatePayoutDestinationRequest(**ids, bank_account_token="ba_rejected")
    )
    wait_until_booked(client, "x-paid", "1.00")
    wait_until_booked(client, "x-returned", "2.00", "1.00")
    wait_until_booked(client, "x-late", "0.50")
    wait_until_booked(client, "x-declined", "0.00")


def reconcile_statements(client: Client) -> None:
    """Two files of the sandbox: a line that matches, one of another amount, which is adjusted, one
    that the ledger does not have, a fee, and a settlement; then a line that the first file had.
    """

    def reference_of(order_id: str) -> str:
        request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
        return client.payment.GetPaymentOrder(request).payment_order.provider_reference

    matched_line = charge(10_00, reference_of("o-0-0"), fee=30, booking_date="")
    lines = [
        matched_line,
        charge(9_00, reference_of("o-0-1"), booking_date=""),
        charge(5_00, "ch-9"),
        charge(-2_00, line_type="FEE", reference="fee-1"),
        charge(-7_00, line_type="SETTLEMENT", settlement_reference="s-1"),
    ]
    reconcile(client, "psp/sandbox/clearing", lines, file_name="first")
    reconcile(client, "psp/sandbox/clearing", [matched_line], file_name="second")
    request = reconciliation_service_pb2.ResolveBreakRequest(
        break_id="f1-2",
        resolution=reconciliation_pb2.RESOLUTION_ADJUST,
        reason="as in the statement",
    )
    client.reconciliation.ResolveBreak(request)
    assert float(posted_clearing(client, "psp/sandbox/clearing").unexplained) == 0


def is_booked(databases: DatabaseUrls) -> bool:
    """Whether the unapplied charge is booked and the rejected one dead-lettered."""
    with psycopg.connect(databases.admin) as connection:
        statement = (
            "select (select bool_and(ledger_updated) from payment.unapplied_charge) and exists "
            "(select from payment.dead_letter)"
        )
        row = connection.execute(statement).fetchone()
        return bool(row and row[0])


def test_a_consistent_database_passes(filled_database: DatabaseUrls) -> None:
    """Every check passes, and each has examined something."""
    report = verify(filled_database)
    assert report.passed, report.as_text()
    assert all(check.row_count for check in report.checks)


# The corruption that the administrator makes with all triggers off; the expected finding; the
# statement that undoes it.
CORRUPTIONS = [
    (
        "L1",
        "update ledger.entry set amount = amount + 1 where sequence = 2 and line_number = 1",
        "ledger.tx main-2: its entries do not sum to zero",
    ),
    (
        "L1",
        "update ledger.tx set entry_count = 7 where sequence = 3",
        "ledger.tx main-3: has 5 entries, and says 7",
    ),
    (
        "L1",
        "insert into ledger.entry values ('main', 99, 1, 1, 'EUR', 5, 5, 9)",
        "ledger.entry main-99/1: has no transaction",
    ),
    (
        "L2",
        "update ledger.entry set amount = amount + 1 where sequence = 2 and line_number = 1",
        "ledger.entry in main EUR: all entries sum to 1, not to zero",
    ),
    (
        "L3",
        "update ledger.entry set currency = 'USD' where sequence = 2 and line_number = 1",
        "ledger.entry main-2/1: is in another currency",
    ),
    (
        "L5",
        "update ledger.tx set reverses = 1 where sequence = 2",
        "ledger.tx main-2: reverses no transaction",
    ),
    (
        "L6",
        "update ledger.tx set description = 'x' where sequence = 4",
        "ledger.tx main-4: its hash is not that of its content",
    ),
    (
        "L6",
        "update ledger.tx set external_reference = 'x' where sequence = 4",
        "ledger.tx main-4: its hash is not that of its content",
    ),
    (
        "L6",
        "update ledger.tx set effective_time = now() where sequence = 4",
        "ledger.tx main-4: its hash is not that of its content",
    ),
    (
        "P7",
        "update payment.payment_order set provider_reference = 'x'",
        "payment.payment_order o-1-0: its ledger transaction is not exactly one with the reference",
    ),
    (
        "L6",
        "update ledger.tx set buyer_account = 'x' where sequence = 4",
        "ledger.tx main-4: its hash is not that of its content",
    ),
    (
        "L6",
        "update ledger.tx set hash = previous_hash where sequence = 2",
        "ledger.tx main-3: previous_hash is not the hash",
    ),
    ("L6", "delete from ledger.tx where sequence = 3", "ledger.tx main-4: follows 2, with a gap"),
    (
        "L6",
        "update ledger.head set sequence = 9",
        "ledger.head main: is at 9, but the book ends at 15",
    ),
    (
        "L7",
        "update ledger.account set balance = balance + 1 where account = 'sellers/s-1'",
        "ledger.account main sellers/s-1 EUR: balance is",
    ),
    (
        "L7",
        "update ledger.entry set balance_after = 7 where sequence = 2 and line_number = 4",
        "ledger.entry main-2/4: balance_after is 7",
    ),
    (
        "W1",
        "update ledger.account set balance = balance + 1 where account = 'sellers/s-1'",
        "wallet.wallet s-1 EUR: balance is 2450, but",
    ),
    (
        "W2",
        (
            "update wallet.wallet set available = available + 1, balance = balance + 1 where "
            "seller_account = 's-1'"
        ),
        "wallet.wallet s-1 EUR: is at version",
    ),
    (
        "W2",
        (
            "update wallet.wallet_entry set available_after = 5 where seller_account = 's-1' and "
            "number = 2"
        ),
        "wallet.wallet_entry s-1 EUR 2: moves the balance",
    ),
    (
        "W2",
        "update wallet.pending_credit set amount = 5",
        "wallet.wallet s-slow EUR: has 100 pending, but its pending credits sum to 5",
    ),
    (
        "W2",
        "update wallet.pending_credit set amount = 5",
        "wallet.pending_credit PAY_IN/o-slow: is not what was credited",
    ),
    (
        "W2",
        "update wallet.pending_credit set release_time = '2020-01-01'",
        "wallet.pending_credit PAY_IN/o-slow: is pending, although its release time",
    ),
    (
        "W3",
        "update wallet.hold set amount = 50 where hold_id = 'h'",
        "wallet.wallet s-0 EUR: holds 100, but its open holds sum to 50",
    ),
    (
        "P1",
        "update payment.attempt set amount = 5 where operation_id = 'o-o-1-0'",
        "payment.attempt charge o-o-1-0 1: requests 5 EUR",
    ),
    (
        "P2",
        "delete from payment.attempt where operation_id = 'o-o-1-0'",
        "payment.payment_order o-1-0: is SUCCESS without an attempt",
    ),
    (
        "P3",
        (
            "update payment.order_history set to_status = 'PENDING' where payment_order_id = "
            "'o-1-0' and version = 2"
        ),
        "payment.order_history o-1-0 2: NOT_STARTED to PENDING",
    ),
    (
        "P4",
        "delete from payment.order_history where payment_order_id = 'o-1-0' and version = 2",
        "payment.order_history o-1-0 3: EXECUTING to SUCCESS does not",
    ),
    (
        "P4",
        "update payment.payment_order set version = 9 where payment_order_id = 'o-1-0'",
        "payment.payment_order o-1-0: is SUCCESS at version 9",
    ),
    (
        "P2",
        "update payment.unapplied_charge set amount = 7",
        "payment.attempt charge o-o-other 1: took money that is no SUCCESS order's share",
    ),
    (
        "P2",
        "update payment.unapplied_charge set currency = 'USD'",
        "its ledger transaction is not exactly one with its reference and entries",
    ),
    (
        "P1",
        (
            "update payment.unapplied_charge set provider_reference = (select provider_reference "
            "from payment.attempt where operation_id = 'o-o-1-0')"
        ),
        "is the money of 2 charges",
    ),
    ("P1", "delete from payment.provider_money where charge_id = 'o-o-1-0'", "is missing"),
    (
        "P1",
        "update payment.provider_money set charge_id = 'o-o-1-1' where charge_id = 'o-o-1-0'",
        "names o-o-1-1, but o-o-1-0 took it",
    ),
    (
        "P1",
        "insert into payment.provider_money values ('sandbox', 'ch-none', 'o-o-1-0')",
        "payment.provider_money sandbox ch-none: names what no charge took",
    ),
    ("P2", "delete from payment.unapplied_charge", "is booked, but there is no such charge"),
    (
        "P5",
        "delete from payment.operation where operation_id = 'o-o-pending'",
        "payment.operation charge o-o-pending: is missing, but o-pending is open",
    ),
    (
        "P5",
        "update payment.operation set next_try_time = null where operation_id = 'o-o-pending'",
        "payment.operation charge o-o-pending: is not scheduled and has no open",
    ),
    (
        "P5",
        "update payment.operation set operation_id = 'o-x' where operation_id = 'o-o-pending'",
        "payment.operation charge o-x: is scheduled, but has ended",
    ),
    (
        "P5",
        (
            "update payment.operation set next_try_time = clock_timestamp() where operation_id "
            "= 'o-o-rejected'"
        ),
        "payment.operation charge o-o-rejected: is scheduled, but has an open dead letter",
    ),
    (
        "P5",
        (
            "update payment.payment_order set delivery_confirmed_time = clock_timestamp() where "
            "payment_order_id = 'o-slow'"
        ),
        "wallet.pending_credit PAY_IN/o-slow: is pending, but its order was delivered",
    ),
    (
        "P4",
        (
            "update payment.payment_order set delivery_confirmed_time = clock_timestamp() where "
            "payment_order_id = 'o-slow'"
        ),
        "payment.payment_order o-slow: is SUCCESS at version 4, but its history",
    ),
    (
        "P4",
        (
            "update payment.payment_order set resolve_by_time = resolve_by_time + interval '1 "
            "microsecond' where payment_order_id = 'o-action'"
        ),
        "payment.payment_order o-action: has another resolve_by_time than its history",
    ),
    (
        "P4",
        (
            "update payment.payment_order set delivery_confirmed_time = delivery_confirmed_time - "
            "interval '1 microsecond' where payment_order_id = 'o-2-0'"
        ),
        "payment.payment_order o-2-0: was not delivered when its history says",
    ),
    (
        "P8",
        (
            "alter table payment.payment_order drop constraint if exists refunds_are_captured; "
            "update payment.payment_order set captured_amount = 999 where payment_order_id = "
            "'o-1-0'"
        ),
        "payment.payment_order o-1-0: its captured amount is not that of its status",
    ),
    (
        "P8",
        (
            "alter table payment.payment_order drop constraint if exists refunds_are_captured; "
            "update payment.payment_order set refunded_amount = 600, disputed_amount = 401 where "
            "payment_order_id = 'o-1-0'"
        ),
        "payment.payment_order o-1-0: its captured amount is not that of its status, or does not "
        "cover what was refunded and disputed",
    ),
    (
        "P4",
        "update payment.payment_order set refunded_amount = 1 where payment_order_id = 'o-1-0'",
        "payment.payment_order o-1-0: was captured, refunded or disputed otherwise than its",
    ),
    *[
        (
            "P4",
            "update payment.operation set (retry_reason, detail, retry_counts, not_found_count, "
            f"lookup_only, has_changed, maybe_sent, phase, sent_time, seal, {column}) = ('', '', "
            f"'{{}}', 0, false, false, false, '', null, null, {value}) "
            "where operation_id = 'o-o-pending'",
            "payment.operation charge o-o-pending: does not match its payment",
        )
        for column, value in (("provider", "'x'"), ("phase_start_time", "phase_start_time"))
    ],
    (
        "P6",
        "update payment.checkout set unpaid_orders = 1 where checkout_id = 'c-1'",
        "payment.checkout c-1: counts 1 unpaid",
    ),
    (
        "P7",
        "delete from wallet.wallet_entry where source_id = 'PAY_IN/o-1-0'",
        "payment.payment_order o-1-0: its wallet credits are not exactly one",
    ),
    (
        "P7",
        "update ledger.tx set source_id = 'nobody' where source_id = 'o-1-0'",
        "payment.payment_order o-1-0: its ledger transaction is not exactly one",
    ),
    (
        "P7",
        "update ledger.tx set source_id = 'nobody' where source_id = 'o-1-0'",
        "payment.payment_order nobody: was credited or posted, but is not a successful order",
    ),
    (
        "P3",
        (
            "update payout.payout_history set to_state = 'PAID' where payout_id = 'x-paid' and "
            "version = 2"
        ),
        "payout.payout_history x-paid 2: CREATED to PAID",
    ),
    (
        "P3",
        (
            "update payout.payout_history set booked = true where payout_id = 'x-paid' and "
            "version = 4"
        ),
        "payout.payout_history x-paid 4: SUBMITTING to PAID",
    ),
    (
        "P4",
        "delete from payout.payout_history where payout_id = 'x-paid' and version = 2",
        "payout.payout_history x-paid 3: READY to SUBMITTING does not",
    ),
    (
        "P4",
        "update payout.payout set version = 9 where payout_id = 'x-paid'",
        "payout.payout x-paid: is PAID at version 9",
    ),
    (
        "O1",
        (
            "update wallet.hold set state = 'RELEASED', end_time = now() where hold_id = "
            "'payouts/x-waiting'"
        ),
        "wallet.hold payouts/x-waiting: is RELEASED, but its payout is AWAITING_APPROVAL",
    ),
    (
        "O1",
        "update wallet.hold set amount = 77 where hold_id = 'payouts/x-slow'",
        "wallet.hold payouts/x-slow: is not of 100 EUR of s-1",
    ),
    (
        "O1",
        "update wallet.hold set captured_amount = 99 where hold_id = 'payouts/x-paid'",
        "wallet.hold payouts/x-paid: is CAPTURED, but its payout is PAID",
    ),
    (
        "O1",
        "delete from wallet.hold where hold_id = 'payouts/x-slow'",
        "wallet.hold payouts/x-slow: is missing, but its payout is",
    ),
    (
        "O1",
        (
            "update wallet.hold set state = 'OPEN', end_time = null where hold_id = "
            "'payouts/x-declined'"
        ),
        "wallet.hold payouts/x-declined: is OPEN, but its payout is FAILED",
    ),
    (
        "O1",
        "update wallet.hold set hold_id = 'payouts/x-nobody' where hold_id = 'payouts/x-declined'",
        "wallet.hold payouts/x-nobody: is a payout's, but there is no such payout",
    ),
    (
        "O2",
        "delete from payout.transfer where payout_id = 'x-paid'",
        "payout.payout x-paid: is PAID, but no transfer was made as asked",
    ),
    (
        "O2",
        (
            "update payout.transfer set returned_amount = null, returned_currency = '', "
            "return_time = null where payout_id = 'x-returned'"
        ),
        "payout.payout x-returned: is RETURNED, but has no returned transfer",
    ),
    (
        "P7",
        "delete from payout.transfer where payout_id = 'x-late'",
        "payout.transfer PAYOUT/x-late: is posted, but no provider reported it",
    ),
    (
        "P7",
        "update payout.transfer set returned_amount = 99 where payout_id = 'x-returned'",
        "payout.transfer PAYOUT_RETURN/x-returned: its ledger transaction is not exactly one",
    ),
    (
        "P7",
        "delete from wallet.wallet_entry where source_id = 'PAYOUT_RETURN/x-returned'",
        "payout.transfer PAYOUT_RETURN/x-returned: its wallet entry is None",
    ),
    (
        "P7",
        "delete from wallet.wallet_entry where source_id = 'PAYOUT/x-late'",
        "payout.transfer PAYOUT/x-late: its wallet entry is None, and must be ('s-1', 'EUR', -50)",
    ),
    (
        "P7",
        "update ledger.tx set source_id = 'nobody' where source_id = 'x-paid'",
        "payout.transfer PAYOUT/x-paid: its ledger transaction is not exactly one",
    ),
    (
        "P7",
        "update ledger.tx set source_id = 'nobody' where source_id = 'x-paid'",
        "payout.transfer PAYOUT/nobody: is posted, but no provider",
    ),
    (
        "P5",
        "delete from payout.operation where operation_id = 'x-slow'",
        "payout.operation payout x-slow: is missing, but x-slow is open",
    ),
    (
        "P5",
        "update payout.operation set next_try_time = null where operation_id = 'x-waiting'",
        "payout.operation payout x-waiting: is not scheduled and has no open dead letter",
    ),
    (
        "P5",
        "update payout.operation set operation_id = 'x' where operation_id = 'x-slow'",
        "payout.operation payout x: is scheduled, but has ended",
    ),
    (
        "E1",
        "delete from event.event where aggregate_id = 'payouts/x-paid' and aggregate_version = 3",
        "payout payouts/x-paid version 3: has no event",
    ),
    (
        "E1",
        (
            "delete from event.event where aggregate_id = 'paymentOrders/o-1-0' and "
            "aggregate_version = 2"
        ),
        "payment paymentOrders/o-1-0 version 2: has no event",
    ),
    (
        "S5",
        (
            "update payout.payout_destination set bank_account_token = 'mine' where "
            "payout_destination_id = 'd-paid'"
        ),
        "payout.payout_destination d-paid: does not match its seal",
    ),
    (
        "S5",
        (
            "update payment.order_history set transition_reason = 'GIVEN_UP' where "
            "payment_order_id = 'o-1-0' and version = 3"
        ),
        "payment.order_history o-1-0 3: does not match its seal",
    ),
    (
        "S5",
        "update event.event set body = 'x' where cursor = 3",
        "event.event 3: does not match its seal",
    ),
    (
        "S5",
        "insert into wallet.hold select 'h-2', seller_account, currency, amount, captured_amount, "
        "purpose, 'RELEASED', caller, null, create_time, create_time "
        "from wallet.hold where hold_id = 'h'",
        "wallet.hold h-2: has no seal",
    ),
    (
        "S5",
        (
            "update payment.attempt set failure_reason = 'EXPIRED', seal = null where operation_id "
            "= 'o-o-declined'"
        ),
        "payment.attempt charge o-o-declined 1: has no seal",
    ),
    (
        "P4",
        "delete from payment.attempt where operation_id = 'o-o-declined'",
        "payment.attempt charge o-o-declined: has 0 attempts, but its orders count 1",
    ),
    (
        "P4",
        "delete from wallet.wallet_policy",
        "wallet.wallet_policy of wallet.wallet s-slow EUR: the wallet does not match its policies",
    ),
    (
        "E1",
        "delete from payout.payout_destination where payout_destination_id = 'd-review'",
        "payout.payout_destination d-review: is missing, but event.event has its version",
    ),
    ("E1", "delete from payment.dead_letter", "is missing, but event.event has its version 1"),
    *[
        (
            invariant,
            (
                f"insert into {service}.alert values ('{service}-X-a-y-1', 'X', 'a/y', 1, '', "
                f"now(), null, {seal})"
            ),
            f"{service}.alert {service}-X-a-y-1: {finding}",
        )
        for service in (spec.name for spec in SERVICES if spec.publishes_events)
        for invariant, seal, finding in (
            ("E1", "null", "is at version 1, but event.event has 0 of its versions"),
            ("S5", "null", "has no seal"),
            ("S5", "'x'", "does not match its seal"),
        )
    ],
    (
        "S5",
        "insert into ledger.rejected_aggregate values ('transactions/main-1', 1, now(), 'x')",
        "ledger.rejected_aggregate transactions/main-1: has no seal",
    ),
    (
        "P4",
        "delete from wallet.hold where hold_id = 'payouts/x-declined'",
        "wallet.hold payouts/x-declined: is not what wallet.wallet_entry says",
    ),
    ("L6", "delete from ledger.head", "ledger.head: has no row of the book main"),
    ("L6", "delete from ledger.relayed", "ledger.relayed: has no row of the book main"),
    (
        "L6",
        "update ledger.tx set fingerprint = hash where sequence = 2",
        "ledger.tx main-2: its fingerprint is not that of its content",
    ),
    (
        "L6",
        "update ledger.tx set kind = 'NONSENSE' where sequence = 2",
        "ledger.tx main-2: is of the kind 'NONSENSE', which does not exist",
    ),
    *[
        (invariant, f"{sql.format('reconciliation.')}", finding)
        for invariant, sql, finding in (
            (
                "R1",
                "delete from {0}ledger_item where source_id = 'o-1-0'",
                "is missing, but the ledger has it",
            ),
            (
                "R1",
                "delete from {0}closed_item where match_number = 1",
                "reconciliation.ledger_item main 1 1: is in 0 of open_item and closed_item",
            ),
            *[
                (
                    "R1",
                    f"update {{0}}ledger_item set {column} where sequence = 1",
                    "reconciliation.ledger_item main 1 1: differs from the ledger",
                )
                for column in (
                    "account = 'psp/x/clearing'",
                    "amount = amount + 1",
                    "currency = 'USD'",
                    "kind = 'REFUND'",
                    "source_id = 'x'",
                    "external_reference = 'x'",
                    "effective_time = effective_time + interval '1 s'",
                    "line_type = 'REFUND'",
                )
            ],
            (
                "R1",
                "update {0}ledger_item set sequence = 99 where source_id = 'o-1-0'",
                "reconciliation.ledger_item main 99 1: is not in the ledger",
            ),
            *[
                (
                    "R1",
                    f"update {{0}}open_item set {column}",
                    "differs from reconciliation.ledger_item",
                )
                for column in (
                    "account = 'psp/x/clearing'",
                    "amount = amount + 1",
                    "currency = 'USD'",
                    "external_reference = 'x'",
                    "effective_time = effective_time + interval '1 s'",
                    "line_type = 'REFUND'",
                )
            ],
            *[
                (
                    "R1",
                    f"update {{0}}closed_item set {column} where match_number = 1",
                    "reconciliation.closed_item main 1 1: differs from reconciliation.ledger_item",
                )
                for column in (
                    "account = 'psp/x/clearing'",
                    "amount = amount + 1",
                    "currency = 'USD'",
                )
            ],
            (
                "R1",
                "insert into {0}open_item select book, sequence, entry_number, i.account, "
                "i.currency, i.amount, external_reference, effective_time, line_type "
                "from {0}ledger_item i join {0}closed_item c using (book, sequence, entry_number) "
                "where match_number = 1",
                "main 1 1: is in 2 of open_item and closed_item",
            ),
            (
                "R1",
                "update {0}ledger_position set sequence = 99",
                "reconciliation.ledger_position main: is at 99, but the book ends at 15",
            ),
            (
                "R1",
                "update {0}ledger_position set sequence = 1",
                "is beyond the position up to which the ledger was read",
            ),
            *[
                (
                    "R2",
                    f"update {{0}}statement_line set {column} where file_number = 1 and number = 1",
                    "reconciliation.statement_line 1 1: is not the line that its identity says",
                )
                for column in (
                    "line_type = 'REFUND'",
                    "amount = amount - 1, fee = fee + 1",
                    "currency = 'USD'",
                    "booking_date = '2026-01-01'",
                    "value_date = '2026-01-01'",
                    "charge_reference = 'x'",
                    "settlement_reference = 'x'",
                    "code = 'x'",
                    "text = 'x'",
                )
            ],
            (
                "R3",
                "update ledger.tx set source_id = 'x' where kind = 'PROVIDER_FEE'",
                "reconciliation.ledger_posting PROVIDER_FEE/f1-fees-EUR: is posted, but the ledger "
                "does not have it",
            ),
            (
                "R3",
                "update {0}ledger_posting set transaction_id = 'main-1' where kind = 'SETTLEMENT'",
                "reconciliation.ledger_posting SETTLEMENT/f1-settlement-5: is main-1",
            ),
            (
                "R3",
                "update {0}ledger_posting set external_reference = 'x' where kind = 'SETTLEMENT'",
                "reconciliation.ledger_posting SETTLEMENT/f1-settlement-5: differs from the ledger",
            ),
            (
                "R3",
                "update {0}ledger_posting set entries = jsonb_set(entries, '{{0,amount}}', '1') "
                "where kind = 'ADJUSTMENT'",
                "reconciliation.ledger_posting ADJUSTMENT/f1-2-2-EUR: differs from the ledger",
            ),
            (
                "P4",
                "delete from {0}statement_line where number = 3",
                "reconciliation.statement_line of reconciliation.statement 1 1: its lines are 4 of "
                "970, but it has 5 of 1470",
            ),
            (
                "P4",
                "delete from {0}statement_file where file_number = 1",
                "reconciliation.statement 1 1: has no file",
            ),
            (
                "P4",
                "delete from {0}statement_file where file_number = 1",
                "reconciliation.statement_line 1 1: has no file",
            ),
            (
                "P4",
                "delete from {0}statement where file_number = 1",
                "it has 0 statements of 1",
            ),
            (
                "P4",
                "update {0}statement_file set matched_count = matched_count - 1, "
                "repeated_count = repeated_count + 1 where file_number = 1",
                "its lines are 5, of which 3 matched and 0 repeated",
            ),
            (
                "P4",
                "update {0}statement_line set number = 99 where file_number = 1 and number = 1",
                "reconciliation.statement_line of 1: its lines are not numbered 1, 2, …",
            ),
            (
                "P4",
                "update {0}statement_line set break_id = 'x' where break_id = 'f1-3'",
                "reconciliation.statement_line 1 3: is in a break that does not exist",
            ),
            (
                "P4",
                "update {0}statement_line set occurrence = 2 where number = 1 and file_number = 1",
                "reconciliation.statement_line 2 1: repeats a line that no earlier file has",
            ),
            (
                "P4",
                "update {0}statement_line set occurrence = 2 where number = 1 and file_number = 1",
                "reconciliation.statement_line 1 1: is number 2 of equal lines, but there is no "
                "number 1",
            ),
            (
                "P4",
                "update {0}statement_line set match_number = 5 where match_rule = 'BOOKED'",
                "reconciliation.statement_line 1 4: is booked by itself, but matches with line 5",
            ),
            (
                "P4",
                "update {0}closed_item set break_id = 'x' where break_id = 'f1-2'",
                "is in a break that does not exist",
            ),
            (
                "P4",
                "delete from {0}ledger_posting where kind = 'SETTLEMENT'",
                "is missing, but the ledger has the posting",
            ),
            (
                "R1",
                "update {0}closed_item set match_number = 2 where match_number = 1",
                "reconciliation.closed_item of reconciliation.statement_line 1 1: lines have 1000, "
                "and entries 0",
            ),
            (
                "P4",
                "delete from {0}break_change where break_id = 'f1-2' and version = 1",
                "reconciliation.break_change of reconciliation.break f1-2: the break does not "
                "match its changes",
            ),
            (
                "P4",
                "update {0}break set rule_version = 2 where break_id = 'f1-3'",
                "reconciliation.break_rule of reconciliation.break f1-3: there is no version 2 of "
                "the rule CHARGE_UNKNOWN",
            ),
            (
                "P4",
                "update {0}break set difference = 501 where break_id = 'f1-3'",
                "reconciliation.break f1-3: its lines have 500 more than its entries, but it has "
                "501",
            ),
            (
                "R1",
                "update {0}clearing_balance set ledger_balance = ledger_balance + 1 "
                "where account = 'psp/sandbox/clearing' and currency = 'EUR'",
                "reconciliation.clearing_balance psp/sandbox/clearing EUR: is ",
            ),
            (
                "R1",
                "update {0}expected_sum set amount = amount + 1",
                "reconciliation.expected_sum psp/sandbox/clearing EUR ",
            ),
            (
                "R1",
                "update {0}break_sum set break_count = break_count + 1 "
                "where account = 'psp/sandbox/clearing' and break_class = 'INVESTIGATION'",
                "reconciliation.break_sum psp/sandbox/clearing EUR INVESTIGATION: has ",
            ),
            (
                "R1",
                "update {0}break set state = 'RESOLVED', resolution = 'ADJUST' "
                "where break_id = 'f1-3'",
                "reconciliation.clearing_balance psp/sandbox/clearing EUR: differs from the "
                "statements by -500, which nothing explains",
            ),
            (
                "E1",
                "delete from event.event where aggregate_id = 'breaks/f1-3'",
                "reconciliation.break f1-3: is at version 1, but event.event has 0 of its versions",
            ),
            (
                "E1",
                "delete from {0}break where break_id = 'f1-3'",
                "reconciliation.break f1-3: is missing, but event.event has its version 1",
            ),
            (
                "S5",
                "update {0}break set detail = 'x' where break_id = 'f1-3'",
                "reconciliation.break f1-3: does not match its seal",
            ),
        )
    ],
    ("E2", "delete from event.head", "event.head: has 0 rows, and must have one"),
    ("E2", "update event.head set cursor = cursor + 1", "event.head: is at"),
    ("E2", "delete from event.event where cursor = 5", "event.event 6: follows 4, with a gap"),
]


@pytest.fixture(scope="module")
def tampering(filled_database: DatabaseUrls) -> Iterator[Tampering]:
    """An administrator of the filled database, who undoes each edit."""
    opened_tampering = Tampering(filled_database.admin)
    try:
        yield opened_tampering
    finally:
        opened_tampering.close()


@pytest.mark.parametrize(
    ("invariant", "sql", "expected"),
    CORRUPTIONS,
    ids=[f"{n}-{p[0]}" for n, p in enumerate(CORRUPTIONS)],
)
def test_a_corrupted_row_is_named(
    tampering: Tampering, invariant: str, sql: str, expected: str
) -> None:
    """Rows that constraints would reject are written with triggers off; verify fails and names them
    under their invariant.
    """
    without = (
        "alter table payment.checkout drop constraint if exists checkout_check; "
        if "unpaid_orders" in sql
        else ""
    )
    report = tampering.report_after(without + sql)
    named = [
        (check.invariants.split(), wrong) for check in report.checks for wrong in check.failures
    ]
    assert any(expected in wrong and invariant in invariants for invariants, wrong in named), named
    assert not report.passed


def test_the_command_reports_violations_and_exits_1(filled_database: DatabaseUrls) -> None:
    """`tallystick verify --json`: exit 0 and "passed" on a consistent ledger, exit 1 and the row on
    a corrupted one.
    """
    environment = {
        "TALLYSTICK_DATABASE__URL": filled_database.admin,
        "TALLYSTICK_DATA_DIR": str(filled_database.passwords.path.parent),
    }
    good = run_command("verify", "--json", **environment)
    report = json.loads(good.stdout)
    assert (good.returncode, report["passed"]) == (0, True), good.stderr
    assert all(list(c) == ["name", "invariants", "rows", "failures"] for c in report["checks"])
    with psycopg.connect(filled_database.admin) as connection:
        connection.execute("set session_replication_role = replica")
        update_rows(connection, "update ledger.tx set description = 'x' where sequence = 4")
        connection.commit()
        bad = run_command("verify", **environment)
        update_rows(connection, "update ledger.tx set description = '' where sequence = 4")
    assert bad.returncode == 1
    assert "ledger.tx main-4: its hash is not that of its content" in bad.stdout


def test_verify_passes_on_a_running_platform(scratch_database: DatabaseUrls) -> None:
    """Every check passes while payments and payouts are created, because all reads use one
    snapshot.
    """
    stream_ended = threading.Event()
    with (
        serve_platform(
            scratch_database, Settings().replace(payout__destination_cooldown=0)
        ) as platform,
        platform.client() as client,
    ):

        def work(worker: int) -> int:
            for number in itertools.count():
                name = f"{worker}-{number}"
                order = new_order(f"o-{name}", "b", f"s-{number % 3}", "10.00", "EUR")
                client.create_payment(f"c-{name}", [order], credit_card_info="tok_visa")
                request = payout_service_pb2.CreatePayoutRequest(
                    payout_id=f"p-{name}",
                    seller_account=order.seller_account,
                    amount="1.00",
                    currency="EUR",
                )
                # The seller may have no funds, or no verified destination yet.
                with suppress(FailedPreconditionError):
                    client.payout.CreatePayout(request)
                if stream_ended.is_set():
                    return number
            raise AssertionError

        for number in range(3):
            client.payout.CreatePayoutDestination(
                payout_service_pb2.CreatePayoutDestinationRequest(
                    payout_destination_id=f"d-{number}",
                    seller_account=f"s-{number}",
                    currency="EUR",
                    bank_account_token="ba_ok",
                )
            )
        with ThreadPoolExecutor(8) as workers:
            futures = [workers.submit(work, worker) for worker in range(8)]
            try:
                reports = [verify(scratch_database) for _ in range(3)]
            finally:
                stream_ended.set()
            assert sum(future.result(60) for future in futures) > 0
    assert [
        wrong for report in reports for check in report.checks for wrong in check.failures
    ] == []
    assert reports[-1].checks[0].row_count > reports[0].checks[0].row_count, (
        "calls continued during the checks"
    )


def test_the_snapshot_lasts_as_long_as_the_checks(scratch_database: DatabaseUrls) -> None:
    """The snapshot persists however long the checks take, and however soon the database ends idle
    transactions.
    """
    with psycopg.connect(scratch_database.admin) as connection:
        name = connection.execute("select current_database()").fetchone()[0]  # type: ignore[index]
        connection.execute(
            f"alter role {role_names(name, 'event').reader} in database {name} set "
            "idle_in_transaction_session_timeout = '100ms'"
        )
    reader, end = Reader(scratch_database.reader, load_queries()), time.monotonic() + 0.3
    try:
        with reader.open_snapshot() as read:
            first_rows = read("event.head")
            assert len([next(first_rows)]) == 1
            while time.monotonic() < end:
                assert len(list(read("event.head"))) == 1
            assert not list(first_rows)
    finally:
        reader.close()


def _fake_reader(rows: int) -> Callable[..., Iterator[SimpleNamespace]]:
    """The rows that verify reads, with the given number in each stream that it merges."""
    order = {
        "status": "SUCCESS",
        "wallet_updated": True,
        "ledger_updated": True,
        "provider": "p",
        "amount": 10,
        "platform_fee": 0,
        "seller_amount": 10,
    }
    payout = {"state": "CREATED", "booked": False, "version": 1}
    transfer = {
        "provider": "p",
        "provider_reference": "r",
        "match": "EXACT",
        "returned_amount": None,
        "returned_currency": "",
        "is_return": False,
    }

    def make_row(n: int) -> SimpleNamespace:
        id_ = f"{n:09}"
        ids = dict.fromkeys(
            (
                "payment_order_id",
                "payout_id",
                "source_id",
                "wallet_source_id",
                "seller_account",
                "aggregate_id",
            ),
            id_,
        )
        other_fields = {
            "buyer_account": "b",
            "currency": "EUR",
            "balance": n,
            "block": 0,
            "versions": "1 2 3",
            "posting": id_,
            "waiting": True,
            "returned_amount": None,
        }
        amounts = {
            "payout_amount": 10,
            "payout_fee": 0,
            "payout_currency": "EUR",
            "captured_amount": 0,
            "events": 1,
            "name": id_,
        }
        statement = {
            "book": "main",
            "sequence": n,
            "entry_number": 1,
            "account": "psp/p/clearing",
            "kind": "PAY_IN",
            "line_type": "CHARGE",
            "external_reference": id_,
            "effective_time": None,
            "key": id_,
            "is_posted": True,
            "transaction_id": id_,
            "file_number": 1,
            "number": n,
            "fee": 0,
            "identity": UUID(int=n),
            **dict.fromkeys(
                (
                    "booking_date",
                    "value_date",
                    "reference",
                    "charge_reference",
                    "settlement_reference",
                    "code",
                    "text",
                ),
                "",
            ),
        }
        return SimpleNamespace(
            **{**statement, **transfer, **payout, **ids, **order, **other_fields, **amounts}
        )

    def read_rows(name: str, **_parameters: object) -> Iterator[SimpleNamespace]:
        is_merged = name.partition(".")[2] in {
            "orders",
            "pay_ins",
            "versions",
            "outbox",
            "last_versions",
            "balances",
            "sellers",
            "in_flight",
            "payouts",
            "payout_holds",
            "transfers",
            "money_movements",
            "delivered",
            "pending_pay_ins",
            "items",
            "clearing_entries",
            "lines",
            "postings",
            "statement_postings",
        }
        return (make_row(n) for n in range(rows if is_merged else 0))

    return read_rows


def _peak_memory(rows: int) -> int:
    """The peak memory of the checks, in a process that does nothing else."""
    run_checks(_fake_reader(10))  # objects that are created once
    tracemalloc.start()
    report = run_checks(_fake_reader(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(check.row_count for check in report.checks) > 5 * rows
    assert not [
        violation
        for check in report.checks
        for violation in check.failures
        if "stopped" in violation
    ]
    return peak


def test_memory_does_not_grow_with_rows() -> None:
    """Ten times as many rows in every stream that verify merges need no more memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        few, many = executor.map(_peak_memory, [100, 1000])
    assert many < few + 50_000
