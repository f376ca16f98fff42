"""What can go wrong at a port call, how often, and what did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .chance import Chance


class Fault(StrEnum):
    """What befalls a port call. A process dies before it or after it, without knowing the result."""

    DIES_BEFORE = "dies_before"
    DIES_AFTER = "dies_after"
    STOPS = "stops"
    """The process is stopped for longer than a lease lasts."""
    SERIALIZATION_FAILURE = "serialization_failure"
    COMMIT_LOST_BEFORE = "commit_lost_before"
    """The connection breaks at COMMIT, which is not made."""
    COMMIT_LOST_AFTER = "commit_lost_after"
    """The connection breaks at COMMIT, which is made."""
    DATABASE_AWAY = "database_away"
    """There is no connection."""
    SLOW = "slow"
    """It takes seconds."""
    REFUSED = "refused"
    """The connection to another service is refused."""
    REQUEST_LOST = "request_lost"
    """The other side hears nothing, and this one waits until its time is up."""
    ANSWER_LOST = "answer_lost"
    """The other side acts, and this one waits until its time is up."""
    RESET = "reset"
    """The other side acts, and the connection breaks before the answer."""
    REPEATED = "repeated"
    """The request arrives a second time, later."""
    CANCELLED = "cancelled"
    """The caller ends its call at some moment of the other side's work, which is cancelled where it waits."""


DEATHS = {Fault.DIES_BEFORE: 0.4, Fault.DIES_AFTER: 0.4, Fault.STOPS: 0.2}
AT_COMMIT = frozenset({Fault.SERIALIZATION_FAILURE, Fault.COMMIT_LOST_BEFORE, Fault.COMMIT_LOST_AFTER})
"""What befalls only a transaction that comes to its COMMIT."""
TRANSACTION: Mapping[Fault, float] = {
    **DEATHS,
    Fault.SERIALIZATION_FAILURE: 2.0,
    Fault.COMMIT_LOST_BEFORE: 1.0,
    Fault.COMMIT_LOST_AFTER: 1.5,
    Fault.DATABASE_AWAY: 0.5,
    Fault.SLOW: 0.5,
}
READ: Mapping[Fault, float] = {**DEATHS, Fault.DATABASE_AWAY: 1.0, Fault.SLOW: 0.5}
_NETWORK: Mapping[Fault, float] = {
    Fault.SLOW: 1.0,
    Fault.REFUSED: 1.0,
    Fault.REQUEST_LOST: 1.0,
    Fault.ANSWER_LOST: 1.0,
    Fault.RESET: 1.0,
    Fault.REPEATED: 1.0,
}
CALL: Mapping[Fault, float] = {**DEATHS, **_NETWORK}
"""Of the calls between services, and to the provider."""
CALLERS: Mapping[Fault, float] = {**_NETWORK, Fault.CANCELLED: 2.0}
"""Of the calls of those who use the platform, who themselves do not die."""


@dataclass
class Faults:
    """Decides by chance what befalls each port call: `share` of all, by the kinds' weights. `without`: those that are left out, by their port calls."""

    chance: Chance
    share: float
    without: frozenset[str] = frozenset()
    planned: Mapping[str, Fault] = field(default_factory=dict)
    """Faults of given port calls, beside those of chance."""
    happened: dict[str, Fault] = field(default_factory=dict)
    healed: bool = False
    _counts: Counter[str] = field(default_factory=Counter)

    def numbered(self, place: str) -> str:
        """The name of the next port call at a place."""
        self._counts[place] += 1
        return f"{place} #{self._counts[place]}"

    def at(self, numbered: str, kinds: Mapping[Fault, float]) -> Fault | None:
        """What befalls a port call."""
        if numbered in self.without:
            return None
        fault = self.planned.get(numbered)
        if fault is None and not self.healed and self.chance.number(f"whether {numbered}") < self.share:
            fault = self.chance.weighed(f"which {numbered}", kinds)
        if fault is not None:
            self.happened[numbered] = fault
        return fault

    def had_no_effect(self, numbered: str) -> None:
        """What was to befall a port call did not: it failed before."""
        del self.happened[numbered]


@dataclass(frozen=True)
class Outage:
    """A service, or the provider, that nobody reaches from one time of the world until another."""

    target: str
    begin: float
    end: float


HOUR = 60.0
"""Seconds of the world's time that stand for an hour: the retry policies of a world are the defaults, sixty times as fast."""
_TARGETS = ("wallet", "ledger", "event", "provider")


def outage(chance: Chance, span: float) -> Outage:
    """An hour without one of them, which begins within so many seconds."""
    begin = chance.between("outage begins", 0, span)
    return Outage(chance.one_of("outage of", _TARGETS), begin, begin + HOUR)


@dataclass(frozen=True)
class Poison:
    """A service that fails, from one time of the world until another, on some items: it refuses each batch with one of them as a whole, with one status."""

    target: str
    status: str
    share: float
    """Of all items."""
    begin: float
    end: float


_POISONED = ("wallet", "ledger", "event")


def poison(chance: Chance, span: float) -> Poison:
    """An hour at most, which begins within so many seconds."""
    begin = chance.between("poison begins", 0, span / 2)
    end = begin + (HOUR if chance.number("whether an hour of poison") < 0.5 else chance.between("poison lasts", 5, HOUR))
    status = chance.one_of("poison is", ("INTERNAL", "INVALID_ARGUMENT"))
    return Poison(chance.one_of("poison of", _POISONED), status, chance.between("poisoned", 0.02, 0.3), begin, end)
