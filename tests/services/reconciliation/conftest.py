"""A platform that posts at once what reconciliation decides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick import Client
from tallystick_server.app.configuration import Settings
from tests.support.platform import FAST_RETRY, ServedPlatform, fresh_database, serve_platform
from tests.support.reconciliation import Provider


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """All services, in development mode."""
    settings = Settings().replace(
        retry=FAST_RETRY,
        reconciliation__posting_interval=0.1,
        reconciliation__approval_threshold={"EUR": 100_000},
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("reconciliation")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


@pytest.fixture
def provider(client: Client) -> Provider:
    """A provider of this test."""
    return Provider(client)
