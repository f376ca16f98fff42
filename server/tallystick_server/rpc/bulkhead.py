"""How much of the process the calls of one kind, and one owner among them, may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of one server. Calls of one kind never take the slots of another."""

    writes: int = 4000
    """Calls of teams that change something, in flight at a time."""
    reads: int = 2000
    """Calls of teams that only read."""
    platform: int = 2000
    """Calls of operators and auditors, and as many of services."""
    waiting: int = 4000
    """Calls that wait for a provider; one above the limit is answered without waiting."""
    streams: int = 2000
    """Open streams of teams, as many of operators and auditors, and as many of services."""
    share: float = 0.5
    """The part of each of these, and of the bytes, that one owner alone may have. Calls of services
    have no shares: they may all be one's.
    """
    message_bytes: int = 32 * 1024 * 1024
    """Bytes of messages in flight at a time, those of a few kilobytes not counted."""


class Bulkhead:
    """Slots, or bytes, that are bounded in all and shared by owners.

    With a share of 0.5 an owner takes more only while it holds less than is free. So one owner
    alone gets a half. Of n that take and give back side by side each gets a (n + 1)th, and as much
    stays free for the next. Owners that come one after another, and give nothing back, get a half
    of what is free then: a half, a quarter, an eighth. Where an owner is refused, one that holds
    more is refused as well.
    """

    def __init__(self, capacity: int, owner_share: float) -> None:
        self._capacity = capacity
        self._owner_share = owner_share
        self._used_by_owner: dict[str, int] = {}
        self.used = 0

    def try_acquire(self, owner: str, weight: int = 1) -> bool:
        """Takes a slot, if the owner may have one. Whether it was taken; the first of all is always
        given, whatever its weight.
        """
        free = self._capacity - self.used
        if self.used and (
            weight > free
            or self._used_by_owner.get(owner, 0) * (1 - self._owner_share)
            >= free * self._owner_share
        ):
            return False
        self.force_acquire(owner, weight)
        return True

    def force_acquire(self, owner: str, weight: int = 1) -> None:
        """Takes a slot, also above the limit."""
        self.used += weight
        self._used_by_owner[owner] = self._used_by_owner.get(owner, 0) + weight

    def release(self, owner: str, weight: int = 1) -> None:
        """Gives back what was taken."""
        self.used -= weight
        self._used_by_owner[owner] -= weight
        if not self._used_by_owner[owner]:
            del self._used_by_owner[owner]
