"""The channel of the client for asyncio: calls with deadlines, retries and typed errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind
from tenacity import AsyncRetrying

from tallystick._errors import (
    TallystickError,
    client_closed_error,
    client_closed_in_flight_error,
    closed_in_wrong_event_loop_error,
    from_rpc,
    unreadable_response_error,
    wrong_event_loop_error,
)
from tallystick._settings import (
    CallTries,
    ClientSettings,
    ensure_request_id,
    get_tracer,
    short_name,
    span_name,
)


class ClientState:
    """State that the channels of one client share: the event loop of its first call, and whether
    it is closed.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._close_event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def check_usable(self) -> None:
        """Raises TallystickError in another event loop, or if the client is closed."""
        if self.is_closed:
            raise client_closed_error()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if not self.is_current_loop:
            raise wrong_event_loop_error()

    @property
    def is_current_loop(self) -> bool:
        """Whether the running event loop is the client's."""
        return self._loop is asyncio.get_running_loop()

    async def sleep(self, seconds: float) -> None:
        """Waits for `seconds`, or until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._close_event.wait()

    def close(self) -> None:
        """Closes the client. Raises TallystickError in another event loop, unless the client's own
        loop is closed.
        """
        if self._loop is not None and not self.is_current_loop and not self._loop.is_closed():
            raise closed_in_wrong_event_loop_error()
        self.is_closed = True
        if self.is_current_loop:
            self._close_event.set()


class AsyncChannel:
    """The part of a channel that generated stubs use, with deadlines, retries, credentials, traces
    and typed errors.
    """

    def __init__(
        self, connect: Callable[[], grpc.aio.Channel], settings: ClientSettings, state: ClientState
    ) -> None:
        self._connect = connect
        self._settings = settings
        self._state = state
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        if self._channel is not None and self._state.is_current_loop:
            await self._channel.close()
        self._channel = None

    def _open(self) -> grpc.aio.Channel:
        """Returns the channel, connecting if needed. Raises TallystickError in another event loop,
        or if the client is closed.
        """
        self._state.check_usable()
        if self._channel is None:
            self._channel = self._connect()
        return self._channel

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Raises the errors of a call as TallystickError."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except grpc.aio.UsageError:  # the channel is closed
            raise client_closed_error() from None
        except DecodeError:
            raise unreadable_response_error() from None
        except asyncio.CancelledError:
            if self._is_cancelled_by_close():
                raise client_closed_in_flight_error() from None
            raise

    def _is_cancelled_by_close(self) -> bool:
        """Whether closing the client cancelled a call. This must not look like a cancellation of
        the caller's task.
        """
        task = asyncio.current_task()
        return self._state.is_closed and not (task is not None and task.cancelling())

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        name = short_name(method)
        multicallables: list[Any] = []

        def send(*values: Any, **keywords: Any) -> Any:
            channel = self._open()
            if not multicallables:
                multicallables.append(channel.unary_unary(method, *arguments, **options))
            return multicallables[0](*values, **keywords)

        async def call(
            request: Any,
            timeout: float | None = None,
            metadata: Sequence[tuple[str, str]] = (),
            **_: Any,
        ) -> Any:
            deadline = asyncio.get_running_loop().time() + self._settings.seconds(name, timeout)
            with get_tracer().start_as_current_span(span_name(method), kind=SpanKind.CLIENT):
                return await self._send_with_retries(
                    send, ensure_request_id(request), deadline, metadata, CallTries(method)
                )

        return call

    async def _send_with_retries(
        self,
        send: Any,
        request: Any,
        deadline: float,
        metadata: Sequence[tuple[str, str]],
        tries: CallTries,
    ) -> Any:
        """Sends the request, with retries until the deadline."""
        now = asyncio.get_running_loop().time

        async def send_once() -> Any:
            pairs = self._settings.metadata(metadata)
            with self._typed_errors():
                return await send(request, timeout=max(deadline - now(), 0.001), metadata=pairs)

        try:
            return await AsyncRetrying(
                sleep=self._state.sleep, **self._settings.retries(deadline, now, tries)
            )(send_once)
        except TallystickError as error:
            final_error = tries.final_error(error)
            raise final_error from final_error.__cause__

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        multicallables: list[Any] = []

        async def call(
            request: Any,
            timeout: float | None = None,
            metadata: Sequence[tuple[str, str]] = (),
            **_: Any,
        ) -> AsyncGenerator[Any, None]:
            seconds = self._settings.seconds(
                method, self._settings.stream_seconds if timeout is None else timeout
            )
            pairs = self._settings.metadata(metadata)
            channel = self._open()
            if not multicallables:
                multicallables.append(channel.unary_stream(method, *arguments, **options))
            stream: Any = None
            try:
                with self._typed_errors():
                    stream = multicallables[0](request, timeout=seconds, metadata=pairs)
                    async with aclosing(aiter(stream)) as responses:
                        async for response in responses:
                            yield response
            finally:
                if isinstance(stream, grpc.aio.Call):
                    stream.cancel()  # closes a stream that is no longer read

        return call
