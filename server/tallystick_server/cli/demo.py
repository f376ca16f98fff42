"""`scripts/demo`: a checkout with two sellers and their payouts, step by step, on a real
PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.configuration.errors import setting_name
from tallystick_server.app.configuration.network import is_loopback
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.cli.demo_output import (
    SELLERS,
    DemoFailed,
    format_state,
    load_wallets,
    print_step,
    print_wallet_changes,
    require,
    show_history,
    show_ledger,
    show_payout,
    show_wallets,
)
from tallystick_server.cli.main import print_report
from tallystick_server.cli.output import print_line, print_status
from tallystick_server.cli.runner import example, load_settings, run_app
from tallystick_server.observability import tracing
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify

_ACCOUNTS = {"seller-books": "ba_slow", "seller-music": "ba_returned"}
"""The sellers' bank accounts. The token tells the sandbox how the account behaves."""
_SANDBOX_LATENCY_SECONDS = 0.15

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, which may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the demo and exits: with 0 only if every step had the expected result."""
    run_app(app, "demo", log_level=logging.ERROR)


@app.command(epilog=example("scripts/demo --once"))
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit when the demo is done.")] = False,
) -> None:
    """Take a payment for two sellers, pay them out, and show every step."""
    try:
        settings = _settings(load_settings(None))
        with open_databases(settings, print_status) as database_urls:
            if database_urls.admin and settings.database.url:
                print_status("Bringing the schemas up to date")
                migrate(database_urls.admin, database_urls.passwords)
            serve.run(_run(settings, database_urls, once=once))
    except TallystickError as error:
        raise DemoFailed(f"A call failed unexpectedly: {error}") from error


def _settings(base: Settings) -> Settings:
    """Funds stay pending until delivery is confirmed, or for seven days. The bank is polled every
    0.4 s instead of daily. Raises StartupError if other machines could reach the demo.
    """
    for section, address in (("server", base.server.listen), ("http", base.http.listen)):
        if address and not is_loopback(address):
            raise StartupError(
                f"{setting_name((section, 'listen'))} must be a loopback address for the demo, "
                "which has no authentication and no TLS."
            )
    short_retry = RetryPolicy(RetryStrategy.FIXED, 0.4, 0.4, 50)
    retry = {
        **base.retry,
        ("", RetryReason.PENDING): short_retry,
        ("", RetryReason.POST_COMPLETION_POLL): short_retry,
    }
    return base.replace(
        authentication="none",
        server__certificate_file="",
        server__key_file="",
        http__certificate_file="",
        http__key_file="",
        retry=retry,
        release_delay=604_800,
        payout__destination_cooldown=0.0,
        worker__scan_interval=0.1,
        providers__sandbox__latency=_SANDBOX_LATENCY_SECONDS,
    )


async def _run(settings: Settings, database_urls: DatabaseUrls, *, once: bool) -> None:
    flush = tracing.configure(
        "tallystick-demo", settings.tracing.otlp_endpoint, settings.tracing.ratio
    )
    stop_event = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_event.set)
    print_status(f"Starting {', '.join(spec.descriptor.name for spec in SERVICES)}")
    server = await serve.start((*service_names(), HTTP_SERVER), settings, database_urls.all())
    try:
        async with AsyncClient(server.address) as client:
            await _run_story(client, database_urls)
        if once:
            return
        _print_grpcurl_hints(server.address)
        if server.http_address:
            print_line(f"\nThe same calls by JSON over HTTP: http://{server.http_address}/docs")
        # from now on warnings, such as alerts, are shown
        logging.getLogger().setLevel(logging.WARNING)
        print_line("\nThe platform keeps running until Ctrl-C.")
        await serve.wait_for_stop(stop_event, database_urls.has_ended)
        print_line("Stopping")
    finally:
        await server.stop(settings.server.shutdown_grace_period)
        await asyncio.to_thread(flush)


async def _run_story(client: AsyncClient, database_urls: DatabaseUrls) -> None:
    """Runs every step. Raises DemoFailed at the first step without the expected result."""
    checkout = f"demo-{secrets.token_hex(4)}"
    before = await load_wallets(client)
    orders = [
        new_order(f"{checkout}-1", "buyer-ada", SELLERS[0], "24.90", "EUR", platform_fee="1.25"),
        new_order(f"{checkout}-2", "buyer-ada", SELLERS[1], "9.50", "EUR", platform_fee="0.48"),
    ]
    await _check_out(client, checkout, orders)
    payment = await _wait_for_charge(client, checkout)
    print_step("3  The sellers' wallets, before and after")
    print_wallet_changes(before, await load_wallets(client))
    print_step("4  The ledger transactions of the payment")
    await show_ledger(client, payment)
    await _repeat_check_out(client, checkout, orders, payment)
    await _confirm_delivery(client, payment)
    await _pay_out(client, checkout)
    print_step("9  tallystick verify recomputes every balance from the stored rows")
    report = await asyncio.to_thread(verify, database_urls)
    print_report(report, indent="     ")
    require(report.passed, "verify should pass")


async def _check_out(
    client: AsyncClient, checkout: str, orders: Sequence[payment_pb2.NewPaymentOrder]
) -> None:
    print_step(f"1  A buyer checks out with two sellers ({checkout})")
    for order in orders:
        print_line(
            f"     {order.payment_order_id}: {order.amount} {order.currency} from "
            f"{order.buyer_account} to {order.seller_account}, including a platform fee of "
            f"{order.platform_fee}"
        )
    accepted_payment = await client.create_payment(
        checkout,
        orders,
        credit_card_info="tok_visa",
        buyer_country="GB",
        wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
    )
    print_line(f"     accepted and stored: the payment is {format_state(accepted_payment)}")


async def _wait_for_charge(client: AsyncClient, checkout: str) -> payment_pb2.Payment:
    print_step("2  The provider charges the buyer; the wallets and the ledger are updated")
    payment = await client.wait_for_payment(checkout, timeout=30)
    await show_history(client, payment)
    require(payment.is_payment_done, f"the payment should be done, but is {format_state(payment)}")
    print_line(
        f"     the payment is {format_state(payment)}, is_payment_done = "
        f"{str(payment.is_payment_done).lower()}"
    )
    return payment


async def _repeat_check_out(
    client: AsyncClient,
    checkout: str,
    orders: Sequence[payment_pb2.NewPaymentOrder],
    payment: payment_pb2.Payment,
) -> None:
    print_step("5  Repeating the same call charges nothing")
    repeated_payment = await client.create_payment(
        checkout, orders, credit_card_info="tok_visa", buyer_country="GB"
    )
    require(
        repeated_payment.version == payment.version, "a repeated call should not change the payment"
    )
    print_line(
        f"     the response is the current payment: {format_state(repeated_payment)}, still "
        f"version {repeated_payment.version}"
    )


async def _confirm_delivery(client: AsyncClient, payment: payment_pb2.Payment) -> None:
    print_step("6  The goods are delivered: pending funds become available")
    for order in payment.payment_orders:
        await client.payment.ConfirmDelivery(
            payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order.payment_order_id)
        )
    await _wait_until(
        lambda: _is_released(client, payment), "the funds of delivered orders should be available"
    )
    await show_wallets(client)


async def _is_released(client: AsyncClient, payment: payment_pb2.Payment) -> bool:
    """Whether the funds of each order are available. The wallets may also hold funds of earlier
    runs.
    """
    for order in payment.payment_orders:
        request = wallet_service_pb2.ListWalletEntriesRequest(
            seller_account=order.seller_account, currency=order.currency, page_size=200
        )
        entries = (await client.wallet.ListWalletEntries(request)).entries
        released_source_ids = {
            entry.source_id
            for entry in entries
            if entry.kind == wallet_pb2.WALLET_ENTRY_KIND_RELEASE
        }
        if f"PAY_IN/{order.payment_order_id}" not in released_source_ids:
            return False
    return True


async def _pay_out(client: AsyncClient, checkout: str) -> None:
    """A payout run pays both sellers. The bank of one seller returns the money."""
    print_step("7  A payout run pays both sellers, here requested before the schedule's cut-off")
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
    require(
        set(SELLERS) <= payouts.keys(),
        f"both sellers should have a payout, but only {sorted(payouts)} have one",
    )
    books, music = (payouts[seller] for seller in SELLERS)
    await show_payout(client, books)
    books_state = (await client.get_payout(books)).payout_state
    require(
        books_state == payout_pb2.PAYOUT_STATE_PAID,
        f"the payout to {SELLERS[0]} should be PAID, but is "
        f"{payout_pb2.PayoutState.Name(books_state)}",
    )

    print_step(
        f"8  The bank of {SELLERS[1]} returns the money; the wallet is credited, without the fee"
    )
    await _wait_until(
        lambda: _is_returned(client, music), f"the payout to {SELLERS[1]} should be RETURNED"
    )
    await show_payout(client, music)
    await show_wallets(client)


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
    print_line(f"     {seller:<14} has the bank account {token}, verified by the provider")


async def _is_batch_done(client: AsyncClient, batch_id: str) -> bool:
    response = await client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=batch_id, page_size=1)
    )
    return response.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE


async def _is_returned(client: AsyncClient, payout_id: str) -> bool:
    payout = await client.get_payout(payout_id)
    return payout.payout_state == payout_pb2.PAYOUT_STATE_RETURNED and payout.ledger_updated


async def _wait_until(condition: Callable[[], Awaitable[bool]], message: str) -> None:
    """Waits up to 30 s for a condition."""
    for _ in range(300):
        if await condition():
            return
        await asyncio.sleep(0.1)
    require(False, message)


def _print_grpcurl_hints(address: str) -> None:
    print_line(
        "\nInspect the platform with grpcurl (go install "
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
