"""`scripts/demo`: a real checkout with two sellers, and their payouts, on a real PostgreSQL, told
as a story.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app import configuration, serve
from tallystick_server.app.configuration import SERVICES, Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.errors import StartupError, exit_on_broken_pipe
from tallystick_server.observability import tracing
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify

_SELLERS = ("seller-books", "seller-music")
_ACCOUNTS = {"seller-books": "ba_slow", "seller-music": "ba_returned"}
"""The bank accounts of the sellers, whose tokens tell the sandbox how they behave."""
_SANDBOX_LATENCY_SECONDS = 0.15

WalletsBySeller = Mapping[str, wallet_pb2.Wallet]
"""The sellers' wallets."""


def print_line(line: str = "") -> None:
    print(line, flush=True)


def _print_status(line: str) -> None:
    print(f"  … {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Exits 0 only if every step of the story held."""
    # unwinds, so that no PostgreSQL stays behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.ERROR, format=serve.LOG_FORMAT)
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Takes a payment for two sellers, pays them out, and shows every step of it.",
    )
    parser.add_argument("--once", action="store_true", help="exit when the story is told")
    options = parser.parse_args()
    try:
        settings = _settings(configuration.load())
        with open_databases(settings, _print_status) as database_urls:
            if database_urls.admin and settings.database.url:
                _print_status("Bringing the schemas up to date")
                migrate(database_urls.admin, database_urls.passwords)
            serve.run(_run(settings, database_urls, once=options.once))
    except StartupError as failure:
        sys.exit(f"demo: {failure}")
    except TallystickError as error:
        sys.exit(f"demo: a call failed, which it must not: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        exit_on_broken_pipe()


def _settings(base: Settings) -> Settings:
    """Sales wait for their delivery here, and what takes days at banks is asked for after
    moments.
    """
    short_retry = RetryPolicy(RetryStrategy.FIXED, 0.4, 0.4, 50)
    retry = {
        **base.retry,
        ("", RetryReason.WAITING): short_retry,
        ("", RetryReason.WATCHED): short_retry,
    }
    return base.replace(
        authentication="none",
        retry=retry,
        release_delay=604_800,
        payout__destination_cooldown=0.0,
        worker__sweep_interval=0.1,
        providers__sandbox__latency=_SANDBOX_LATENCY_SECONDS,
    )


async def _run(settings: Settings, database_urls: DatabaseUrls, *, once: bool) -> None:
    flush = tracing.configure(
        "tallystick-demo", settings.tracing.otlp_endpoint, settings.tracing.ratio
    )
    stop_event = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_event.set)
    _print_status(
        "Starting PaymentService, LedgerService, WalletService, PayoutService and EventService"
    )
    server = await serve.start(SERVICES, settings, database_urls.all())
    try:
        async with AsyncClient(server.address) as client:
            await _run_story(client, database_urls)
        if once:
            return
        _print_grpcurl_hints(server.address)
        # the story is told; from now on alerts are shown
        logging.getLogger().setLevel(logging.WARNING)
        print_line("\nEverything stays up until Ctrl-C.")
        await serve.wait_for_stop(stop_event, database_urls.has_ended)
        print_line("Stopping")
    finally:
        await server.stop(settings.server.shutdown_grace_period)
        await asyncio.to_thread(flush)


async def _run_story(client: AsyncClient, database_urls: DatabaseUrls) -> None:
    """The story. Raises Failure at the first step that does not hold."""
    checkout = f"demo-{secrets.token_hex(4)}"
    print_line(f"\n1  A buyer checks out with two sellers ({checkout})")
    before = await _load_wallets(client)
    orders = [
        new_order(f"{checkout}-1", "buyer-ada", _SELLERS[0], "24.90", "EUR", platform_fee="1.25"),
        new_order(f"{checkout}-2", "buyer-ada", _SELLERS[1], "9.50", "EUR", platform_fee="0.48"),
    ]
    for order in orders:
        share = f"of which {order.platform_fee} are the platform's fee"
        print_line(
            f"     {order.payment_order_id}: {order.amount} {order.currency} from "
            f"{order.buyer_account} to {order.seller_account}, {share}"
        )
    accepted_payment = await client.create_payment(
        checkout,
        orders,
        credit_card_info="tok_visa",
        buyer_country="GB",
        wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
    )
    print_line(f"     accepted and on disk: {_format_state(accepted_payment)}")

    print_line("\n2  The provider is asked, the wallets are credited, the ledger is posted to")
    payment = await client.wait_for_payment(checkout, timeout=30)
    await _show_history(client, payment)
    _require(
        payment.is_payment_done, f"the payment should be done, but is {_format_state(payment)}"
    )
    print_line(
        f"     the payment is {_format_state(payment)}, is_payment_done = "
        f"{str(payment.is_payment_done).lower()}"
    )

    print_line("\n3  The sellers' wallets, before and after")
    after = await _load_wallets(client)
    for seller in _SELLERS:
        print_line(
            f"     {seller:<14} {_format_wallet(before[seller]):>28} → "
            f"{_format_wallet(after[seller]):>28}"
        )

    print_line("\n4  What the ledger booked")
    await _show_ledger(client, payment)

    print_line("\n5  The same call again charges nothing")
    repeated_payment = await client.create_payment(
        checkout, orders, credit_card_info="tok_visa", buyer_country="GB"
    )
    _require(
        repeated_payment.version == payment.version, "a repeated call should not change the payment"
    )
    print_line(
        f"     the answer is the payment as it stands: {_format_state(repeated_payment)}, version "
        f"{repeated_payment.version} as before"
    )

    await _confirm_delivery(client, payment)
    await _pay_out(client, checkout)

    print_line("\n9  tallystick verify recomputes everything")
    report = await asyncio.to_thread(verify, database_urls)
    for line in report.as_text().splitlines():
        print_line(f"     {line}")
    _require(report.passed, "verify should pass")


