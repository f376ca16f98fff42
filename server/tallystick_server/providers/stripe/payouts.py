"""Stripe as a payout provider. A payout is two movements: a transfer from the platform's balance to
the seller's connected account, and a payout from there to the seller's bank.

The reference of a payout is Stripe's id of its transfer. A payout that fails is declined, or
returned, only once its transfer is reversed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tallystick_core.provider.outcome import (
    Declined,
    NotFound,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    PayoutOutcome,
    RetryReason,
    Returned,
    Unknown,
    VerificationOutcome,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.providers.provider_type import ProviderTerms
from tallystick_server.providers.stripe.client import PAGE_SIZE, Answer, StripeApi
from tallystick_server.providers.stripe.errors import (
    PAYOUT_REJECTIONS,
    Effect,
    Problem,
    Rejection,
    to_unknown,
    unknown_of,
)
from tallystick_server.providers.stripe.json_fields import (
    read_objects,
    read_optional_table,
    require_kind,
    require_last_page,
)
from tallystick_server.providers.stripe.money import (
    UnsupportedAmount,
    to_stripe_payout,
)
from tallystick_server.providers.stripe.transfer import (
    BankPayout,
    Transfer,
    parse_payout,
    parse_transfer,
    to_failed_outcome,
    to_metadata,
    to_outcome,
    to_unpaid_outcome,
)
from tallystick_server.providers.stripe.verification import to_verification

if TYPE_CHECKING:
    from stripe import RequestOptions
    from stripe.params import EventListParams, PayoutListParams

_ACCOUNT = re.compile(r"acct_[!-~]{1,95}", re.ASCII)
_MAX_PAGES = 10
_EVENT_DAYS = 29
"""Stripe lists an event for 30 days. A younger transfer's payout has all of its events."""
_MAX_CLOCK_DIFFERENCE_SECONDS = 300
"""Of two of Stripe's own times: a payout may bear an earlier one than its transfer."""


