"""Stripe as a payment provider: a charge is a PaymentIntent that is confirmed at once, or one that
the buyer pays on a page.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    NotSent,
    Pending,
    PendingReason,
    RefundOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest, RefundRequest
from tallystick_server.providers.provider_type import ProviderTerms
from tallystick_server.providers.stripe.client import PAGE_SIZE, Answer, StripeApi
from tallystick_server.providers.stripe.errors import (
    Effect,
    Problem,
    Rejection,
    decline_reason,
    to_unknown,
    unknown_of,
)
from tallystick_server.providers.stripe.hosted_pages import StripePages
from tallystick_server.providers.stripe.json_fields import (
    read_number,
    read_objects,
    read_optional_table,
    read_optional_text,
    read_text,
    require_kind,
    require_last_page,
)
from tallystick_server.providers.stripe.money import (
    UnsupportedAmount,
    from_stripe_amount,
    to_stripe_amount,
    to_stripe_charge,
)
from tallystick_server.providers.stripe.payment_intent import (
    ABANDONED,
    CANCELLED_BY_US,
    FINAL_STATUSES,
    PaymentIntent,
    parse_payment_intent,
    to_outcome,
)

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCreateParams

MIN_SECONDS_SINCE_SENT = 7200.0
"""After which "not found" is proof: twice the hour by which Stripe's search lags."""
_EXPAND = ["latest_charge.balance_transaction"]


