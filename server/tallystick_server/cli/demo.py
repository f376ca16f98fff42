"""`scripts/demo`: a checkout with two sellers and their payouts, step by step, on a real
PostgreSQL and a provider that behaves like Stripe.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from contextlib import AsyncExitStack
from typing import Annotated

import typer

from tallystick import AsyncClient, TallystickError
from tallystick.payment.v1 import payment_pb2
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.cli.demo_hosted_page import (
    create_hosted_payment,
    pay_as_buyer,
    print_links,
)
from tallystick_server.cli.demo_output import DemoFailed, print_step, require, show_report
from tallystick_server.cli.demo_payments import (
    confirm_deliveries,
    run_first_payment,
    run_pending_payment,
)
from tallystick_server.cli.demo_payouts import pay_out
from tallystick_server.cli.demo_provider import (
    PROVIDER,
    SHOP_ORIGIN,
    RunningLookAlike,
    http_url,
    load_demo_settings,
    run_look_alike,
    stripe_of,
    use_look_alike,
    webhook_url,
)
from tallystick_server.cli.demo_reconciliation import reconcile_report
from tallystick_server.cli.output import print_line, print_status
from tallystick_server.cli.runner import example, run_app
from tallystick_server.verify.run import verify

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
    once: Annotated[
        bool, typer.Option("--once", help="Pay on the hosted page, and exit after the last step.")
    ] = False,
) -> None:
    """Take payments for two sellers, pay them out, and show every step.

    The provider is a look-alike of Stripe in this process. With a test key of Stripe in
    TALLYSTICK_PROVIDERS__STRIPE__API_KEY it is Stripe itself.
    """
    try:
        settings = load_demo_settings(os.environ)
        with open_databases(settings, print_status) as database_urls:
            if database_urls.admin and settings.database.url:
                print_status("Bringing the schemas up to date")
                migrate(database_urls.admin, database_urls.passwords)
            serve.run(_run(settings, database_urls, once=once))
    except TallystickError as error:
        raise DemoFailed(f"A call failed unexpectedly: {error}") from error


async def _run(settings: Settings, database_urls: DatabaseUrls, *, once: bool) -> None:
    flush = serve.configure_tracing("tallystick-demo", settings)
    stop_event = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_event.set)
    async with AsyncExitStack() as stack:
        look_alike = None
        stripe = stripe_of(settings)
        if stripe is None:
            run = run_look_alike(settings, database_urls.service("sandbox"))
            look_alike = await stack.enter_async_context(run)
            settings = use_look_alike(settings, look_alike.url, look_alike.key)
            print_status(f"Starting the Stripe look-alike on {look_alike.url}")
        else:
            print_status(f"Using the account of Stripe with your test key, at {stripe.url}")
        print_status("Starting all services and the HTTP server")
        server = await serve.start((*service_names(), HTTP_SERVER), settings, database_urls.all())
        try:
            async with AsyncClient(server.address) as client:
                hosted = await _run_story(client, database_urls, settings, look_alike, once=once)
            if once:
                return
            _print_hints(server, look_alike, hosted)
            # from now on warnings, such as alerts, are shown
            logging.getLogger().setLevel(logging.WARNING)
            print_line("\nThe platform keeps running until Ctrl-C.")
            await serve.wait_for_stop(stop_event, database_urls.has_ended)
            print_line("Stopping")
        finally:
            await server.stop(settings.server.shutdown_grace_period)
            await asyncio.to_thread(flush)


async def _run_story(
    client: AsyncClient,
    database_urls: DatabaseUrls,
    settings: Settings,
    look_alike: RunningLookAlike | None,
    *,
    once: bool,
) -> payment_pb2.Payment:
    """Runs every step, and returns the payment by a hosted page. Raises DemoFailed at the first
    step without the expected result.
    """
    checkout = f"demo-{secrets.token_hex(4)}"
    payments = [await run_first_payment(client, checkout)]
    if look_alike is None:
        print_step("6  Left out: a payment that waits for its buyer")
        print_line("     only the look-alike lets the demo act for the buyer")
    else:
        endpoint = webhook_url(settings)
        payments.append(await run_pending_payment(client, checkout, look_alike, endpoint))
    hosted = await create_hosted_payment(client, checkout, f"{http_url(settings)}/docs")
    if not once:
        print_line("     it is not paid yet: open the page in a browser")
    elif look_alike is None:
        print_line("     it stays open: only a person can pay on the page of Stripe")
    else:
        payments.append(await pay_as_buyer(client, hosted))
    await confirm_deliveries(client, payments)
    if look_alike is None:
        print_step("9  Left out, with steps 10 to 12: payouts and the report")
        print_line("     they need connected accounts; the look-alike has its own")
    else:
        await pay_out(client, checkout, look_alike)
        await reconcile_report(client, settings, look_alike)
    print_step("13  tallystick verify recomputes every balance from the stored rows")
    report = await asyncio.to_thread(verify, database_urls)
    show_report(report)
    require(report.passed, "verify should pass")
    return hosted


def _print_hints(
    server: serve.RunningServer, look_alike: RunningLookAlike | None, hosted: payment_pb2.Payment
) -> None:
    """What to try while the demo runs."""
    address = server.address
    command = f".venv/bin/tallystick {{}} --address {address}"
    print_line("\nFor operators:")
    print_line(f"     {command.format('webhook-events list')}")
    print_line(f"     {command.format('webhook-events list --service payout')}")
    print_line(f"     {command.format('payouts list')}")
    if look_alike is None:
        print_line("\nFor webhooks of Stripe, with the whsec_… that this prints as")
        print_line("TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS at the next start:")
        print_line(
            f"     stripe listen --forward-to http://{server.http_address}/webhooks/{PROVIDER}"
        )
    else:
        print_line("\nThe look-alike takes calls of Stripe's API with any test key:")
        print_line(f"     curl -s -u sk_test_demo: {look_alike.url}/v1/events")
    print_line("\nInspect the platform with grpcurl, which Go installs by")
    print_line("go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest:")
    for call in (
        "list",
        "tallystick.payment.v1.PaymentService/ListPayments",
        "tallystick.ledger.v1.LedgerService/GetTrialBalance",
        "tallystick.payout.v1.PayoutService/ListPayouts",
        "tallystick.event.v1.EventService/StreamEvents",
    ):
        print_line(f"     grpcurl -plaintext {address} {call}")
    print_line(f"\nThe same calls by JSON over HTTP: http://{server.http_address}/docs")
    print_line("\nThe console, in which you sign in without a token:")
    print_line(f"     http://{server.http_address}/console")
    print_line(f"\nAn example shop, for another terminal; it then serves {SHOP_ORIGIN}:")
    print_line(f"     .venv/bin/python clients/python/examples/shop/shop.py {address}")
    print_line("\nThe payment of step 7 waits for you to pay it in a browser:")
    print_links(hosted)


if __name__ == "__main__":
    main()
