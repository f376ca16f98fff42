"""A platform whose buyers pay on pages of the Stripe look-alike, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard, CheckoutState
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.verify.run import verify
from tallystick_storage.database import Database
from tests.support.platform import ServedPlatform, fresh_database, serve_platform, unique_id
from tests.support.stripe_transport import InProcessTransport

SHOP = "https://shop.example"
API_KEY = "sk_test_hosted_pages"
_RETRY = {
    ("", reason): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, None)
    for reason in (RetryReason.NO_ANSWER, RetryReason.SERVER_ERROR, RetryReason.NOT_SENT)
}
NO_POLLS = _RETRY | {
    ("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None),
}
"""A payment is looked up only because of a webhook, or when its buyer returns."""
FAST_POLLS = _RETRY | {
    ("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, None),
}


def page(**values: Any) -> payment_pb2.NewHostedPage:
    """A requested page of the shop."""
    urls = {"success_url": f"{SHOP}/thanks?order=7", "cancel_url": f"{SHOP}/basket"}
    return payment_pb2.NewHostedPage(**{**urls, **values})


@dataclass
class HostedPlatform:
    """A served platform, its client, and the look-alike."""

    served: ServedPlatform
    client: Client
    stripe: StripeSandbox
    transport: InProcessTransport

    def create(self, *amounts: str, checkout_id: str = "", **values: Any) -> payment_pb2.Payment:
        """A payment by a hosted page, with one order for each amount."""
        checkout_id = checkout_id or unique_id("c")
        orders = [
            new_order(f"{checkout_id}-{n}", "buyer-1", f"seller-{checkout_id}-{n}", amount, "EUR")
            for n, amount in enumerate(amounts or ("12.50",))
        ]
        return self.client.create_payment(checkout_id, orders, **{"hosted_page": page(), **values})

    def session_id(self, payment: payment_pb2.Payment) -> str:
        """The look-alike's id of the payment's page."""
        return payment.hosted_page.url.rpartition("/")[2]

    def pay(
        self, payment: payment_pb2.Payment, card: BuyerCard = BuyerCard.SUCCESS
    ) -> CheckoutState:
        """The buyer submits the page."""
        state: CheckoutState = self.served.run_in_loop(
            self.stripe.submit_checkout, self.session_id(payment), card
        )
        return state


@contextmanager
def hosted_platform(databases: DatabaseUrls, **values: Any) -> Iterator[HostedPlatform]:
    """A platform whose only provider is the look-alike. `values`: settings."""
    database = Database(databases.service("sandbox"), connections=4)
    stripe = StripeSandbox(
        database, StripeRules(search_lag_seconds=0.0, checkout_url="http://127.0.0.1:1")
    )
    transport = InProcessTransport(stripe)
    settings = _settings(**values)
    charges = StripeCharges(
        settings.providers.terms("stripe"),
        StripeApi(StripeSettings(api_key=API_KEY, url="http://stripe.invalid"), transport),
    )
    try:
        with (
            serve_platform(
                databases, settings, dependencies=Dependencies(providers={"stripe": charges})
            ) as served,
            served.client() as client,
        ):
            yield HostedPlatform(served, client, stripe, transport)
    finally:
        database.close()


def _settings(**values: Any) -> Settings:
    settings = load(
        {
            "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": API_KEY,
            "TALLYSTICK_PROVIDERS__PAYMENT": "stripe",
            "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
        }
    )
    defaults = {
        "retry": FAST_POLLS,
        "worker__scan_interval": 0.1,
        "payment__return_origins": {"dev": frozenset({SHOP})},
    }
    return settings.replace(**{**defaults, **values})


def verified_platform(admin_url: str, folder: Path, **values: object) -> Iterator[HostedPlatform]:
    """A platform with these settings; at the end verify passes on it."""
    with fresh_database(admin_url, folder) as databases:
        with hosted_platform(databases, **values) as served:
            yield served
        report = verify(databases)
        assert report.passed, report.as_text()