class StripeCharges:
    """The charges of one account of Stripe."""

    def __init__(self, terms: ProviderTerms, api: StripeApi, statement_suffix: str = "") -> None:
        self.name = terms.name
        self.key_window = terms.key_window_seconds
        self.final_not_found: FinalNotFound | None = replace(
            terms.final_not_found,
            min_seconds_since_sent=max(
                terms.final_not_found.min_seconds_since_sent, MIN_SECONDS_SINCE_SENT
            ),
        )
        self.hosts_pages = True
        self._api = api
        self._statement_suffix = statement_suffix
        self._pages = StripePages(api, statement_suffix)

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        """As in `PaymentProvider`."""
        try:
            to_stripe_charge(amount, currency, method)
        except UnsupportedAmount as error:
            return str(error)
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        """A charge whose PaymentIntent or page is known is not created again."""
        if request.page is not None:
            return await self._pages.send(request, request.page)
        return await self._charge(request)

    async def _charge(self, request: ChargeRequest) -> ChargeOutcome:
        if request.reference:
            return await self._read_again(request.reference, request)
        try:  # smallest and largest amounts are left to Stripe, which may know the key already
            amount = to_stripe_amount(request.amount, request.currency)
        except UnsupportedAmount as error:  # an earlier release may have sent it
            found = await self.look_up(request)
            if not isinstance(found, NotFound):
                return found
            return Unknown(f"amount {error}", RetryReason.REJECTED)
        created = await self._api.call(
            self._api.v1.payment_intents.create_async(
                self._create_params(request, amount), {"idempotency_key": request.key}
            ),
            _parse_created,
        )
        is_rejected = isinstance(created, Rejection) and created.is_definite
        if isinstance(created, Rejection):
            created = _read_rejected_intent(created)
        if isinstance(created, Answer):
            intent = parse_payment_intent(created.body)
            if created.is_replayed and intent.status not in FINAL_STATUSES:
                return await self._read_again(intent.id, request, is_rejected=is_rejected)
            return await self._conclude(intent, request, is_rejected=is_rejected)
        return _to_charge_outcome(created)

    def _create_params(self, request: ChargeRequest, amount: int) -> PaymentIntentCreateParams:
        params: PaymentIntentCreateParams = {
            "amount": amount,
            "currency": request.currency.lower(),
            "payment_method": request.payment_token,
            "confirm": True,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "metadata": {"charge_id": request.charge_id, "key": request.key},
            "transfer_group": request.charge_id,
            "expand": _EXPAND,
        }
        if self._statement_suffix:
            params["statement_descriptor_suffix"] = self._statement_suffix
        return params

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        """Looks up the charge. Cancels its PaymentIntent if the payment failed."""
        if request.page is not None:
            return await self._pages.look_up(request, request.page)
        found = await self._find(request)
        if isinstance(found, PaymentIntent):
            return await self._conclude(found, request)
        return found

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        if request.page is not None:
            return await self._pages.close(request, request.page)
        found = await self._find(request)
        if not isinstance(found, PaymentIntent):
            return found
        if found.status in FINAL_STATUSES or found.key != request.key:
            return await self._conclude(found, request)
        return await self._end(found, request, ABANDONED if found.has_failed else CANCELLED_BY_US)

    async def refund(self, request: RefundRequest) -> RefundOutcome:
        """Returns a part of a charge to the buyer, or finds the earlier refund with the same key.
        After the key window it would return it twice: refunds have no lookup yet.
        """
        try:
            amount = to_stripe_amount(request.amount, request.currency)
        except UnsupportedAmount as error:
            return Unknown(f"amount {error}", RetryReason.REJECTED)
        refund = await self._api.call(
            self._api.v1.refunds.create_async(
                {
                    "payment_intent": request.charge_reference,
                    "amount": amount,
                    "metadata": {"refund_id": request.refund_id, "key": request.key},
                },
                {"idempotency_key": request.key},
            ),
            _parse_refund,
        )
        if isinstance(refund, Rejection):
            if refund.is_definite:
                return Declined(FailureReason.PROVIDER_REJECTED, refund.code)
            return to_unknown(refund)
        return refund

    async def _find(self, request: ChargeRequest) -> PaymentIntent | NotFound | NotSent | Unknown:
        """The PaymentIntent of a charge, by its reference or by search, as it is now. Stripe never
        deletes one, so one whose id is known is never NotFound: the API key may be another's.
        """
        if request.reference:
            current = await self._read(request.reference)
            return to_unknown(current) if isinstance(current, Rejection) else current
        query = f"metadata['charge_id']:'{request.charge_id}'"
        found = await self._api.call(
            self._api.v1.payment_intents.search_async({"query": query, "limit": PAGE_SIZE}),
            lambda answer: _parse_found(answer, request.key),
        )
        if isinstance(found, Rejection):
            return to_unknown(found)
        if not isinstance(found, str):
            return found
        if not found:
            return NotFound("Stripe's search does not find it")
        current = await self._read(found)
        return current if isinstance(current, PaymentIntent) else unknown_of(current, found)

    async def _read(self, intent_id: str) -> PaymentIntent | Problem:
        return await self._api.call(
            self._api.v1.payment_intents.retrieve_async(intent_id, {"expand": _EXPAND}),
            lambda answer: parse_payment_intent(answer.body),
        )

    async def _read_again(
        self, intent_id: str, request: ChargeRequest, *, is_rejected: bool = False
    ) -> ChargeOutcome:
        """The outcome of a PaymentIntent that may have changed since it was answered."""
        current = await self._read(intent_id)
        if isinstance(current, PaymentIntent):
            return await self._conclude(current, request, is_rejected=is_rejected)
        return unknown_of(current, intent_id)

    async def _conclude(
        self, intent: PaymentIntent, request: ChargeRequest, *, is_rejected: bool = False
    ) -> ChargeOutcome:
        """The outcome of a charge. One that has failed could still be paid, so it is ended first;
        but never one of another charge or environment, and never one that another request may be
        confirming now. `is_rejected`: the request that created it was definitely rejected.
        """
        if intent.key != request.key:
            return _mismatched()
        outcome = _read_outcome(intent)
        if outcome is None and (intent.has_failed or is_rejected):
            return await self._end(intent, request, ABANDONED)
        return outcome or _not_ended(intent)

    async def _end(
        self,
        intent: PaymentIntent,
        request: ChargeRequest,
        reason: Literal["abandoned", "requested_by_customer"],
    ) -> ChargeOutcome:
        """Cancels a PaymentIntent. Only its confirmed end is a decline. The key has its status, so
        that a rejected cancellation is not replayed once it has another.
        """
        ended = await self._api.call(
            self._api.v1.payment_intents.cancel_async(
                intent.id,
                {"cancellation_reason": reason, "expand": _EXPAND},
                {"idempotency_key": f"{request.key}-{reason}-{intent.status}"},
            ),
            lambda answer: parse_payment_intent(answer.body),
        )
        if isinstance(ended, Rejection):  # it has ended or changed meanwhile
            ended = await self._read(intent.id)
        if not isinstance(ended, PaymentIntent):
            return unknown_of(ended, intent.id)
        return _read_outcome(ended) or _not_ended(ended)


