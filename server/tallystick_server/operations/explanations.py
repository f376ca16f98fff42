"""Explanations as messages, and the facts of stored rows that every kind of operation has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from tallystick.history.v1 import explanation_pb2
from tallystick_core.access import Caller, Role
from tallystick_core.money import format_amount
from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    AlertFacts,
    AttemptFacts,
    DeadLetterFacts,
    Explanation,
    ExplanationEntry,
    ExplanationSource,
    FailedTryFacts,
    NextStep,
    OperationFacts,
    WebhookFacts,
    join_sentences,
    sort_steps,
)
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.outcome import NOT_CALLED_REASONS, RetryReason
from tallystick_core.validation import parse_lookup_id
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_optional_timestamp, to_timestamp
from tallystick_storage.dead_letters import DeadLetterRow
from tallystick_storage.explanations import AlertRow, ExplainedAttemptRow, OperationRow
from tallystick_storage.failed_tries import FailedTryRow
from tallystick_storage.webhook_events import WebhookEventRow

MAX_ROWS = 100
"""The maximum number of rows of each list of an explanation, except transitions."""
MAX_TRANSITIONS = 400

_SOURCES = EnumNames(explanation_pb2.ExplanationSource.DESCRIPTOR)
_ACTORS = EnumNames(explanation_pb2.Actor.DESCRIPTOR)


def to_message(explanation: Explanation, explain_time: datetime) -> explanation_pb2.Explanation:
    return explanation_pb2.Explanation(
        resource_name=explanation.resource_name,
        state=explanation.state,
        summary=explanation.summary,
        next_steps=map(_step_message, explanation.next_steps),
        entries=map(_entry_message, explanation.entries),
        omissions=explanation.omissions,
        explain_time=to_timestamp(explain_time),
    )


def _step_message(step: NextStep) -> explanation_pb2.NextStep:
    return explanation_pb2.NextStep(
        actor=_ACTORS.number(step.actor),
        action=step.action,
        resource_name=step.resource_name,
        time=to_optional_timestamp(step.time),
        deadline=to_optional_timestamp(step.deadline),
    )


def _entry_message(entry: ExplanationEntry) -> explanation_pb2.ExplanationEntry:
    return explanation_pb2.ExplanationEntry(
        time=to_timestamp(entry.time),
        source=_SOURCES.number(entry.source),
        title=entry.title,
        detail=entry.detail,
        reference=entry.reference,
        trace_id=entry.trace_id,
    )


def add_to_message(
    explanation: explanation_pb2.Explanation,
    summary: str,
    steps: Sequence[NextStep],
    entries: Iterable[ExplanationEntry],
    omissions: Iterable[str],
) -> None:
    """Adds what another service knows to an explanation, in its order."""
    explanation.summary = join_sentences(explanation.summary, summary)
    explanation.omissions.extend(omissions)
    known_steps = [
        NextStep(
            Actor(_ACTORS.parse(step.actor, "actor")),
            step.action,
            step.resource_name,
            parse_time(step, "time"),
            parse_time(step, "deadline"),
        )
        for step in explanation.next_steps
    ]
    del explanation.next_steps[:]
    explanation.next_steps.extend(map(_step_message, sort_steps([*known_steps, *steps])))
    explanation.entries.extend(map(_entry_message, entries))
    explanation.entries.sort(key=lambda entry: entry.time.ToNanoseconds())


def references_of(explanation: explanation_pb2.Explanation, source: ExplanationSource) -> list[str]:
    """The references of the entries of a source, each once."""
    number = _SOURCES.number(source)
    return list(
        {
            entry.reference: None
            for entry in explanation.entries
            if entry.source == number and entry.reference
        }
    )


class Explainer(Protocol):
    """Explains the resources of a service. `owner`: None: those of all owners. Raises NOT_FOUND."""

    async def explain(
        self, id_: str, owner: str | None, *, for_operator: bool
    ) -> explanation_pb2.Explanation: ...

    async def find_name(self, id_: str, owner: str | None) -> str: ...


async def explain_to(
    caller: Caller, explainer: Explainer, text: str, *, name_only: bool
) -> explanation_pb2.Explanation:
    """The explanation that a caller may read of what the field `id` names, or only its resource
    name. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED, NOT_FOUND. A service asks on
    behalf of an operator.
    """
    id_ = parse_lookup_id(text, "id")
    sees_all = caller.can_see_all or Role.SERVICE in caller.roles
    owner = None if sees_all else caller.owner
    if name_only:
        return explanation_pb2.Explanation(resource_name=await explainer.find_name(id_, owner))
    return await explainer.explain(id_, owner, for_operator=sees_all)


def trace_id_of(traceparent: str) -> str:
    """The trace id of a W3C trace context; "": it has none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def operation_facts(
    row: OperationRow,
    next_action: NextAction,
    retry_policies: RetryPolicies,
    *,
    with_details: bool,
) -> OperationFacts:
    """`with_details`: with the answer of the provider, which only operators may read."""
    retry_reason = RetryReason(row.retry_reason) if row.retry_reason else None
    policy = (
        None
        if retry_reason is None or retry_reason in NOT_CALLED_REASONS
        else retry_policies.policy_for(row.provider, retry_reason)
    )
    return OperationFacts(
        next_action,
        row.provider,
        row.next_try_time,
        row.lease_until,
        row.maybe_sent,
        retry_reason,
        row.retry_counts.get(row.retry_reason, 0),
        policy.max_tries if policy else None,
        row.detail if with_details else "",
        row.expire_time,
    )


