"""Wakes calls of this process that wait for something to change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason

M = TypeVar("M", bound=Message)

_POLL_SECONDS = 0.5  # another process may have made the change


class Subscription(Generic[M]):
    """One call's wait for a resource. A change is a hint to load it again. `final`: the committed
    resource in its final state.
    """

    def __init__(self, *, only_results: bool) -> None:
        self.final: M | None = None
        self._only_results = only_results
        self._changed = asyncio.Event()

    def notify(self, *, has_result: bool, final: M | None) -> None:
        self.final = final or self.final
        if has_result or not self._only_results:
            self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Waits for a change, at most `seconds`."""
        timer = asyncio.get_running_loop().call_later(seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
        self._changed.clear()

    async def wait_until(
        self,
        is_in_progress: Callable[[M], bool],
        load: Callable[[], Awaitable[M | None]],
        deadline: float,
        *,
        load_first: bool = True,
        poll_seconds: float = _POLL_SECONDS,
    ) -> M | None:
        """Waits until the resource is final or `deadline` (loop time) is reached. Returns its
        latest state, or None if it does not exist.

        `load_first`: it may be final already. `poll_seconds`: how long to wait for a change before
        loading it anyway.
        """
        loop = asyncio.get_running_loop()

        def is_result(resource: M | None) -> bool:
            return resource is None or not is_in_progress(resource) or loop.time() >= deadline

        if load_first and is_result(resource := await load()):
            return resource
        while True:
            await self.wait(max(min(deadline - loop.time(), poll_seconds), 0))
            if self.final is not None:
                return self.final
            if is_result(resource := await load()):
                return resource


class ChangeNotifier(Generic[M]):
    """The subscriptions by resource id."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription[M]]] = {}

    @contextmanager
    def subscribe(self, key: str, *, only_results: bool = False) -> Iterator[Subscription[M]]:
        """Subscribes to changes of the resource until the block ends. `only_results`: only to those
        with the result of an operation.
        """
        subscription = Subscription[M](only_results=only_results)
        subscriptions = self._subscriptions.setdefault(key, set())
        subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            subscriptions.discard(subscription)
            if not subscriptions:
                self._subscriptions.pop(key, None)

    def notify(self, key: str, *, has_result: bool, final: M | None = None) -> None:
        """Wakes the subscribers of the resource. `has_result`: one of its operations has a result.
        `final`: the resource, once it is final.
        """
        for subscription in self._subscriptions.get(key, ()):
            subscription.notify(has_result=has_result, final=final)

    async def watch_versions(
        self,
        key: str,
        load: Callable[[], Awaitable[Any]],
        after_version: int,
        is_in_progress: Callable[[Any], bool],
    ) -> AsyncGenerator[Any, None]:
        """Yields each version seen after `after_version`, until the resource is final. Raises
        FIELD_INVALID.
        """
        if after_version < 0:
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                "after_version must not be negative.",
                field="after_version",
            )
        last_version = after_version
        with self.subscribe(key) as subscription:
            while True:
                resource = await load()
                if resource.version > last_version:
                    last_version = resource.version
                    yield resource
                if not is_in_progress(resource):
                    return
                await subscription.wait(_POLL_SECONDS)
