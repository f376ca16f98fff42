"""A call as its handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tallystick_core.access import Caller, Role
from tallystick_core.errors import not_found_error
from tallystick_server.rpc.bulkhead import Bulkhead

T = TypeVar("T")
Access = Mapping[str, frozenset[Role]]
"""By method name, the roles that may call it."""

_RESPONSE_MARGIN_SECONDS = 0.5  # before the deadline, so that the response arrives in time
_MAX_WAIT_SECONDS = 30.0


@dataclass(slots=True)
class Call:
    """What a handler knows of its call besides the request. `deadline` is in loop time."""

    caller: Caller
    deadline: float
    slots: tuple[Bulkhead, Bulkhead] | None = None
    """The bulkhead of its slot, and the bulkhead of its slot while it waits."""
    body_permit: tuple[Bulkhead, int] | None = None
    """The bulkhead that counts the request's bytes, and their number. None: they are not counted
    (any more).
    """
    metadata: dict[str, str] = field(default_factory=dict)
    """Sent with the response."""

    @contextmanager
    def waiting_slot(self) -> Iterator[bool]:
        """Exchanges the call's slot for a waiting slot until the block ends. Yields whether there
        was one; otherwise the call must return at once.
        """
        if self.slots is None:
            yield True
            return
        (active, waiting), owner = self.slots, self.caller.owner
        if not waiting.try_acquire(owner):
            yield False
            return
        active.release(owner)
        self.release_body()
        try:
            yield True
        finally:
            active.force_acquire(owner)
            waiting.release(owner)

    def release_body(self) -> None:
        """Releases the counted bytes of the request, which is no longer needed."""
        if self.body_permit is not None:
            bulkhead, size = self.body_permit
            bulkhead.release(self.caller.owner, size)
            self.body_permit = None

    def mark_replayed(self) -> None:
        """Marks the response as a replay."""
        self.metadata["tallystick-replayed"] = "true"

    def require_visible(self, resource: T | None, kind: str, name: str) -> T:
        """Returns the resource if the caller may see it. Raises NOT_FOUND otherwise, also for
        another owner's resource.
        """
        owned_resource: Any = resource
        if resource is None or not self.caller.can_see(owned_resource.owner):
            raise not_found_error(kind, name)
        return resource

    def response_deadline(self) -> float:
        """Loop time at which a response that waits from now on is sent, whatever the state."""
        return min(
            self.deadline - _RESPONSE_MARGIN_SECONDS,
            asyncio.get_running_loop().time() + _MAX_WAIT_SECONDS,
        )