def dead_letter_facts(row: DeadLetterRow, *, with_details: bool) -> DeadLetterFacts:
    """`with_details`: with the texts that only operators may read."""
    return DeadLetterFacts(
        row.dead_letter_id,
        DeadLetterState(row.state),
        DeadLetterCause(row.cause),
        row.detail if with_details else "",
        row.retry_count,
        row.create_time,
        row.operator if with_details else "",
        row.reason if with_details else "",
        row.evidence if with_details else "",
        row.end_time,
    )


def attempt_facts(row: ExplainedAttemptRow, *, with_details: bool) -> AttemptFacts:
    """`with_details`: with the provider's id of the request, which only operators may read."""
    fee = (
        ""
        if row.provider_fee is None or row.provider_fee_currency is None
        else f"{format_amount(row.provider_fee, row.provider_fee_currency)} "
        f"{row.provider_fee_currency}"
    )
    return AttemptFacts(
        row.attempt_number,
        row.provider,
        row.provider_key,
        row.outcome,
        row.start_time,
        row.end_time,
        row.provider_reference,
        row.failure_reason,
        row.decline_code,
        fee,
        row.routing_rule,
        row.routing_reason,
        row.fallback_provider,
        row.provider_request_id if with_details else "",
    )


def failed_try_facts(row: FailedTryRow, *, with_details: bool) -> FailedTryFacts:
    """`with_details`: with what the provider answered, which only operators may read."""
    return FailedTryFacts(
        NextAction(row.action),
        row.provider,
        RetryReason(row.retry_reason),
        row.create_time,
        row.last_time,
        row.next_try_time,
        row.detail if with_details else "",
        row.provider_request_id if with_details else "",
        row.repeat_count,
    )


def webhook_facts(row: WebhookEventRow) -> WebhookFacts:
    return WebhookFacts(
        row.webhook_event_id,
        row.provider,
        row.event_id,
        row.event_type,
        WebhookEventState(row.state),
        row.receive_time,
        row.end_time,
        row.reference,
        trace_id_of(row.traceparent),
    )


def alert_facts(row: AlertRow) -> AlertFacts:
    return AlertFacts(*row)


def limit_rows(
    rows: Sequence[Any], noun: str, omissions: list[str], limit: int = MAX_ROWS
) -> Sequence[Any]:
    """Up to `limit` of the rows, newest first. Says in `omissions` that there are more."""
    if len(rows) > limit:
        omissions.append(f"Only the newest {limit} {noun} are shown.")
    return rows[:limit]
