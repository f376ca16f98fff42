"""The interface of payment providers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tallystick_core.provider.outcome import ChargeLookupOutcome, ChargeOutcome, FinalNotFound


@dataclass(frozen=True, slots=True)
class ChargePage:
    """A page of the provider on which the buyer pays a charge. It is the same in every request with
    the same key.
    """

    title: str
    """What the buyer pays for."""
    return_url: str
    """Where the provider sends the buyer back, paid or not."""
    create_time: datetime
    """When it was requested."""
    expire_time: datetime
    """When it is to be closed. The platform asks for that with `cancel`; the provider closes it by
    itself later, in case the platform cannot ask.
    """
    locale: str
    """A language such as "en" or "pt-BR"; "": that of the buyer's browser."""


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge that a provider is asked to make. `key` is the idempotency key. The same key is
    always sent with the same values, except for `reference`.
    """

    key: str
    charge_id: str
    amount: int
    """Minor units."""
    currency: str
    payment_token: str
    method: str
    reference: str = ""
    """The provider's id of the charge, as an earlier outcome has reported it; "": none has."""
    page: ChargePage | None = None
    """The page on which the buyer pays; None: `payment_token` is charged."""


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A refund that a provider is asked to make. `key` is the idempotency key. The same key is
    always sent with the same values.
    """

    key: str
    refund_id: str
    charge_reference: str
    """The provider's id of the charge."""
    amount: int
    """Minor units: a part of the charge, or all of it."""
    currency: str


class PaymentProvider(Protocol):
    """A payment service provider. Its methods never raise, except for a bug: every result is one of
    their outcomes.

    Definite outcomes echo the reference of their operation if the provider reports it.
    """

    name: str
    key_window: float
    """Seconds for which the provider honors an idempotency key, counted from its first use."""
    final_not_found: FinalNotFound | None
    """When a NotFound is conclusive; None: never."""
    hosts_pages: bool
    """Whether it accepts requests with a `page`. Registering one again, with the same key or later,
    charges nothing: only the page whose URL was stored is ever shown to a buyer.
    """

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        """The rule that makes the provider reject every such charge, such as "must be at least
        0.50 EUR"; None: it knows none. `amount`: minor units. `method`: the payment method type.
        """
        ...

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        """Charges the buyer, or registers the page on which the buyer pays: Pending with its URL.
        Or returns the outcome of an earlier request with the same key.
        """
        ...

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        """Returns the outcome of a request that may have been sent. Charges nothing; it may end a
        charge that has failed and could still be paid at the provider.
        """
        ...

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        """Cancels a request that may have been sent, and returns its outcome.
        Declined(CALLER_CANCELLED): it is certain that it will not be charged. A page is closed:
        Declined(PAGE_EXPIRED).
        """
        ...
