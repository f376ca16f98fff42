"""Platforms with the retry policies of the tests of charges; at the end verify passes on each.

They are shared by the package, because most of its files use both: a start and a verify for each
file made the suite slower.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick import Client
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.support.charges import FAST_RETRY_POLICY, SLOW_RETRY, TWO_TRIES
from tests.support.platform import ServedPlatform, fresh_database, serve_platform


def assert_verified(databases: DatabaseUrls) -> None:
    report = verify(databases)
    assert report.passed, report.as_text()


@pytest.fixture(scope="package")
def two_try_platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """A platform that tries everything at most twice."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("two_tries")) as databases:
        retry = {("", reason): TWO_TRIES for reason in RetryReason}
        retry |= {
            ("", RetryReason.PENDING): FAST_RETRY_POLICY,
            ("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL),
        }
        with serve_platform(
            databases,
            Settings().replace(
                retry=retry,
                worker__scan_interval=0.2,
                risk__blocked_accounts=frozenset({"mallory"}),
            ),
        ) as served_platform:
            yield served_platform
        assert_verified(databases)


@pytest.fixture(scope="package")
def client(two_try_platform: ServedPlatform) -> Iterator[Client]:
    with two_try_platform.client() as sdk_client:
        yield sdk_client


@pytest.fixture(scope="package")
def slow_retry_platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """A platform with long retry waits."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("slow_retry")) as databases:
        with serve_platform(databases, Settings().replace(retry=SLOW_RETRY)) as served_platform:
            yield served_platform
        assert_verified(databases)


@pytest.fixture(scope="package")
def slow_retry_client(slow_retry_platform: ServedPlatform) -> Iterator[Client]:
    with slow_retry_platform.client() as sdk_client:
        yield sdk_client
