"""The commands that serve the sandbox provider, in its own API and as a Stripe look-alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_server.app.errors import StartupError
from tallystick_server.cli.output import print_status
from tallystick_server.cli.runner import example, load_settings, whole_number

if TYPE_CHECKING:
    from aiohttp import web

    from tallystick_server.app.configuration import Settings
    from tallystick_storage.database import Database

_MAX_SECONDS = 864_000
_Port = Annotated[
    int,
    typer.Option(
        "--port", parser=whole_number(1, 65_535), metavar="PORT", help="Port on 127.0.0.1."
    ),
]


def add_sandbox_commands(app: typer.Typer, panel: str) -> None:
    """Adds the commands to a panel of the help."""
    add = app.command(rich_help_panel=panel, epilog=example("tallystick sandbox --port 7091"))
    add(sandbox)
    epilog = example(
        "tallystick stripe-sandbox --webhook-url http://127.0.0.1:7080/webhooks/stripe"
    )
    app.command(rich_help_panel=panel, epilog=epilog)(stripe_sandbox)


def sandbox(
    ctx: typer.Context,
    port: _Port = 7090,
    provider: Annotated[
        str,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="The configured sandbox whose latency, key window and fee it has.",
        ),
    ] = "sandbox",
) -> None:
    """Serve the sandbox provider over HTTP, on 127.0.0.1.

    A platform uses it if TALLYSTICK_PROVIDERS__SANDBOX__URL names its address.
    """
    from tallystick_sandbox.payouts import SandboxPayouts
    from tallystick_sandbox.sandbox import Sandbox
    from tallystick_sandbox.server import create_app

    settings = load_settings(ctx.obj)
    latency, window, fee_ppm = _sandbox_terms(settings, provider)
    with _open_database(settings) as database:
        application = create_app(
            Sandbox(
                database,
                latency_seconds=latency,
                key_window_seconds=window,
                fee_ppm=fee_ppm,
            ),
            SandboxPayouts(database, latency_seconds=latency, key_window_seconds=window),
        )
        print_status(f"Serving the sandbox on 127.0.0.1:{port}")
        _serve(application, port)


def stripe_sandbox(
    ctx: typer.Context,
    port: _Port = 7091,
    webhook_url: Annotated[
        str,
        typer.Option("--webhook-url", metavar="URL", help="Receives the platform's events."),
    ] = "",
    connect_webhook_url: Annotated[
        str,
        typer.Option(
            "--connect-webhook-url", metavar="URL", help="Receives events of connected accounts."
        ),
    ] = "",
    search_lag: Annotated[
        int,
        typer.Option(
            "--search-lag",
            parser=whole_number(0, _MAX_SECONDS),
            metavar="SECONDS",
            help="Seconds until a search finds a payment.",
        ),
    ] = 60,
    payout_time: Annotated[
        int,
        typer.Option(
            "--payout-time",
            parser=whole_number(0, _MAX_SECONDS),
            metavar="SECONDS",
            help="Seconds until a payout is paid.",
        ),
    ] = 0,
    debit_time: Annotated[
        int,
        typer.Option(
            "--debit-time",
            parser=whole_number(0, _MAX_SECONDS),
            metavar="SECONDS",
            help="Seconds until a bank debit is paid or declined.",
        ),
    ] = 10,
) -> None:
    """Serve the sandbox as a Stripe look-alike over HTTP, on 127.0.0.1.

    It takes every test key (sk_test_…). Events are signed with whsec_sandbox_account and
    whsec_sandbox_connect.
    """
    from tallystick_sandbox.stripe.context import StripeRules
    from tallystick_sandbox.stripe.sandbox import StripeSandbox
    from tallystick_sandbox.stripe.server import create_app
    from tallystick_sandbox.stripe.webhooks import sandbox_endpoints

    base = f"http://127.0.0.1:{port}"
    rules = StripeRules(
        search_lag_seconds=search_lag,
        payout_seconds=payout_time,
        debit_seconds=debit_time,
        files_url=base,
        checkout_url=base,
    )
    endpoints = sandbox_endpoints(webhook_url, connect_webhook_url)
    with _open_database(load_settings(ctx.obj)) as database:
        print_status(f"Serving the Stripe look-alike on {base}")
        _serve(create_app(StripeSandbox(database, rules, endpoints=endpoints)), port)


@contextmanager
def _open_database(settings: Settings) -> Iterator[Database]:
    """The database of the sandbox. Raises StartupError if it cannot be used."""
    from tallystick_server.app.database.connections import open_databases
    from tallystick_server.app.database.schema import DatabaseUnavailable, check_schema
    from tallystick_storage.database import Database

    with open_databases(settings, print_status) as database_urls:
        url = database_urls.service("sandbox")
        try:
            check_schema(url, "sandbox")
        except DatabaseUnavailable as error:
            raise StartupError(
                f"The sandbox service's database cannot be used: {str(error).rstrip('.')}."
            ) from error
        database = Database(url, connections=4)
        try:
            yield database
        finally:
            database.close()


def _serve(application: web.Application, port: int) -> None:
    from aiohttp import web

    try:
        web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else type(error).__name__
        raise StartupError(
            f"Cannot listen on port {port}: {reason}. Choose another with --port."
        ) from None


def _sandbox_terms(settings: Settings, name: str) -> tuple[float, float, int]:
    """The latency and the key window of a configured sandbox in seconds, and its fee in parts per
    million. Raises StartupError.
    """
    from tallystick_server.providers.sandbox.settings import SandboxSettings

    sandboxes = {
        key: provider
        for key, provider in settings.providers.configured.items()
        if isinstance(provider, SandboxSettings)
    }
    if name not in sandboxes:
        names = ", ".join(sandboxes) or "none is configured"
        raise StartupError(f"--provider must be the name of a configured sandbox: {names}.")
    window = settings.providers.terms(name).key_window_seconds
    return sandboxes[name].latency, window, sandboxes[name].fee_rate
