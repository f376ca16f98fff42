"""Each invariant marked C, T or P: direct SQL under the service's own role violates it, and the
database rejects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import make_url

from tallystick import new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.payment.state import TRANSITIONS, PaymentTrigger
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import SCHEMAS
from tallystick_server.app.services import SERVICES
from tests.support.constraints import EMPTY_TEXT, ZERO_HASH, execute_as, insert_event
from tests.support.platform import eventually, fresh_database, serve_platform


@pytest.fixture(scope="module")
def filled_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database with a paid, a pending and a failed payment, an open hold and an ended one; no
    process serves it any more.
    """
    with fresh_database(admin_url, tmp_path_factory.mktemp("filled")) as databases:
        with (
            serve_platform(databases, Settings().replace(worker__monitor_interval=0.2)) as platform,
            platform.client() as client,
        ):
            client.create_payment(
                "paid",
                [new_order("o-paid", "b", "s", "10.00", "EUR", platform_fee="1.00")],
                credit_card_info="tok_visa",
            )
            client.create_payment(
                "pending",
                [new_order("o-pending", "b", "s", "10.00", "EUR")],
                credit_card_info="tok_pending",
            )
            client.create_payment(
                "failed",
                [new_order("o-failed", "b", "s", "10.00", "EUR")],
                credit_card_info="tok_decline",
            )
            client.create_payment(
                "other",
                [new_order("o-other", "b", "s", "10.00", "EUR")],
                credit_card_info="tok_other_amount",
            )
            client.create_payment(
                "rejected",
                [new_order("o-rejected", "b", "s", "10.00", "EUR")],
                credit_card_info="tok_rejected",
                wait_for=2,
            )
            assert eventually(lambda: count_dead_letters(databases) == 1)
            client.payment.RetryDeadLetter(
                operator_pb2.RetryDeadLetterRequest(
                    dead_letter_id="charges-o-o-rejected-1", reason="x"
                )
            )
            assert eventually(lambda: count_dead_letters(databases) == 2)
            assert eventually(
                lambda: client.payment.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
            )
            purpose = wallet_pb2.HOLD_PURPOSE_RESERVE
            holds = [
                wallet_service_pb2.NewHold(
                    hold_id=hold_id,
                    caller="t",
                    seller_account="s",
                    amount="1.00",
                    currency="EUR",
                    purpose=purpose,
                )
                for hold_id in ("h-1", "h-2")
            ]
            client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=holds))
            client.wallet.BatchReleaseHold(
                wallet_service_pb2.BatchReleaseHoldRequest(hold_ids=["h-2"])
            )
            delay = Duration(seconds=3600)
            client.wallet.SetWalletPolicy(
                wallet_service_pb2.SetWalletPolicyRequest(
                    seller_account="slow", currency="EUR", release_delay=delay
                )
            )
            pending_credit = wallet_service_pb2.Credit(
                source_id="PAY_IN/late",
                caller="t",
                seller_account="slow",
                amount="1.00",
                currency="EUR",
                pending=True,
            )
            client.wallet.BatchCredit(
                wallet_service_pb2.BatchCreditRequest(credits=[pending_credit])
            )
        yield databases


def count_dead_letters(databases: DatabaseUrls) -> int:
    """The number of unapplied charges, once the last one is booked too."""
    with psycopg.connect(databases.admin) as connection:
        row = connection.execute(
            "select count(*) from payment.dead_letter where (select bool_and(ledger_updated) from "
            "payment.unapplied_charge)"
        ).fetchone()
    return row[0] if row else 0


def acknowledge_charges(**values: str) -> str:
    """An update that acknowledges every unapplied charge."""
    columns = {
        "acknowledged_by": "'ann'",
        "acknowledge_reason": "'x'",
        "acknowledge_time": "clock()",
        "version": "3",
        **values,
    }
    return (
        "update unapplied_charge set "
        f"{', '.join(f'{name} = {value}' for name, value in columns.items())}"
    )


def entry_values(
    sequence: int, position: int, account: int, amount: int, currency: str = "EUR"
) -> str:
    number = f"(select entry_count + 1 from account where account_id = {account})"
    return f"('main', {sequence}, {position}, {account}, '{currency}', {amount}, 0, {number})"


def insert_transaction(
    sequence: int,
    source_id: str,
    n: int = 2,
    previous: str = "(select hash from head)",
    kind: str = "ADJUSTMENT",
) -> str:
    return (
        f"insert into tx select 'main', {sequence}, '{kind}', '{source_id}', 't', {ZERO_HASH}, "
        f"{n}, '', '', '', null, clock(), (select greatest(post_time, clock()) from head), "
        f"{previous}, {ZERO_HASH}"
    )


