"""Charges on pages of Stripe: Checkout Sessions.

A session is registered under the key of its charge, which charges nothing: only the page whose URL
the platform has stored is ever shown. So if Stripe's answer was lost, the session is registered
again under the same key. Only a lookup for which Stripe has stored a server error, which it replays
for a day, registers it under another one. The PaymentIntent belongs to the session. It can be
neither confirmed nor cancelled; only the session can be ended, and one that has expired is never
paid.
"""

from __future__ import annotations

from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING

from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    RetryReason,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargePage, ChargeRequest
from tallystick_server.providers.stripe.checkout_session import (
    CheckoutSession,
    parse_checkout_session,
    to_page_outcome,
)
from tallystick_server.providers.stripe.client import PAGE_SIZE, Answer, StripeApi
from tallystick_server.providers.stripe.errors import (
    Effect,
    Problem,
    Rejection,
    to_unknown,
    unknown_of,
)
from tallystick_server.providers.stripe.json_fields import read_objects
from tallystick_server.providers.stripe.money import UnsupportedAmount, to_stripe_amount

if TYPE_CHECKING:
    from stripe.params.checkout import SessionCreateParams

_MIN_LIFETIME = timedelta(hours=1)
"""Stripe accepts no less than 30 minutes; the rest is for a registration that is late."""
_LOOKUP_SUFFIX = "-lookup"
_INTENT = "payment_intent.latest_charge.balance_transaction"
_LOCALES = """
    bg cs da de el en en-GB es es-419 et fi fil fr fr-CA hr hu id it ja ko lt lv ms mt nb nl pl pt
    pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW
"""
_LOCALE_BY_NAME = {locale.lower(): locale for locale in _LOCALES.split()}