def _mismatched() -> Unknown:
    return Unknown("Stripe answered about another charge", RetryReason.MISMATCHED_OPERATION)


def _read_outcome(intent: PaymentIntent) -> ChargeOutcome | None:
    """The outcome of a charge. None: it has not ended."""
    try:
        return to_outcome(intent)
    except UnsupportedAmount:
        return Unknown("an amount that cannot be read", reference=intent.id)


def _not_ended(intent: PaymentIntent) -> Unknown:
    return Unknown(f"the PaymentIntent is in {intent.status}", reference=intent.id)


def _parse_created(answer: Answer) -> Answer:
    """The answer, if it has a PaymentIntent. Raises ValueError."""
    parse_payment_intent(answer.body)
    return answer


def _read_rejected_intent(rejection: Rejection) -> Answer | Rejection | Unknown:
    """The PaymentIntent that a rejected request has created nevertheless."""
    if not rejection.payment_intent:
        return rejection
    try:
        return _parse_created(Answer(rejection.payment_intent, rejection.is_replayed, ""))
    except ValueError as error:
        return Unknown(f"a rejection that cannot be read: {error}")


def _to_charge_outcome(problem: Problem) -> ChargeOutcome:
    """The outcome of a request that has created nothing, as far as the answer says."""
    if not isinstance(problem, Rejection):
        return problem
    match problem.effect:
        case Effect.REJECTED if problem.param == "payment_method":
            return Declined(decline_reason(problem.code), problem.code)
        case Effect.REJECTED:
            return Declined(FailureReason.PROVIDER_REJECTED, problem.code)
        case Effect.DECLINED:  # the PaymentIntent could still be paid, and is not known
            return Unknown(f"declined without a PaymentIntent: {problem.code}")
        case _:
            return to_unknown(problem)


def _parse_found(answer: Answer, key: str) -> str:
    """The id of the PaymentIntent with this key; "": the search finds none. Raises ValueError, also
    if there are more results, which may have it.
    """
    for fields in read_objects(answer.body):
        if read_optional_text(read_optional_table(fields, "metadata"), "key") == key:
            return read_text(fields, "id")
    require_last_page(answer.body)
    return ""


def _parse_refund(answer: Answer) -> RefundOutcome:
    """The outcome of a refund. Raises ValueError."""
    fields = answer.body
    require_kind(fields, "refund")
    reference = read_text(fields, "id")
    refund_id = read_optional_text(read_optional_table(fields, "metadata"), "refund_id")
    match read_text(fields, "status"):
        case "succeeded":
            currency = read_text(fields, "currency").upper()
            amount = from_stripe_amount(read_number(fields, "amount"), currency)
            return Succeeded(reference, amount, currency, refund_id)
        case "pending" | "requires_action":
            return Pending(PendingReason.PROVIDER_REVIEW, reference, client_reference=refund_id)
        case "failed" | "canceled":
            code = read_optional_text(fields, "failure_reason") or "failed"
            return Declined(FailureReason.PROVIDER_DECLINED, code, reference, refund_id)
        case _:
            raise ValueError("an unknown status")
