"""The client for synchronous code."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.trace import SpanKind
from tenacity import Retrying, sleep_using_event

from tallystick._errors import (
    DeadlineExceededError,
    TallystickError,
    client_closed_error,
    client_closed_in_flight_error,
    from_rpc,
)
from tallystick._money import amount_text
from tallystick._settings import (
    CHANNEL_OPTIONS,
    CallAttempts,
    ClientSettings,
    StreamBackoff,
    ensure_request_id,
    get_tracer,
    short_name,
)
from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.payout.v1 import payout_pb2, payout_service_pb2, payout_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2_grpc


class Client:
    """Calls the platform at `target`, "host:port" or "unix:path". A service at another address
    gets its own target: `ledger="host:port"`.

    Every call has a deadline. Within it, the client retries with the same ids when the platform
    allows it. A failed call raises a TallystickError.
    """

    def __init__(
        self,
        target: str,
        *,
        ledger: str = "",
        wallet: str = "",
        payout: str = "",
        event: str = "",
        settings: ClientSettings | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._channels: dict[str, _Channel] = {}
        self._close_event = threading.Event()
        self.payment = payment_service_pb2_grpc.PaymentServiceStub(self._channel(target))
        self.ledger = ledger_service_pb2_grpc.LedgerServiceStub(self._channel(ledger or target))
        self.wallet = wallet_service_pb2_grpc.WalletServiceStub(self._channel(wallet or target))
        self.payout = payout_service_pb2_grpc.PayoutServiceStub(self._channel(payout or target))
        self.event = event_service_pb2_grpc.EventServiceStub(self._channel(event or target))

    def _channel(self, target: str) -> _Channel:
        if target not in self._channels:
            credentials = self._settings.credentials
            options = CHANNEL_OPTIONS
            grpc_channel = (
                grpc.insecure_channel(target, options)
                if credentials is None
                else grpc.secure_channel(target, credentials, options)
            )
            self._channels[target] = _Channel(grpc_channel, self._settings, self._close_event)
        return self._channels[target]

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection. Calls and streams in flight, including those that wait for a
        retry, raise TallystickError.
        """
        self._close_event.set()
        for channel in self._channels.values():
            channel.close()

    def create_payment(
        self,
        checkout_id: str,
        payment_orders: Sequence[payment_pb2.NewPaymentOrder],
        *,
        credit_card_info: str,
        **values: Any,
    ) -> payment_pb2.Payment:
        """Creates a payment and waits for its result. `credit_card_info` is the provider's token;
        `values` are the other fields of CreatePaymentRequest.

        A repeat with the same values returns the current payment and never charges again.
        """
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id=checkout_id,
            payment_orders=payment_orders,
            credit_card_info=credit_card_info,
            **values,
        )
        return self.payment.CreatePayment(request).payment

    def get_payment(self, checkout_id: str) -> payment_pb2.Payment:
        """Returns the current state of the payment."""
        return self.payment.GetPayment(
            payment_service_pb2.GetPaymentRequest(checkout_id=checkout_id)
        ).payment

    def watch_payment(
        self, checkout_id: str, after_version: int = 0
    ) -> Generator[payment_pb2.Payment, None, None]:
        """Yields the current state of the payment, then its state after each change, until it is
        final. A stream that ends early is reopened.
        """
        request = payment_service_pb2.WatchPaymentRequest(
            checkout_id=checkout_id, after_version=after_version
        )
        return self._watch(self.payment.WatchPayment, request, "payment")

    def wait_for_payment(self, checkout_id: str, timeout: float = 60.0) -> payment_pb2.Payment:
        """Waits until the payment is final and returns it. `timeout` is in seconds; raises
        DeadlineExceededError when it expires.
        """
        request = payment_service_pb2.WatchPaymentRequest(checkout_id=checkout_id)
        return self._wait_until_final(
            self.payment.WatchPayment, request, "payment", timeout
        ) or self.get_payment(checkout_id)

    def create_payout(
        self,
        payout_id: str,
        seller_account: str,
        currency: str,
        amount: str | Decimal = "",
        **values: Any,
    ) -> payout_pb2.Payout:
        """Creates a payout and waits until its money is held. `amount` is in major units; "" means
        the full amount that can be paid.

        `values` are the other fields of CreatePayoutRequest. A repeat with the same values returns
        the current payout and never pays again.
        """
        request = payout_service_pb2.CreatePayoutRequest(
            payout_id=payout_id,
            seller_account=seller_account,
            currency=currency,
            amount=amount_text(amount),
            **values,
        )
        return self.payout.CreatePayout(request).payout

    def get_payout(self, payout_id: str) -> payout_pb2.Payout:
        """Returns the current state of the payout."""
        return self.payout.GetPayout(
            payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
        ).payout

    def watch_payout(
        self, payout_id: str, after_version: int = 0
    ) -> Generator[payout_pb2.Payout, None, None]:
        """Yields the current state of the payout, then its state after each change, until it is
        final and booked. A later return is published as an event.
        """
        request = payout_service_pb2.WatchPayoutRequest(
            payout_id=payout_id, after_version=after_version
        )
        return self._watch(self.payout.WatchPayout, request, "payout")

    def wait_for_payout(self, payout_id: str, timeout: float = 60.0) -> payout_pb2.Payout:
        """Waits until the payout is final and booked, and returns it. `timeout` is in seconds;
        raises DeadlineExceededError when it expires.
        """
        request = payout_service_pb2.WatchPayoutRequest(payout_id=payout_id)
        return self._wait_until_final(
            self.payout.WatchPayout, request, "payout", timeout
        ) or self.get_payout(payout_id)

    def events(
        self, after_cursor: int = 0, *, follow: bool = False, **filters: Any
    ) -> Generator[event_pb2.Event, None, None]:
        """Yields events in order, after a cursor; `filters` are fields of StreamEventsRequest. With
        `follow` it does not end, even if the reader is slow.

        A stream that ends early is reopened after the last event; `close()` ends it.
        """
        request = event_service_pb2.StreamEventsRequest(
            after_cursor=after_cursor, follow=follow, **filters
        )
        with closing(self._resume_stream(self.event.StreamEvents, request)) as responses:
            for response in responses:
                request.after_cursor = response.event.cursor
                yield response.event

    def pages(self, method: Callable[[Any], Any], request: Any, field: str) -> Iterator[Any]:
        """Yields the items of all pages of a list call: `client.pages(client.ledger.ListAccounts,
        ListAccountsRequest(), "accounts")`.
        """
        request = type(request).FromString(request.SerializeToString())
        while True:
            response = method(request)
            yield from getattr(response, field)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def _watch(
        self, stream: Callable[..., Any], request: Any, field: str, deadline: float = math.inf
    ) -> Generator[Any, None, None]:
        """Yields the versions of a resource after the one in the request."""
        with closing(self._resume_stream(stream, request, deadline)) as responses:
            for response in responses:
                resource = getattr(response, field)
                request.after_version = resource.version
                yield resource

    def _wait_until_final(
        self, stream: Callable[..., Any], request: Any, field: str, timeout: float
    ) -> Any:
        """Returns the last version of a resource, or None if the stream sent none. `timeout` is in
        seconds; raises DeadlineExceededError when it expires.
        """
        deadline = time.monotonic() + timeout
        last = None
        try:
            for resource in self._watch(stream, request, field, deadline):
                last = resource
        except TallystickError as error:
            if time.monotonic() < deadline:
                raise
            raise DeadlineExceededError(
                f"the {field} was not final within {timeout:g} seconds"
            ) from error
        return last

    def _resume_stream(
        self, stream: Callable[..., Any], request: Any, deadline: float = math.inf
    ) -> Generator[Any, None, None]:
        """Yields a stream's messages and reopens the stream when it ends early. The reader advances
        the position in the request. No message is awaited after `deadline` (monotonic time).
        """
        backoff = StreamBackoff(self._settings)
        while True:
            try:
                timeout = min(
                    self._settings.stream_seconds, max(deadline - time.monotonic(), 0.001)
                )
                backoff.mark_opened()
                with closing(stream(request, timeout=timeout)) as responses:
                    for response in responses:
                        backoff.reset()
                        yield response
                return
            except TallystickError as error:
                if time.monotonic() >= deadline:
                    raise
                self._close_event.wait(
                    min(backoff.delay(error), max(deadline - time.monotonic(), 0))
                )


