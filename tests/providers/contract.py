"""The contract of every provider adapter: what charges must do. A harness makes the provider answer
as a case needs; each case is called through the gateway, as the platform calls an adapter.

`contract_payouts` has the cases of payouts, `contract_webhooks` those of webhooks, and
`contract_http` those of adapters that use HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import StrEnum
from typing import Protocol, TypeAlias

from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    NotFound,
    NotSent,
    Pending,
    ProviderOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tests.providers.contract_calls import (
    IN_USE,
    SHORT_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
    first_of,
    has_reason,
    through_gateway,
)


class Answer(StrEnum):
    """How the provider answers a new charge or payout. "Once": the first time only; a repeat is
    answered as SUCCEEDS.
    """

    SUCCEEDS = "succeeds"
    DECLINES = "declines"
    REJECTS = "rejects with a code that guarantees that no money moves"
    PENDING = "pending, and stays so"
    PENDING_THEN_SUCCEEDS = "pending until it is looked up"
    PENDING_THEN_DECLINES = "pending until it is looked up, then declined"
    LOST_BEFORE = "the request is lost, once"
    LOST_AFTER = "the answer is lost, once"
    ERROR_BEFORE = "a server error before anything is done, once"
    ERROR_AFTER = "a server error after the money has moved, once"
    ERROR_REPLAYED = "a server error, replayed for the key; no money moves"
    THROTTLED = "asks for a later retry, once"
    UNAUTHORIZED = "rejects the credentials, once"
    MALFORMED = "rejects the request as malformed"
    OTHER_AMOUNT = "moves another amount"
    OTHER_CURRENCY = "answers with another currency"
    OTHER_OPERATION = "answers about another operation"
    SILENT = "does not answer for longer than a test lasts"
    # payouts only
    ACCOUNT_REJECTED = "declines because of the account"
    IN_PROGRESS = "submitted, then in transit, then paid"
    RETURNED = "paid, then returned by the bank"
    BATCH_LOST = "the answer to the whole submission is lost, once"


class ChargeHarness(Protocol):
    """A payment provider under the test's control."""

    @property
    def charges(self) -> PaymentProvider:
        """The adapter."""
        ...

    def new_charge(self, answer: Answer) -> ChargeRequest:
        """A new charge of 1000 minor units that the provider answers so."""
        ...

    async def taken(self, charge: ChargeRequest) -> list[int]:
        """The amounts that the provider has taken for a charge, from its own log."""
        ...

    def unreachable_charges(self) -> AbstractAsyncContextManager[PaymentProvider]:
        """An adapter while no connection to its provider can be made."""
        ...


async def send(
    harness: ChargeHarness, charge: ChargeRequest, timeout_seconds: float = TIMEOUT_SECONDS
) -> ProviderOutcome:
    work = lambda: harness.charges.send(charge)  # noqa: E731
    return await through_gateway(charge.charge_id, charge.key, work, timeout_seconds)


async def look_up(
    harness: ChargeHarness, charge: ChargeRequest, timeout_seconds: float = TIMEOUT_SECONDS
) -> ProviderOutcome:
    work = lambda: harness.charges.look_up(charge)  # noqa: E731
    return await through_gateway(charge.charge_id, charge.key, work, timeout_seconds)


async def cancel(
    harness: ChargeHarness, charge: ChargeRequest, timeout_seconds: float = TIMEOUT_SECONDS
) -> ProviderOutcome:
    work = lambda: harness.charges.cancel(charge)  # noqa: E731
    return await through_gateway(charge.charge_id, charge.key, work, timeout_seconds)


ChargeCase: TypeAlias = Callable[[ChargeHarness], Awaitable[None]]


async def a_key_charges_once(harness: ChargeHarness) -> None:
    """A repeat of a key takes nothing and has the same outcome, and so has a lookup."""
    charge = harness.new_charge(Answer.SUCCEEDS)
    first = await send(harness, charge)
    assert first == Succeeded(getattr(first, "reference", ""), charge.amount, charge.currency)
    assert await send(harness, charge) == await look_up(harness, charge) == first
    assert await harness.taken(charge) == [charge.amount]


