"""The explanation of a payout: every way in which it can end or wait has its story."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, NamedTuple

import pytest

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    AlertFacts,
    AttemptFacts,
    DeadLetterFacts,
    Explanation,
    OperationFacts,
    ReportFacts,
    WebhookFacts,
)
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.payout.explanation import (
    FAILURE_SENTENCES,
    STATE_SENTENCES,
    PayoutFacts,
    PayoutTransitionFacts,
    TransferFacts,
    explain,
)
from tallystick_core.payout.reported_transfer import TransferMatch
from tallystick_core.payout.state import (
    TERMINAL_STATES,
    TRANSITIONS,
    PayoutState,
    PayoutTransitionReason,
)
from tallystick_core.provider.outcome import PayoutFailure, RetryReason

_NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
_LATER = _NOW + timedelta(minutes=5)
_START = _NOW - timedelta(hours=1)
_S = PayoutState
_DEAD_LETTER = DeadLetterFacts(
    "payouts-p-1-1", DeadLetterState.OPEN, DeadLetterCause.OUTCOME_UNKNOWN, "silence", 3, _START
)
_TRANSFER = TransferFacts(
    "bank", "tr_1", TransferMatch.DUPLICATE, "9.00 EUR", _START, needs_operator=True
)


def _payout(state: PayoutState, **values: Any) -> PayoutFacts:
    payout = PayoutFacts(
        "p-1",
        "shop",
        "seller-1",
        "10.00",
        "1.00",
        "9.00",
        "EUR",
        "bank",
        state,
        False,
        "d-1",
        _START,
    )
    return replace(payout, **values)


def _operation(next_action: NextAction, **values: Any) -> OperationFacts:
    return replace(OperationFacts(next_action, "bank", _LATER), **values)


class Story(NamedTuple):
    """A condition of a payout, and its next steps: actor, a part of the action, time."""

    payout: PayoutFacts
    steps: Sequence[tuple[Actor, str, datetime | None]]


_LOOK_UP = _operation(NextAction.LOOK_UP, retry_reason=RetryReason.PENDING)
_BOOK = _operation(NextAction.BOOK)

STORIES: dict[str, Story] = {
    "waits for its hold": Story(
        _payout(_S.CREATED, operation=_operation(NextAction.PLACE_HOLD)),
        [(Actor.PLATFORM, "holds the money of the payout", _LATER)],
    ),
    "waits for the wallet": Story(
        _payout(
            _S.CREATED,
            operation=_operation(
                NextAction.PLACE_HOLD, retry_reason=RetryReason.BOOKING_UNAVAILABLE
            ),
        ),
        [(Actor.PLATFORM, "WalletService or LedgerService did not answer", _LATER)],
    ),
    "waits for an approval": Story(
        _payout(_S.AWAITING_APPROVAL, operation=_operation(NextAction.WAIT, next_try_time=None)),
        [(Actor.OPERATOR, "An operator other than shop must approve or reject", None)],
    ),
    "is ready to be sent": Story(
        _payout(_S.READY, operation=_operation(NextAction.PLACE_HOLD)),
        [(Actor.PLATFORM, "sends the payout to bank.", _LATER)],
    ),
    "lost its answer, and is sent again under the same key": Story(
        _payout(
            _S.SUBMITTING,
            operation=_operation(
                NextAction.SEND, maybe_sent=True, retry_reason=RetryReason.NO_ANSWER
            ),
        ),
        [(Actor.PLATFORM, "again, under the same idempotency key", _LATER)],
    ),
    "is looked up": Story(
        _payout(_S.SUBMITTING, operation=_operation(NextAction.LOOK_UP, maybe_sent=True)),
        [(Actor.PLATFORM, "asks bank for the outcome of the payout", _LATER)],
    ),
    "waits for credentials": Story(
        _payout(
            _S.SUBMITTING,
            operation=_operation(NextAction.SEND, retry_reason=RetryReason.UNAUTHORIZED),
        ),
        [
            (Actor.OPERATOR, "correct the credentials of bank", None),
            (Actor.PLATFORM, "sends the payout", _LATER),
        ],
    ),
    "is a dead letter": Story(
        _payout(
            _S.SUBMITTING,
            operation=_operation(NextAction.LOOK_UP, next_try_time=None),
            dead_letters=(_DEAD_LETTER,),
        ),
        [(Actor.OPERATOR, "retry or close the dead letter payouts-p-1-1", None)],
    ),
    "waits for the provider": Story(
        _payout(_S.SUBMITTED, operation=_LOOK_UP),
        [
            (Actor.PROVIDER, "bank must send the money", None),
            (Actor.PLATFORM, "asks bank for the outcome", _LATER),
        ],
    ),
    "waits for the bank": Story(
        _payout(_S.IN_TRANSIT, operation=_LOOK_UP),
        [
            (Actor.BANK, "The seller's bank must confirm the money", None),
            (Actor.PLATFORM, "asks bank for the outcome", _LATER),
        ],
    ),
    **{
        f"is {state} and is being booked": Story(
            _payout(state, operation=_BOOK),
            [(Actor.PLATFORM, "updates the seller's wallet and posts to the ledger", _LATER)],
        )
        for state in sorted(TERMINAL_STATES)
    },
    "is booked, and its booking was a dead letter": Story(
        _payout(
            _S.PAID,
            operation=_operation(NextAction.BOOK, next_try_time=None),
            dead_letters=(replace(_DEAD_LETTER, cause=DeadLetterCause.BOOKING_REJECTED),),
        ),
        [(Actor.OPERATOR, "rejected the booking", None)],
    ),
    "is paid, and may still be returned": Story(
        _payout(_S.PAID, is_booked=True, next_poll_time=_LATER, poll_count=2),
        [
            (
                Actor.PLATFORM,
                "bank returned money; it has asked 2 times",
                _LATER,
            )
        ],
    ),
    "is paid": Story(_payout(_S.PAID, is_booked=True), [(Actor.NOBODY, "paid and booked", None)]),
    "failed, and may still be paid": Story(
        _payout(
            _S.FAILED,
            is_booked=True,
            failure_reason=PayoutFailure.PROVIDER_DECLINED,
            next_poll_time=_LATER,
        ),
        [(Actor.PLATFORM, "whether it was paid after all", _LATER)],
    ),
    "failed because of the account": Story(
        _payout(_S.FAILED, is_booked=True, failure_reason=PayoutFailure.DESTINATION_REJECTED),
        [(Actor.NOBODY, "another payout with a new id and another destination.", None)],
    ),
    **{
        f"is {state} and booked": Story(
            _payout(state, is_booked=True),
            [(Actor.NOBODY, f"the payout is {state} and booked. To pay the seller", None)],
        )
        for state in (_S.FAILED, _S.REJECTED, _S.CANCELLED, _S.RETURNED)
    },
    "has an unmatched transfer": Story(
        _payout(_S.PAID, is_booked=True, transfers=(_TRANSFER,)),
        [(Actor.OPERATOR, "clarify the transfer tr_1 of 9.00 EUR with bank", None)],
    ),
    "has a conflicting report": Story(
        _payout(
            _S.PAID, is_booked=True, reports=(ReportFacts(1, "Declined", _START, "", "", None),)
        ),
        [(Actor.OPERATOR, "clarify the conflicting report 1 of the payout", None)],
    ),
    "has no operation although it is not complete": Story(
        _payout(_S.SUBMITTING), [(Actor.OPERATOR, "tallystick verify", None)]
    ),
}


_NOT_OF_A_PAYOUT = {
    NextAction.RISK,
    NextAction.CANCEL,
    NextAction.GIVE_UP,
    NextAction.APPLY_RECORDED,
}
"""A payout has no risk check and no expiry, and its outcome is applied when it is stored."""


def test_every_state_and_every_action_has_a_story() -> None:
    """A state of the state table or an action of the worker that is added needs a story of its
    own; a final state two: before and after its booking.
    """
    payouts = [story.payout for story in STORIES.values()]
    assert {payout.state for payout in payouts} == set(PayoutState)
    assert {state for state, _ in TRANSITIONS} <= {payout.state for payout in payouts}
    assert {(payout.state, payout.is_booked) for payout in payouts} >= {
        (state, is_booked) for state in TERMINAL_STATES for is_booked in (False, True)
    }
    actions = {payout.operation.next_action for payout in payouts if payout.operation}
    assert actions == set(NextAction) - _NOT_OF_A_PAYOUT


def _check_texts(explanation: Explanation) -> None:
    """Each text is a sentence without a hole, and there is always a next step and an entry."""
    assert explanation.next_steps
    assert explanation.entries
    texts = [explanation.summary, *(step.action for step in explanation.next_steps)]
    texts += [entry.title for entry in explanation.entries]
    texts += [entry.detail for entry in explanation.entries if entry.detail]
    for sentence in texts:
        assert re.fullmatch(r"\S.*[.\"]", sentence), sentence
        assert not re.search(r"\bNone\b|[{}]|  |\.\.(?!\.)", sentence), sentence
    times = [entry.time for entry in explanation.entries]
    assert times == sorted(times)


@pytest.mark.parametrize("name", STORIES)
def test_every_wait_and_end_names_the_next_step_its_time_and_its_actor(name: str) -> None:
    """For each condition of a payout: who acts next, what they do, and when."""
    payout, expected = STORIES[name]
    explanation = explain(payout, _NOW)
    _check_texts(explanation)
    found = [(step.actor, step.time) for step in explanation.next_steps]
    assert found == [(actor, time) for actor, _, time in expected]
    for step, (_, part, _) in zip(explanation.next_steps, expected, strict=True):
        assert part in step.action


def test_the_next_step_is_total() -> None:
    """Every state, booked or not, with every next action, retry reason and dead letter has a next
    step, also those that should not occur.
    """
    operations = [
        None,
        *(
            _operation(action, retry_reason=reason, next_try_time=next_try_time)
            for action, reason, next_try_time in product(
                NextAction, (None, *RetryReason), (None, _LATER)
            )
        ),
    ]
    for state, is_booked, operation in product(PayoutState, (False, True), operations):
        _check_texts(explain(_payout(state, is_booked=is_booked, operation=operation), _NOW))
    for state, cause, letter_state in product(PayoutState, DeadLetterCause, DeadLetterState):
        letter = replace(_DEAD_LETTER, cause=cause, state=letter_state, end_time=_NOW)
        _check_texts(explain(_payout(state, dead_letters=(letter,)), _NOW))


def test_every_state_and_failure_has_a_sentence_of_its_own() -> None:
    """A state without a sentence, or with that of another one, would explain nothing."""
    for sentences, values in ((FAILURE_SENTENCES, PayoutFailure), (STATE_SENTENCES, PayoutState)):
        assert set(sentences) == set(values)
        assert len(set(sentences.values())) == len(sentences)


@pytest.mark.parametrize("reason", PayoutTransitionReason)
@pytest.mark.parametrize("actor", ["", "ada"])
def test_every_transition_is_a_sentence_with_its_actor(
    reason: PayoutTransitionReason, actor: str
) -> None:
    """Who decided it, and the reason that they gave, are part of the story."""
    transition = PayoutTransitionFacts(
        "READY", _S.SUBMITTING, reason, _START, actor, "checked" if actor else ""
    )
    explanation = explain(
        _payout(_S.SUBMITTING, transitions=(transition,), operation=_LOOK_UP), _NOW
    )
    _check_texts(explanation)
    assert ('Reason: "checked".' in [entry.detail for entry in explanation.entries]) == bool(actor)


@pytest.mark.parametrize("match", TransferMatch)
def test_transfers_returns_and_what_operators_read_are_part_of_the_story(
    match: TransferMatch,
) -> None:
    """Each transfer with its match and its return, the attempt, a webhook event and an alert."""
    transfer = replace(_TRANSFER, match=match, returned="9.00 EUR", return_time=_NOW)
    facts = _payout(
        _S.RETURNED,
        is_booked=True,
        transfers=(transfer,),
        attempts=(AttemptFacts(1, "bank", "dev-p-p-1-1", "RETURNED", _START, _NOW, "tr_1"),),
        webhooks=(
            WebhookFacts(
                "w-1",
                "bank",
                "evt_1",
                "payout.paid",
                WebhookEventState.APPLIED,
                _START,
                _NOW,
                "tr_1",
                "",
            ),
        ),
        alerts=(AlertFacts("a-1", "PAYOUT_STUCK", "payouts/p-1", "SUBMITTED", _START, None),),
    )
    explanation = explain(facts, _NOW)
    _check_texts(explanation)
    titles = " ".join(entry.title for entry in explanation.entries)
    for part in (
        f"bank reported a transfer of 9.00 EUR: {match}.",
        "the seller's bank returned 9.00 EUR.",
        "Attempt 1 at bank ended: RETURNED.",
        "webhook event payout.paid",
        "The alert PAYOUT_STUCK was raised",
    ):
        assert part in titles