def insert_posting(sequence: str, entry_rows: list[str], **values: Any) -> str:
    """A transaction and its entries in one statement, as the service writes them."""
    transaction = insert_transaction(sequence, "x", **values)  # type: ignore[arg-type]
    return f"with t as ({transaction}) insert into entry values {', '.join(entry_rows)}"


DEAD_LETTER = (
    "dead_letter (dead_letter_id, kind, operation_id, number, cause, detail, retry_count, state, "
    "operator, reason, evidence, create_time, end_time, provider)"
)
INSERT_REPORT = "insert into conflicting_report values ('c-1', 1, 'Succeeded ref 7 EUR', clock())"
ACKNOWLEDGE_REPORT = (
    "update conflicting_report set acknowledged_by = 'ann', acknowledge_reason = 'x', "
    "acknowledge_time = clock()"
)
# The ledger ends at 2 here, and accounts 1 to 5 are in EUR.
BALANCED_ENTRIES = [entry_values(3, 1, 1, -5), entry_values(3, 2, 2, 5)]
CASES = [
    # ledger
    (
        "L1 entries that do not sum to zero",
        "ledger",
        insert_posting("3", [entry_values(3, 1, 1, -5), entry_values(3, 2, 2, 6)]),
        "P0001",
    ),
    ("L1 a single entry", "ledger", insert_posting("3", [entry_values(3, 1, 1, -5)], n=1), "23514"),
    ("L1 fewer entries than said", "ledger", insert_posting("3", BALANCED_ENTRIES, n=3), "P0001"),
    ("L1 a transaction without entries", "ledger", insert_transaction(3, "x"), "P0001"),
    (
        "L1 entries without a transaction",
        "ledger",
        f"insert into entry values {entry_values(9, 1, 1, -5)}, {entry_values(9, 2, 2, 5)}",
        "P0001",
    ),
    (
        "L1 balanced entries added to an old transaction",
        "ledger",
        f"insert into entry values {entry_values(1, 8, 1, -5)}, {entry_values(1, 9, 2, 5)}",
        "P0001",
    ),
    (
        "L3 an entry in another currency than its account",
        "ledger",
        insert_posting("3", [entry_values(3, 1, 1, -5, "USD"), entry_values(3, 2, 2, 5, "USD")]),
        "P0001",
    ),
    ("L4 an update of an entry", "ledger", "update entry set amount = 1", "42501"),
    ("L4 a delete of a transaction", "ledger", "delete from tx", "42501"),
    ("L4 a truncate", "ledger", "truncate entry", "42501"),
    ("L4 an update of a balance", "ledger", "update account set balance = 1", "42501"),
    ("L4 an update of the head", "ledger", "update head set sequence = 7", "42501"),
    (
        "L5 a reversal of nothing",
        "ledger",
        insert_posting("3", BALANCED_ENTRIES).replace("'', null, clock()", "'', 77, clock()"),
        "23503",
    ),
    (
        "L6 a gap",
        "ledger",
        insert_posting("4", [entry_values(4, 1, 1, -5), entry_values(4, 2, 2, 5)]),
        "P0001",
    ),
    (
        "L6 a wrong previous hash",
        "ledger",
        insert_posting("3", BALANCED_ENTRIES, previous=ZERO_HASH),
        "P0001",
    ),
    (
        "L7 an account opened with a balance",
        "ledger",
        (
            "insert into account (account, currency, balance, entry_count, create_time) values "
            "('x/1', 'EUR', 5, 1, clock())"
        ),
        "P0001",
    ),
    (
        "L7 an entry that is not numbered as its account counts",
        "ledger",
        insert_posting("3", BALANCED_ENTRIES).replace("entry_count + 1", "entry_count + 2"),
        "P0001",
    ),
    (
        "L8 the same fact twice",
        "ledger",
        insert_posting("3", BALANCED_ENTRIES).replace("'ADJUSTMENT', 'x'", "'PAY_IN', 'o-paid'"),
        "23505",
    ),
    # wallet
    (
        "W2 more available than the entries say",
        "wallet",
        "update wallet set available = available + 5, balance = balance + 5",
        "P0001",
    ),
    ("W2 a part below zero", "wallet", "update wallet set pending = -1", "23514"),
    (
        "W2 owed and available",
        "wallet",
        "update wallet set owed = 1, balance = balance - 1",
        "23514",
    ),
    (
        "W2 a balance that is not its parts",
        "wallet",
        "update wallet set balance = balance + 1",
        "23514",
    ),
    ("W2 not a number", "wallet", "update wallet set available = 'NaN'", "23514"),
    (
        "W3 a hold that ends twice",
        "wallet",
        "update hold set state = 'EXPIRED', end_time = clock() where hold_id = 'h-2'",
        "P0001",
    ),
    (
        "W3 a hold that ends without its wallet",
        "wallet",
        "update hold set state = 'RELEASED', end_time = clock() where hold_id = 'h-1'",
        "P0001",
    ),
    (
        "W3 a hold placed without its wallet",
        "wallet",
        (
            "insert into hold values ('h-3', 's', 'EUR', 1, 0, 'RESERVE', 'OPEN', 't', null, "
            "clock(), null)"
        ),
        "P0001",
    ),
    (
        "W3 a payout's hold that expires",
        "wallet",
        (
            "insert into hold values ('h-3', 's', 'EUR', 1, 0, 'PAYOUT', 'OPEN', 't', clock(), "
            "clock(), null)"
        ),
        "23514",
    ),
    (
        "W2 a pending credit without its entry",
        "wallet",
        "insert into pending_credit values ('PAY_IN/x', 's', 'EUR', 5, clock())",
        "P0001",
    ),
    (
        "W2 a pending credit that goes without its release",
        "wallet",
        "delete from pending_credit where source_id = 'PAY_IN/late'",
        "P0001",
    ),
    ("W2 a pending credit that changes", "wallet", "update pending_credit set amount = 1", "42501"),
    (
        "P4 an entry without its wallet",
        "wallet",
        (
            "insert into wallet_entry values ('s', 'EUR', 99, 'CREDIT', 'PAY_IN/x', 't', "
            f"{ZERO_HASH}, 5, 0, 0, 0, 0, '', clock())"
        ),
        "P0001",
    ),
    (
        "P7 a second credit for an order",
        "wallet",
        (
            "insert into wallet_entry values ('s', 'EUR', 99, 'CREDIT', 'PAY_IN/o-paid', 't', "
            f"{ZERO_HASH}, 5, 0, 0, 0, 0, '', clock())"
        ),
        "23505",
    ),
    (
        "P4 a gap between a wallet's entries",
        "wallet",
        "with w as (update wallet set version = 99 where seller_account = 's' returning *), x as "
        f"({insert_event('wallets/s/EUR', 99)}) "
        f"insert into wallet_entry select 's', 'EUR', 99, 'DEBIT', 'x/gap', 't', {ZERO_HASH}, 5, "
        "pending, available, held, owed, '', clock() from w",
        "P0001",
    ),
    (
        "P4 a policy without its wallet",
        "wallet",
        (
            f"with x as ({insert_event('walletPolicies/s/EUR', 99)}) insert into wallet_policy "
            "values ('s', 'EUR', 99, true, 0, 't', '', clock())"
        ),
        "P0001",
    ),
    (
        "P4 another policy without its row",
        "wallet",
        "update wallet set frozen = true, policy_version = policy_version + 1",
        "P0001",
    ),
    (
        "P4 a wallet's version without an entry",
        "wallet",
        "update wallet set version = version + 1",
        "P0001",
    ),
    ("E1 an event of no change", "wallet", insert_event("wallets/s/EUR", 999), "P0001"),
    (
        "E1 an entry without an event",
        "wallet",
        "with w as (update wallet set version = version + 1, available = available + 5, balance = "
        "balance + 5 where seller_account = 's' returning *) "
        "insert into wallet_entry select 's', 'EUR', version, 'CREDIT', 'PAY_IN/x', 't', "
        f"{ZERO_HASH}, 5, pending, available, held, owed, '', clock() from w",
        "P0001",
    ),
    ("L4 an update of a wallet's entries", "wallet", "update wallet_entry set amount = 1", "42501"),
    # payment
    (
        "P1 a second attempt besides an open one",
        "payment",
        "insert into attempt (kind, operation_id, attempt_number, provider, provider_key, amount, "
        "currency, outcome, provider_reference, failure_reason, decline_code, start_time, "
        "checkout_id) select kind, operation_id, attempt_number + 1, provider, provider_key, "
        "amount, currency, '', '', '', '', clock(), checkout_id from attempt where operation_id = "
        "'o-o-pending'",
        "23505",
    ),
    (
        "P1 a second attempt besides one that succeeded",
        "payment",
        "insert into attempt (kind, operation_id, attempt_number, provider, provider_key, amount, "
        "currency, outcome, provider_reference, failure_reason, decline_code, start_time, "
        "checkout_id) select kind, operation_id, attempt_number + 1, provider, provider_key, "
        "amount, currency, '', '', '', '', clock(), checkout_id from attempt where operation_id = "
        "'o-o-paid'",
        "23505",
    ),
    (
        "P1 an attempt for another sum",
        "payment",
        "insert into attempt (kind, operation_id, attempt_number, provider, provider_key, amount, "
        "currency, outcome, provider_reference, failure_reason, decline_code, start_time, "
        "end_time, checkout_id) values ('charge', 'o-o-pending', 2, 'sandbox', 'k', 7, 'EUR', "
        "'DECLINED', '', '', '', clock(), clock(), 'pending')",
        "P0001",
    ),
    ("a failed try that is deleted", "payment", "delete from failed_try", "42501"),
    (
        "a failed try that ended before it began",
        "payment",
        "update failed_try set last_time = create_time - interval '1 second'",
        "23514",
    ),
    ("a failed try that never was", "payment", "update failed_try set repeat_count = 0", "23514"),
    (
        "a failed try without a reason",
        "payment",
        "update failed_try set retry_reason = ''",
        "23514",
    ),
    (
        "a request id of any length",
        "payment",
        "update attempt set provider_request_id = repeat('x', 256) where operation_id = "
        "'o-o-pending'",
        "23514",
    ),
    (
        "P2 SUCCESS without a charge",
        "payment",
        (
            "update payment_order set status = 'SUCCESS', provider_reference = '', version = "
            "version + 1 where payment_order_id = 'o-pending'"
        ),
        "23514",
    ),
    (
        "P3 SUCCESS that fails",
        "payment",
        (
            "update payment_order set status = 'FAILED', failure_reason = 'EXPIRED', version = "
            "version + 1 where payment_order_id = 'o-paid'"
        ),
        "P0001",
    ),
    (
        "P3 FAILED that succeeds",
        "payment",
        (
            "update payment_order set status = 'SUCCESS', failure_reason = '', version = version + "
            "1 where payment_order_id = 'o-failed'"
        ),
        "P0001",
    ),
    (
        "P3 a pending order that waits for the same",
        "payment",
        "update payment_order set version = version + 1 where payment_order_id = 'o-pending'",
        "P0001",
    ),
    (
        "P3 a review with a time to end",
        "payment",
        (
            "update payment_order set resolve_by_time = clock(), version = version + 1 where "
            "payment_order_id = 'o-pending'"
        ),
        "23514",
    ),
    (
        "P3 a delivery of an order that is not booked",
        "payment",
        (
            "update payment_order set delivery_confirmed_time = clock(), version = version + 1 "
            "where payment_order_id = 'o-pending'"
        ),
        "P0001",
    ),
    (
        "P4 a delivery without history",
        "payment",
        (
            "update payment_order set delivery_confirmed_time = clock(), version = version + 1 "
            "where payment_order_id = 'o-paid'"
        ),
        "P0001",
    ),
    ("P3 a deleted order", "payment", "delete from payment_order", "42501"),
    (
        "P4 a version that is skipped",
        "payment",
        (
            "update payment_order set status = 'FAILED', failure_reason = 'EXPIRED', version = "
            "version + 2 where payment_order_id = 'o-pending'"
        ),
        "P0001",
    ),
    (
        "P4 a move without history",
        "payment",
        (
            "update payment_order set status = 'FAILED', failure_reason = 'EXPIRED', "
            "pending_reason = '', resolve_by_time = null, version = version + 1 "
            "where payment_order_id = 'o-pending'"
        ),
        "P0001",
    ),
    (
        "P4 history without a move",
        "payment",
        (
            "insert into order_history values ('o-pending', 4, 'PENDING', 'FAILED', 'x', false, "
            "false, false, 0, 0, 0, '', '', 'EXPIRED', '', '', 1, null, clock())"
        ),
        "P0001",
    ),
    (
        "L4 an update of history",
        "payment",
        "update order_history set transition_reason = 'x'",
        "42501",
    ),
    (
        "P6 fewer unpaid orders than there are",
        "payment",
        "update checkout set unpaid_orders = -1 where checkout_id = 'pending'",
        "23514",
    ),
    (
        "P3 a payment that opens again",
        "payment",
        f"with x as ({insert_event('payments/paid', 1)}) update checkout set open_orders = 1, "
        "unpaid_orders = 1, version = 1, done_time = null where checkout_id = 'paid'",
        "P0001",
    ),
    (
        "P3 a payment that failed and opens again",
        "payment",
        (
            "update checkout set open_orders = 1, version = 1, done_time = null where checkout_id "
            "= 'failed'"
        ),
        "P0001",
    ),
    (
        "P4 a payment that ended at another time",
        "payment",
        "update checkout set done_time = clock() where checkout_id = 'paid'",
        "P0001",
    ),
    (
        "P6 a payment that is paid without its order",
        "payment",
        f"with x as ({insert_event('payments/pending', 2)}) update checkout set open_orders = 0, "
        "unpaid_orders = 0, version = 2, done_time = clock() where checkout_id = 'pending'",
        "P0001",
    ),
    (
        "P6 a payment that has failed while its order is open",
        "payment",
        f"with x as ({insert_event('payments/pending', 2)}) update checkout set open_orders = 0, "
        "version = 2, done_time = clock() where checkout_id = 'pending'",
        "P0001",
    ),
    (
        "P6 is_payment_done by hand",
        "payment",
        "update checkout set is_payment_done = true",
        "428C9",
    ),
    (
        "P6 a final checkout without its event",
        "payment",
        (
            "update checkout set open_orders = 0, version = 2, done_time = clock() where "
            "checkout_id = 'pending'"
        ),
        "P0001",
    ),
    (
        "P7 a flag on an order that is not SUCCESS",
        "payment",
        (
            "update payment_order set wallet_updated = true, version = version + 1 where "
            "payment_order_id = 'o-pending'"
        ),
        "P0001",
    ),
    *(
        (
            f"P8 {title}",
            "payment",
            f"update payment_order set {change}, version = version + 1 where {condition}",
            sqlstate,
        )
        for title, change, condition, sqlstate in (
            (
                "SUCCESS without its money captured",
                "status = 'SUCCESS', pending_reason = '', resolve_by_time = null",
                "payment_order_id = 'o-pending'",
                "23514",
            ),
            (
                "a pending order that is captured",
                "captured_amount = amount, next_action_url = 'x'",
                "payment_order_id = 'o-pending'",
                "23514",
            ),
            (
                "more captured than the amount",
                "captured_amount = amount + 1, delivery_confirmed_time = clock()",
                "payment_order_id = 'o-paid'",
                "23514",
            ),
            ("a refund", "refunded_amount = 1", "payment_order_id = 'o-paid'", "42501"),
            ("a dispute", "disputed_amount = 1", "payment_order_id = 'o-paid'", "42501"),
        )
    ),
    (
        "P9 a share that is not amount less fee",
        "payment",
        "update payment_order set platform_fee = 5",
        "42501",
    ),
    ("E1 an event of no change", "payment", insert_event("paymentOrders/o-paid", 999), "P0001"),
    (
        "E1 a change that is named without an event",
        "payment",
        insert_event("paymentOrders/o-paid", 1, "null"),
        "P0001",
    ),
    (
        "E1 a change without an event",
        "payment",
        insert_event("paymentOrders/o-paid", 1, "''"),
        "23514",
    ),
    (
        "E1 a change with a second event",
        "payment",
        f"{insert_event('paymentOrders/o-paid', 1)}; update outbox set request = null",
        "P0001",
    ),
    (
        "E1 an event that is deleted",
        "payment",
        f"{insert_event('paymentOrders/o-paid', 1)}; delete from outbox",
        "P0001",
    ),
    (
        "P5 a second open dead letter",
        "payment",
        (
            f"with x as ({insert_event('deadLetters/charges-o-o-rejected-3', 1)}) insert into "
            f"{DEAD_LETTER} values ('charges-o-o-rejected-3', 'charge', 'o-o-rejected', 3, 'X', "
            "'', 1, 'OPEN', '', '', '', clock(), null, 'sandbox')"
        ),
        "23505",
    ),
    (
        "P5 a dead letter that is closed without evidence",
        "payment",
        (
            "update dead_letter set state = 'CLOSED', operator = 'ann', reason = 'x', end_time = "
            "clock() where state = 'OPEN'"
        ),
        "23514",
    ),
    (
        "P5 a dead letter that ends twice",
        "payment",
        "update dead_letter set state = 'RESOLVED' where state = 'RETRIED'",
        "P0001",
    ),
    ("P5 a dead letter that is deleted", "payment", "delete from dead_letter", "42501"),
    (
        "E1 a dead letter that ends without its event",
        "payment",
        "update dead_letter set state = 'RESOLVED', end_time = clock() where state = 'OPEN'",
        "P0001",
    ),
    (
        "E1 a dead letter without an event",
        "payment",
        (
            f"insert into {DEAD_LETTER} values ('charges-o-x-1', 'charge', 'o-x', 1, 'X', '', 1, "
            "'OPEN', '', '', '', clock(), null, 'sandbox')"
        ),
        "P0001",
    ),
    (
        "E1 an event of no dead letter",
        "payment",
        insert_event("deadLetters/charges-o-x-1", 1),
        "P0001",
    ),
    (
        "P2 a charge that is unapplied twice",
        "payment",
        f"with x as ({insert_event('unappliedCharges/u-2', 1)}) insert into unapplied_charge "
        "select 'u-2', charge_id, checkout_id, caller, '', provider, provider_reference, 1, "
        "'EUR', 'LATE', false, 1, clock(), clock() from unapplied_charge",
        "23505",
    ),
    (
        "a report that is acknowledged without a reason",
        "payment",
        f"{INSERT_REPORT}; " + ACKNOWLEDGE_REPORT.replace("'x'", "''"),
        "23514",
    ),
    (
        "a report that is acknowledged without a time",
        "payment",
        f"{INSERT_REPORT}; {ACKNOWLEDGE_REPORT.replace('clock()', 'null')}",
        "23514",
    ),
    (
        "a report that is acknowledged twice",
        "payment",
        f"{INSERT_REPORT}; {ACKNOWLEDGE_REPORT}; {ACKNOWLEDGE_REPORT}",
        "P0001",
    ),
    (
        "a report that is open twice",
        "payment",
        f"{INSERT_REPORT}; {INSERT_REPORT.replace('1, ', '2, ')}",
        "23505",
    ),
    (
        "a report that is changed",
        "payment",
        f"{INSERT_REPORT}; update conflicting_report set report = 'x'",
        "42501",
    ),
    (
        "a report that is deleted",
        "payment",
        f"{INSERT_REPORT}; delete from conflicting_report",
        "42501",
    ),
    (
        "P2 a booking that is taken back",
        "payment",
        "update unapplied_charge set ledger_updated = false, version = 1",
        "P0001",
    ),
    (
        "P2 an acknowledgement without a reason",
        "payment",
        (
            f"with x as ({insert_event('unappliedCharges/u-2', 3)}) "
            f"{acknowledge_charges(acknowledge_reason=EMPTY_TEXT)}"
        ),
        "23514",
    ),
    (
        "P2 an acknowledgement without a time",
        "payment",
        (
            f"with x as ({insert_event('unappliedCharges/u-2', 3)}) "
            f"{acknowledge_charges(acknowledge_time='null')}"
        ),
        "23514",
    ),
    (
        "P2 an acknowledgement without a name",
        "payment",
        (
            f"with x as ({insert_event('unappliedCharges/u-2', 3)}) "
            f"{acknowledge_charges(acknowledged_by=EMPTY_TEXT)}"
        ),
        "23514",
    ),
    (
        "P2 an acknowledgement that is no version",
        "payment",
        acknowledge_charges(version="2"),
        "P0001",
    ),
    (
        "P2 an acknowledgement before it is booked",
        "payment",
        f"with x as ({insert_event('unappliedCharges/u-2', 3)}) insert into unapplied_charge "
        "select 'u-2', charge_id, checkout_id, caller, '', provider, 'ref', 1, 'EUR', "
        "'LATE', false, 3, clock(), clock(), 'ann', 'x', clock() from unapplied_charge",
        "23514",
    ),
    (
        "P2 an acknowledgement that is changed",
        "payment",
        "with x as (insert into outbox (aggregate_ids, versions, request) select "
        "array_agg('unappliedCharges/' || unapplied_charge_id), array_agg(3), 'x' "
        f"from unapplied_charge) {acknowledge_charges()}; {acknowledge_charges()}",
        "P0001",
    ),
    ("E1 an acknowledgement without an event", "payment", acknowledge_charges(), "P0001"),
    (
        "E1 an unapplied charge without an event",
        "payment",
        "insert into unapplied_charge select 'u-2', charge_id, checkout_id, caller, '', provider, "
        "'ref', 1, 'EUR', 'LATE', false, 1, clock(), clock() from unapplied_charge",
        "P0001",
    ),
    (
        "E1 an event of no unapplied charge",
        "payment",
        insert_event("unappliedCharges/u-2", 1),
        "P0001",
    ),
    (
        "E1 a dead letter whose id may be another service's",
        "payment",
        (
            f"insert into {DEAD_LETTER} values ('o-x-1', 'charge', 'o-x', 1, 'X', '', 1, 'OPEN', "
            "'', '', '', clock(), null, 'sandbox')"
        ),
        "23514",
    ),
    (
        "E1 an alert that ends without its event",
        "payment",
        "update alert set end_time = clock() where kind = 'UNAPPLIED_CHARGE'",
        "P0001",
    ),
    # alerts
    *[
        (f"{what} of the {service}", service, statement, code)
        for service in (spec.name for spec in SERVICES if spec.publishes_events)
        for what, statement, code in (
            (
                "E1 an alert without an event",
                f"insert into alert values ('{service}-X-a-y-1', 'X', 'a/y', 1, '', clock())",
                "P0001",
            ),
            (
                "E1 an alert whose id may be another service's",
                "insert into alert values ('X-a-y-1', 'X', 'a/y', 1, '', clock())",
                "23514",
            ),
            ("E1 an event of no alert", insert_event(f"alerts/{service}-X-a-y-1", 1), "P0001"),
            ("P5 an alert that is deleted", "delete from alert", "42501"),
        )
    ],
    # sellers
    (
        "S3 a seller of two owners",
        "wallet",
        "insert into seller select seller_account, 'other', 1, clock() from seller limit 1",
        "23505",
    ),
    (
        "S3 a seller that moves without an assignment",
        "wallet",
        "update seller set owner = 'other', version = version + 1",
        "P0001",
    ),
    ("S3 a seller that belongs to nobody any more", "wallet", "delete from seller", "42501"),
    (
        "S3 an assignment that its requester approves",
        "wallet",
        (
            "insert into seller_assignment values ('a', 's', 'o', '', 'APPROVED', 'x', 'r', 'x', "
            "'r', 1, clock(), clock())"
        ),
        "23514",
    ),
    # event
    ("E2 an event that is changed", "event", "update event set body = ''", "42501"),
    (
        "E2 an event that is stored twice",
        "event",
        (
            "insert into event select 10000, aggregate_id, aggregate_version, type, owner, "
            "clock(), body from event where cursor = 1"
        ),
        "23505",
    ),
]


