"""Every type of provider passes the contract: in the process, and over HTTP where it has HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.registry import PROVIDER_TYPES
from tests.providers.contract import CHARGE_CASES
from tests.providers.contract_http import HTTP_CASES
from tests.providers.contract_payouts import PAYOUT_CASES
from tests.providers.contract_webhooks import WEBHOOK_CASES
from tests.providers.sandbox_harness import sandbox_in_process, sandbox_over_http
from tests.providers.stripe_harness import stripe_in_process, stripe_over_http

OpenHarness = Callable[[DatabaseUrls], AbstractAsyncContextManager[Any]]
HARNESSES: dict[tuple[str, str], OpenHarness] = {
    ("sandbox", "in the process"): sandbox_in_process,
    ("sandbox", "over HTTP"): sandbox_over_http,
    ("stripe", "in the process"): stripe_in_process,
    ("stripe", "over HTTP"): stripe_over_http,
}
"""The harness of each type of provider, for each way in which it is reached."""
CASES = (("charges", CHARGE_CASES), ("payouts", PAYOUT_CASES), ("webhooks", WEBHOOK_CASES))
"""The cases of what a type of provider can do."""
TESTS = [
    pytest.param(open_harness, case, id=f"{name} {transport}: {kind} {case.__name__}")
    for (name, transport), open_harness in HARNESSES.items()
    for kind, cases in CASES
    if getattr(PROVIDER_TYPES[name], f"build_{kind}") is not None
    for case in cases
] + [
    # An adapter in the process has no answers that could be foreign, cut or redirected.
    pytest.param(open_harness, case, id=f"{name} {transport}: {case.__name__}")
    for (name, transport), open_harness in HARNESSES.items()
    if transport == "over HTTP"
    for case in HTTP_CASES
]


@pytest.mark.parametrize(("open_harness", "case"), TESTS)
def test_the_adapter_keeps_the_contract(
    database: DatabaseUrls, open_harness: OpenHarness, case: Callable[[Any], Awaitable[None]]
) -> None:
    """The case holds for the adapter; its docstring says what it states."""

    async def run() -> None:
        async with open_harness(database) as harness:
            await case(harness)

    asyncio.run(run())


def test_every_type_of_provider_has_a_harness() -> None:
    """A type of provider that is added to the registry is tested by the contract."""
    assert {name for name, _ in HARNESSES} == set(PROVIDER_TYPES)
