"""What is done next with a demand on a provider that does not come to its end by itself."""

from __future__ import annotations

from enum import StrEnum

from tallystick_core.provider.outcome import RetryReason

MAX_OPEN_REPORTS = 10
"""Conflicting reports of a charge or payout that wait for an operator at a time; more are not
stored before some are acknowledged.
"""


class NextAction(StrEnum):
    """What is done with a demand when it is taken up."""

    RISK = "RISK"
    """Nothing that asks the provider: risk has to pass it first."""
    PLACE_HOLD = "PLACE_HOLD"
    """Do what has to be done before it can be sent, which asks no provider."""
    SEND = "SEND"
    """Send it, under the attempt's key."""
    LOOK_UP = "LOOK_UP"
    """Ask what became of the demand."""
    CANCEL = "CANCEL"
    """Have the provider end it."""
    GIVE_UP = "GIVE_UP"
    """Fail it: it was never sent, and is not wanted any more."""
    APPLY_RECORDED = "APPLY_RECORDED"
    """Apply the answer that is on disk already."""
    BOOK = "BOOK"
    """Tell wallet and ledger of its end."""


class Circuit(StrEnum):
    """What of a provider may fail while the rest of it answers: each has a circuit breaker of its
    own.
    """

    SENDS = "sends"
    LOOK_UPS = "look-ups and cancellations"
    VERIFICATIONS = "verifications of bank accounts"


class ExhaustedAction(StrEnum):
    """What is done with a demand when a retry policy is exhausted."""

    FAIL = "FAIL"
    """Surely nothing was moved: it fails."""
    LOOK_UP = "LOOK_UP"
    """The provider is asked what became of it."""
    RESEND_OR_LOOK_UP = "RESEND_OR_LOOK_UP"
    """It is sent and looked up by turns, for as long as the provider honours its key."""
    DEAD_LETTER = "DEAD_LETTER"
    """It becomes a dead letter: a person decides."""


def when_exhausted(retry_reason: RetryReason, *, maybe_sent: bool) -> ExhaustedAction:
    """What follows when trouble of this kind has come too often. `maybe_sent`: the demand may have
    reached the provider at some time.
    """
    if retry_reason is RetryReason.NOT_SENT and not maybe_sent:
        return ExhaustedAction.FAIL
    if retry_reason in (
        RetryReason.NOT_SENT,
        RetryReason.NO_ANSWER,
        RetryReason.SERVER_ERROR,
        RetryReason.THROTTLED,
        RetryReason.UNAUTHORIZED,
    ):
        return ExhaustedAction.LOOK_UP
    if retry_reason in (RetryReason.NOT_FOUND, RetryReason.LOOKUP_INCONCLUSIVE):
        return ExhaustedAction.RESEND_OR_LOOK_UP
    return ExhaustedAction.DEAD_LETTER
