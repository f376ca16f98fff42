"""A small database with rows in every table of every service."""

from __future__ import annotations

import time

import psycopg
from google.protobuf.duration_pb2 import Duration

from tallystick import Client, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2, reconciliation_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import SERVICES
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.fakes.payment_provider import PageProvider
from tests.support.charges import sandbox_database, serve_sandboxes
from tests.support.payouts import wait_until_booked
from tests.support.platform import eventually
from tests.support.reconciliation import charge, reconcile, statement

# Waiting operations keep waiting, so that the database does not change while it is edited.
_RETRY = {
    ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 5),
    ("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None),
}
_SETTINGS = Settings().replace(
    retry=_RETRY,
    payout__approval_threshold={"EUR": 400},
    payout__destination_cooldown=0,
    payment__alert_after={"PENDING": 0},
    reconciliation__approval_threshold={"EUR": 4000},
    payment__return_origins={"dev": frozenset({"https://shop.example"})},
    worker__events_alert_after=0.5,
    worker__monitor_interval=0.2,
    worker__scan_interval=0.1,
    reconciliation__posting_interval=0.2,
)
_QUIET_SQL = """
    (select count(*) from payment.outbox) + (select count(*) from wallet.outbox) + (select count(*)
        from payout.outbox) + (select count(*) from reconciliation.outbox)
        + (select count(*) from ledger.outbox) + (select h.sequence - r.sequence from ledger.head h
            join ledger.relayed r using (book)) = 0
    and (select bool_and(ledger_updated) from payment.unapplied_charge)
        and (select count(*) > 1 from payment.dead_letter)
    and exists (select from payment.alert) and (select count(*) from payment.pending_release) = 0
    and (select bool_and(booked) from payout.payout
        where state in ('PAID', 'RETURNED', 'FAILED', 'CANCELLED'))
    and not exists (select from payout.payout_batch where state = 'GENERATING')
    and not exists (select from reconciliation.ledger_posting where not is_posted)
    and (select sequence from reconciliation.ledger_position) = (select sequence from ledger.head)
"""


def fill_database(databases: DatabaseUrls) -> None:
    """Creates payments, payouts, destinations, batches, schedules, policies, holds, dead letters,
    alerts and statements of each kind and final state; then nothing is in progress.
    """
    with (
        sandbox_database(databases) as database,
        serve_sandboxes(databases, _SETTINGS, PageProvider(database)) as platform,
        platform.client() as client,
    ):
        _add_payments(client)
        _add_wallets(client)
        _add_payouts(client)
        _add_statements(client)
        _add_alerts(databases, client)
        assert eventually(lambda: _is_quiet(databases), 60), "the operations do not become final"