async def _confirm_delivery(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    print_line("\n6  The goods are delivered: what is pending becomes available")
    for order in payment.payment_orders:
        await client.payment.ConfirmDelivery(
            payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order.payment_order_id)
        )
    await _wait_until(
        lambda: _is_released(client, payment), "what was delivered should be available"
    )
    await _show_wallets(client)


async def _is_released(client: AsyncClient, payment: payment_pb2.Payment) -> bool:
    """Whether each order's money has become available; what else is in the wallets may be of a run
    before.
    """
    for order in payment.payment_orders:
        request = wallet_service_pb2.ListWalletEntriesRequest(
            seller_account=order.seller_account, currency=order.currency, page_size=200
        )
        entries = (await client.wallet.ListWalletEntries(request)).entries
        released_causes = {
            entry.cause for entry in entries if entry.kind == wallet_pb2.WALLET_ENTRY_KIND_RELEASE
        }
        if f"PAY_IN/{order.payment_order_id}" not in released_causes:
            return False
    return True


async def _pay_out(client: AsyncClient, checkout: str) -> None:
    """A run of the schedule pays both sellers; the bank of one of them sends the money back."""
    print_line(
        "\n7  Each seller has a bank account, and the schedule pays what can be paid; here its "
        "run is asked for before its cut-off"
    )
    for seller, token in _ACCOUNTS.items():
        await _create_destination(client, f"{checkout}-{seller}", seller, token)
    schedule = await client.payout.SetPayoutSchedule(
        payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="16:00",
            time_zone="Europe/Berlin",
            fee="0.25",
            minimum_amount="1.00",
        )
    )
    print_line(
        f"     daily at {schedule.payout_schedule.cut_off} in "
        f"{schedule.payout_schedule.time_zone}, fee {schedule.payout_schedule.fee} EUR"
    )
    create_request = payout_service_pb2.CreatePayoutBatchRequest(
        payout_batch_id=f"{checkout}-run", run=payout_service_pb2.NewPayoutRun(currency="EUR")
    )
    await client.payout.CreatePayoutBatch(create_request)
    await _wait_until(lambda: _is_batch_done(client, f"{checkout}-run"), "the run should be done")
    request = payout_service_pb2.GetPayoutBatchRequest(
        payout_batch_id=f"{checkout}-run", page_size=200
    )
    items = [item async for item in client.pages(client.payout.GetPayoutBatch, request, "items")]
    payouts = {
        item.seller_account: item.payout.payout_id
        for item in items
        if item.WhichOneof("result") == "payout"
    }
    _require(
        set(_SELLERS) <= payouts.keys(),
        f"both sellers should have been paid, and {sorted(payouts)} were",
    )
    books, music = (payouts[seller] for seller in _SELLERS)
    await _show_payout(client, books)
    books_state = (await client.get_payout(books)).payout_state
    _require(
        books_state == payout_pb2.PAYOUT_STATE_PAID,
        f"the payout to {_SELLERS[0]} should be PAID, but is "
        f"{payout_pb2.PayoutState.Name(books_state)}",
    )

    print_line(
        f"\n8  The bank of {_SELLERS[1]} sends the money back, and the wallet has it again, but "
        "for the fee"
    )
    await _wait_until(
        lambda: _is_returned(client, music), f"the payout to {_SELLERS[1]} should come back"
    )
    await _show_payout(client, music)
    await _show_wallets(client)


async def _create_destination(client: AsyncClient, id_: str, seller: str, token: str) -> None:
    fields = {
        "payout_destination_id": id_,
        "seller_account": seller,
        "currency": "EUR",
        "bank_account_token": token,
    }
    await client.payout.CreatePayoutDestination(
        payout_service_pb2.CreatePayoutDestinationRequest(**fields)
    )
    get_request = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=id_)

    async def is_verified() -> bool:
        state = (await client.payout.GetPayoutDestination(get_request)).payout_destination.state
        return state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED

    await _wait_until(is_verified, f"the bank account of {seller} should be verified")
    print_line(f"     {seller:<14} is paid at the account {token}, which the provider has verified")


async def _is_batch_done(client: AsyncClient, batch_id: str) -> bool:
    response = await client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=batch_id, page_size=1)
    )
    return response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE


