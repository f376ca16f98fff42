"""The next action of an operation, and what happens when its retries are exhausted."""

from __future__ import annotations

from enum import StrEnum

from tallystick_core.provider.outcome import RetryReason

MAX_OPEN_REPORTS = 10
"""The maximum number of unacknowledged conflicting reports of a charge or payout. Further reports
are stored only after an operator acknowledges some.
"""


class NextAction(StrEnum):
    """What the worker does with an operation after claiming it."""

    RISK = "RISK"
    """Ask the risk provider: an order has not passed the risk check. Without a risk provider it is
    an error of the platform, and the operation is dead-lettered.
    """
    PLACE_HOLD = "PLACE_HOLD"
    """Hold the money in the wallet, and begin the attempt. It does not call the provider."""
    SEND = "SEND"
    """Send the operation under the idempotency key of its attempt."""
    LOOK_UP = "LOOK_UP"
    """Ask the provider for the outcome of the operation."""
    CANCEL = "CANCEL"
    """Ask the provider to cancel the operation."""
    GIVE_UP = "GIVE_UP"
    """Fail the operation: it was never sent and is no longer needed."""
    APPLY_RECORDED = "APPLY_RECORDED"
    """Apply the provider outcome that is already stored."""
    BOOK = "BOOK"
    """Book the final outcome in wallet and ledger."""
    WAIT = "WAIT"
    """Do nothing: it is complete, or a decision of an operator schedules it again."""


class Circuit(StrEnum):
    """The parts of a provider that can fail independently. Each has its own circuit breaker."""

    SENDS = "sends"
    LOOK_UPS = "lookups and cancellations"
    RISK_CHECKS = "risk checks"
    VERIFICATIONS = "verifications of bank accounts"


class ExhaustedAction(StrEnum):
    """What happens to an operation when its retry policy is exhausted."""

    FAIL = "FAIL"
    """Fail the operation: it is certain that no money moved."""
    LOOK_UP = "LOOK_UP"
    """Ask the provider for the outcome."""
    RESEND_OR_LOOK_UP = "RESEND_OR_LOOK_UP"
    """Alternate between resending and looking up while the provider honors the idempotency key."""
    DEAD_LETTER = "DEAD_LETTER"
    """Create a dead letter: an operator decides."""


def when_exhausted(retry_reason: RetryReason, *, maybe_sent: bool) -> ExhaustedAction:
    """Returns what follows when the retries for this reason are exhausted. `maybe_sent`: the
    operation may have reached the provider.
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
