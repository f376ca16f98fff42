"""The facts about operations that every kind has, as sentences: what is done next, dead letters,
webhook events, alerts and conflicting reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    AlertFacts,
    DeadLetterFacts,
    ExplanationEntry,
    ExplanationSource,
    NextStep,
    OperationFacts,
    ReportFacts,
    WebhookFacts,
    count,
    format_time,
    join_sentences,
    quote,
)
from tallystick_core.operations.explanation_attempts import RETRY_SENTENCES, lower_first
from tallystick_core.operations.next_action import (
    ExhaustedAction,
    NextAction,
    when_exhausted,
)
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.outcome import RetryReason

_OPERATOR_ADVICE: Mapping[RetryReason, str] = {
    RetryReason.UNAUTHORIZED: "An operator must correct the credentials of {provider}.",
    RetryReason.CALLER_REJECTED: "An operator must correct the configuration of the services.",
}
"""What a person must do although the platform keeps trying."""

_CAUSE_SENTENCES: Mapping[DeadLetterCause, str] = {
    cause: RETRY_SENTENCES[RetryReason(cause)] for cause in DeadLetterCause
}

_ACTIONS: Mapping[NextAction, str] = {
    NextAction.RISK: "The platform asks the risk provider whether the {subject} may be sent.",
    NextAction.PLACE_HOLD: "The platform holds the money of the {subject} in the seller's wallet.",
    NextAction.SEND: "The platform sends the {subject} to {provider}.",
    NextAction.LOOK_UP: "The platform asks {provider} for the outcome of the {subject}.",
    NextAction.CANCEL: "The platform asks {provider} to cancel the {subject}.",
    NextAction.GIVE_UP: "The platform ends the {subject} as FAILED: it was certainly not sent.",
    NextAction.APPLY_RECORDED: "The platform applies the stored outcome of {provider}.",
    NextAction.BOOK: "The platform updates the seller's wallet and posts to the ledger.",
    NextAction.WAIT: "The platform completes the {subject}.",
}
_WEBHOOK_STATES: Mapping[WebhookEventState, str] = {
    WebhookEventState.RECEIVED: "It is not applied yet: the provider is asked for the outcome, "
    "because an event proves nothing.",
    WebhookEventState.APPLIED: "At {time} it was applied: the provider was asked for the outcome.",
    WebhookEventState.IGNORED: "It was ignored: an event of this type changes nothing.",
    WebhookEventState.CLOSED: "At {time} an operator closed it. It was not applied.",
}
"""What became of a webhook event."""
_EXHAUSTED: Mapping[ExhaustedAction, str] = {
    ExhaustedAction.FAIL: "it fails, because certainly nothing was sent",
    ExhaustedAction.LOOK_UP: "the platform asks for the outcome before it sends anything again",
    ExhaustedAction.RESEND_OR_LOOK_UP: "it is sent again and looked up alternately, as long as the "
    "provider honors the idempotency key",
    ExhaustedAction.DEAD_LETTER: "it becomes a dead letter, and an operator decides",
}
"""What follows the last try."""
_SEND_AGAIN = (
    "The platform sends the {subject} to {provider} again, under the same idempotency key, so "
    "that it cannot happen twice."
)


def operation_steps(
    operation: OperationFacts | None,
    dead_letters: Iterable[DeadLetterFacts],
    subject: str,
    resource_name: str,
    now: datetime,
) -> tuple[NextStep, ...]:
    """What happens next to an operation that is not complete. `subject`: "charge" or "payout"."""
    dead_letter = next((item for item in dead_letters if item.state is DeadLetterState.OPEN), None)
    if dead_letter is not None:
        return (
            _dead_letter_step(dead_letter, resource_name),
            *_expiry_steps(operation, subject, resource_name),
        )
    if operation is None or operation.next_try_time is None:
        action = (
            f"Nothing is scheduled although the {subject} is not complete. An operator must run "
            "'tallystick verify' and report the error."
        )
        return (NextStep(Actor.OPERATOR, action, resource_name),)
    next_step = NextStep(
        Actor.PLATFORM,
        join_sentences(describe_action(operation, subject), _describe_wait(operation)),
        resource_name,
        now if operation.lease_until else max(operation.next_try_time, now),
    )
    advice = _OPERATOR_ADVICE.get(operation.retry_reason) if operation.retry_reason else None
    if advice is None:
        return (next_step,)
    action = f"{advice} Until then the {subject} waits."
    return (
        NextStep(Actor.OPERATOR, action.format(provider=operation.provider), resource_name),
        next_step,
    )


def describe_action(operation: OperationFacts, subject: str) -> str:
    """What the platform does next, as a sentence."""
    is_repeat = operation.next_action is NextAction.SEND and operation.maybe_sent
    sentence = _SEND_AGAIN if is_repeat else _ACTIONS[operation.next_action]
    return sentence.format(subject=subject, provider=operation.provider)


def _describe_wait(operation: OperationFacts) -> str:
    """Why it is not done yet; "": it is due for the first time."""
    if operation.lease_until is not None:
        until = format_time(operation.lease_until)
        return f"A process is working on it; if it stops, another one continues at {until}."
    if operation.retry_reason is None:
        return ""
    return join_sentences(
        f"It waits because {lower_first(RETRY_SENTENCES[operation.retry_reason])}",
        f"The last answer was: {quote(operation.detail)}." if operation.detail else "",
        _describe_tries(operation, operation.retry_reason),
    )


def _describe_tries(operation: OperationFacts, retry_reason: RetryReason) -> str:
    """How often it was tried for this reason, and what follows the last try."""
    if not operation.try_count:
        return ""
    if operation.max_tries is None:
        return (
            f"It was tried {count(operation.try_count, 'time')} for this reason, without a limit."
        )
    exhausted_action = when_exhausted(retry_reason, maybe_sent=operation.maybe_sent)
    return (
        f"It was tried {operation.try_count} of {count(operation.max_tries, 'time')} for this "
        f"reason; afterwards {_EXHAUSTED[exhausted_action]}."
    )


def _dead_letter_step(dead_letter: DeadLetterFacts, resource_name: str) -> NextStep:
    id_ = dead_letter.dead_letter_id
    action = join_sentences(
        f"An operator must retry or close the dead letter {id_}; nothing is tried until then.",
        _CAUSE_SENTENCES[dead_letter.cause],
    )
    return NextStep(Actor.OPERATOR, action, resource_name)


def _expiry_steps(
    operation: OperationFacts | None, subject: str, resource_name: str
) -> tuple[NextStep, ...]:
    if operation is None or operation.expire_time is None:
        return ()
    action = f"The {subject} expires; the platform then ends it, and asks {operation.provider} to "
    action += "cancel it if it may have been sent."
    return (NextStep(Actor.PLATFORM, action, resource_name, operation.expire_time),)


def dead_letter_entries(dead_letter: DeadLetterFacts) -> list[ExplanationEntry]:
    """Its creation and its end."""
    id_ = dead_letter.dead_letter_id
    created = ExplanationEntry(
        dead_letter.create_time,
        ExplanationSource.RETRY,
        f"It became the dead letter {id_} with the cause {dead_letter.cause}, after "
        f"{count(dead_letter.try_count, 'unsuccessful try', 'unsuccessful tries')}.",
        join_sentences(
            _CAUSE_SENTENCES[dead_letter.cause],
            f"The last answer was: {quote(dead_letter.detail)}." if dead_letter.detail else "",
        ),
        id_,
    )
    if dead_letter.end_time is None:
        return [created]
    by = f" by {dead_letter.operator}" if dead_letter.operator else ""
    ended = ExplanationEntry(
        dead_letter.end_time,
        ExplanationSource.OPERATOR if dead_letter.operator else ExplanationSource.RETRY,
        f"The dead letter {id_} became {dead_letter.state}{by}.",
        join_sentences(
            f"Reason: {quote(dead_letter.reason)}." if dead_letter.reason else "",
            f"Evidence: {quote(dead_letter.evidence)}." if dead_letter.evidence else "",
        ),
        id_,
    )
    return [created, ended]


def webhook_entry(webhook: WebhookFacts) -> ExplanationEntry:
    return ExplanationEntry(
        webhook.receive_time,
        ExplanationSource.WEBHOOK,
        f"{webhook.provider} sent the webhook event {webhook.event_type}.",
        _WEBHOOK_STATES[webhook.state].format(
            time=format_time(webhook.end_time) if webhook.end_time else "",
        ),
        webhook.event_id,
        webhook.trace_id,
    )


def webhook_steps(webhooks: Iterable[WebhookFacts]) -> tuple[NextStep, ...]:
    """The webhook events that are not applied yet."""
    return tuple(
        NextStep(
            Actor.PLATFORM,
            f"The platform asks {item.provider} for the outcome, because of the webhook event "
            f"{item.event_type}.",
            f"webhookEvents/{item.webhook_event_id}",
        )
        for item in webhooks
        if item.state is WebhookEventState.RECEIVED
    )


def alert_entries(alert: AlertFacts) -> list[ExplanationEntry]:
    """Its beginning and its end."""
    entries = [
        ExplanationEntry(
            alert.create_time,
            ExplanationSource.ALERT,
            f"The alert {alert.kind} was raised for {alert.resource_name}.",
            f"{alert.detail.rstrip('.')}." if alert.detail else "",
            alert.alert_id,
        )
    ]
    if alert.end_time is not None:
        title = f"The alert {alert.kind} for {alert.resource_name} ended."
        entries.append(
            ExplanationEntry(
                alert.end_time, ExplanationSource.ALERT, title, reference=alert.alert_id
            )
        )
    return entries


def report_entries(report: ReportFacts, subject: str) -> list[ExplanationEntry]:
    """A conflicting report, and its acknowledgement."""
    entries = [
        ExplanationEntry(
            report.create_time,
            ExplanationSource.PROVIDER,
            f"The provider reported something that conflicts with what is stored of the {subject}.",
            f"Report {report.number}: {quote(report.report)}. It moves no money.",
        )
    ]
    if report.acknowledge_time is not None:
        entries.append(
            ExplanationEntry(
                report.acknowledge_time,
                ExplanationSource.OPERATOR,
                f"{report.acknowledged_by} acknowledged the conflicting report {report.number}.",
                f"Reason: {quote(report.acknowledge_reason)}.",
            )
        )
    return entries


def report_steps(
    reports: Iterable[ReportFacts], subject: str, resource_name: str
) -> tuple[NextStep, ...]:
    """The reports that nobody has acknowledged."""
    return tuple(
        NextStep(
            Actor.OPERATOR,
            f"An operator must clarify the conflicting report {report.number} of the {subject} "
            "with the provider, and acknowledge it.",
            resource_name,
        )
        for report in reports
        if not report.acknowledged_by
    )
