"""The channel of the synchronous client: calls with deadlines, retries and typed errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.trace import SpanKind
from tenacity import Retrying, sleep_using_event

from tallystick._errors import (
    TallystickError,
    client_closed_error,
    client_closed_in_flight_error,
    from_rpc,
)
from tallystick._settings import (
    CallTries,
    ClientSettings,
    ensure_request_id,
    get_tracer,
    short_name,
    span_name,
)


class Channel(grpc.Channel):
    """A channel for generated stubs that adds deadlines, retries, credentials, traces and typed
    errors to calls.
    """

    def __init__(
        self, channel: grpc.Channel, settings: ClientSettings, close_event: threading.Event
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._close_event = close_event

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return _UnaryCall(
            method,
            self._channel.unary_unary(method, *arguments, **options),
            self._settings,
            self._close_event,
        )

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return _StreamCall(
            method,
            self._channel.unary_stream(method, *arguments, **options),
            self._settings,
            self._close_event,
        )

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.stream_unary(method, *arguments, **options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._channel.stream_stream(method, *arguments, **options)

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], None],
        try_to_connect: bool | None = False,
    ) -> None:
        self._channel.subscribe(callback, try_to_connect)  # type: ignore[arg-type]

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _UnaryCall:
    """One unary method; a call may be sent more than once, within one deadline."""

    def __init__(
        self, method: str, call: Any, settings: ClientSettings, close_event: threading.Event
    ) -> None:
        self._method = method
        self._name = short_name(method)
        self._call = call
        self._settings = settings
        self._close_event = close_event

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        **_: Any,
    ) -> Any:
        return self.with_call(request, timeout, metadata)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        **_: Any,
    ) -> tuple[Any, Any]:
        """Returns response and call; the trailing metadata show replays and the trace id."""
        deadline = time.monotonic() + self._settings.seconds(self._name, timeout)
        tries = CallTries(self._method)
        retrying = Retrying(
            sleep=sleep_using_event(self._close_event),
            **self._settings.retries(deadline, time.monotonic, tries),
        )
        with get_tracer().start_as_current_span(span_name(self._method), kind=SpanKind.CLIENT):
            try:
                return retrying(self._send, ensure_request_id(request), deadline, metadata)
            except TallystickError as error:
                final_error = tries.final_error(error)
                raise final_error from final_error.__cause__

    def _send(
        self, request: Any, deadline: float, metadata: Sequence[tuple[str, str]]
    ) -> tuple[Any, Any]:
        remaining = max(deadline - time.monotonic(), 0.001)
        pairs = self._settings.metadata(metadata)
        with _reject_closed(self._close_event):
            try:
                response, call = self._call.with_call(request, timeout=remaining, metadata=pairs)
            except grpc.RpcError as error:
                raise _to_client_error(error, self._close_event) from None
        return response, call


class _StreamCall:
    """One streaming method; the reader, which knows the position, reopens a broken stream."""

    def __init__(
        self, method: str, call: Any, settings: ClientSettings, close_event: threading.Event
    ) -> None:
        self._name = short_name(method)
        self._call = call
        self._settings = settings
        self._close_event = close_event

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        **_: Any,
    ) -> Generator[Any, None, None]:
        seconds = self._settings.seconds(
            self._name, self._settings.stream_seconds if timeout is None else timeout
        )
        pairs = self._settings.metadata(metadata)
        with _reject_closed(self._close_event):
            call = self._call(request, timeout=seconds, metadata=pairs)
        try:
            yield from call
        except grpc.RpcError as error:
            raise _to_client_error(error, self._close_event) from None
        finally:
            call.cancel()  # closes a stream that is no longer read


@contextmanager
def _reject_closed(close_event: threading.Event) -> Iterator[None]:
    """Raises the error of a closed client if it is closed, or is closed before the block ends."""
    if close_event.is_set():
        raise client_closed_error()
    try:
        yield
    except ValueError:  # gRPC raises it for a closed channel
        if close_event.is_set():
            raise client_closed_error() from None
        raise


def _to_client_error(error: grpc.RpcError, close_event: threading.Event) -> TallystickError:
    """Converts an error of a stub; closing the client cancels calls in flight."""
    if close_event.is_set() and error.code() is grpc.StatusCode.CANCELLED:
        return client_closed_in_flight_error()
    return from_rpc(error)
