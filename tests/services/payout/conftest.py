"""Platforms with a scripted payout provider and named callers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick import Client
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import client_of
from tests.support.payout_operations import RETRY, approval_settings
from tests.support.payouts import RETRY as BATCH_RETRY
from tests.support.platform import ServedPlatform, fresh_database, serve_platform


@pytest.fixture(scope="module")
def payout_provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


@pytest.fixture
def payout_platform(
    scratch_database: DatabaseUrls, payout_provider: ScriptedPayoutProvider
) -> Iterator[ServedPlatform]:
    """All services on a private database, because a run includes every seller."""
    settings = Settings().replace(retry=BATCH_RETRY, worker__scan_interval=0.2)
    with serve_platform(
        scratch_database,
        settings,
        dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
    ) as served_platform:
        yield served_platform


@pytest.fixture
def payout_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    with payout_platform.client() as client:
        yield client


@pytest.fixture(scope="module")
def approval_platform(
    admin_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    payout_provider: ScriptedPayoutProvider,
) -> Iterator[ServedPlatform]:
    """All services, with named callers."""
    folder: Path = tmp_path_factory.mktemp("callers")
    with (
        fresh_database(admin_url, folder) as databases,
        serve_platform(
            databases,
            approval_settings(),
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        ) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def shop_client(approval_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(approval_platform, "shop")


@pytest.fixture(scope="module")
def other_client(approval_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(approval_platform, "other")


@pytest.fixture(scope="module")
def approver_client(approval_platform: ServedPlatform) -> Iterator[Client]:
    """A caller who may create and approve payouts."""
    yield from client_of(approval_platform, "approver")


@pytest.fixture(scope="module")
def operator_client(approval_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(approval_platform, "operator")


@pytest.fixture
def polling_platform(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider
) -> Iterator[ServedPlatform]:
    """A platform that continuously polls completed payouts and checks for alerts; verify passes on
    it at the end.
    """
    settings = approval_settings(
        retry={
            **RETRY,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(
                RetryStrategy.FIXED, 0.1, 0.1, 100_000
            ),
            ("", RetryReason.BOOKING_FAILED): RetryPolicy(RetryStrategy.CANCEL),
        },
        worker__monitor_interval=0.2,
    )
    with fresh_database(admin_url, tmp_path) as databases:
        with serve_platform(
            databases,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        ) as served_platform:
            yield served_platform
        report = verify(databases)
        assert report.passed, report.as_text()
