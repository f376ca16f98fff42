"""The faults that can be injected at a port call, their frequency, and those that were injected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tests.simulation.seeded_random import SeededRandom


class InjectedFault(StrEnum):
    """A fault at a port call. A process crashes before or after the call, without learning the
    result.
    """

    CRASH_BEFORE = "crash_before"
    CRASH_AFTER = "crash_after"
    PAUSED = "paused"
    """The process is stopped for longer than a lease lasts."""
    SERIALIZATION_FAILURE = "serialization_failure"
    COMMIT_LOST_BEFORE = "commit_lost_before"
    """The connection breaks at COMMIT, which is not executed."""
    COMMIT_LOST_AFTER = "commit_lost_after"
    """The connection breaks at COMMIT, which is executed."""
    DATABASE_UNAVAILABLE = "database_unavailable"
    """The database cannot be reached."""
    SLOW = "slow"
    """The call takes seconds."""
    CONNECTION_REFUSED = "connection_refused"
    """The connection to another service is refused."""
    REQUEST_LOST = "request_lost"
    """The request is lost, and the caller waits until its deadline."""
    RESPONSE_LOST = "response_lost"
    """The other side processes the request, and the caller waits until its deadline."""
    RESET = "reset"
    """The other side processes the request, and the connection breaks before the answer."""
    REPEATED = "repeated"
    """The request arrives a second time, later."""
    CANCELLED = "cancelled"
    """The caller cancels its call while the other side works; the work is cancelled where it
    waits.
    """


DEATH_FAULTS = {
    InjectedFault.CRASH_BEFORE: 0.4,
    InjectedFault.CRASH_AFTER: 0.4,
    InjectedFault.PAUSED: 0.2,
}
COMMIT_FAULTS = frozenset(
    {
        InjectedFault.SERIALIZATION_FAILURE,
        InjectedFault.COMMIT_LOST_BEFORE,
        InjectedFault.COMMIT_LOST_AFTER,
    }
)
"""Faults that apply only to a transaction that reaches its COMMIT."""
TRANSACTION_FAULTS: Mapping[InjectedFault, float] = {
    **DEATH_FAULTS,
    InjectedFault.SERIALIZATION_FAILURE: 2.0,
    InjectedFault.COMMIT_LOST_BEFORE: 1.0,
    InjectedFault.COMMIT_LOST_AFTER: 1.5,
    InjectedFault.DATABASE_UNAVAILABLE: 0.5,
    InjectedFault.SLOW: 0.5,
}
READ_FAULTS: Mapping[InjectedFault, float] = {
    **DEATH_FAULTS,
    InjectedFault.DATABASE_UNAVAILABLE: 1.0,
    InjectedFault.SLOW: 0.5,
}
_NETWORK_FAULTS: Mapping[InjectedFault, float] = {
    InjectedFault.SLOW: 1.0,
    InjectedFault.CONNECTION_REFUSED: 1.0,
    InjectedFault.REQUEST_LOST: 1.0,
    InjectedFault.RESPONSE_LOST: 1.0,
    InjectedFault.RESET: 1.0,
    InjectedFault.REPEATED: 1.0,
}
CALL_FAULTS: Mapping[InjectedFault, float] = {**DEATH_FAULTS, **_NETWORK_FAULTS}
"""Faults of calls between services and to the provider."""
CALLER_FAULTS: Mapping[InjectedFault, float] = {**_NETWORK_FAULTS, InjectedFault.CANCELLED: 2.0}
"""Faults of the calls of clients, which do not crash."""


@dataclass
class FaultInjector:
    """Decides at random which fault each port call gets: `fault_rate` of all calls, by the kinds'
    weights. `excluded_calls` get none.
    """

    seeded_random: SeededRandom
    fault_rate: float
    excluded_calls: frozenset[str] = frozenset()
    planned_faults: Mapping[str, InjectedFault] = field(default_factory=dict)
    """Faults of given port calls, in addition to random ones."""
    injected_faults: dict[str, InjectedFault] = field(default_factory=dict)
    healed: bool = False
    _counts: Counter[str] = field(default_factory=Counter)

    def next_call_id(self, call_name: str) -> str:
        """The name of the next port call at a place."""
        self._counts[call_name] += 1
        return f"{call_name} #{self._counts[call_name]}"

    def fault_for(
        self, call_id: str, weights: Mapping[InjectedFault, float]
    ) -> InjectedFault | None:
        """The fault of a port call, if any."""
        if call_id in self.excluded_calls:
            return None
        fault = self.planned_faults.get(call_id)
        if (
            fault is None
            and not self.healed
            and self.seeded_random.number(f"whether {call_id}") < self.fault_rate
        ):
            fault = self.seeded_random.weighted_choice(f"which {call_id}", weights)
        if fault is not None:
            self.injected_faults[call_id] = fault
        return fault

    def discard(self, call_id: str) -> None:
        """Undoes a fault that was not injected because the call failed earlier."""
        del self.injected_faults[call_id]


@dataclass(frozen=True)
class Outage:
    """An outage of a service or the provider between two simulated times."""

    target: str
    begin: float
    end: float


HOUR_SECONDS = 60.0
"""Simulated seconds that represent an hour: the retry policies of a simulation are the defaults,
sixty times as fast.
"""
_OUTAGE_TARGETS = ("wallet", "ledger", "event", "provider")


def draw_outage(seeded_random: SeededRandom, span_seconds: float) -> Outage:
    """An outage of an hour that begins within the given seconds."""
    begin = seeded_random.uniform("outage begins", 0, span_seconds)
    return Outage(seeded_random.choice("outage of", _OUTAGE_TARGETS), begin, begin + HOUR_SECONDS)


@dataclass(frozen=True)
class Poison:
    """A service that fails on some items between two simulated times: it rejects every batch that
    contains one of them, with one status.
    """

    target: str
    status: str
    item_rate: float
    """The share of all items."""
    begin: float
    end: float


_POISON_TARGETS = ("wallet", "ledger", "event")


def draw_poison(seeded_random: SeededRandom, span_seconds: float) -> Poison:
    """A failure of at most an hour that begins within the given seconds."""
    begin = seeded_random.uniform("poison begins", 0, span_seconds / 2)
    end = begin + (
        HOUR_SECONDS
        if seeded_random.number("whether an hour of poison") < 0.5
        else seeded_random.uniform("poison lasts", 5, HOUR_SECONDS)
    )
    status = seeded_random.choice("poison is", ("INTERNAL", "INVALID_ARGUMENT"))
    return Poison(
        seeded_random.choice("poison of", _POISON_TARGETS),
        status,
        seeded_random.uniform("poisoned", 0.02, 0.3),
        begin,
        end,
    )