@pytest.mark.parametrize(
    ("service", "sql", "sqlstate"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_database_rejects_invalid_rows(
    filled_database: DatabaseUrls, service: str, sql: str, sqlstate: str
) -> None:
    """The row that would violate the invariant is rejected, by the intended constraint, trigger or
    privilege.
    """
    assert execute_as(filled_database, service, sql) == sqlstate


@pytest.mark.parametrize(
    ("service", "table"),
    [
        ("ledger", "tx"),
        ("ledger", "entry"),
        ("wallet", "wallet_entry"),
        ("payment", "order_history"),
        ("payment", "hosted_page"),
        ("event", "event"),
    ],
)
@pytest.mark.parametrize("sql", ["update {} set {} = {}", "delete from {}", "truncate {} cascade"])
def test_triggers_reject_changes_without_privileges(
    filled_database: DatabaseUrls, service: str, table: str, sql: str
) -> None:
    """L4: with the privilege off (as administrator) the trigger still rejects the change."""
    column = {
        "tx": "kind",
        "entry": "amount",
        "wallet_entry": "amount",
        "order_history": "transition_reason",
        "hosted_page": "success_url",
        "event": "type",
    }[table]
    assert (
        execute_as(
            filled_database, service, sql.format(f"{service}.{table}", column, column), role="owner"
        )
        == "P0001"
    )


@pytest.mark.parametrize(
    ("without", "change", "error"),
    [
        ("privilege", "refunded_amount = 1", "cannot go from"),
        ("privilege", "disputed_amount = 1", "cannot go from"),
        ("trigger", "refunded_amount = amount, disputed_amount = 1", "refunds_are_captured"),
        ("trigger", "refunded_amount = -1", "refunds_are_captured"),
        ("trigger", "refunded_amount = 400, disputed_amount = 600", ""),
    ],
)
def test_refunds_and_disputes_are_covered_by_what_was_captured(
    filled_database: DatabaseUrls, without: str, change: str, error: str
) -> None:
    """P8: with the privilege off the trigger rejects a refund, because no transition makes one.
    With the trigger off too, the constraint rejects more than what was captured, and nothing less.
    """
    statement = (
        f"update payment.payment_order set {change}, version = version + 1, "
        "delivery_confirmed_time = clock_timestamp() "
        "where payment_order_id = 'o-paid'"
    )
    with psycopg.connect(filled_database.admin) as connection:
        if without == "trigger":
            connection.execute("alter table payment.payment_order disable trigger user")
        with pytest.raises(psycopg.Error, match=error) if error else nullcontext():
            connection.execute(statement)
        connection.rollback()


@pytest.mark.parametrize("service", SCHEMAS)
def test_a_role_reaches_its_own_schema_only(filled_database: DatabaseUrls, service: str) -> None:
    """A service's role cannot see another service's tables, create tables, or become its owner."""
    for other_schema in SCHEMAS:
        expected = "" if other_schema == service else "42501"
        select = f"select from {other_schema}.commit_marker"
        assert execute_as(filled_database, service, select) == expected
    assert execute_as(filled_database, service, "create table x (a int)") in {"42501", "3F000"}
    assert execute_as(filled_database, service, "create temporary table x (a int)") == "42501"
    assert (
        execute_as(filled_database, service, "alter table commit_marker disable trigger all")
        == "42501"
    )
    assert (
        execute_as(
            filled_database, service, f'set role "{filled_database.database_name}_{service}_owner"'
        )
        == "42501"
    )


@pytest.mark.parametrize("service", SCHEMAS)
def test_a_role_reaches_nothing_of_the_cluster(filled_database: DatabaseUrls, service: str) -> None:
    """A service's role cannot connect to the default databases of the cluster, store large objects,
    or take migrate's lock.
    """
    url = make_url(filled_database.service(service))
    for other_database in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(url.set(database=other_database).render_as_string(hide_password=False))
    for call in (
        "lo_create(0)",
        "lo_from_bytea(0, '')",
        "lo_unlink(1)",
        "pg_advisory_lock(31249)",
        "pg_try_advisory_xact_lock(1)",
    ):
        assert execute_as(filled_database, service, f"select {call}") == "42501"


@pytest.mark.parametrize("service", SCHEMAS)
def test_the_reader_only_reads(filled_database: DatabaseUrls, service: str) -> None:
    """verify's role can read its service's tables and change nothing."""
    with psycopg.connect(filled_database.reader(service)) as connection:
        connection.execute("select from commit_marker")
        with pytest.raises(
            (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege)
        ):
            connection.execute("delete from commit_marker")


@pytest.mark.parametrize("service", SCHEMAS)
def test_the_readers_idle_transaction_is_not_ended(
    filled_database: DatabaseUrls, service: str
) -> None:
    """verify merges streams: a stream that waits for another, for as long as a statement may take,
    is not cut off.
    """
    with psycopg.connect(filled_database.reader(service)) as connection:
        rest, statement = (
            connection.execute(f"show {name}").fetchone()
            for name in ("idle_in_transaction_session_timeout", "statement_timeout")
        )
    assert rest == statement == ("10min",)


@pytest.mark.parametrize("service", SCHEMAS)
def test_just_in_time_compilation_is_off(filled_database: DatabaseUrls, service: str) -> None:
    """Just-in-time compilation is off, whatever the server's default: with disabled scans the cost
    estimates would trigger it for every scan.
    """
    with psycopg.connect(filled_database.service(service)) as connection:
        assert connection.execute("show jit").fetchone() == ("off",)


def test_transitions_in_the_database_equal_the_domain_table(filled_database: DatabaseUrls) -> None:
    """P3: the trigger's condition lists exactly the transitions of core's table."""
    with psycopg.connect(filled_database.admin) as connection:
        row = connection.execute(
            "select pg_get_triggerdef(oid) from pg_trigger where tgname = 'follows_transitions' "
            "and tgrelid = 'payment.payment_order'::regclass"
        ).fetchone()
    assert row is not None
    database_transitions = set(
        re.findall(r"old\.status = '(\w+)'::text\) AND \(new\.status = '(\w+)'::text", row[0])
    )
    assert database_transitions == {
        (str(before), str(after))
        for (before, why), after in TRANSITIONS.items()
        if before != after
        or why in (PaymentTrigger.BOOKED, PaymentTrigger.PENDING, PaymentTrigger.FALLBACK)
    }


_NEW_LINK = (
    "insert into status_link (checkout_id, token_hash, status_url, create_time, expire_time) "
    "values ('pending', sha256('a'), 'https://pay.example/p/a', clock(), "
    "clock() + interval '1 day'); "
)
_NEW_PAGE = (
    "insert into hosted_page (checkout_id, success_url, cancel_url, locale, return_url) values "
    "('pending', 'https://a', 'https://b', '', 'https://c')"
)


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        (_NEW_PAGE.replace("'pending'", "'nobody'"), "23503"),
        (_NEW_PAGE.replace("'https://a'", "''"), "23514"),
        (_NEW_PAGE.replace("'https://b'", "''"), "23514"),
        (_NEW_PAGE.replace("'https://c'", "''"), "23514"),
        (f"{_NEW_PAGE}; {_NEW_PAGE}", "23505"),
        (f"{_NEW_PAGE}; update hosted_page set success_url = 'https://evil.example'", "42501"),
        ("delete from hosted_page", "42501"),
        (_NEW_LINK.replace("'pending'", "'nobody'"), "23503"),
        (_NEW_LINK.replace("sha256('a')", "'a'"), "23514"),
        (_NEW_LINK.replace("'https://pay.example/p/a'", "''"), "23514"),
        (_NEW_LINK.replace("interval '1 day'", "interval '-1 second'"), "23514"),
        (_NEW_LINK + _NEW_LINK.replace("'pending'", "'paid'"), "23505"),
        (f"{_NEW_LINK} update status_link set revoke_time = create_time - interval '1 s'", "23514"),
        (f"{_NEW_LINK} update status_link set token_hash = sha256('b')", "P0001"),
        (
            f"{_NEW_LINK} update status_link set revoke_time = clock(); "
            "update status_link set revoke_time = clock()",
            "P0001",
        ),
        ("delete from status_link", "42501"),
    ],
)
def test_the_database_rejects_invalid_pages_and_links(
    filled_database: DatabaseUrls, sql: str, sqlstate: str
) -> None:
    """A page is stored once and never changes. The link to a status page is replaced only after it
    has ended, and ends once.
    """
    assert execute_as(filled_database, "payment", sql) == sqlstate


def test_changes_by_the_administrator_keep_the_seal(filled_database: DatabaseUrls) -> None:
    """A change by the administrator, with all triggers on, keeps the seal that the service
    wrote.
    """
    with psycopg.connect(filled_database.admin) as connection:
        row = connection.execute(
            "with b as (select seal from payment.attempt where operation_id = 'o-o-failed') "
            "update payment.attempt a set failure_reason = 'EXPIRED' from b where a.operation_id = "
            "'o-o-failed' returning a.seal = b.seal, b.seal is not null"
        ).fetchone()
        connection.rollback()
    assert row == (True, True)