async def a_decline_takes_nothing(harness: ChargeHarness) -> None:
    """A decline is definite: repeats and lookups agree, and nothing is taken."""
    charge = harness.new_charge(Answer.DECLINES)
    first = await send(harness, charge)
    assert isinstance(first, Declined)
    assert await send(harness, charge) == await look_up(harness, charge) == first
    assert await harness.taken(charge) == []


async def a_definite_rejection_is_a_decline(harness: ChargeHarness) -> None:
    """A code that guarantees that no money moves is a decline, not an error of the platform."""
    charge = harness.new_charge(Answer.REJECTS)
    for _ in range(2):
        outcome = await send(harness, charge)
        assert isinstance(outcome, Declined)
        assert outcome.reason is FailureReason.PROVIDER_REJECTED
    assert await harness.taken(charge) == []


async def a_pending_charge_stays_pending(harness: ChargeHarness) -> None:
    """Pending is an outcome of its own, with the provider's reference; nothing is taken yet."""
    charge = harness.new_charge(Answer.PENDING)
    for outcome in (await send(harness, charge), await look_up(harness, charge)):
        assert isinstance(outcome, Pending)
        assert outcome.reference
    assert await harness.taken(charge) == []


async def a_pending_charge_ends(harness: ChargeHarness) -> None:
    """A lookup reports the end of a pending charge, under the reference that it had."""
    paid = harness.new_charge(Answer.PENDING_THEN_SUCCEEDS)
    declined = harness.new_charge(Answer.PENDING_THEN_DECLINES)
    pending = await send(harness, paid)
    assert isinstance(pending, Pending)
    assert await look_up(harness, paid) == Succeeded(pending.reference, 1000, paid.currency)
    assert isinstance(await send(harness, declined), Pending)
    assert isinstance(await look_up(harness, declined), Declined)
    assert (await harness.taken(paid), await harness.taken(declined)) == ([1000], [])


async def a_lost_request_is_sent_again(harness: ChargeHarness) -> None:
    """A lost request is unknown and not found; the same key then charges once."""
    for answer, reason in (
        (Answer.LOST_BEFORE, RetryReason.NO_ANSWER),
        (Answer.ERROR_BEFORE, RetryReason.SERVER_ERROR),
    ):
        charge = harness.new_charge(answer)
        assert has_reason(await send(harness, charge), reason), answer
        assert isinstance(await look_up(harness, charge), NotFound), answer
        assert isinstance(await send(harness, charge), Succeeded), answer
        assert await harness.taken(charge) == [charge.amount], answer


async def a_lost_answer_is_found(harness: ChargeHarness) -> None:
    """After a lost answer a lookup finds the charge, and the same key takes nothing more."""
    for answer, reason in (
        (Answer.LOST_AFTER, RetryReason.NO_ANSWER),
        (Answer.ERROR_AFTER, RetryReason.SERVER_ERROR),
    ):
        charge = harness.new_charge(answer)
        assert has_reason(await send(harness, charge), reason), answer
        found = await look_up(harness, charge)
        assert isinstance(found, Succeeded), answer
        assert await send(harness, charge) == found, answer
        assert await harness.taken(charge) == [charge.amount], answer


async def a_replayed_server_error_is_looked_up(harness: ChargeHarness) -> None:
    """A provider may replay a server error for the key; only the lookup says how it ended."""
    charge = harness.new_charge(Answer.ERROR_REPLAYED)
    for _ in range(3):
        assert has_reason(await send(harness, charge), RetryReason.SERVER_ERROR)
    assert isinstance(await look_up(harness, charge), Declined)
    assert await harness.taken(charge) == []


