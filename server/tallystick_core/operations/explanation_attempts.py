"""The attempts of an operation and its failed tries, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from tallystick_core.operations.explanation import (
    AttemptFacts,
    ExplanationEntry,
    ExplanationSource,
    FailedTryFacts,
    count,
    format_time,
    join_sentences,
    quote,
)
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import RetryReason

RETRY_SENTENCES: Mapping[RetryReason, str] = {
    RetryReason.NOT_SENT: "The provider could not be reached, so certainly nothing was sent.",
    RetryReason.NO_ANSWER: "The provider did not answer, so it is not known whether money moved.",
    RetryReason.SERVER_ERROR: "The provider answered with a server error, so it is not known "
    "whether money moved.",
    RetryReason.THROTTLED: "The provider asked the platform to retry later.",
    RetryReason.UNAUTHORIZED: "The provider rejects the platform's credentials.",
    RetryReason.CIRCUIT_OPEN: "No calls are sent to the provider: it fails too often, all its "
    "concurrent calls are in use, or it is not configured.",
    RetryReason.CHANGED_BEFORE_CALL: "It expired or changed meanwhile, so it was not sent.",
    RetryReason.REJECTED: "The provider rejected the request as malformed, its answer cannot be "
    "stored, or the risk check was not passed.",
    RetryReason.PENDING: "The provider reports the outcome later.",
    RetryReason.POST_COMPLETION_POLL: "The provider is polled after the end, in case money still "
    "moves.",
    RetryReason.NOT_FOUND: "The provider did not know the request when it was asked.",
    RetryReason.LOOKUP_INCONCLUSIVE: "The provider did not report an outcome when it was asked.",
    RetryReason.OUTCOME_UNKNOWN: "The provider does not report an outcome, and may no longer honor "
    "the idempotency key, so nothing is sent again.",
    RetryReason.MISMATCHED_OPERATION: "The provider answered with the outcome of another request.",
    RetryReason.APPLYING_FAILED: "The outcome is stored, but the database rejects applying it.",
    RetryReason.BOOKING_UNAVAILABLE: "WalletService or LedgerService did not answer.",
    RetryReason.CALLER_REJECTED: "WalletService or LedgerService rejects the calls of this "
    "service, which is an error of the configuration.",
    RetryReason.BOOKING_FAILED: "WalletService or LedgerService failed on this item alone.",
    RetryReason.BOOKING_REJECTED: "WalletService or LedgerService rejected the booking.",
}
"""Why an operation is tried again."""

_OUTCOMES = {
    "": "No answer is stored yet.",
    "SUCCEEDED": "The provider reported that the money has moved.",
    "DECLINED": "The provider reported that certainly no money has moved.",
    "PENDING": "The provider reported that the outcome is pending.",
    "NOT_SENT": "Certainly nothing was sent.",
    "UNKNOWN": "The provider has not reported whether money has moved.",
    "SUBMITTED": "The provider has accepted it, and reports the outcome later.",
    "IN_TRANSIT": "The provider has sent the money.",
    "RETURNED": "The seller's bank received the money and returned it.",
}
"""What an outcome of an attempt means."""
_ACCEPTED = frozenset({"PENDING", "SUBMITTED", "IN_TRANSIT"})
"""The outcomes of an attempt that the provider has accepted. Of one without an answer, the failed
tries say what happened.
"""
_TRIES: Mapping[NextAction, str] = {
    NextAction.RISK: "to ask the risk provider about the {subject}",
    NextAction.PLACE_HOLD: "to hold the money of the {subject} in the seller's wallet",
    NextAction.SEND: "to send the {subject} to {provider}",
    NextAction.LOOK_UP: "to ask {provider} for the outcome of the {subject}",
    NextAction.CANCEL: "to cancel the {subject} at {provider}",
    NextAction.GIVE_UP: "to end the {subject}",
    NextAction.APPLY_RECORDED: "to apply the stored outcome of the {subject}",
    NextAction.BOOK: "to update the seller's wallet and the ledger",
    NextAction.WAIT: "to complete the {subject}",
}
"""What was tried."""


def attempt_entries(
    attempt: AttemptFacts, name: str, outcome_times: Iterable[datetime]
) -> list[ExplanationEntry]:
    """The request and its answer. `name`: "charge o-1". `outcome_times`: when the answer changed a
    state; one transaction stores both, the answer last.
    """
    entries = [
        ExplanationEntry(
            attempt.start_time,
            ExplanationSource.PROVIDER,
            f"Attempt {attempt.number} of the {name} began at {attempt.provider}.",
            join_sentences(
                f"Every request has the idempotency key {attempt.provider_key}.",
                _OUTCOMES[attempt.outcome] if attempt.outcome in ("", *_ACCEPTED) else "",
                _describe_request(attempt.request_id) if attempt.outcome in _ACCEPTED else "",
            ),
            attempt.provider_reference,
        )
    ]
    if attempt.end_time is None:
        return entries
    ended = ExplanationEntry(
        min([attempt.end_time, *outcome_times]),
        ExplanationSource.PROVIDER,
        f"Attempt {attempt.number} at {attempt.provider} ended: {attempt.outcome}.",
        join_sentences(
            _OUTCOMES[attempt.outcome],
            f"Reason: {attempt.failure_reason}." if attempt.failure_reason else "",
            f"The provider's code is {quote(attempt.decline_code)}."
            if attempt.decline_code
            else "",
            f"The provider's fee is {attempt.provider_fee}." if attempt.provider_fee else "",
            _describe_request(attempt.request_id),
        ),
        attempt.provider_reference,
    )
    return [*entries, ended]


def failed_try_entry(failed_try: FailedTryFacts, name: str) -> ExplanationEntry:
    """A try that failed. `name`: "charge o-1"."""
    what = _TRIES[failed_try.action].format(subject=name, provider=failed_try.provider)
    number = failed_try.repeat_count
    return ExplanationEntry(
        failed_try.time,
        ExplanationSource.RETRY,
        f"The try {what} failed: {lower_first(_describe_failure(failed_try))}",
        join_sentences(
            f"The error was: {quote(failed_try.detail)}." if failed_try.detail else "",
            ""
            if failed_try.request_id in failed_try.detail
            else _describe_request(failed_try.request_id),
            f"It failed {count(number, 'time')} for this reason, at last at "
            f"{format_time(failed_try.last_time)}."
            if number > 1
            else "",
            _describe_next_try(failed_try),
        ),
    )


def _describe_failure(failed_try: FailedTryFacts) -> str:
    """Why it failed. The action says who rejected it, or has not decided."""
    is_risk_check = failed_try.action is NextAction.RISK
    if is_risk_check and failed_try.retry_reason is RetryReason.NOT_SENT:
        return "The risk provider has not decided, so certainly nothing was sent."
    if failed_try.retry_reason is not RetryReason.REJECTED:
        return RETRY_SENTENCES[failed_try.retry_reason]
    if is_risk_check:
        return "No risk provider is configured, and the order has not passed the risk check."
    return "The provider rejected the request as malformed, or its answer cannot be stored."


def _describe_next_try(failed_try: FailedTryFacts) -> str:
    if failed_try.next_try_time is None:
        return "No further try was scheduled."
    delay = failed_try.next_try_time - failed_try.last_time
    if delay <= timedelta(0):
        return "The next try was due at once."
    time = format_time(failed_try.next_try_time)
    return f"The next try was scheduled {_format_delay(delay)} later, at {time}."


def _format_delay(delay: timedelta) -> str:
    seconds = delay.total_seconds()
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _describe_request(request_id: str) -> str:
    return f"The provider's id of the request is {request_id}." if request_id else ""


def lower_first(sentence: str) -> str:
    """The sentence as the end of another one. The name of a service keeps its letter."""
    is_name = sentence.startswith(("WalletService", "LedgerService"))
    return sentence if is_name else f"{sentence[:1].lower()}{sentence[1:]}"
