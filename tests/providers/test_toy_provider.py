"""A provider is added by its folder and one line of the registry: here a toy bank, in one file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from pydantic import Field

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    NotSent,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_server.app.configuration import load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.provider_type import (
    BuiltProvider,
    CallLimits,
    OpenDatabase,
    ProviderSettings,
    ProviderTerms,
    ProviderType,
)
from tallystick_server.providers.registry import PROVIDER_TYPES
from tallystick_server.setting_types import Text
from tallystick_server.verify.run import verify
from tests.providers import contract
from tests.providers.contract import Answer, ChargeCase
from tests.support.payments import create_payment
from tests.support.platform import serve_platform, unique_id


class ToySettings(ProviderSettings):
    """A toy bank."""

    api_key: Text = Field(default="", repr=False)
    """The key of the platform's account."""


@dataclass
class ToyCharges:
    """Charges every buyer except those whose token is `broke`."""

    terms: ProviderTerms
    api_key: str
    is_down: bool = False
    charges: dict[str, ChargeRequest] = field(default_factory=dict)  # by idempotency key

    def __post_init__(self) -> None:
        self.name, self.key_window = self.terms.name, self.terms.key_window_seconds
        self.final_not_found: FinalNotFound | None = self.terms.final_not_found
        self.hosts_pages = False

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        if self.is_down:
            return NotSent("the toy bank is closed")
        if self.charges.setdefault(request.key, request) != request:
            return Unknown("the key has other values", RetryReason.REJECTED)
        return self._outcome(request)

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        if self.is_down:
            return NotSent("the toy bank is closed")
        return self._outcome(request) if request.key in self.charges else NotFound()

    cancel = look_up

    def _outcome(self, request: ChargeRequest) -> ChargeOutcome:
        if request.payment_token == "broke":
            return Declined(FailureReason.INSUFFICIENT_FUNDS, "broke", f"toy_{request.key}")
        return Succeeded(f"toy_{request.key}", request.amount, request.currency, request.charge_id)


def build(
    terms: ProviderTerms, settings: ToySettings, _open_database: OpenDatabase
) -> BuiltProvider[PaymentProvider]:
    return BuiltProvider(ToyCharges(terms, settings.api_key))


@pytest.fixture(autouse=True)
def toy_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the registry."""
    monkeypatch.setitem(PROVIDER_TYPES, "toy", ProviderType(ToySettings, build))


@dataclass
class ToyHarness:
    """The toy bank as the contract needs it."""

    charges: ToyCharges

    def new_charge(self, answer: Answer) -> ChargeRequest:
        id_, token = unique_id("o"), "broke" if answer is Answer.DECLINES else "rich"
        return ChargeRequest(f"test-{id_}-1", id_, 1000, "EUR", token, "CARD")

    async def taken(self, charge: ChargeRequest) -> list[int]:
        charges = self.charges.charges.values()
        return [c.amount for c in charges if c.key == charge.key and c.payment_token != "broke"]

    @asynccontextmanager
    async def unreachable_charges(self) -> AsyncIterator[PaymentProvider]:
        yield replace(self.charges, is_down=True)


@pytest.mark.parametrize(
    "case",
    [
        contract.a_key_charges_once,
        contract.a_decline_takes_nothing,
        contract.a_key_with_other_values_is_rejected,
        contract.no_connection_is_not_sent,
        contract.an_unknown_charge_is_not_found,
        contract.a_cancellation_after_the_end_reports_it,
    ],
)
def test_the_toy_keeps_the_contract(case: ChargeCase) -> None:
    """The cases whose answers the toy bank can give."""
    terms = ProviderTerms("toy", CallLimits(1, 1), 60.0, FinalNotFound(1.0))
    asyncio.run(case(ToyHarness(ToyCharges(terms, ""))))  # type: ignore[arg-type]


def test_a_payment_through_the_toy(scratch_database: DatabaseUrls) -> None:
    """The configured toy bank charges under its own name, next to a sandbox that pays out."""
    settings = load(
        {
            "TALLYSTICK_PROVIDERS__PAYMENT": "toy",
            "TALLYSTICK_PROVIDERS__TOY__API_KEY": "secret",
            "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "0",
        }
    )
    assert "secret" not in repr(settings)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        order = create_payment(client, "5.00").payment_orders[0]
        assert (order.provider, order.provider_reference[:4]) == ("toy", "toy_")
        order = create_payment(client, "5.00", token="broke").payment_orders[0]
        assert order.decline_code == "broke"
    assert verify(scratch_database).passed