class StripePayouts:
    """The payouts of one account of Stripe to the accounts that are connected to it."""

    max_batch_size = 1
    creation_margin_seconds = 3600.0
    """How much longer than the key window a payout may be created after its transfer."""

    def __init__(self, terms: ProviderTerms, api: StripeApi) -> None:
        self.name = terms.name
        self.key_window = terms.key_window_seconds
        self._api = api

    def reject_amount(self, amount: int, currency: str) -> str | None:
        """As in `PayoutProvider`."""
        try:
            to_stripe_payout(amount, currency)
        except UnsupportedAmount as error:
            return str(error)
        return None

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        return [await self._submit(request) for request in requests]

    async def _submit(self, request: PayoutRequest) -> PayoutOutcome:
        if not _ACCOUNT.fullmatch(request.bank_account_token):
            return _NOT_AN_ACCOUNT
        try:
            amount = to_stripe_payout(request.amount, request.currency)
        except UnsupportedAmount as error:  # an earlier release may have sent it
            found = await self.look_up(request)
            if not isinstance(found, NotFound):
                return found
            return Unknown(f"amount {error}", RetryReason.REJECTED)
        return await self._send(request, amount)

    async def _send(self, request: PayoutRequest, amount: int) -> PayoutOutcome:
        transfer = await self._create_transfer(request, amount)
        if not isinstance(transfer, Transfer):
            return _to_payout_outcome(transfer)
        if transfer.key != request.key:
            return _mismatched()
        if transfer.is_reversed:  # its money is gone: no payout may be created any more
            return await self._follow(transfer, request)
        payout = await self._create_payout(request, amount, transfer)
        if isinstance(payout, Rejection) and payout.is_definite:
            return await self._decline(payout, transfer, request)
        return await self._conclude(payout, transfer, request)

    async def _decline(
        self, rejection: Rejection, transfer: Transfer, request: PayoutRequest
    ) -> PayoutOutcome:
        """The outcome of a payout whose creation was rejected. An earlier request under the same
        key may have created it; only if there is none, the transfer is reversed.
        """
        payout = await self._find_payout(transfer, request)
        if payout is None:
            return await self._reverse(transfer, _to_rejected_outcome(rejection, transfer))
        return await self._conclude(payout, transfer, request)

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        """Reverses the transfer of a payout that has failed, or that was never created."""
        if not _ACCOUNT.fullmatch(request.bank_account_token):
            return _NOT_AN_ACCOUNT
        transfer = await self._find_transfer(request)
        if isinstance(transfer, Transfer):
            return await self._follow(transfer, request)
        return transfer

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        if not _ACCOUNT.fullmatch(bank_account_token):
            return _NOT_AN_ACCOUNT
        result = await self._api.call(
            self._api.v1.accounts.retrieve_async(bank_account_token),
            lambda answer: to_verification(answer.body, currency),
        )
        if not isinstance(result, Rejection):
            return result
        if result.is_definite or result.effect in (Effect.NOT_FOUND, Effect.NO_ACCESS):
            return Declined(PayoutFailure.DESTINATION_REJECTED, result.code)
        return to_unknown(result)

    async def _create_transfer(self, request: PayoutRequest, amount: int) -> Transfer | Problem:
        created = await self._api.call(
            self._api.v1.transfers.create_async(
                {
                    "amount": amount,
                    "currency": request.currency.lower(),
                    "destination": request.bank_account_token,
                    "transfer_group": request.payout_id,
                    "metadata": {"payout_id": request.payout_id, "key": request.key},
                },
                {"idempotency_key": f"{request.key}-transfer"},
            ),
            lambda answer: (parse_transfer(answer), answer.is_replayed),
        )
        if not isinstance(created, tuple):
            return created
        transfer, is_replayed = created
        if not is_replayed:
            return transfer
        current = await self._read_transfer(transfer.id)  # it may have been reversed since
        return current if isinstance(current, Transfer) else unknown_of(current, transfer.id)

    async def _create_payout(
        self, request: PayoutRequest, amount: int, transfer: Transfer
    ) -> BankPayout | Problem:
        created = await self._api.call(
            self._api.v1.payouts.create_async(
                {
                    "amount": amount,
                    "currency": request.currency.lower(),
                    "metadata": {
                        "payout_id": request.payout_id,
                        "key": request.key,
                        "transfer": transfer.id,
                    },
                },
                {
                    "idempotency_key": f"{request.key}-payout",
                    "stripe_account": request.bank_account_token,
                },
            ),
            lambda answer: (parse_payout(answer.body), answer.is_replayed),
        )
        if not isinstance(created, tuple):
            return created
        payout, is_replayed = created
        return await self._read_payout(payout.id, request) if is_replayed else payout

    async def _find_transfer(
        self, request: PayoutRequest
    ) -> Transfer | NotFound | NotSent | Unknown:
        """The transfer of a payout, by its reference or among those of its group. Stripe never
        deletes one, so one whose id is known is never NotFound.
        """
        if request.reference:
            current = await self._read_transfer(request.reference)
            return to_unknown(current) if isinstance(current, Rejection) else current
        found = await self._api.call(
            self._api.v1.transfers.list_async(
                {"transfer_group": request.payout_id, "limit": PAGE_SIZE}
            ),
            lambda answer: _find_in_page(answer, request.key),
        )
        return to_unknown(found) if isinstance(found, Rejection) else found

    async def _read_transfer(self, transfer_id: str) -> Transfer | Problem:
        return await self._api.call(
            self._api.v1.transfers.retrieve_async(transfer_id), parse_transfer
        )

    async def _read_payout(self, payout_id: str, request: PayoutRequest) -> BankPayout | Problem:
        return await self._api.call(
            self._api.v1.payouts.retrieve_async(payout_id, {}, _on_account_of(request)),
            lambda answer: parse_payout(answer.body),
        )

    async def _find_payout(
        self, transfer: Transfer, request: PayoutRequest
    ) -> BankPayout | Problem | None:
        """The payout of a transfer among those of the account. None: there is none. One without a
        key and with the same amount may be it: the owner of the account can change its metadata.
        """
        first_time = transfer.create_time - _MAX_CLOCK_DIFFERENCE_SECONDS
        last_time = transfer.create_time + int(self.key_window + self.creation_margin_seconds)
        params: PayoutListParams = {"created": {"gte": first_time, "lte": last_time}}
        pages = self._api.read_pages(
            self._api.v1.payouts.list_async, params, _MAX_PAGES, _on_account_of(request)
        )
        may_exist = False
        async for page in pages:
            if isinstance(page, Rejection | NotSent | Unknown):
                return page
            for fields in page:
                key = read_optional_table(fields, "metadata").get("key")
                if key == request.key:
                    return _parse_or_unknown(fields)
                if not key and fields.get("amount") == transfer.amount:
                    may_exist = True
        return Unknown("a payout of this amount has no key") if may_exist else None

    async def _follow(self, transfer: Transfer, request: PayoutRequest) -> PayoutOutcome:
        """The outcome of a payout whose transfer is known, and so is never NotFound."""
        if transfer.key != request.key:
            return _mismatched()
        if transfer.recorded_outcome is not None:
            return transfer.recorded_outcome
        payout = await self._find_payout(transfer, request)
        if payout is not None:
            return await self._conclude(payout, transfer, request)
        if transfer.is_reversed:
            return to_unpaid_outcome(transfer, "transfer_reversed")
        # Once the key is forgotten, nothing is sent any more, and nothing can still arrive.
        if transfer.age_seconds > self.key_window + self.creation_margin_seconds:
            return await self._reverse(transfer, to_unpaid_outcome(transfer, "payout_not_created"))
        return Unknown("the transfer is made, its payout is not found", reference=transfer.id)

    async def _conclude(
        self, payout: BankPayout | Problem, transfer: Transfer, request: PayoutRequest
    ) -> PayoutOutcome:
        """The outcome of a payout, after the reversal of its transfer if it has failed."""
        if not isinstance(payout, BankPayout):
            return unknown_of(payout, transfer.id)
        if payout.key != request.key:
            return _mismatched()
        try:
            outcome = to_outcome(payout, transfer)
            if outcome is None:
                was_paid = await self._was_paid(payout, transfer, request)
                if not isinstance(was_paid, bool):
                    return unknown_of(was_paid, transfer.id)
                outcome = to_failed_outcome(payout, transfer, was_paid=was_paid)
        except UnsupportedAmount:
            return Unknown("an amount that cannot be read", reference=transfer.id)
        if isinstance(outcome, Declined | Returned):
            return await self._reverse(transfer, outcome)
        return outcome

    async def _was_paid(
        self, payout: BankPayout, transfer: Transfer, request: PayoutRequest
    ) -> bool | Problem:
        """Whether Stripe has reported the payout as paid, which it may do days before it fails.
        Only the events say so: the payout itself forgets it.
        """
        params: EventListParams = {"type": "payout.paid", "created": {"gte": payout.create_time}}
        pages = self._api.read_pages(
            self._api.v1.events.list_async, params, _MAX_PAGES, _on_account_of(request)
        )
        async for page in pages:
            if isinstance(page, Rejection | NotSent | Unknown):
                return page
            for event in page:
                object_ = read_optional_table(read_optional_table(event, "data"), "object")
                if object_.get("id") == payout.id:
                    return True
        if transfer.age_seconds > _EVENT_DAYS * 86_400:
            return Unknown("the events that would say whether the payout was paid are forgotten")
        return False

    async def _reverse(self, transfer: Transfer, outcome: Declined | Returned) -> PayoutOutcome:
        """Takes the money of a transfer back, and returns the outcome once that is certain. Stripe
        keeps the outcome with the reversal.

        Stripe's library gives each request a key of its own. One key for all would replay a
        rejection for a day, and reject another outcome. Nothing is reversed twice: Stripe reverses
        no more than the amount of the transfer.
        """
        reversal = await self._api.call(
            self._api.v1.transfers.reversals.create_async(
                transfer.id,
                {"amount": transfer.amount, "metadata": to_metadata(outcome)},
            ),
            lambda answer: require_kind(answer.body, "transfer_reversal"),
        )
        if reversal is None:
            return outcome
        current = await self._read_transfer(transfer.id)
        if isinstance(current, Transfer) and current.is_reversed:
            return current.recorded_outcome or outcome
        return unknown_of(reversal, transfer.id)