class _Channel(grpc.Channel):
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

    def __enter__(self) -> _Channel:
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
        attempts = CallAttempts(self._method)
        retrying = Retrying(
            sleep=sleep_using_event(self._close_event),
            **self._settings.retries(deadline, time.monotonic, attempts),
        )
        with get_tracer().start_as_current_span(self._name, kind=SpanKind.CLIENT):
            try:
                return retrying(self._send, ensure_request_id(request), deadline, metadata)
            except TallystickError as error:
                final_error = attempts.final_error(error)
                raise final_error from final_error.__cause__

    def _send(
        self, request: Any, deadline: float, metadata: Sequence[tuple[str, str]]
    ) -> tuple[Any, Any]:
        remaining = max(deadline - time.monotonic(), 0.001)
        pairs = self._settings.metadata(metadata)
        if self._close_event.is_set():
            raise client_closed_error()
        try:
            response, call = self._call.with_call(request, timeout=remaining, metadata=pairs)
        except grpc.RpcError as error:
            raise _to_client_error(error, self._close_event) from None
        except ValueError:  # gRPC raises it for a closed channel
            if self._close_event.is_set():
                raise client_closed_error() from None
            raise
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
        if self._close_event.is_set():
            raise client_closed_error()
        try:
            call = self._call(request, timeout=seconds, metadata=pairs)
        except ValueError:  # gRPC raises it for a closed channel
            if self._close_event.is_set():
                raise client_closed_error() from None
            raise
        try:
            yield from call
        except grpc.RpcError as error:
            raise _to_client_error(error, self._close_event) from None
        finally:
            call.cancel()  # closes a stream that is no longer read


def _to_client_error(error: grpc.RpcError, close_event: threading.Event) -> TallystickError:
    """Converts an error of a stub; closing the client cancels calls in flight."""
    if close_event.is_set() and error.code() is grpc.StatusCode.CANCELLED:
        return client_closed_in_flight_error()
    return from_rpc(error)
