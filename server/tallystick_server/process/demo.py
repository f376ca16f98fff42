"""`scripts/demo`: a real checkout with two sellers, and their payouts, on a real PostgreSQL, told as a story."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider import Trouble
from tallystick_server.process import configuration, serve
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.process.databases import Databases, databases
from tallystick_server.process.failure import Failure, unread
from tallystick_server.process.migrate import migrate
from tallystick_server.process.verify import verify
from tallystick_server.runtime import telemetry
from tallystick_server.runtime.retry import Policy, Strategy

_SELLERS = ("seller-books", "seller-music")
_ACCOUNTS = {"seller-books": "ba_slow", "seller-music": "ba_returned"}
"""The bank accounts of the sellers, whose tokens tell the sandbox how they behave."""
_LATENCY = 0.15

Wallets = Mapping[str, wallet_pb2.Wallet]
"""The sellers' wallets."""


def say(line: str = "") -> None:
    print(line, flush=True)


def _progress(line: str) -> None:
    print(f"  … {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Exits 0 only if every step of the story held."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no PostgreSQL stays behind
    logging.basicConfig(level=logging.ERROR, format=serve.LOG_FORMAT)
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Takes a payment for two sellers, pays them out, and shows every step of it.")
    parser.add_argument("--once", action="store_true", help="exit when the story is told")
    options = parser.parse_args()
    try:
        settings = _settings(configuration.load())
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
    except BrokenPipeError:
        unread()


def _settings(given: Settings) -> Settings:
    """Sales wait for their delivery here, and what takes days at banks is asked for after moments."""
    soon = Policy(Strategy.FIXED, 0.4, 0.4, 50)
    retry = {**given.retry, ("", Trouble.WAITING): soon, ("", Trouble.WATCHED): soon}
    return replace(
        given,
        authentication="none",
        retry=retry,
        release_delay=604_800,
        payout_waiting_period=0.0,
        sweep_interval=0.1,
        sandbox_latency=_LATENCY,
    )


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
        logging.getLogger().setLevel(logging.WARNING)  # the story is told; from now on alerts are shown
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
        share = f"of which {order.platform_fee} are the platform's fee"
        say(f"     {order.payment_order_id}: {order.amount} {order.currency} from {order.buyer_account} to {order.seller_account}, {share}")
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
        say(f"     {seller:<14} {_parts(before[seller]):>28} → {_parts(after[seller]):>28}")

    say("\n4  What the ledger booked")
    await _show_ledger(client, payment)

    say("\n5  The same call again charges nothing")
    again = await client.create_payment(checkout, orders, credit_card_info="tok_visa", buyer_country="GB")
    _require(again.version == payment.version, "a repeated call should not change the payment")
    say(f"     the answer is the payment as it stands: {_state(again)}, version {again.version} as before")

    await _deliver(client, payment)
    await _pay_out(client, checkout)

    say("\n9  tallystick verify recomputes everything")
    report = await asyncio.to_thread(verify, known)
    for line in report.as_text().splitlines():
        say(f"     {line}")
    _require(report.passed, "verify should pass")


async def _deliver(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    say("\n6  The goods are delivered: what is pending becomes available")
    for order in payment.payment_orders:
        await client.payment.ConfirmDelivery(payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order.payment_order_id))
    await _until(lambda: _released(client, payment), "what was delivered should be available")
    await _show_wallets(client)


async def _released(client: AsyncClient, payment: payment_pb2.Payment) -> bool:
    """Whether each order's money has become available; what else is in the wallets may be of a run before."""
    for order in payment.payment_orders:
        request = wallet_service_pb2.ListWalletEntriesRequest(seller_account=order.seller_account, currency=order.currency, page_size=200)
        entries = (await client.wallet.ListWalletEntries(request)).entries
        released = {entry.cause for entry in entries if entry.kind == wallet_pb2.WALLET_ENTRY_KIND_RELEASE}
        if f"PAY_IN/{order.payment_order_id}" not in released:
            return False
    return True


async def _pay_out(client: AsyncClient, checkout: str) -> None:
    """A run of the schedule pays both sellers; the bank of one of them sends the money back."""
    say("\n7  Each seller has a bank account, and the schedule pays what can be paid; here its run is asked for before its cut-off")
    for seller, token in _ACCOUNTS.items():
        await _register(client, f"{checkout}-{seller}", seller, token)
    schedule = await client.payout.SetPayoutSchedule(
        payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR", interval=payout_pb2.PAYOUT_INTERVAL_DAILY, cut_off="16:00", time_zone="Europe/Berlin", fee="0.25", minimum_amount="1.00"
        )
    )
    say(f"     daily at {schedule.payout_schedule.cut_off} in {schedule.payout_schedule.time_zone}, fee {schedule.payout_schedule.fee} EUR")
    run = payout_service_pb2.CreatePayoutBatchRequest(payout_batch_id=f"{checkout}-run", run=payout_service_pb2.NewPayoutRun(currency="EUR"))
    await client.payout.CreatePayoutBatch(run)
    await _until(lambda: _is_done(client, f"{checkout}-run"), "the run should be done")
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=f"{checkout}-run", page_size=200)
    lines = [line async for line in client.pages(client.payout.GetPayoutBatch, request, "items")]
    payouts = {line.seller_account: line.payout.payout_id for line in lines if line.WhichOneof("result") == "payout"}
    _require(set(_SELLERS) <= payouts.keys(), f"both sellers should have been paid, and {sorted(payouts)} were")
    books, music = (payouts[seller] for seller in _SELLERS)
    await _show_payout(client, books)
    paid = (await client.get_payout(books)).payout_state
    _require(paid == payout_pb2.PAYOUT_STATE_PAID, f"the payout to {_SELLERS[0]} should be PAID, but is {payout_pb2.PayoutState.Name(paid)}")

    say(f"\n8  The bank of {_SELLERS[1]} sends the money back, and the wallet has it again, but for the fee")
    await _until(lambda: _came_back(client, music), f"the payout to {_SELLERS[1]} should come back")
    await _show_payout(client, music)
    await _show_wallets(client)


