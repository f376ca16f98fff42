"""How much of the process the calls of one kind, and one caller among them, may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of one server. Calls of one kind never take the slots of another."""

    writes: int = 4000
    """Calls of teams that change something, in flight at a time."""
    reads: int = 2000
    """Calls of teams that only read."""
    platform: int = 2000
    """Calls of operators, auditors and services."""
    waiting: int = 4000
    """Calls that wait for a provider; one above the limit is answered without waiting."""
    streams: int = 2000
    """Open streams of teams, and as many of operators, auditors and services."""
    share: float = 0.5
    """The part of the waiting calls, and of the streams, that one caller may have."""
    message_bytes: int = 32 * 1024 * 1024
    """Bytes of messages in flight at a time, those of a few kilobytes not counted."""

    def of_caller(self, most: int) -> int:
        return max(1, int(most * self.share))


class Bulkhead:
    """Slots, bounded in all and, with `most_each`, for each caller."""

    def __init__(self, most: int, most_each: int | None = None) -> None:
        self._most = most
        self._most_each = most if most_each is None else most_each
        self._each: Counter[str] = Counter()
        self.taken = 0

    @contextmanager
    def slot(self, caller: str = "", weight: int = 1) -> Iterator[bool]:
        """Takes a slot until the block ends. Whether there was one; the first is always given, whatever its weight."""
        free = not self.taken or (self.taken + weight <= self._most and self._each[caller] + weight <= self._most_each)
        if free:
            self.taken += weight
            self._each[caller] += weight
        try:
            yield free
        finally:
            if free:
                self.release(caller, weight)

    def take(self, caller: str, weight: int = 1) -> None:
        """Takes a slot, also above the limit."""
        self.taken += weight
        self._each[caller] += weight

    def release(self, caller: str, weight: int = 1) -> None:
        """Gives back what was taken."""
        self.taken -= weight
        self._each[caller] -= weight
        if not self._each[caller]:
            del self._each[caller]
