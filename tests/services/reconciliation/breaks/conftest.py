"""A platform with two operators, and with thresholds for a second person."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick import Client
from tallystick_core.access import Role
from tests.support.break_operator import Operator
from tests.support.callers import client_of, settings_with_callers
from tests.support.platform import (
    ServedPlatform,
    fresh_database,
    serve_platform,
)

CALLERS = {
    "ann": ("", {Role.OPERATOR, Role.SERVICE}),
    "bob": ("", {Role.OPERATOR}),
    "eve": ("", {Role.AUDITOR}),
}


@pytest.fixture(scope="package")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """A platform with two operators, of whom the first posts to the ledger as well, and an auditor.
    Above 100.00 EUR, 200.00 USD and 0.00 CHF, a second person approves.
    """
    settings = settings_with_callers(
        CALLERS,
        reconciliation__posting_interval=0.1,
        reconciliation__approval_threshold={"EUR": 100_00, "USD": 200_00, "CHF": 0},
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("breaks")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="package")
def client(platform: ServedPlatform) -> Iterator[Client]:
    """The client of the first operator."""
    yield from client_of(platform, "ann")


@pytest.fixture(scope="package")
def ann(client: Client) -> Operator:
    return Operator(client)


@pytest.fixture(scope="package")
def bob(platform: ServedPlatform) -> Iterator[Operator]:
    for bobs_client in client_of(platform, "bob"):
        yield Operator(bobs_client)
