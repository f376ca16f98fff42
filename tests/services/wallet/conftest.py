"""A platform with the callers of two owners, and their clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick import Client
from tallystick_server.app.wiring import Dependencies
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import client_of
from tests.support.marketplace import SETTINGS
from tests.support.platform import ServedPlatform, fresh_database, serve_platform


@pytest.fixture(scope="module")
def marketplace(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """All services, with a marketplace that has two callers, a competitor, and two operators."""
    folder: Path = tmp_path_factory.mktemp("market")
    with (
        fresh_database(admin_url, folder) as databases,
        serve_platform(
            databases,
            SETTINGS,
            dependencies=Dependencies(payout_providers={"sandbox": ScriptedPayoutProvider()}),
        ) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def checkout_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Takes the marketplace's payments."""
    yield from client_of(marketplace, "checkout")


@pytest.fixture(scope="module")
def payout_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Pays the marketplace's sellers."""
    yield from client_of(marketplace, "payouts")


@pytest.fixture(scope="module")
def rival_client(marketplace: ServedPlatform) -> Iterator[Client]:
    """Another marketplace."""
    yield from client_of(marketplace, "rival")


@pytest.fixture(scope="module")
def operator_client(marketplace: ServedPlatform) -> Iterator[Client]:
    yield from client_of(marketplace, "operator")


@pytest.fixture(scope="module")
def second_operator_client(marketplace: ServedPlatform) -> Iterator[Client]:
    yield from client_of(marketplace, "second-operator")
