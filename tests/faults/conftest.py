"""A platform of four servers in the test's process, whose parts can be broken one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tallystick import Client, ClientSettings
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.fakes.payment_provider import BreakableProvider
from tests.fakes.webhook_source import SignedWebhookSource
from tests.support.callers import PLATFORM, token_of
from tests.support.charges import sandbox_database
from tests.support.console import SETTINGS, Person
from tests.support.platform import ServedPlatform, free_address, fresh_database, serve_platform

APART = ("wallet", "ledger", "event")
"""The services with a server of their own, which can be stopped."""
_EVENTS_ALERT_SECONDS = 3.0
_FAST_RETRY = RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 1000)


@dataclass
class Marketplace:
    """The running platform, and what can be broken. `main` serves the other services and HTTP."""

    databases: DatabaseUrls
    settings: Settings
    addresses: dict[str, str]
    provider: BreakableProvider
    webhooks: SignedWebhookSource
    folder: Path
    main: ServedPlatform | None = None
    _apart: dict[str, ExitStack] = field(default_factory=dict)

    @property
    def platform(self) -> ServedPlatform:
        assert self.main is not None
        return self.main

    def start(self, service: str) -> None:
        """Serves one of APART."""
        settings = self.settings.replace(
            metrics__listen=free_address(),
            monitoring__record_interval=0,
            data_dir=self.folder / "none",  # the figures of one test process would be added
        )
        stack = self._apart[service] = ExitStack()
        stack.enter_context(
            serve_platform(self.databases, settings, (service,), address=self.addresses[service])
        )

    def stop(self, service: str) -> None:
        self._apart.pop(service).close()

    @contextmanager
    def without(self, service: str) -> Iterator[None]:
        """Stops one of APART in the block."""
        self.stop(service)
        try:
            yield
        finally:
            self.start(service)

    def operator(self, service: str = "payment") -> Client:
        """An operator's client of a service."""
        settings = ClientSettings(token=token_of("alice"))
        return Client(self.addresses[service], settings=settings)

    def post_webhook(self, body: bytes, headers: dict[str, str]) -> None:
        url = f"{self.platform.url}/webhooks/sandbox"
        httpx.post(url, content=body, headers=headers, timeout=30).raise_for_status()


def _settings(addresses: dict[str, str], folder: Path) -> Settings:
    """Short waits; each threshold that a fault must exceed is the default one, or named here."""
    return SETTINGS.replace(
        data_dir=folder,
        service_addresses=addresses,
        payout_service=PLATFORM,
        metrics__listen=free_address(),
        monitoring__record_interval=0.5,
        worker__monitor_interval=0.5,
        worker__scan_interval=0.2,
        worker__events_alert_after=_EVENTS_ALERT_SECONDS,
        breaker__failure_threshold=2,
        breaker__reset_timeout=0.3,
        breaker__max_reset_timeout=0.3,
        http__webhook_catch_up_interval=1,
        retry={
            **{("", reason): _FAST_RETRY for reason in RetryReason},
            ("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL),
        },
    )


@pytest.fixture(scope="module")
def marketplace(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marketplace]:
    """One platform for all faults: each test undoes its own."""
    folder = tmp_path_factory.mktemp("faults")
    main_names = tuple(name for name in service_names() if name not in APART)
    with (
        fresh_database(admin_url, folder) as databases,
        sandbox_database(databases) as database,
        pytest.MonkeyPatch.context() as patch,
    ):
        main_address = free_address()
        addresses = {name: free_address() for name in APART} | dict.fromkeys(
            main_names, main_address
        )
        provider, webhooks = BreakableProvider(database), SignedWebhookSource()
        _follow_latency(patch, provider)
        marketplace = Marketplace(
            databases, _settings(addresses, folder), addresses, provider, webhooks, folder
        )
        dependencies = Dependencies(
            providers={provider.name: provider}, webhook_sources={webhooks.name: webhooks}
        )
        for service in APART:
            marketplace.start(service)
        with serve_platform(
            databases,
            marketplace.settings,
            (*main_names, HTTP_SERVER),
            dependencies,
            address=main_address,
        ) as platform:
            marketplace.main = platform
            platform.run_in_loop(_start, provider)
            yield marketplace
            platform.run_in_loop(provider.sandbox.stop)
        for service in APART:
            marketplace.stop(service)


async def _start(provider: BreakableProvider) -> None:
    provider.sandbox.start()


def _follow_latency(patch: pytest.MonkeyPatch, provider: BreakableProvider) -> None:
    """The gateway measures its calls by a clock that the provider's latency moves on."""

    def perf_counter() -> float:
        return time.perf_counter() + provider.passed_seconds

    clock = SimpleNamespace(perf_counter=perf_counter)
    patch.setattr("tallystick_server.providers.gateway.time", clock)


@pytest.fixture(scope="module")
def console(marketplace: Marketplace) -> Person:
    """An operator who is signed in to the console."""
    person = Person(marketplace.platform.url)
    assert person.sign_in(token_of("alice")).status_code == 303
    return person
