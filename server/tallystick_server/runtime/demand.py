"""A demand in hand: what a process knows of the work it holds the lease of, whatever is demanded of a provider."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, TypeVar

from tallystick_core.provider import Answer, Declined, FailureReason, Succeeded, Trouble
from tallystick_core.recovery import Circuit, Step
from tallystick_server.runtime.telemetry import SpanContext
from tallystick_storage import due


@dataclass(frozen=True, slots=True, kw_only=True)
class InHand(ABC):
    """One demand on a provider, leased to this process until `lease_deadline` (the loop's time)."""

    demand_id: str
    caller: str
    number: int
    provider: str
    provider_key: str
    lease_token: int
    lease_deadline: float
    traceparent: str
    context: SpanContext
    age: float = 0.0
    """Seconds from the attempt's start until it was taken up."""
    expires_at: float = inf
    """The loop's time after which it must not be sent for the first time."""
    look_by: float = inf
    """The loop's time at which its time is up, and it is taken up again at the latest; inf: it has none, or that had passed when it was taken up."""
    answer: Answer | None = None
    """The attempt's outcome, if that is on disk and final."""
    maybe_sent: bool = False
    looking: bool = False
    tries: Mapping[Trouble, int] = field(default_factory=dict)
    """How often each kind of trouble has come since it last progressed."""
    since_sent: float | None = None
    """Seconds from when it may last have been sent until it was taken up; None: it was not sent before that."""
    not_found: int = 0
    """How often the provider did not know it since it may last have been sent."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What it is to people: "{collection}/{id}"."""

    @abstractmethod
    def ask(self, provider: Any, step: Step) -> Awaitable[Answer]:
        """Asks its provider for what the step needs; the provider is of the port that such demands are made on."""

    def key_honoured(self, key_window: float, lease: float) -> bool:
        """Whether it may be sent to a provider that honours a key for so many seconds.

        Either the provider surely still knows the key when a lease from now ends; or it never got the key, and has said so too: a restored database
        may have lost a sending.
        """
        return self.age + lease < key_window or (not self.maybe_sent and self.not_found > 0)

    @abstractmethod
    def step(self, now: float, key_window: float, lease: float) -> Step:
        """What is to be done with it, where its provider honours a key for so many seconds. A lease ends before the key does."""

    @abstractmethod
    def ending(self, now: float) -> FailureReason | None:
        """Why it is to fail, if nothing has been moved, at this time of the loop."""

    def circuit(self, step: Step) -> Circuit:
        """Which of its provider's circuits a step takes."""
        return Circuit.SENDS if step is Step.SEND else Circuit.LOOK_UPS

    @property
    def weight(self) -> int:
        """How much of a batch it is."""
        return 1

    @property
    @abstractmethod
    def to_settle(self) -> bool:
        """Whether it has come to where wallet and ledger are to be told."""

    @property
    @abstractmethod
    def phase(self) -> str:
        """What it waits for, if it has to wait, for the monitor, whose thresholds differ; "": nothing but being done."""

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether the provider has it, and will tell in its own time."""


def stored_tries(stored: Mapping[str, int] | None) -> dict[Trouble, int]:
    """The tries of a row; None: there were none."""
    return {Trouble(trouble): count for trouble, count in (stored or {}).items()}


H = TypeVar("H", bound=InHand)
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Answered(Generic[H, A]):
    """A demand, and what its provider said to it."""

    item: H
    outcome: A


def to_store(item: InHand, says: str, outcome: Answer) -> due.Answer:
    """What a provider said to a demand, as its attempt keeps it; `says`: what that is called there."""
    succeeded = outcome if isinstance(outcome, Succeeded) else None
    declined = outcome if isinstance(outcome, Declined) else None
    return due.Answer(
        demand_id=item.demand_id,
        number=item.number,
        outcome=says,
        provider_reference=getattr(outcome, "reference", ""),
        moved_amount=succeeded.amount if succeeded else None,
        moved_currency=succeeded.currency if succeeded else None,
        failure_reason=declined.reason if declined else "",
        decline_code=declined.code if declined else "",
    )
