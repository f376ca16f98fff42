"""Waits and failed tries of an operation as sentences: each reason has its story."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    DeadLetterFacts,
    FailedTryFacts,
    OperationFacts,
    WebhookFacts,
)
from tallystick_core.operations.explanation_attempts import failed_try_entry
from tallystick_core.operations.explanation_sentences import (
    dead_letter_entries,
    operation_steps,
    webhook_entry,
)
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.outcome import RetryReason

_NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
_LATER = _NOW + timedelta(seconds=90)
_A = NextAction
_R = RetryReason
_PLATFORM, _PEOPLE = (Actor.PLATFORM,), (Actor.OPERATOR, Actor.PLATFORM)


class Wait(NamedTuple):
    """A wait before an action: who acts, what the reason is, and what follows the last try."""

    action: NextAction
    actors: tuple[Actor, ...]
    reason: str
    finally_: str


WAITS: dict[RetryReason, Wait] = {
    _R.NOT_SENT: Wait(_A.SEND, _PLATFORM, "certainly nothing was sent", "it fails"),
    _R.NO_ANSWER: Wait(_A.SEND, _PLATFORM, "did not answer", "asks for the outcome before"),
    _R.SERVER_ERROR: Wait(_A.SEND, _PLATFORM, "a server error", "asks for the outcome before"),
    _R.THROTTLED: Wait(_A.SEND, _PLATFORM, "retry later", "asks for the outcome before"),
    _R.UNAUTHORIZED: Wait(_A.SEND, _PEOPLE, "credentials", "asks for the outcome before"),
    _R.CIRCUIT_OPEN: Wait(_A.SEND, _PLATFORM, "no calls are sent", "a dead letter"),
    _R.CHANGED_BEFORE_CALL: Wait(
        _A.GIVE_UP, _PLATFORM, "expired or changed meanwhile", "a dead letter"
    ),
    _R.REJECTED: Wait(_A.SEND, _PLATFORM, "malformed", "a dead letter"),
    _R.PENDING: Wait(_A.LOOK_UP, _PLATFORM, "reports the outcome later", "a dead letter"),
    _R.POST_COMPLETION_POLL: Wait(_A.LOOK_UP, _PLATFORM, "after the end", "a dead letter"),
    _R.NOT_FOUND: Wait(_A.SEND, _PLATFORM, "did not know the request", "looked up alternately"),
    _R.LOOKUP_INCONCLUSIVE: Wait(
        _A.SEND, _PLATFORM, "did not report an outcome", "looked up alternately"
    ),
    _R.OUTCOME_UNKNOWN: Wait(_A.LOOK_UP, _PLATFORM, "nothing is sent again", "a dead letter"),
    _R.MISMATCHED_OPERATION: Wait(_A.LOOK_UP, _PLATFORM, "of another request", "a dead letter"),
    _R.APPLYING_FAILED: Wait(_A.APPLY_RECORDED, _PLATFORM, "database rejects", "a dead letter"),
    _R.BOOKING_UNAVAILABLE: Wait(_A.BOOK, _PLATFORM, "did not answer", "a dead letter"),
    _R.CALLER_REJECTED: Wait(_A.BOOK, _PEOPLE, "configuration", "a dead letter"),
    _R.BOOKING_FAILED: Wait(_A.BOOK, _PLATFORM, "on this item alone", "a dead letter"),
    _R.BOOKING_REJECTED: Wait(_A.BOOK, _PLATFORM, "rejected the booking", "a dead letter"),
}


def _check(sentence: str) -> None:
    assert re.fullmatch(r"\S.*[.\"]", sentence), sentence
    assert not re.search(r"\bNone\b|[{}]|  |\.\.", sentence), sentence


@pytest.mark.parametrize("subject", ["charge", "payout"])
@pytest.mark.parametrize("reason", RetryReason)
def test_every_wait_has_its_reason_its_time_and_what_follows(
    reason: RetryReason, subject: str
) -> None:
    """A retry reason without a wait in the table fails here."""
    wait = WAITS[reason]
    operation = OperationFacts(
        wait.action, "stripe", _LATER, retry_reason=reason, try_count=2, max_tries=3
    )
    steps = operation_steps(operation, (), subject, f"{subject}s/1", _NOW)
    assert tuple(step.actor for step in steps) == wait.actors
    assert steps[-1].time == _LATER
    for step in steps:
        _check(step.action)
    assert wait.reason in steps[-1].action
    assert "tried 2 of 3 times for this reason; afterwards " in steps[-1].action
    assert wait.finally_ in steps[-1].action


@pytest.mark.parametrize("reason", RetryReason)
def test_every_failed_try_names_what_was_tried_and_why_it_failed(reason: RetryReason) -> None:
    """With the answer, the provider's id of the request, and the delay of the policy."""
    wait = WAITS[reason]
    failed_try = FailedTryFacts(
        wait.action, "stripe", reason, _NOW, _NOW, _LATER, "status 500", "req_1"
    )
    entry = failed_try_entry(failed_try, "charge o-1")
    for sentence in (entry.title, entry.detail):
        _check(sentence)
    assert entry.title.startswith("The try to ")
    assert wait.reason in entry.title
    assert entry.detail == (
        'The error was: "status 500". The provider\'s id of the request is req_1. The next try '
        "was scheduled 90.0 s later, at 2026-11-30 12:01:30 UTC."
    )


