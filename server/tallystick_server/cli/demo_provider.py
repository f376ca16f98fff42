"""The provider of the demo: the Stripe look-alike in its process, or Stripe itself if a test key of
an account of Stripe is set.
"""

from __future__ import annotations

import secrets
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.configuration.errors import setting_name, variable_of
from tallystick_server.app.configuration.network import is_loopback
from tallystick_server.app.errors import StartupError
from tallystick_server.providers.registry import DEFAULT_PROVIDERS
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.rpc.authentication import DEVELOPER
from tallystick_storage.database import Database

if TYPE_CHECKING:
    from tallystick_sandbox.stripe.sandbox import StripeSandbox

PROVIDER = "stripe"
"""The name of the demo's provider, in both cases."""
API_KEY_VARIABLE = variable_of(("providers", PROVIDER, "api_key"))
SHOP_ORIGIN = "http://127.0.0.1:8000"
"""Where the example shop is served."""
_LIVE_KEYS = ("sk_live_", "rk_live_")
_CONNECTIONS = 4
_DEBIT_SECONDS = 10.0


def load_demo_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of the environment. With a key of Stripe, Stripe charges buyers. Raises
    StartupError if a setting is wrong, if a key moves real money, or if other machines could reach
    the demo.
    """
    key = environment.get(API_KEY_VARIABLE, "")
    if key:
        chosen = {variable_of(("providers", kind)): PROVIDER for kind in ("payment", "payout")}
        environment = {**environment, **chosen}
    _reject_live_key(key, PROVIDER)
    settings = load(environment)
    for name, provider in settings.providers.configured.items():
        if isinstance(provider, StripeSettings):
            _reject_live_key(provider.api_key, name)
    _check_addresses(settings)
    return _with_demo_rules(settings)


def _reject_live_key(key: str, name: str) -> None:
    if key.startswith(_LIVE_KEYS):
        raise StartupError(
            f"{setting_name(('providers', name, 'api_key'))} must be a test key of Stripe for the "
            "demo, sk_test_… or rk_test_…: a live key moves real money."
        )


def _check_addresses(settings: Settings) -> None:
    for section, address in (("server", settings.server.listen), ("http", settings.http.listen)):
        if address and not is_loopback(address):
            raise StartupError(
                f"{setting_name((section, 'listen'))} must be a loopback address for the demo, "
                "which has no authentication and no TLS."
            )
    if not settings.http.listen:
        raise StartupError(
            f"{setting_name(('http', 'listen'))} must be an address for the demo, to which "
            "webhooks are delivered, such as 127.0.0.1:7080."
        )


def _with_demo_rules(settings: Settings) -> Settings:
    """Without authentication and TLS, with the console. Funds stay pending until delivery is
    confirmed, or for seven days. Hosted pages may send buyers back to the example shop, and to the
    platform itself. The sandbox stays configured, because earlier operations in the database may be
    its own.
    """
    origins = settings.payment.return_origins
    if stripe_of(settings) is not None:
        settings = settings.replace(
            providers__payment=PROVIDER,
            providers__payout=PROVIDER,
            # its operations are unknown to the look-alike, and the other way round
            data_dir=settings.data_dir / PROVIDER,
        )
    return settings.replace(
        authentication="none",
        server__certificate_file="",
        server__key_file="",
        http__certificate_file="",
        http__key_file="",
        http__public_url="",
        console__enabled=True,
        release_delay=604_800,
        payment__return_origins={
            **origins,
            DEVELOPER: origins.get(DEVELOPER, frozenset()) | {SHOP_ORIGIN, http_url(settings)},
        },
        payout__destination_cooldown=0.0,
        worker__scan_interval=0.1,
        routing=(),
        providers__configured={**DEFAULT_PROVIDERS, **settings.providers.configured},
    )


def stripe_of(settings: Settings) -> StripeSettings | None:
    """The settings of Stripe, which the demo then uses itself; None: it runs the look-alike."""
    stripe = settings.providers.configured.get(PROVIDER)
    return stripe if isinstance(stripe, StripeSettings) else None


def use_look_alike(settings: Settings, url: str, key: str) -> Settings:
    """The settings with the look-alike at a URL as the provider of charges and payouts."""
    from tallystick_sandbox.stripe.webhooks import ACCOUNT_SECRET, CONNECT_SECRET

    stripe = StripeSettings(
        api_key=key,
        url=url,
        webhook_secrets=(ACCOUNT_SECRET,),
        connect_webhook_secrets=(CONNECT_SECRET,),
    )
    return settings.replace(
        providers__payment=PROVIDER,
        providers__payout=PROVIDER,
        providers__configured={**settings.providers.configured, PROVIDER: stripe},
    )


@dataclass(frozen=True, slots=True)
class RunningLookAlike:
    """The look-alike of this process. `url`: where it serves Stripe's API, to any test key."""

    url: str
    key: str = field(repr=False)
    _sandbox: StripeSandbox

    async def post(self, path: str, **parameters: str) -> dict[str, Any]:
        """Sends a request to the look-alike, and returns its object. Raises StartupError if it is
        rejected.
        """
        answer = await self._sandbox.handle(
            "POST",
            path,
            {
                "Authorization": f"Basic {b64encode(f'{self.key}:'.encode()).decode()}",
                "Content-Type": "application/x-www-form-urlencoded",
            },
            urlencode(parameters).encode(),
        )
        body: dict[str, Any] = orjson.loads(answer.body)
        if answer.status != 200:
            raise StartupError(f"The look-alike rejects POST {path}: {body['error']['message']}")
        return body


@asynccontextmanager
async def run_look_alike(settings: Settings, database_url: str) -> AsyncIterator[RunningLookAlike]:
    """Serves the look-alike on a free port of 127.0.0.1. It delivers webhooks to the HTTP server of
    the settings, and keeps its state in the schema `sandbox`.
    """
    from aiohttp import web

    from tallystick_sandbox.stripe.context import StripeRules
    from tallystick_sandbox.stripe.sandbox import StripeSandbox
    from tallystick_sandbox.stripe.server import create_app
    from tallystick_sandbox.stripe.webhooks import sandbox_endpoints

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    endpoint_url = webhook_url(settings)
    database = Database(database_url, connections=_CONNECTIONS)
    sandbox = StripeSandbox(
        database,
        StripeRules(debit_seconds=_DEBIT_SECONDS, files_url=url, checkout_url=url),
        endpoints=sandbox_endpoints(endpoint_url, f"{endpoint_url}/connect"),
    )
    runner = web.AppRunner(create_app(sandbox), access_log=None)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield RunningLookAlike(url, f"sk_test_{secrets.token_hex(12)}", sandbox)
    finally:
        await runner.cleanup()
        listener.close()
        database.close()


def webhook_url(settings: Settings) -> str:
    """Where the HTTP server receives the webhooks of the provider."""
    return f"{http_url(settings)}/webhooks/{PROVIDER}"


def http_url(settings: Settings) -> str:
    """The URL of the HTTP server."""
    return f"http://{settings.http.listen}"
