"""Shows what the demo has done: wallets, payments, ledger transactions and payouts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AsyncClient
from tallystick.history.v1 import history_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_server.app.errors import StartupError
from tallystick_server.cli.output import escape, print_heading, print_line
from tallystick_server.verify.report import Report

SELLERS = ("seller-books", "seller-music")

WalletsBySeller = Mapping[str, wallet_pb2.Wallet]


class DemoFailed(StartupError):
    """A step of the demo failed, or had another result than expected."""


async def show_payout(client: AsyncClient, payout_id: str) -> None:
    response = await client.payout.GetPayout(
        payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
    )
    payout = response.payout
    print_line(
        f"     {payout.seller_account}: {payout.amount} {payout.currency} debited from the wallet"
    )
    print_line(
        f"       {payout.net_amount} sent as {payout.provider_reference}, {payout.fee} kept as fee"
    )
    for transition in response.history:
        print_line(f"       {_format_transition(transition)}")
    request = ledger_service_pb2.ListTransactionsRequest(source_id=payout_id)
    for transaction in reversed((await client.ledger.ListTransactions(request)).transactions):
        _print_transaction(transaction)


async def load_wallets(client: AsyncClient) -> WalletsBySeller:
    wallets_by_seller = {}
    for seller in SELLERS:
        wallets = [
            w
            async for w in client.pages(
                client.wallet.ListWallets,
                wallet_service_pb2.ListWalletsRequest(seller_account=seller),
                "wallets",
            )
        ]
        wallets_by_seller[seller] = next(
            (wallet for wallet in wallets if wallet.currency == "EUR"),
            wallet_pb2.Wallet(available="0.00", pending="0.00"),
        )
    return wallets_by_seller


async def show_wallets(client: AsyncClient) -> None:
    for seller, wallet in (await load_wallets(client)).items():
        print_line(f"     {seller:<14} {_format_wallet(wallet):>28}")


def print_wallet_changes(before: WalletsBySeller, after: WalletsBySeller) -> None:
    for seller in SELLERS:
        print_line(f"     {seller:<14} before  {_format_wallet(before[seller])}")
        print_line(f"     {seller:<14} after   {_format_wallet(after[seller])}")


def _format_wallet(wallet: wallet_pb2.Wallet) -> str:
    return f"{wallet.available} available, {wallet.pending} pending"


async def show_history(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = payment_service_pb2.GetPaymentOrderRequest(
            payment_order_id=order.payment_order_id
        )
        response = await client.payment.GetPaymentOrder(request)
        print_line(
            f"     {order.payment_order_id}   charged by {order.provider} as "
            f"{order.provider_reference}"
        )
        for transition in response.history:
            is_booked = transition.transition_reason == history_pb2.TRANSITION_REASON_BOOKED
            booked_flags = "   wallet_updated, ledger_updated" if is_booked else ""
            print_line(f"       {_format_transition(transition)}{booked_flags}")


async def show_ledger(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = ledger_service_pb2.ListTransactionsRequest(
            kind=ledger_pb2.TRANSACTION_KIND_PAY_IN, source_id=order.payment_order_id
        )
        transactions = (await client.ledger.ListTransactions(request)).transactions
        require(
            len(transactions) == 1,
            f"there should be one transaction for {order.payment_order_id}, not "
            f"{len(transactions)}",
        )
        _print_transaction(transactions[0])
    trial = await client.ledger.GetTrialBalance(
        ledger_service_pb2.GetTrialBalanceRequest(page_size=200)
    )
    for total in trial.sums:
        require(
            not total.amount.strip("0."),
            f"the trial balance should be zero, but is {total.amount} {total.currency}",
        )
        print_line(
            f"     trial balance of the whole ledger: {total.amount} {total.currency}, after "
            f"transaction {trial.sequence}"
        )


def show_report(report: Report) -> None:
    """A line for each check of verify, then the violations and the summary."""
    for check in report.checks:
        result = "FAILED" if check.failures else "ok"
        print_line(f"     {result:<6}  {check.name:<51} {check.row_count:>5} rows")
    for violation in report.violations:
        print_line(f"       {escape(violation)}")
    print_line(f"     {report.summary}")


def _print_transaction(transaction: ledger_pb2.Transaction) -> None:
    kind = ledger_pb2.TransactionKind.Name(transaction.kind).removeprefix("TRANSACTION_KIND_")
    print_line(
        f"     {transaction.transaction_id}  {kind} {transaction.source_id}  hash "
        f"{transaction.hash.hex()[:8]}…"
    )
    for entry in transaction.entries:
        side = "debit " if entry.direction == ledger_pb2.DIRECTION_DEBIT else "credit"
        print_line(
            f"       {side} {entry.amount:>10} {entry.currency}  {entry.account:<26} balance "
            f"{entry.balance_after:>12}"
        )


def _format_transition(transition: history_pb2.Transition) -> str:
    reason = history_pb2.TransitionReason.Name(transition.transition_reason)
    reason = reason.removeprefix("TRANSITION_REASON_")
    return f"{_format_time(transition.create_time)}  {transition.to_state:<12} {reason}"


def format_webhook_event(event: operator_pb2.WebhookEvent) -> str:
    state = operator_pb2.WebhookEventState.Name(event.state)
    return (
        f"{_format_time(event.receive_time)}  {event.event_type:<31} "
        f"{state.removeprefix('WEBHOOK_EVENT_STATE_')}"
    )


def _format_time(time: Timestamp) -> str:
    return time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]


def format_state(payment: payment_pb2.Payment) -> str:
    return payment_pb2.PaymentState.Name(payment.payment_state).removeprefix("PAYMENT_STATE_")


def require(condition: Any, message: str) -> None:
    """Ends the demo where a step has another result than expected."""
    if not condition:
        raise DemoFailed(f"Unexpected result: {message}.")


def print_step(title: str) -> None:
    print_line()
    print_heading(title)


async def wait_until(condition: Callable[[], Awaitable[bool]], message: str) -> None:
    """Waits up to 30 s for a condition."""
    for _ in range(300):
        if await condition():
            return
        await asyncio.sleep(0.1)
    require(False, message)