@pytest.mark.parametrize("action", NextAction)
def test_every_action_has_a_try(action: NextAction) -> None:
    """An action without a phrase of its own would not say what failed."""
    failed_try = FailedTryFacts(action, "stripe", _R.NO_ANSWER, _NOW, _NOW, None)
    entry = failed_try_entry(failed_try, "charge o-1")
    _check(entry.title)
    assert entry.detail == "No further try was scheduled."


@pytest.mark.parametrize(
    ("next_try_time", "expected"),
    [
        (None, "No further try was scheduled."),
        (_NOW, "The next try was due at once."),
        (_NOW + timedelta(seconds=1.5), "The next try was scheduled 1.5 s later, at 2026-11-30"),
        (_NOW + timedelta(minutes=30), "The next try was scheduled 30 min later, at 2026-11-30"),
        (_NOW + timedelta(hours=24), "The next try was scheduled 24 h later, at 2026-12-01"),
    ],
    ids=["none", "at once", "seconds", "minutes", "hours"],
)
def test_a_failed_try_names_its_next_try(next_try_time: datetime | None, expected: str) -> None:
    """The delay in the largest unit that says enough."""
    failed_try = FailedTryFacts(_A.SEND, "stripe", _R.THROTTLED, _NOW, _NOW, next_try_time)
    assert failed_try_entry(failed_try, "charge o-1").detail.startswith(expected)


def test_the_tries_of_an_outage_are_counted() -> None:
    """One entry has the first and the last of them."""
    failed_try = FailedTryFacts(
        _A.SEND, "stripe", _R.CIRCUIT_OPEN, _NOW, _LATER, _LATER, repeat_count=7
    )
    entry = failed_try_entry(failed_try, "charge o-1")
    assert entry.time == _NOW
    assert "It failed 7 times for this reason, at last at 2026-11-30 12:01:30 UTC." in entry.detail


def test_a_request_that_the_answer_names_is_named_once() -> None:
    """An adapter may put the id into the text of the answer."""
    failed_try = FailedTryFacts(
        _A.SEND, "stripe", _R.REJECTED, _NOW, _NOW, None, "status 400 req_1", "req_1"
    )
    entry = failed_try_entry(failed_try, "charge o-1")
    assert entry.detail == 'The error was: "status 400 req_1". No further try was scheduled.'
    unchecked = failed_try_entry(replace(failed_try, action=_A.RISK), "charge o-1")
    assert "risk check" in unchecked.title
    assert "risk" not in entry.title


def test_a_risk_check_that_does_not_decide_is_no_unreachable_provider() -> None:
    """The risk provider may have answered, for example with a server error."""
    failed_try = FailedTryFacts(_A.RISK, "stripe", _R.NOT_SENT, _NOW, _NOW, None, "status 500")
    title = failed_try_entry(failed_try, "charge o-1").title
    assert "the risk provider has not decided" in title
    assert "reached" not in title


@pytest.mark.parametrize("cause", DeadLetterCause)
@pytest.mark.parametrize("state", DeadLetterState)
def test_every_dead_letter_waits_for_an_operator_until_it_ends(
    cause: DeadLetterCause, state: DeadLetterState
) -> None:
    """Its cause is a sentence, and its end an entry."""
    is_open = state is DeadLetterState.OPEN
    letter = DeadLetterFacts(
        "charges-o-1-1", state, cause, "silence", 3, _NOW, end_time=None if is_open else _LATER
    )
    operation = OperationFacts(_A.SEND, "stripe", None if is_open else _LATER)
    steps = operation_steps(operation, (letter,), "charge", "charges/o-1", _NOW)
    assert [step.actor for step in steps] == [Actor.OPERATOR if is_open else Actor.PLATFORM]
    entries = dead_letter_entries(letter)
    assert len(entries) == (1 if is_open else 2)
    for sentence in (
        *(step.action for step in steps),
        *(entry.title for entry in entries),
        entries[0].detail,
    ):
        _check(sentence)
    assert f"the cause {cause}" in entries[0].title


@pytest.mark.parametrize("state", WebhookEventState)
def test_every_webhook_event_names_what_became_of_it(state: WebhookEventState) -> None:
    """In a sentence of its own."""
    end_time = None if state is WebhookEventState.RECEIVED else _LATER
    entry = webhook_entry(
        WebhookFacts("w-1", "stripe", "evt_1", "charge.failed", state, _NOW, end_time, "ch_1", "")
    )
    _check(entry.detail)
    verb = {"RECEIVED": "not applied yet", "CLOSED": "closed it"}.get(state, state.lower())
    assert verb in entry.detail