async def throttling_has_its_time(harness: ChargeHarness) -> None:
    """A throttled request has the provider's own retry time, and is sent again."""
    charge = harness.new_charge(Answer.THROTTLED)
    outcome = await send(harness, charge)
    assert has_reason(outcome, RetryReason.THROTTLED)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_after > 0
    assert isinstance(await send(harness, charge), Succeeded)
    assert await harness.taken(charge) == [charge.amount]


async def revoked_credentials_are_named(harness: ChargeHarness) -> None:
    """Rejected credentials are a reason of their own, so that nothing more is sent."""
    charge = harness.new_charge(Answer.UNAUTHORIZED)
    assert has_reason(await send(harness, charge), RetryReason.UNAUTHORIZED)
    assert isinstance(await send(harness, charge), Succeeded)


async def a_malformed_request_is_our_error(harness: ChargeHarness) -> None:
    """A request that the provider rejects as malformed is no decline."""
    charge = harness.new_charge(Answer.MALFORMED)
    assert has_reason(await send(harness, charge), RetryReason.REJECTED)
    assert await harness.taken(charge) == []


async def a_key_with_other_values_is_rejected(harness: ChargeHarness) -> None:
    """A key that is sent with another amount takes nothing, and the first outcome stays."""
    charge = harness.new_charge(Answer.SUCCEEDS)
    first = await send(harness, charge)
    other = replace(charge, amount=charge.amount - 1)
    assert has_reason(await send(harness, other), RetryReason.REJECTED)
    assert await send(harness, charge) == first
    assert await harness.taken(charge) == [charge.amount]


async def a_key_in_use_is_retried(harness: ChargeHarness) -> None:
    """A second request under a key whose first one is still running has no effect of its own."""
    charge = harness.new_charge(Answer.SILENT)
    assert has_reason(await first_of(send(harness, charge), send(harness, charge)), IN_USE)
    assert len(await harness.taken(charge)) <= 1


async def the_providers_money_counts(harness: ChargeHarness) -> None:
    """The outcome has the amount and the currency that the provider reports, not those requested;
    the platform compares them.
    """
    charge = harness.new_charge(Answer.OTHER_AMOUNT)
    outcome = await send(harness, charge)
    assert isinstance(outcome, Succeeded)
    assert [outcome.amount] == await harness.taken(charge)
    assert outcome.amount != charge.amount
    charge = harness.new_charge(Answer.OTHER_CURRENCY)
    outcome = await send(harness, charge)
    assert isinstance(outcome, Succeeded)
    assert outcome.currency != charge.currency


async def another_operations_answer_is_noticed(harness: ChargeHarness) -> None:
    """An answer about another charge is neither this charge's success nor its failure."""
    charge = harness.new_charge(Answer.OTHER_OPERATION)
    assert has_reason(await send(harness, charge), RetryReason.MISMATCHED_OPERATION)


async def silence_is_unknown(harness: ChargeHarness) -> None:
    """No answer in time is unknown, and the adapter works afterwards."""
    charge = harness.new_charge(Answer.SILENT)
    outcome = await send(harness, charge, SHORT_TIMEOUT_SECONDS)
    assert has_reason(outcome, RetryReason.NO_ANSWER)
    assert isinstance(await send(harness, harness.new_charge(Answer.SUCCEEDS)), Succeeded)


async def no_connection_is_not_sent(harness: ChargeHarness) -> None:
    """A refused connection is the certainty that nothing was sent, for every call."""
    charge = harness.new_charge(Answer.SUCCEEDS)
    async with harness.unreachable_charges() as adapter:
        for call in (adapter.send, adapter.look_up, adapter.cancel):
            assert isinstance(await call(charge), NotSent)


async def an_unknown_charge_is_not_found(harness: ChargeHarness) -> None:
    """A lookup of a charge that was never sent is NotFound, which is no failure."""
    assert isinstance(await look_up(harness, harness.new_charge(Answer.SUCCEEDS)), NotFound)


