"""The contract of every provider adapter: what payouts and verifications must do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotFound,
    NotSent,
    PayoutFailure,
    Pending,
    ProviderOutcome,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_server.providers.request_ids import collect_request_ids
from tests.providers.contract import Answer
from tests.providers.contract_calls import (
    IN_USE,
    SHORT_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
    first_of,
    has_reason,
    through_gateway,
)


class PayoutHarness(Protocol):
    """A payout provider under the test's control."""

    @property
    def payouts(self) -> PayoutProvider:
        """The adapter."""
        ...

    def new_payout(self, answer: Answer) -> PayoutRequest:
        """A new payout of 1000 minor units that the provider answers so."""
        ...

    async def paid(self, payout: PayoutRequest) -> list[int]:
        """The amounts that the provider has sent for a payout, from its own log."""
        ...

    def unreachable_payouts(self) -> AbstractAsyncContextManager[PayoutProvider]:
        """An adapter while no connection to its provider can be made."""
        ...

    def account(self, answer: Answer) -> str:
        """The token of a new bank account whose verification the provider answers so: SUCCEEDS,
        ACCOUNT_REJECTED or PENDING_THEN_SUCCEEDS.
        """
        ...


async def submit(
    harness: PayoutHarness, *payouts: PayoutRequest, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[ProviderOutcome]:
    """Submits payouts together; each outcome as the platform sees it."""
    task = asyncio.ensure_future(harness.payouts.submit(payouts))

    async def outcome_of(index: int) -> ProviderOutcome:
        outcomes = await asyncio.shield(task)
        assert len(outcomes) == len(payouts)
        return outcomes[index]

    try:
        return [
            await through_gateway(
                payout.payout_id,
                payout.key,
                partial(outcome_of, index),
                timeout_seconds,
            )
            for index, payout in enumerate(payouts)
        ]
    finally:
        task.cancel()


def batched(payouts: list[PayoutRequest], size: int) -> list[list[PayoutRequest]]:
    return [payouts[start : start + size] for start in range(0, len(payouts), size)]


async def look_up(harness: PayoutHarness, payout: PayoutRequest) -> ProviderOutcome:
    return await through_gateway(
        payout.payout_id,
        payout.key,
        lambda: harness.payouts.look_up(payout),
    )


async def verify(harness: PayoutHarness, account: str) -> ProviderOutcome:
    return await through_gateway("", "", lambda: harness.payouts.verify(account, "EUR"))


PayoutCase: TypeAlias = Callable[[PayoutHarness], Awaitable[None]]


async def a_key_pays_once(harness: PayoutHarness) -> None:
    """A repeat of a key pays nothing and has the same outcome, and so has a lookup."""
    payout = harness.new_payout(Answer.SUCCEEDS)
    (first,) = await submit(harness, payout)
    assert first == Succeeded(getattr(first, "reference", ""), payout.amount, payout.currency)
    assert await submit(harness, payout) == [first]
    assert await look_up(harness, payout) == first
    assert await harness.paid(payout) == [payout.amount]


async def a_full_batch_keeps_its_order(harness: PayoutHarness) -> None:
    """A submission of the largest size has one outcome for each payout, in order."""
    size = harness.payouts.max_batch_size
    answers = [(Answer.SUCCEEDS, Answer.DECLINES)[index % 2] for index in range(size)]
    payouts = [harness.new_payout(answer) for answer in answers]
    outcomes = await submit(harness, *payouts)
    kinds = [(Succeeded, Declined)[index % 2] for index in range(size)]
    assert [type(outcome) for outcome in outcomes] == kinds
    for index in (0, size - 1):
        assert await look_up(harness, payouts[index]) == outcomes[index]


async def one_payout_fails_alone(harness: PayoutHarness) -> None:
    """In a submission each payout has its own outcome, and none delays or fails the others."""
    answers = [
        Answer.SUCCEEDS,
        Answer.DECLINES,
        Answer.ERROR_BEFORE,
        Answer.THROTTLED,
        Answer.MALFORMED,
        Answer.SUCCEEDS,
    ]
    payouts = [harness.new_payout(answer) for answer in answers]
    outcomes: list[ProviderOutcome] = []
    for batch in batched(payouts, harness.payouts.max_batch_size):
        outcomes += await submit(harness, *batch)
    kinds = [Succeeded, Declined, Unknown, Unknown, Unknown, Succeeded]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert has_reason(outcomes[2], RetryReason.SERVER_ERROR)
    assert has_reason(outcomes[3], RetryReason.THROTTLED)
    assert has_reason(outcomes[4], RetryReason.REJECTED)
    assert [len(await harness.paid(payout)) for payout in payouts] == [1, 0, 0, 0, 0, 1]


async def a_lost_submission_is_unknown_for_all(harness: PayoutHarness) -> None:
    """If the answer to a submission is lost, every payout of it is unknown; repeats pay nothing."""
    payouts = [harness.new_payout(Answer.SUCCEEDS), harness.new_payout(Answer.BATCH_LOST)]
    payouts = payouts[-harness.payouts.max_batch_size :]
    for outcome in await submit(harness, *payouts):
        assert has_reason(outcome, RetryReason.NO_ANSWER)
    assert all(isinstance(outcome, Succeeded) for outcome in await submit(harness, *payouts))
    assert [await harness.paid(payout) for payout in payouts] == [[1000]] * len(payouts)


async def a_decline_pays_nothing(harness: PayoutHarness) -> None:
    """A decline is definite, and says whether the account is to blame."""
    for answer, reason in (
        (Answer.DECLINES, PayoutFailure.PROVIDER_DECLINED),
        (Answer.ACCOUNT_REJECTED, PayoutFailure.DESTINATION_REJECTED),
        (Answer.REJECTS, PayoutFailure.PROVIDER_REJECTED),
    ):
        payout = harness.new_payout(answer)
        (outcome,) = await submit(harness, payout)
        assert isinstance(outcome, Declined), answer
        assert outcome.reason is reason
        assert await submit(harness, payout) == [outcome]
        assert await harness.paid(payout) == [], answer


async def a_lost_request_is_submitted_again(harness: PayoutHarness) -> None:
    """A lost request is unknown and not found; the same key then pays once."""
    for answer, reason in (
        (Answer.LOST_BEFORE, RetryReason.NO_ANSWER),
        (Answer.ERROR_BEFORE, RetryReason.SERVER_ERROR),
    ):
        payout = harness.new_payout(answer)
        assert has_reason((await submit(harness, payout))[0], reason), answer
        assert isinstance(await look_up(harness, payout), NotFound), answer
        assert isinstance((await submit(harness, payout))[0], Succeeded), answer
        assert await harness.paid(payout) == [payout.amount], answer


async def a_lost_answer_is_found(harness: PayoutHarness) -> None:
    """After a lost answer a lookup finds the payout, and the same key pays nothing more."""
    for answer, reason in (
        (Answer.LOST_AFTER, RetryReason.NO_ANSWER),
        (Answer.ERROR_AFTER, RetryReason.SERVER_ERROR),
    ):
        payout = harness.new_payout(answer)
        assert has_reason((await submit(harness, payout))[0], reason), answer
        found = await look_up(harness, payout)
        assert isinstance(found, Succeeded), answer
        assert await submit(harness, payout) == [found], answer
        assert await harness.paid(payout) == [payout.amount], answer


async def a_replayed_server_error_is_looked_up(harness: PayoutHarness) -> None:
    """A provider may replay a server error for the key; only the lookup says how it ended."""
    payout = harness.new_payout(Answer.ERROR_REPLAYED)
    for _ in range(3):
        assert has_reason((await submit(harness, payout))[0], RetryReason.SERVER_ERROR)
    assert isinstance(await look_up(harness, payout), Declined)
    assert await harness.paid(payout) == []


async def rejections_have_their_reasons(harness: PayoutHarness) -> None:
    """Throttling has the provider's time; credentials and malformed requests are named."""
    throttled, unauthorized, malformed = (
        harness.new_payout(answer)
        for answer in (Answer.THROTTLED, Answer.UNAUTHORIZED, Answer.MALFORMED)
    )
    (outcome,) = await submit(harness, throttled)
    assert has_reason(outcome, RetryReason.THROTTLED)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_after > 0
    assert has_reason((await submit(harness, unauthorized))[0], RetryReason.UNAUTHORIZED)
    assert has_reason((await submit(harness, malformed))[0], RetryReason.REJECTED)
    for payout in (throttled, unauthorized):
        assert isinstance((await submit(harness, payout))[0], Succeeded)
    assert await harness.paid(malformed) == []


async def a_key_with_other_values_is_rejected(harness: PayoutHarness) -> None:
    """A key that is submitted with another amount pays nothing, and the first outcome stays."""
    payout = harness.new_payout(Answer.SUCCEEDS)
    (first,) = await submit(harness, payout)
    (outcome,) = await submit(harness, replace(payout, amount=payout.amount - 1))
    assert has_reason(outcome, RetryReason.REJECTED)
    assert await submit(harness, payout) == [first]
    assert await harness.paid(payout) == [payout.amount]


async def a_key_in_use_is_retried(harness: PayoutHarness) -> None:
    """A second submission of a key whose first one is still running has no effect of its own."""
    payout = harness.new_payout(Answer.SILENT)

    async def submit_alone() -> ProviderOutcome:
        return (await submit(harness, payout))[0]

    assert has_reason(await first_of(submit_alone(), submit_alone()), IN_USE)
    assert len(await harness.paid(payout)) <= 1


async def the_providers_money_counts(harness: PayoutHarness) -> None:
    """The outcome has the amount and the currency that the provider reports."""
    payout = harness.new_payout(Answer.OTHER_AMOUNT)
    (outcome,) = await submit(harness, payout)
    assert isinstance(outcome, Succeeded)
    assert [outcome.amount] == await harness.paid(payout)
    assert outcome.amount != payout.amount
    payout = harness.new_payout(Answer.OTHER_CURRENCY)
    (outcome,) = await submit(harness, payout)
    assert isinstance(outcome, Succeeded)
    assert outcome.currency != payout.currency


async def another_operations_answer_is_noticed(harness: PayoutHarness) -> None:
    """An answer about another payout is neither this payout's success nor its failure."""
    payout = harness.new_payout(Answer.OTHER_OPERATION)
    (outcome,) = await submit(harness, payout)
    assert has_reason(outcome, RetryReason.MISMATCHED_OPERATION)


async def silence_is_unknown(harness: PayoutHarness) -> None:
    """No answer in time is unknown, and the adapter works afterwards."""
    silent = harness.new_payout(Answer.SILENT)
    (outcome,) = await submit(harness, silent, timeout_seconds=SHORT_TIMEOUT_SECONDS)
    assert has_reason(outcome, RetryReason.NO_ANSWER)
    (outcome,) = await submit(harness, harness.new_payout(Answer.SUCCEEDS))
    assert isinstance(outcome, Succeeded)


async def no_connection_is_not_sent(harness: PayoutHarness) -> None:
    """A refused connection is the certainty that nothing was sent, for every call."""
    payouts = [harness.new_payout(Answer.SUCCEEDS) for _ in range(2)]
    payouts = payouts[: harness.payouts.max_batch_size]
    async with harness.unreachable_payouts() as adapter:
        outcomes = await adapter.submit(payouts)
        assert [type(outcome) for outcome in outcomes] == [NotSent] * len(payouts)
        assert isinstance(await adapter.look_up(payouts[0]), NotSent)
        assert isinstance(await adapter.verify(harness.account(Answer.SUCCEEDS), "EUR"), NotSent)


async def an_unknown_payout_is_not_found(harness: PayoutHarness) -> None:
    """A lookup of a payout that was never submitted is NotFound, which is no failure."""
    assert isinstance(await look_up(harness, harness.new_payout(Answer.SUCCEEDS)), NotFound)


async def a_payout_in_progress_is_followed(harness: PayoutHarness) -> None:
    """Submitted and in transit are outcomes of their own, under one reference, until it is paid."""
    payout = harness.new_payout(Answer.IN_PROGRESS)
    (submitted,) = await submit(harness, payout)
    assert isinstance(submitted, Submitted)
    assert submitted.reference
    in_transit = await look_up(harness, payout)
    assert in_transit == InTransit(submitted.reference)
    assert await look_up(harness, payout) == Succeeded(submitted.reference, 1000, payout.currency)


async def a_return_names_its_transfer(harness: PayoutHarness) -> None:
    """A returned payout has the reference of the transfer and the amount that was returned."""
    payout = harness.new_payout(Answer.RETURNED)
    (paid,) = await submit(harness, payout)
    assert isinstance(paid, Succeeded)
    returned = await look_up(harness, payout)
    assert isinstance(returned, Returned)
    assert (returned.reference, returned.amount, returned.currency) == (paid.reference, 1000, "EUR")
    assert await look_up(harness, payout) == returned


async def accounts_are_verified(harness: PayoutHarness) -> None:
    """An account is verified, rejected, or answered later; asking again is harmless."""
    for answer, kinds in (
        (Answer.SUCCEEDS, [Verified, Verified]),
        (Answer.ACCOUNT_REJECTED, [Declined, Declined]),
        (Answer.PENDING_THEN_SUCCEEDS, [Pending, Verified]),
    ):
        account = harness.account(answer)
        outcomes = [await verify(harness, account) for _ in kinds]
        assert [type(outcome) for outcome in outcomes] == kinds, answer


async def every_submission_names_its_request(harness: PayoutHarness) -> None:
    """A submission and a lookup have the provider's id of their request, each another one."""
    payout = harness.new_payout(Answer.SUCCEEDS)
    with collect_request_ids() as request_ids:
        (outcome,) = await harness.payouts.submit([payout])
    submitted = request_ids.add_to(outcome)
    looked_up = await look_up(harness, payout)
    ids = [getattr(submitted, "request_id", ""), getattr(looked_up, "request_id", "")]
    assert all(ids)
    assert ids[0] != ids[1]


PAYOUT_CASES: Sequence[PayoutCase] = (
    every_submission_names_its_request,
    a_key_pays_once,
    a_full_batch_keeps_its_order,
    one_payout_fails_alone,
    a_lost_submission_is_unknown_for_all,
    a_decline_pays_nothing,
    a_lost_request_is_submitted_again,
    a_lost_answer_is_found,
    a_replayed_server_error_is_looked_up,
    rejections_have_their_reasons,
    a_key_with_other_values_is_rejected,
    a_key_in_use_is_retried,
    the_providers_money_counts,
    another_operations_answer_is_noticed,
    silence_is_unknown,
    no_connection_is_not_sent,
    an_unknown_payout_is_not_found,
    a_payout_in_progress_is_followed,
    a_return_names_its_transfer,
    accounts_are_verified,
)
"""The cases that every payout provider passes."""