_NOT_AN_ACCOUNT = Declined(PayoutFailure.DESTINATION_REJECTED, "not_a_connected_account")


def _on_account_of(request: PayoutRequest) -> RequestOptions:
    return {"stripe_account": request.bank_account_token}


def _find_in_page(answer: Answer, key: str) -> Transfer | NotFound:
    """The transfer with this key. Raises ValueError, also if there are more, which may have it."""
    for fields in read_objects(answer.body):
        transfer = parse_transfer(replace(answer, body=fields))
        if transfer.key == key:
            return transfer
    require_last_page(answer.body)
    return NotFound()


def _parse_or_unknown(fields: Mapping[str, Any]) -> BankPayout | Unknown:
    try:
        return parse_payout(fields)
    except ValueError as error:
        return Unknown(f"a payout that cannot be read: {error}")


def _to_payout_outcome(problem: Problem) -> PayoutOutcome:
    """The outcome of a transfer that was not created, as far as the answer says."""
    if not isinstance(problem, Rejection):
        return problem
    return _to_rejected_outcome(problem, None) if problem.is_definite else to_unknown(problem)


def _to_rejected_outcome(rejection: Rejection, transfer: Transfer | None) -> Declined:
    """The outcome of a movement that Stripe definitely rejects."""
    if rejection.rejects_account:
        reason = PayoutFailure.DESTINATION_REJECTED
    elif rejection.code in PAYOUT_REJECTIONS:
        reason = PayoutFailure.PROVIDER_DECLINED
    else:
        reason = PayoutFailure.PROVIDER_REJECTED
    if transfer is None:
        return Declined(reason, rejection.code)
    return Declined(reason, rejection.code, transfer.id, transfer.payout_id)


def _mismatched() -> Unknown:
    return Unknown("Stripe answered about another payout", RetryReason.MISMATCHED_OPERATION)
