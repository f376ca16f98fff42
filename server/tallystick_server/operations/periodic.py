"""Periodic background work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tallystick_core.errors import ApiError
from tallystick_server.observability import names

log = logging.getLogger(__name__)


class Periodic:
    """Runs one function at an interval, and when it is woken. A failure is logged and does not stop
    the next run.
    """

    def __init__(
        self, name: str, interval_seconds: float, work: Callable[[], Awaitable[object]]
    ) -> None:
        self._name = name
        self._interval_seconds = interval_seconds
        self._work = work
        self._wake_event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Starts the next run now."""
        self._wake_event.set()

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._task is not None and not self._task.done()

    async def run_once(self) -> None:
        """Runs the function now. Raises its errors."""
        await self._work()

    async def _wait(self) -> None:
        timer = asyncio.get_running_loop().call_later(self._interval_seconds, self._wake_event.set)
        try:
            await self._wake_event.wait()
        finally:
            timer.cancel()
        self._wake_event.clear()

    async def _run(self) -> None:
        while True:
            await self._wait()
            try:
                await self.run_once()
            except ApiError as error:
                log.warning("%s waits: %s", self._name, error, extra=names.PERIODIC_DELAYED.extra)
            except Exception:  # the next run may succeed
                log.exception(
                    "%s failed; it runs again at its next interval",
                    self._name,
                    extra=names.PERIODIC_FAILED.extra,
                )