def _add_alerts(databases: DatabaseUrls, client: Client) -> None:
    """An ended alert of each service about delayed events, as after an outage of EventService."""
    alert_queries = [
        f"exists (select from {spec.name}.alert where kind = 'EVENTS_DELAYED' and end_time is null)"
        for spec in SERVICES
        if spec.publishes_events
    ]
    with psycopg.connect(databases.admin) as blocking_connection:
        blocking_connection.execute("lock table event.event")
        client.create_payment(
            "c-unheard",
            [new_order("o-unheard", "b", "s-0", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
        _add_destination(client, "d-unheard", "ba_ok")
        client.reconciliation.AssignBreak(
            reconciliation_service_pb2.AssignBreakRequest(break_id="f1-3", assignee="ann")
        )
        assert eventually(lambda: _is_true(databases, " and ".join(alert_queries)), 30)
    assert eventually(lambda: not _is_true(databases, " or ".join(alert_queries)), 30)


def _is_true(databases: DatabaseUrls, condition: str) -> bool:
    with psycopg.connect(databases.admin) as connection:
        row = connection.execute(f"select {condition}".encode()).fetchone()
    return bool(row and row[0])


def _is_quiet(databases: DatabaseUrls) -> bool:
    return _is_true(databases, _QUIET_SQL)


def _add_payments(client: Client) -> None:
    for number in range(3):
        orders = [
            new_order(
                f"o-{number}-{k}", f"b-{number}", f"s-{k}", "10.00", "EUR", platform_fee="1.00"
            )
            for k in range(2)
        ]
        client.create_payment(
            f"c-{number}",
            orders,
            credit_card_info="tok_visa",
            buyer_info="Ada",
            seller_info="books",
            buyer_country="GB",
        )
    orders = [new_order(f"o-jpy-{k}", "b", f"s-{k}", "500", "JPY") for k in range(2)]
    client.create_payment("c-together", orders, credit_card_info="tok_visa", charge_mode=2)
    page = payment_pb2.NewHostedPage(
        success_url="https://shop.example/thanks",
        cancel_url="https://shop.example/basket",
        locale="de",
    )
    page.expire_time.FromSeconds(int(time.time()) + 3600)
    for number in range(2):
        order = new_order(f"o-page-{number}", "b", "s-0", "7.00", "EUR")
        client.create_payment(f"c-page-{number}", [order], hosted_page=page)
    client.payment.RevokeStatusLink(
        payment_service_pb2.RevokeStatusLinkRequest(checkout_id="c-page-1")
    )
    for token in (
        "decline",
        "decline:insufficient_funds",
        "unreachable",
        "pending",
        "pending:action",
        "other_amount",
        "rejected",
    ):
        name = token.replace(":", "-").replace("_", "-")
        client.create_payment(
            f"c-{name}",
            [new_order(f"o-{name}", "b", "s-0", "1.00", "EUR")],
            credit_card_info=f"tok_{token}",
            wait_for=2,
        )
    client.create_payment(
        "c-again",
        [new_order("o-again", "b", "s-0", "1.00", "EUR")],
        credit_card_info="tok_rejected",
        wait_for=2,
    )
    client.create_payment(
        "c-cancelled",
        [new_order("o-cancelled", "b", "s-0", "1.00", "EUR")],
        credit_card_info="tok_pending:action",
        wait_for=2,
    )
    client.payment.CancelPayment(
        payment_service_pb2.CancelPaymentRequest(
            checkout_id="c-cancelled", reason="changed my mind"
        )
    )
    dead_letters = eventually(
        lambda: [
            *client.payment.ListDeadLetters(operator_pb2.ListDeadLettersRequest()).dead_letters
        ]
    )
    client.payment.RetryDeadLetter(
        operator_pb2.RetryDeadLetterRequest(
            dead_letter_id=dead_letters[0].dead_letter_id, reason="once more"
        )
    )
    order_id = "o-0-0"
    assert eventually(
        lambda: (
            client.payment.GetPaymentOrder(
                payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
            ).payment_order.ledger_updated
        )
    )
    client.payment.ConfirmDelivery(
        payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order_id)
    )


def _add_wallets(client: Client) -> None:
    delay = Duration(seconds=3600)
    client.wallet.SetWalletPolicy(
        wallet_service_pb2.SetWalletPolicyRequest(
            seller_account="s-slow", currency="EUR", release_delay=delay
        )
    )
    client.wallet.SetWalletPolicy(
        wallet_service_pb2.SetWalletPolicyRequest(
            seller_account="s-slow", currency="EUR", release_delay=delay, frozen=True
        )
    )
    for n in range(2):
        client.create_payment(
            f"c-slow-{n}",
            [new_order(f"o-slow-{n}", "b", "s-slow", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
    client.payment.ConfirmDelivery(
        payment_service_pb2.ConfirmDeliveryRequest(payment_order_id="o-slow-0")
    )
    holds = [
        wallet_service_pb2.NewHold(
            hold_id=f"h-{n}",
            caller="t",
            seller_account="s-0",
            amount="1.00",
            currency="EUR",
            purpose=wallet_pb2.HOLD_PURPOSE_RESERVE,
        )
        for n in range(3)
    ]
    client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=holds))
    client.wallet.BatchReleaseHold(
        wallet_service_pb2.BatchReleaseHoldRequest(hold_ids=["h-1", "h-never"])
    )


def _add_payouts(client: Client) -> None:
    for name, token, amount in (
        ("paid", "ba_ok", "1.00"),
        ("returned", "ba_returned_part", "2.00"),
        ("declined", "ba_decline", "1.50"),
        ("late", "ba_paid_late", "0.50"),
        ("waiting", "ba_ok", "5.00"),
        ("slow", "ba_slow:3600", "1.00"),
        ("cancelled", "ba_ok", "4.50"),
    ):
        _add_destination(client, f"d-{name}", token)
        request = payout_service_pb2.CreatePayoutRequest(
            payout_id=f"x-{name}",
            seller_account="s-1",
            currency="EUR",
            amount=amount,
            payout_destination_id=f"d-{name}",
        )
        client.payout.CreatePayout(request)
    client.payout.CancelPayout(
        payout_service_pb2.CancelPayoutRequest(payout_id="x-cancelled", reason="not yet")
    )
    disable_request = payout_service_pb2.DisablePayoutDestinationRequest(
        payout_destination_id="d-declined", reason="closed"
    )
    client.payout.DisablePayoutDestination(disable_request)
    for interval, terms in (
        ("DAILY", {"fee": "0.10", "minimum_amount": "1.00"}),
        ("MANUAL", {"reserve": "0.50"}),
    ):
        cut_off = {"cut_off": "16:00", "time_zone": "Europe/Berlin"} if interval == "DAILY" else {}
        number = payout_pb2.PayoutInterval.Value(f"PAYOUT_INTERVAL_{interval}")
        schedule = payout_service_pb2.SetPayoutScheduleRequest(
            seller_account="s-0",
            currency="EUR",
            interval=number,
            **cut_off,  # type: ignore[arg-type]
            **terms,  # type: ignore[arg-type]
        )
        client.payout.SetPayoutSchedule(schedule)
    payouts = [
        payout_pb2.NewPayout(
            payout_id=f"x-list-{n}", seller_account="s-1", currency="EUR", amount=amount
        )
        for n, amount in enumerate(("0.25", "99.00"))
    ]
    payout_list = payout_service_pb2.PayoutList(payouts=payouts)
    client.payout.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(payout_batch_id="list", list=payout_list)
    )
    wait_until_booked(client, "x-paid", "1.00")
    wait_until_booked(client, "x-returned", "2.00", "1.00")
    wait_until_booked(client, "x-late", "0.50")
    wait_until_booked(client, "x-declined", "0.00")


def _add_statements(client: Client) -> None:
    """Two files of the sandbox, one of a bank, one that is loading, and a rule. Of the breaks, one
    is open, one is adjusted, one is accepted, one was opened again, and one waits for approval.
    """

    def reference_of(order_id: str) -> str:
        request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
        return client.payment.GetPaymentOrder(request).payment_order.provider_reference

    client.reconciliation.SetBreakRule(
        reconciliation_service_pb2.SetBreakRuleRequest(
            kind=reconciliation_pb2.BREAK_KIND_CHARGE_UNKNOWN,
            break_class=reconciliation_pb2.BREAK_CLASS_FINANCE,
            reason="known test charges",
        )
    )
    account = "psp/sandbox/clearing"
    matched_line = charge(10_00, reference_of("o-0-0"), fee=30, booking_date="2026-03-10")
    matched_line.booking_date = ""
    lines = [
        matched_line,
        charge(9_00, reference_of("o-1-0"), booking_date=""),
        charge(5_00, "ch-9"),
        charge(6_00, "ch-10", text="Ada"),
        charge(7_00, "ch-11"),
        charge(50_00, "ch-12"),
        charge(-2_00, line_type="FEE", reference="fee-1"),
        charge(-3_00, line_type="SETTLEMENT", settlement_reference="s-1"),
        charge(1_00, "ch-13"),
        charge(1_00, "ch-13"),
    ]
    reconcile(client, account, lines, file_name="first")
    reconcile(client, account, [matched_line], file_name="second")
    reconcile(client, "banks/b", [charge(3_00, line_type="BANK_ENTRY", reference="s-1")])
    for break_id, resolution in (
        ("f1-2", reconciliation_pb2.RESOLUTION_ADJUST),
        ("f1-4", reconciliation_pb2.RESOLUTION_ACCEPT),
        ("f1-5", reconciliation_pb2.RESOLUTION_WRITE_OFF),
        ("f1-6", reconciliation_pb2.RESOLUTION_ADJUST),
    ):
        client.reconciliation.ResolveBreak(
            reconciliation_service_pb2.ResolveBreakRequest(
                break_id=break_id, resolution=resolution, reason="as in the statement"
            )
        )
    client.reconciliation.ReopenBreak(
        reconciliation_service_pb2.ReopenBreakRequest(break_id="f1-5", reason="not yet")
    )
    client.reconciliation.CreateStatementFile(
        reconciliation_service_pb2.CreateStatementFileRequest(
            statement_file_id="loading",
            file_name="third",
            content_sha256="0" * 64,
            format="test",
            account=account,
        )
    )
    client.reconciliation.BatchAddStatementItems(
        reconciliation_service_pb2.BatchAddStatementItemsRequest(
            statement_file_id="loading", items=statement([charge(7_00, "ch-7")])
        )
    )


def _add_destination(client: Client, name: str, token: str) -> None:
    request = payout_service_pb2.CreatePayoutDestinationRequest(
        payout_destination_id=name,
        seller_account="s-1",
        currency="EUR",
        bank_account_token=token,
        description="main account",
    )
    client.payout.CreatePayoutDestination(request)
    get_request = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=name)
    assert eventually(
        lambda: (
            client.payout.GetPayoutDestination(get_request).payout_destination.state
            == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
        )
    )