async def _is_returned(client: AsyncClient, payout_id: str) -> bool:
    payout = await client.get_payout(payout_id)
    return payout.payout_state == payout_pb2.PAYOUT_STATE_RETURNED and payout.ledger_updated


async def _show_payout(client: AsyncClient, payout_id: str) -> None:
    response = await client.payout.GetPayout(
        payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
    )
    payout = response.payout
    print_line(f"     {payout.seller_account}: {payout.amount} {payout.currency} leave the wallet")
    print_line(f"       {payout.net_amount} reach the bank as {payout.provider_reference}")
    for transition in response.history:
        state = payout_pb2.PayoutState.Name(transition.to_state).removeprefix("PAYOUT_STATE_")
        print_line(f"       {_format_time(transition)}  {state:<12} {transition.cause}")
    request = ledger_service_pb2.ListTransactionsRequest(cause_id=payout_id)
    for transaction in reversed((await client.ledger.ListTransactions(request)).transactions):
        _print_transaction(transaction)


async def _wait_until(condition: Callable[[], Awaitable[bool]], message: str) -> None:
    """Waits for a step, for half a minute at most."""
    for _ in range(300):
        if await condition():
            return
        await asyncio.sleep(0.1)
    _require(False, message)


async def _load_wallets(client: AsyncClient) -> WalletsBySeller:
    wallets_by_seller = {}
    for seller in _SELLERS:
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


async def _show_wallets(client: AsyncClient) -> None:
    for seller, wallet in (await _load_wallets(client)).items():
        print_line(f"     {seller:<14} {_format_wallet(wallet):>28}")


def _format_wallet(wallet: wallet_pb2.Wallet) -> str:
    return f"{wallet.available} available, {wallet.pending} pending"


async def _show_history(client: AsyncClient, payment: payment_pb2.Payment) -> None:
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
            status = payment_pb2.PaymentOrderStatus.Name(transition.to_status).removeprefix(
                "PAYMENT_ORDER_STATUS_"
            )
            booked_flags = (
                "   wallet_updated, ledger_updated" if transition.cause == "SETTLED" else ""
            )
            print_line(
                f"       {_format_time(transition)}  {status:<12} {transition.cause}{booked_flags}"
            )


async def _show_ledger(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    for order in payment.payment_orders:
        request = ledger_service_pb2.ListTransactionsRequest(
            kind=ledger_pb2.TRANSACTION_KIND_PAY_IN, cause_id=order.payment_order_id
        )
        transactions = (await client.ledger.ListTransactions(request)).transactions
        _require(
            len(transactions) == 1,
            f"there should be one transaction for {order.payment_order_id}, not "
            f"{len(transactions)}",
        )
        _print_transaction(transactions[0])
    trial = await client.ledger.GetTrialBalance(
        ledger_service_pb2.GetTrialBalanceRequest(page_size=200)
    )
    for total in trial.sums:
        _require(
            not total.amount.strip("0."),
            f"the trial balance should be zero, but is {total.amount} {total.currency}",
        )
        print_line(
            f"     trial balance of the whole book: {total.amount} {total.currency}, at "
            f"transaction {trial.sequence}"
        )


def _print_transaction(transaction: ledger_pb2.Transaction) -> None:
    kind = ledger_pb2.TransactionKind.Name(transaction.kind).removeprefix("TRANSACTION_KIND_")
    print_line(
        f"     {transaction.transaction_id}  {kind} {transaction.cause_id}  hash "
        f"{transaction.hash.hex()[:16]}…"
    )
    for entry in transaction.entries:
        side = "debit " if entry.direction == ledger_pb2.DIRECTION_DEBIT else "credit"
        print_line(
            f"       {side} {entry.amount:>10} {entry.currency}  {entry.account:<26} balance "
            f"{entry.balance_after:>12}"
        )


def _format_time(transition: Any) -> str:
    return str(transition.create_time.ToDatetime().strftime("%H:%M:%S.%f")[:-3])


def _format_state(payment: payment_pb2.Payment) -> str:
    return payment_pb2.PaymentState.Name(payment.payment_state).removeprefix("PAYMENT_STATE_")


def _require(condition: Any, message: str) -> None:
    """Ends the story where a step does not hold."""
    if not condition:
        raise StartupError(f"a step did not hold: {message}.")


def _print_grpcurl_hints(address: str) -> None:
    print_line(
        "\nTo look closer, with grpcurl (go install "
        "github.com/fullstorydev/grpcurl/cmd/grpcurl@latest):"
    )
    print_line(f"     grpcurl -plaintext {address} list")
    print_line(
        f"     grpcurl -plaintext {address} tallystick.payment.v1.PaymentService/ListPayments"
    )
    print_line(
        f"     grpcurl -plaintext {address} tallystick.ledger.v1.LedgerService/GetTrialBalance"
    )
    print_line(f"     grpcurl -plaintext {address} tallystick.payout.v1.PayoutService/ListPayouts")
    print_line(f"     grpcurl -plaintext {address} tallystick.event.v1.EventService/StreamEvents")


if __name__ == "__main__":
    main()