class StripePages:
    """The pages of one account of Stripe."""

    def __init__(self, api: StripeApi, statement_suffix: str) -> None:
        self._api = api
        self._statement_suffix = statement_suffix

    async def send(self, request: ChargeRequest, page: ChargePage) -> ChargeOutcome:
        """The outcome of a charge, whose page is registered under its key."""
        found = await self._find(request)
        session = found or await self._register(request, page, request.key)
        return self._conclude(session, request)

    async def look_up(self, request: ChargeRequest, page: ChargePage) -> ChargeOutcome:
        """The outcome of a charge. If the answer to its registration was lost, it is registered."""
        return self._conclude(await self._find_or_register(request, page), request)

    async def close(self, request: ChargeRequest, page: ChargePage) -> ChargeOutcome:
        """Ends the session of a charge. Only its confirmed end is a decline."""
        session = await self._find_or_register(request, page)
        if (
            not isinstance(session, CheckoutSession)
            or session.status != "open"
            or session.key != request.key
        ):
            return self._conclude(session, request)
        # without a key: a stored server error would keep the page open for a day
        ended = await self._api.call(
            self._api.v1.checkout.sessions.expire_async(session.id, {"expand": [_INTENT]}),
            self._parse,
        )
        if isinstance(ended, CheckoutSession):
            return self._conclude(ended, request)
        current = await self._read(session.id)  # it may have ended meanwhile
        if isinstance(current, CheckoutSession) and current.status != "open":
            return self._conclude(current, request)
        return unknown_of(ended, session.id)

    async def _find_or_register(
        self, request: ChargeRequest, page: ChargePage
    ) -> CheckoutSession | ChargeOutcome:
        """The session of a charge as it is now. If its registration was not answered, it is
        registered, under another key after a server error, because Stripe may have stored that.
        """
        found = await self._find(request)
        if found is not None:
            return found
        registered = await self._register(request, page, request.key)
        if (
            isinstance(registered, Unknown)
            and registered.retry_reason is RetryReason.SERVER_ERROR
            and not registered.reference
        ):
            return await self._register(request, page, f"{request.key}{_LOOKUP_SUFFIX}")
        return registered

    async def _find(self, request: ChargeRequest) -> CheckoutSession | Unknown | None:
        """The session by its id, or by that of its PaymentIntent; None: neither is known."""
        if not request.reference:
            return None
        if request.reference.startswith("cs_"):
            session = await self._read(request.reference)
        else:
            session = await self._find_by_intent(request.reference)
        if isinstance(session, CheckoutSession):
            return session
        return unknown_of(session, request.reference)

    async def _register(
        self, request: ChargeRequest, page: ChargePage, key: str
    ) -> CheckoutSession | ChargeOutcome:
        try:  # smallest and largest amounts are left to Stripe, which may know the key already
            amount = to_stripe_amount(request.amount, request.currency)
        except UnsupportedAmount as error:
            return Unknown(f"amount {error}", RetryReason.REJECTED)
        created = await self._api.call(
            self._api.v1.checkout.sessions.create_async(
                self._create_params(request, page, amount), {"idempotency_key": key}
            ),
            lambda answer: (self._parse(answer), answer.is_replayed),
        )
        match created:
            case (CheckoutSession() as session, is_replayed):
                if not is_replayed:
                    return session
                current = await self._read(session.id)
                if isinstance(current, CheckoutSession):
                    return current
                return unknown_of(current, session.id)
            case Rejection():
                return _to_outcome_of_rejection(created)
            case _:
                return created

    def _create_params(
        self, request: ChargeRequest, page: ChargePage, amount: int
    ) -> SessionCreateParams:
        metadata = {"charge_id": request.charge_id, "key": request.key}
        params: SessionCreateParams = {
            "mode": "payment",
            "client_reference_id": request.charge_id,
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": request.currency.lower(),
                        "unit_amount": amount,
                        "product_data": {"name": page.title},
                    },
                }
            ],
            "metadata": metadata,
            # in the buyer's currency the amount would be another
            "adaptive_pricing": {"enabled": False},
            "payment_intent_data": {"metadata": metadata, "transfer_group": request.charge_id},
            "expires_at": ceil(max(page.expire_time, page.create_time + _MIN_LIFETIME).timestamp()),
            "success_url": page.return_url,
            "cancel_url": page.return_url,
            "expand": [_INTENT],
        }
        locale = choose_locale(page.locale)
        if locale:
            params["locale"] = locale
        if self._statement_suffix:
            params["payment_intent_data"]["statement_descriptor_suffix"] = self._statement_suffix
        return params

    async def _read(self, session_id: str) -> CheckoutSession | Problem:
        return await self._api.call(
            self._api.v1.checkout.sessions.retrieve_async(session_id, {"expand": [_INTENT]}),
            self._parse,
        )

    async def _find_by_intent(self, intent_id: str) -> CheckoutSession | Problem:
        return await self._api.call(
            self._api.v1.checkout.sessions.list_async(
                {
                    "payment_intent": intent_id,
                    "limit": PAGE_SIZE,
                    "expand": [f"data.{_INTENT}"],
                }
            ),
            self._parse_only,
        )

    def _parse(self, answer: Answer) -> CheckoutSession:
        return parse_checkout_session(answer.body, allow_http=self._api.is_plain)

    def _parse_only(self, answer: Answer) -> CheckoutSession:
        """The only session of a list. Raises ValueError."""
        (fields,) = read_objects(answer.body)
        return parse_checkout_session(fields, allow_http=self._api.is_plain)

    def _conclude(
        self, session: CheckoutSession | ChargeOutcome, request: ChargeRequest
    ) -> ChargeOutcome:
        if not isinstance(session, CheckoutSession):
            return session
        if session.key != request.key:
            return Unknown("Stripe answered about another charge", RetryReason.MISMATCHED_OPERATION)
        try:
            return to_page_outcome(session)
        except UnsupportedAmount:
            return Unknown("an amount that cannot be read", reference=session.id)


def _to_outcome_of_rejection(rejection: Rejection) -> ChargeOutcome:
    """The outcome of a registration that Stripe rejects. Nobody can pay."""
    if rejection.effect is not Effect.REJECTED:
        return to_unknown(rejection)
    if rejection.param == "expires_at":  # too little time is left
        return Declined(FailureReason.PAGE_EXPIRED, "expires_at")
    return Declined(FailureReason.PROVIDER_REJECTED, rejection.code)


def choose_locale(language: str) -> str:
    """The language of Stripe's page; "": that of the buyer's browser."""
    text = language.lower()
    return _LOCALE_BY_NAME.get(text) or _LOCALE_BY_NAME.get(text.partition("-")[0], "")
