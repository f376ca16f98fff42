"""The provider's ids of requests: which one an outcome gets, and what cannot be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    LookedUp,
    NotFound,
    PayoutOutcome,
    ProviderOutcome,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_server.providers.request_ids import collect_request_ids, note_request_id
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.providers.contract_calls import through_gateway


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([("req_1", 200)], "req_1"),
        ([("req_1", 200), ("req_2", 200)], "req_2"),
        ([("req_1", 402), ("req_2", 200)], "req_1"),
        ([("req_1", 500), ("req_2", 402), ("req_3", 200)], "req_2"),
        ([("req_1", 200), ("", 500)], "req_1"),
        ([("x" * 256, 200)], ""),
        ([("req\n1", 200)], ""),
        ([("req_\u00fc", 402)], ""),
        ([], ""),
    ],
    ids=["one", "last", "decline", "last error", "empty", "long", "line", "not ASCII", "none"],
)
def test_an_outcome_has_the_last_failed_request_else_the_last(
    answers: list[tuple[str, int]], expected: str
) -> None:
    """The provider's support needs the request that failed. An id that cannot be stored is
    ignored, and never changes what the answer says about money.
    """
    with collect_request_ids() as request_ids:
        for request_id, status in answers:
            note_request_id(request_id, status)
    outcome = Declined(FailureReason.PROVIDER_DECLINED, "do_not_honor", "ch_1")
    named = request_ids.add_to(outcome)
    assert (named, named.request_id) == (outcome, expected)


@pytest.mark.parametrize(
    ("named", "expected"),
    [("req_2", "req_2"), ("x" * 256, "req_1"), ("req\n2", "req_1")],
    ids=["short", "long", "line"],
)
def test_an_outcome_keeps_the_request_that_it_names_if_it_can_be_stored(
    named: str, expected: str
) -> None:
    """An adapter may name one. The database rejects an id that is too long, and with it what the
    answer says about money.
    """
    with collect_request_ids() as request_ids:
        assert request_ids.add_to(NotFound(request_id="x" * 256)).request_id == ""
        note_request_id("req_1", 200)
    assert request_ids.add_to(NotFound(request_id=named)).request_id == expected


@pytest.mark.parametrize(
    "outcome", [Succeeded("ch_1", 1, "EUR"), Unknown("status 500"), NotFound()], ids=str
)
def test_the_outcome_of_a_lookup_for_a_webhook_event_is_named(outcome: ProviderOutcome) -> None:
    """Also if it is inside of the outcome of the event."""
    with collect_request_ids() as request_ids:
        note_request_id("req_1", 200)
    assert getattr(request_ids.add_to(outcome), "request_id", "") == "req_1"
    if isinstance(outcome, Succeeded):
        assert getattr(request_ids.add_to(LookedUp(outcome)).outcome, "request_id", "") == "req_1"
    assert request_ids.add_to(Verified()) == Verified()


def test_calls_do_not_share_their_ids() -> None:
    """An answer outside of a call is not noted, and a call knows only its own answers."""
    note_request_id("req_1", 500)
    with collect_request_ids() as outer:
        with collect_request_ids() as inner:
            note_request_id("req_2", 500)
        note_request_id("req_3", 200)
    assert (inner.last, outer.last, outer.last_error) == ("req_2", "req_3", "")


def test_a_call_that_is_not_answered_in_time_names_the_request_that_was_answered() -> None:
    """A call may be several requests, and its last one may hang."""

    async def hang() -> ProviderOutcome:
        note_request_id("req_1", 500)
        await asyncio.sleep(60)
        return NotFound()

    outcome = asyncio.run(through_gateway("o-1", "key-1", hang, timeout_seconds=0.01))
    assert isinstance(outcome, Unknown)
    assert outcome.request_id == "req_1"


class _IncompleteBatches(ScriptedPayoutProvider):
    """Answers one request of each submission. Then it hangs, or returns too few results."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__()
        self._hangs = hangs

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        note_request_id("req_1", 500)
        await asyncio.sleep(60 if self._hangs else 0)
        return await super().submit(requests[1:])


@pytest.mark.parametrize(
    ("call_seconds", "batch_seconds", "hangs"),
    [(0.05, 30.0, True), (30.0, 0.05, True), (0.05, 0.05, True), (30.0, 30.0, False)],
    ids=["call timed out", "batch timed out", "both", "too few results"],
)
def test_each_payout_of_a_batch_without_results_names_the_request_that_was_answered(
    call_seconds: float, batch_seconds: float, hangs: bool
) -> None:
    """As for a call of its own, whichever ends first: the call that waits, or the batch."""

    async def submit() -> list[ProviderOutcome]:
        provider = BatchingPayoutProvider(_IncompleteBatches(hangs=hangs), batch_seconds)
        provider.start()
        requests = [PayoutRequest(f"key-{n}", f"p-{n}", 1, "EUR", "ba") for n in range(2)]
        calls = [
            through_gateway(item.payout_id, item.key, partial(provider.send, item), call_seconds)
            for item in requests
        ]
        outcomes = await asyncio.gather(*calls)
        await provider.stop()
        return outcomes

    outcomes = asyncio.run(submit())
    assert [type(outcome) for outcome in outcomes] == [Unknown, Unknown]
    assert [getattr(outcome, "request_id", "") for outcome in outcomes] == ["req_1", "req_1"]