async def a_cancelled_pending_charge_is_never_taken(harness: ChargeHarness) -> None:
    """A pending charge that is cancelled stays so: for a second cancellation, for lookups and for
    repeats of its key.
    """
    charge = harness.new_charge(Answer.PENDING)
    await send(harness, charge)
    for outcome in (
        await cancel(harness, charge),
        await cancel(harness, charge),
        await look_up(harness, charge),
        await send(harness, charge),
    ):
        assert isinstance(outcome, Declined)
        assert outcome.reason is FailureReason.CALLER_CANCELLED
    assert await harness.taken(charge) == []


async def a_cancellation_before_the_charge_is_honest(harness: ChargeHarness) -> None:
    """A charge that is cancelled before it arrives is not found, or never taken afterwards."""
    charge = harness.new_charge(Answer.SUCCEEDS)
    outcome = await cancel(harness, charge)
    late = await send(harness, charge)
    if isinstance(outcome, NotFound):
        assert isinstance(late, Succeeded)
    else:
        assert isinstance(outcome, Declined)
        assert await harness.taken(charge) == []


async def a_cancellation_after_the_end_reports_it(harness: ChargeHarness) -> None:
    """A charge that has ended cannot be cancelled: it reports its own outcome, twice if asked."""
    for answer in (Answer.SUCCEEDS, Answer.DECLINES):
        charge = harness.new_charge(answer)
        first = await send(harness, charge)
        assert await cancel(harness, charge) == await cancel(harness, charge) == first
        assert await look_up(harness, charge) == first


async def charges_at_once_keep_their_answers(harness: ChargeHarness) -> None:
    """Charges that are sent at the same time each have their own outcome."""
    answers = [Answer.SUCCEEDS, Answer.DECLINES, Answer.PENDING, Answer.THROTTLED] * 5
    sent = [harness.new_charge(answer) for answer in answers]
    outcomes = await asyncio.gather(*(send(harness, charge) for charge in sent))
    kinds = [Succeeded, Declined, Pending, Unknown] * 5
    assert [type(outcome) for outcome in outcomes] == kinds
    references = [outcome.reference for outcome in outcomes if isinstance(outcome, Succeeded)]
    assert len(set(references)) == 5


async def every_answer_names_its_request(harness: ChargeHarness) -> None:
    """A success, a decline, an error and a lookup have the provider's id of their request, each
    another one. What was not answered has none.
    """
    answers = (Answer.SUCCEEDS, Answer.DECLINES, Answer.THROTTLED, Answer.ERROR_BEFORE)
    charges = [harness.new_charge(answer) for answer in answers]
    outcomes = [await send(harness, charge) for charge in charges]
    outcomes.append(await look_up(harness, charges[0]))
    request_ids = [getattr(outcome, "request_id", "") for outcome in outcomes]
    assert all(request_ids), request_ids
    assert len(set(request_ids)) == len(request_ids)
    lost = await send(harness, harness.new_charge(Answer.LOST_BEFORE))
    assert getattr(lost, "request_id", None) == ""


CHARGE_CASES: Sequence[ChargeCase] = (
    every_answer_names_its_request,
    a_key_charges_once,
    a_decline_takes_nothing,
    a_definite_rejection_is_a_decline,
    a_pending_charge_stays_pending,
    a_pending_charge_ends,
    a_lost_request_is_sent_again,
    a_lost_answer_is_found,
    a_replayed_server_error_is_looked_up,
    throttling_has_its_time,
    revoked_credentials_are_named,
    a_malformed_request_is_our_error,
    a_key_with_other_values_is_rejected,
    a_key_in_use_is_retried,
    the_providers_money_counts,
    another_operations_answer_is_noticed,
    silence_is_unknown,
    no_connection_is_not_sent,
    an_unknown_charge_is_not_found,
    a_cancelled_pending_charge_is_never_taken,
    a_cancellation_before_the_charge_is_honest,
    a_cancellation_after_the_end_reports_it,
    charges_at_once_keep_their_answers,
)
"""The cases that every payment provider passes."""