async def _register(client: AsyncClient, id_: str, seller: str, token: str) -> None:
    new = {"payout_destination_id": id_, "seller_account": seller, "currency": "EUR", "bank_account_token": token}
    await client.payout.CreatePayoutDestination(payout_service_pb2.CreatePayoutDestinationRequest(**new))
    get = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=id_)

    async def verified() -> bool:
        state = (await client.payout.GetPayoutDestination(get)).payout_destination.state
        return state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED

    await _until(verified, f"the bank account of {seller} should be verified")
    say(f"     {seller:<14} is paid at the account {token}, which the provider has verified")


async def _is_done(client: AsyncClient, batch_id: str) -> bool:
    answer = await client.payout.GetPayoutBatch(payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=batch_id, page_size=1))
    return answer.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE


async def _came_back(client: AsyncClient, payout_id: str) -> bool:
    payout = await client.get_payout(payout_id)
    return payout.payout_state == payout_pb2.PAYOUT_STATE_RETURNED and payout.ledger_updated


async def _show_payout(client: AsyncClient, payout_id: str) -> None:
    found = await client.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=payout_id))
    payout = found.payout
    say(f"     {payout.seller_account}: {payout.amount} {payout.currency} leave the wallet")
    say(f"       {payout.net_amount} reach the bank as {payout.provider_reference}")
    for step in found.history:
        state = payout_pb2.PayoutState.Name(step.to_state).removeprefix("PAYOUT_STATE_")
        say(f"       {_clock(step)}  {state:<12} {step.cause}")
    request = ledger_service_pb2.ListTransactionsRequest(cause_id=payout_id)
    for transaction in reversed((await client.ledger.ListTransactions(request)).transactions):
        _say_transaction(transaction)


async def _until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits for a step, for half a minute at most."""
    for _ in range(300):
        if await holds():
            return
        await asyncio.sleep(0.1)
    _require(False, what)


async def _wallets(client: AsyncClient) -> Wallets:
    found = {}
    for seller in _SELLERS:
        wallets = [w async for w in client.pages(client.wallet.ListWallets, wallet_service_pb2.ListWalletsRequest(seller_account=seller), "wallets")]
        found[seller] = next((wallet for wallet in wallets if wallet.currency == "EUR"), wallet_pb2.Wallet(available="0.00", pending="0.00"))
    return found


async def _show_wallets(client: AsyncClient) -> None:
    for seller, wallet in (await _wallets(client)).items():
        say(f"     {seller:<14} {_parts(wallet):>28}")


def _parts(wallet: wallet_pb2.Wallet) -> str:
    return f"{wallet.available} available, {wallet.pending} pending"


async def _show_history(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
        found = await client.payment.GetPaymentOrder(request)
        say(f"     {order.payment_order_id}   charged by {order.provider} as {order.provider_reference}")
        for step in found.history:
            status = payment_pb2.PaymentOrderStatus.Name(step.to_status).removeprefix("PAYMENT_ORDER_STATUS_")
            settled = "   wallet_updated, ledger_updated" if step.cause == "SETTLED" else ""
            say(f"       {_clock(step)}  {status:<12} {step.cause}{settled}")


async def _show_ledger(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = ledger_service_pb2.ListTransactionsRequest(kind=ledger_pb2.TRANSACTION_KIND_PAY_IN, cause_id=order.payment_order_id)
        found = (await client.ledger.ListTransactions(request)).transactions
        _require(len(found) == 1, f"there should be one transaction for {order.payment_order_id}, not {len(found)}")
        _say_transaction(found[0])
    trial = await client.ledger.GetTrialBalance(ledger_service_pb2.GetTrialBalanceRequest(page_size=200))
    for total in trial.sums:
        _require(not total.amount.strip("0."), f"the trial balance should be zero, but is {total.amount} {total.currency}")
        say(f"     trial balance of the whole book: {total.amount} {total.currency}, at transaction {trial.sequence}")


def _say_transaction(transaction: ledger_pb2.Transaction) -> None:
    kind = ledger_pb2.TransactionKind.Name(transaction.kind).removeprefix("TRANSACTION_KIND_")
    say(f"     {transaction.transaction_id}  {kind} {transaction.cause_id}  hash {transaction.hash.hex()[:16]}…")
    for entry in transaction.entries:
        side = "debit " if entry.direction == ledger_pb2.DIRECTION_DEBIT else "credit"
        say(f"       {side} {entry.amount:>10} {entry.currency}  {entry.account:<26} balance {entry.balance_after:>12}")


def _clock(step: Any) -> str:
    return str(step.create_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3])


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
    say(f"     grpcurl -plaintext {address} tallystick.payout.v1.PayoutService/ListPayouts")
    say(f"     grpcurl -plaintext {address} tallystick.event.v1.EventService/StreamEvents")


if __name__ == "__main__":
    main()
