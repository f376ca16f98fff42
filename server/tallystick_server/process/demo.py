"""`scripts/demo`: a real checkout with two sellers, on a real PostgreSQL, told as a story."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
from dataclasses import replace
from typing import Any

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_server.process import configuration, serve
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.process.databases import Databases, databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.migrate import migrate
from tallystick_server.process.verify import verify
from tallystick_server.runtime import telemetry

_SELLERS = ("seller-books", "seller-music")
_LATENCY = 0.15


def say(line: str = "") -> None:
    print(line, flush=True)


def _progress(line: str) -> None:
    print(f"  … {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Exits 0 only if every step of the story held."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said by us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no PostgreSQL stays behind
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Takes a payment for two sellers, and shows every step of it.")
    parser.add_argument("--once", action="store_true", help="exit when the story is told")
    options = parser.parse_args()
    try:
        settings = replace(configuration.load(), sandbox_latency=_LATENCY, authentication="none")
        with databases(settings, _progress) as known:
            if known.admin and settings.database_url:
                _progress("Bringing the schemas up to date")
                migrate(known.admin, known.passwords)
            serve.run(_run(settings, known, once=options.once))
    except Failure as failure:
        sys.exit(f"demo: {failure}")
    except TallystickError as error:
        sys.exit(f"demo: a call failed, which it must not: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(settings: Settings, known: Databases, *, once: bool) -> None:
    flush = telemetry.configure("tallystick-demo", settings.otlp_endpoint, settings.trace_ratio)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    _progress("Starting PaymentService, LedgerService, WalletService, PayoutService and EventService")
    running = await serve.start(SERVED, settings, known.all())
    try:
        async with AsyncClient(running.address) as client:
            await _tell(client, known)
        if once:
            return
        _look_closer(running.address)
        say("\nEverything stays up until Ctrl-C.")
        await serve.until(stopped, known.has_ended)
        say("Stopping")
    finally:
        await running.stop(settings.drain)
        await asyncio.to_thread(flush)


async def _tell(client: AsyncClient, known: Databases) -> None:
    """The story. Raises Failure at the first step that does not hold."""
    checkout = f"demo-{secrets.token_hex(4)}"
    say(f"\n1  A buyer checks out with two sellers ({checkout})")
    before = await _wallets(client)
    orders = [
        new_order(f"{checkout}-1", "buyer-ada", _SELLERS[0], "24.90", "EUR", platform_fee="1.25"),
        new_order(f"{checkout}-2", "buyer-ada", _SELLERS[1], "9.50", "EUR", platform_fee="0.48"),
    ]
    for order in orders:
        say(f"     {order.payment_order_id}: {order.amount} {order.currency} from {order.buyer_account} to {order.seller_account}")
    accepted = await client.create_payment(
        checkout, orders, credit_card_info="tok_visa", buyer_country="GB", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE
    )
    say(f"     accepted and on disk: {_state(accepted)}")

    say("\n2  The provider is asked, the wallets are credited, the ledger is posted to")
    payment = await client.wait_for_payment(checkout, timeout=30)
    await _show_history(client, payment)
    _require(payment.is_payment_done, f"the payment should be done, but is {_state(payment)}")
    say(f"     the payment is {_state(payment)}, is_payment_done = {str(payment.is_payment_done).lower()}")

    say("\n3  The sellers' wallets, before and after")
    after = await _wallets(client)
    for seller in _SELLERS:
        say(f"     {seller:<14} {before[seller]:>10} → {after[seller]:>10} EUR available")

    say("\n4  What the ledger booked")
    await _show_ledger(client, payment)

    say("\n5  The same call again charges nothing")
    again = await client.create_payment(checkout, orders, credit_card_info="tok_visa", buyer_country="GB")
    _require(again.version == payment.version, "a repeated call should not change the payment")
    say(f"     the answer is the payment as it stands: {_state(again)}, version {again.version} as before")

    say("\n6  tallystick verify recomputes everything")
    report = await asyncio.to_thread(verify, known)
    for line in report.as_text().splitlines():
        say(f"     {line}")
    _require(report.passed, "verify should pass")


async def _wallets(client: AsyncClient) -> dict[str, str]:
    found = {}
    for seller in _SELLERS:
        wallets = [w async for w in client.pages(client.wallet.ListWallets, wallet_service_pb2.ListWalletsRequest(seller_account=seller), "wallets")]
        found[seller] = next((wallet.available for wallet in wallets if wallet.currency == "EUR"), "0.00")
    return found


async def _show_history(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
        found = await client.payment.GetPaymentOrder(request)
        say(f"     {order.payment_order_id}   charged by {order.provider} as {order.provider_reference}")
        for step in found.history:
            time = step.create_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
            status = payment_pb2.PaymentOrderStatus.Name(step.to_status).removeprefix("PAYMENT_ORDER_STATUS_")
            settled = "   wallet_updated, ledger_updated" if step.cause == "SETTLED" else ""
            say(f"       {time}  {status:<12} {step.cause}{settled}")


async def _show_ledger(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = ledger_service_pb2.ListTransactionsRequest(kind=ledger_pb2.TRANSACTION_KIND_PAY_IN, cause_id=order.payment_order_id)
        found = (await client.ledger.ListTransactions(request)).transactions
        _require(len(found) == 1, f"there should be one transaction for {order.payment_order_id}, not {len(found)}")
        transaction = found[0]
        say(f"     {transaction.transaction_id}  PAY_IN {transaction.cause_id}  hash {transaction.hash.hex()[:16]}…")
        for entry in transaction.entries:
            side = "debit " if entry.direction == ledger_pb2.DIRECTION_DEBIT else "credit"
            say(f"       {side} {entry.amount:>10} {entry.currency}  {entry.account:<24} balance {entry.balance_after:>12}")
    trial = await client.ledger.GetTrialBalance(ledger_service_pb2.GetTrialBalanceRequest())
    for total in trial.sums:
        _require(not total.amount.strip("0."), f"the trial balance should be zero, but is {total.amount} {total.currency}")
        say(f"     trial balance of the whole book: {total.amount} {total.currency}, at transaction {trial.sequence}")


def _state(payment: payment_pb2.Payment) -> str:
    return payment_pb2.PaymentState.Name(payment.payment_state).removeprefix("PAYMENT_STATE_")


def _require(holds: Any, what: str) -> None:
    """Ends the story where a step does not hold."""
    if not holds:
        raise Failure(f"a step did not hold: {what}.")


def _look_closer(address: str) -> None:
    say("\nTo look closer, with grpcurl (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest):")
    say(f"     grpcurl -plaintext {address} list")
    say(f"     grpcurl -plaintext {address} tallystick.payment.v1.PaymentService/ListPayments")
    say(f"     grpcurl -plaintext {address} tallystick.ledger.v1.LedgerService/GetTrialBalance")
    say(f"     grpcurl -plaintext {address} tallystick.event.v1.EventService/StreamEvents")


if __name__ == "__main__":
    main()
