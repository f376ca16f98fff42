"""Sends the messages of streams: fairly, and until the stream expires or the process stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from tallystick_server.rpc.bulkhead import Bulkhead
from tallystick_server.rpc.errors import Context, shutting_down_error, stream_expired_error
from tallystick_server.rpc.fair_semaphore import FairSemaphore

# Seconds after which the next stream may write, even if a reader has not taken its message.
_WRITE_HANDOVER_SECONDS = 0.001


class StreamSender:
    """Sends the streams of one server. `semaphore`: its concurrent writes. `closing`: is set when
    the process stops.

    `expiry` is the loop time at which a stream ends.
    """

    def __init__(self, semaphore: FairSemaphore, closing: asyncio.Event) -> None:
        self._semaphore = semaphore
        self._closing = closing

    async def send(
        self, messages: AsyncIterator[Message], context: Context, expiry: float, owner: str
    ) -> asyncio.Future[None] | None:
        """Sends a stream's messages. Returns the pending write if the stream had to end before the
        reader took it, else None.
        """
        while (message := await self._receive(messages, expiry)) is not None:
            async with self._semaphore.permit(owner):
                write = asyncio.ensure_future(context.write(message.SerializeToString()))
                write.add_done_callback(_ignore_write_error)
                await asyncio.wait((write,), timeout=_WRITE_HANDOVER_SECONDS)
            if not write.done():
                await self._wait_until_closing(write, expiry)
            if not write.done():
                return write
            if write.exception() is not None:  # the reader has disconnected
                break
        return None

    async def wait_for_reader(
        self, write: asyncio.Future[None], slots: Bulkhead, owner: str
    ) -> None:
        """Releases the slot of a stream whose reader has stalled. If the reader resumes, it
        receives the reason for the end.
        """
        slots.release(owner)
        try:
            await asyncio.wait((write,))
        finally:
            slots.force_acquire(owner)
        # A write that was cancelled or failed had a reader that has disconnected.
        if not write.cancelled() and write.exception() is None:
            raise shutting_down_error() if self._closing.is_set() else stream_expired_error()

    def _check_stream_open(self, expiry: float) -> None:
        """Raises STREAM_EXPIRED or SHUTTING_DOWN if the stream must end."""
        if self._closing.is_set():
            raise shutting_down_error()
        if asyncio.get_running_loop().time() >= expiry:
            raise stream_expired_error()

    async def _wait_until_closing(self, future: asyncio.Future[Any], expiry: float) -> None:
        """Waits until a step of a stream is done, the stream expires, or the process stops."""
        closing_task = asyncio.ensure_future(self._closing.wait())
        try:
            remaining_seconds = expiry - asyncio.get_running_loop().time()
            await asyncio.wait(
                (future, closing_task),
                timeout=max(remaining_seconds, 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            closing_task.cancel()

    async def _receive(self, messages: AsyncIterator[Message], expiry: float) -> Message | None:
        """The next message, or None at the end. Raises STREAM_EXPIRED or SHUTTING_DOWN."""
        self._check_stream_open(expiry)  # also if messages never run out
        future = asyncio.ensure_future(anext(messages, None))
        try:
            await self._wait_until_closing(future, expiry)
            if not future.done():
                self._check_stream_open(expiry)
                raise stream_expired_error()
            return future.result()
        finally:
            future.cancel()
            if not future.done():  # a running generator cannot be closed
                await asyncio.wait((future,))


def _ignore_write_error(write: asyncio.Future[None]) -> None:
    """Retrieves the exception of a write. It fails if the reader has disconnected, which is no
    error.
    """
    if not write.cancelled():
        write.exception()
