"""Limits the calls of one kind, and the share of one owner among them."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_core.access import Caller, Role

_TEAM_ROLES = frozenset({Role.TEAM, Role.PAYOUTS})


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of one server. Each kind of call has its own slots."""

    writes: int = 4000
    """Concurrent calls of teams that change something."""
    reads: int = 2000
    """Concurrent calls of teams that only read."""
    platform: int = 2000
    """Concurrent calls of operators and auditors, and separately of services."""
    waiting: int = 4000
    """Calls that wait for a provider. Calls above the limit return without waiting."""
    streams: int = 2000
    """Open streams of teams, separately of operators and auditors, and separately of services."""
    share: float = 0.5
    """The part of each limit, and of the bytes, that one owner may use while no others call. Calls
    of services have no share: one service may use all.
    """
    message_bytes: int = 32 * 1024 * 1024
    """Total bytes of messages in flight. Messages of up to 4 KiB are not counted."""


class Bulkhead:
    """Limited slots, or bytes, that owners share.

    With a share of 0.5 an owner acquires more only while it holds less than is free. So one owner
    alone gets a half.

    n owners that acquire and release concurrently each get 1/(n + 1), and as much stays free for
    the next.

    Owners that arrive in sequence and release nothing get a half, a quarter, an eighth. Where an
    owner is rejected, one that holds more is rejected too.
    """

    def __init__(self, capacity: int, owner_share: float) -> None:
        self._capacity = capacity
        self._owner_share = owner_share
        self._used_by_owner: dict[str, int] = {}
        self.used = 0

    def try_acquire(self, owner: str, weight: int = 1) -> bool:
        """Acquires a slot if the owner may have one; returns whether it was acquired. If
        nothing is in use, any weight is accepted.
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
        """Acquires a slot, even above the limit."""
        self.used += weight
        self._used_by_owner[owner] = self._used_by_owner.get(owner, 0) + weight

    def release(self, owner: str, weight: int = 1) -> None:
        """Releases acquired slots."""
        self.used -= weight
        self._used_by_owner[owner] -= weight
        if not self._used_by_owner[owner]:
            del self._used_by_owner[owner]


@dataclass(frozen=True, slots=True)
class MethodSlots:
    """The bulkheads of one method, by kind of caller."""

    teams: Bulkhead
    services: Bulkhead
    operators: Bulkhead

    def for_caller(self, caller: Caller) -> Bulkhead:
        """Selects by the role that admits the caller: first a team's, then a service's. So the
        slots of operators stay free.
        """
        if not _TEAM_ROLES.isdisjoint(caller.roles):
            return self.teams
        return self.services if Role.SERVICE in caller.roles else self.operators

    @property
    def all(self) -> tuple[Bulkhead, Bulkhead, Bulkhead]:
        return self.teams, self.services, self.operators
