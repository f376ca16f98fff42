"""Explanations in plain words: what happened to a payment or a payout, what happens next and when,
and who must act. Here: what those of all services share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.outcome import RetryReason


class ExplanationSource(StrEnum):
    """Where the facts of an entry are stored. The names are those of `tallystick.history.v1`."""

    REQUEST = "REQUEST"
    STATE = "STATE"
    ROUTING = "ROUTING"
    PROVIDER = "PROVIDER"
    WEBHOOK = "WEBHOOK"
    RETRY = "RETRY"
    OPERATOR = "OPERATOR"
    ALERT = "ALERT"
    WALLET = "WALLET"
    LEDGER = "LEDGER"
    EVENT = "EVENT"
    RECONCILIATION = "RECONCILIATION"


class Actor(StrEnum):
    """Who takes the next step. The names are those of `tallystick.history.v1`."""

    NOBODY = "NOBODY"
    PLATFORM = "PLATFORM"
    PROVIDER = "PROVIDER"
    BUYER = "BUYER"
    CALLER = "CALLER"
    OPERATOR = "OPERATOR"
    BANK = "BANK"


_URGENCY = (
    Actor.OPERATOR,
    Actor.BUYER,
    Actor.CALLER,
    Actor.PROVIDER,
    Actor.BANK,
    Actor.PLATFORM,
    Actor.NOBODY,
)
"""Who is named first: a person before the platform, which needs no reminder."""


@dataclass(frozen=True, slots=True)
class ExplanationEntry:
    """One thing that happened. `reference`: its id elsewhere, such as at the provider; `trace_id`:
    the trace of the call that caused it. Both "": none.
    """

    time: datetime
    source: ExplanationSource
    title: str
    detail: str = ""
    reference: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class NextStep:
    """What happens next. `time`: when, at the earliest; `deadline`: until when the actor can act;
    None: not known, or none.
    """

    actor: Actor
    action: str
    resource_name: str = ""
    time: datetime | None = None
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole answer. `omissions`: what is missing in it, and why, as sentences."""

    resource_name: str
    state: str
    summary: str
    next_steps: tuple[NextStep, ...]
    entries: tuple[ExplanationEntry, ...]
    omissions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperationFacts:
    """A queued operation. `next_action`: what the worker does at its next try. `next_try_time`
    None: a dead letter, or it waits for an approval. `lease_until`: until when a process works on
    it, None: none does. `try_count`: its unsuccessful tries for the reason, of at most `max_tries`;
    None: unlimited. `retry_reason` None: it was not retried since
    its last progress. `expire_time`: when an operation that is a dead letter ends; None: never.
    """

    next_action: NextAction
    provider: str
    next_try_time: datetime | None
    lease_until: datetime | None = None
    maybe_sent: bool = False
    retry_reason: RetryReason | None = None
    try_count: int = 0
    max_tries: int | None = None
    detail: str = ""
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """An attempt of an operation. `end_time` None: its outcome is not definite; `provider_fee` "":
    not reported. Only a charge is routed.
    """

    number: int
    provider: str
    provider_key: str
    outcome: str
    start_time: datetime
    end_time: datetime | None = None
    provider_reference: str = ""
    failure_reason: str = ""
    decline_code: str = ""
    provider_fee: str = ""
    routing_rule: str = ""
    routing_reason: str = ""
    fallback_provider: str = ""
    request_id: str = ""
    """The provider's id of the request that it answered last, "": none, or not shown."""


@dataclass(frozen=True, slots=True)
class FailedTryFacts:
    """A try that did not complete its operation. Of an outage, `repeat_count` tries from `time` to
    `last_time` are one. `next_try_time` None: no further try was scheduled.
    """

    action: NextAction
    provider: str
    retry_reason: RetryReason
    time: datetime
    last_time: datetime
    next_try_time: datetime | None
    detail: str = ""
    request_id: str = ""
    repeat_count: int = 1


@dataclass(frozen=True, slots=True)
class DeadLetterFacts:
    """A dead letter; `operator` and the texts after it are those of its end, "": none."""

    dead_letter_id: str
    state: DeadLetterState
    cause: DeadLetterCause
    detail: str
    try_count: int
    create_time: datetime
    operator: str = ""
    reason: str = ""
    evidence: str = ""
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookFacts:
    """A webhook event. `end_time` None: it is not applied yet."""

    webhook_event_id: str
    provider: str
    event_id: str
    event_type: str
    state: WebhookEventState
    receive_time: datetime
    end_time: datetime | None
    reference: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class AlertFacts:
    """An alert. `end_time` None: its condition lasts."""

    alert_id: str
    kind: str
    resource_name: str
    detail: str
    create_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """A provider report that conflicts with what is stored; `acknowledged_by` "": nobody has."""

    number: int
    report: str
    create_time: datetime
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


def format_time(time: datetime) -> str:
    """A time in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def join_sentences(*sentences: str) -> str:
    """The sentences that are not empty."""
    return " ".join(filter(None, sentences))


def quote(text: str) -> str:
    """A text of a provider or a person inside a sentence."""
    return f'"{text.rstrip(".")}"'


def count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def describe_polls(number: int) -> str:
    """How often the provider was asked, as the end of a sentence."""
    return f"it has asked {count(number, 'time')} so far" if number else "it has not asked yet"


def sort_steps(steps: Iterable[NextStep]) -> tuple[NextStep, ...]:
    """Each step once: those of people first, then by time. That nobody must act is an answer only
    if it holds for the whole.
    """
    distinct = dict.fromkeys(steps)
    awaited = [step for step in distinct if step.actor is not Actor.NOBODY]
    latest = datetime.max.replace(tzinfo=UTC)
    return tuple(
        sorted(
            awaited or distinct,
            key=lambda step: (_URGENCY.index(step.actor), step.time or latest),
        )
    )


def sort_entries(entries: Sequence[ExplanationEntry]) -> tuple[ExplanationEntry, ...]:
    """Oldest first; those of one moment stay in their order."""
    return tuple(sorted(entries, key=lambda entry: entry.time))
