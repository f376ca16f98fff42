"""The client for synchronous code."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from types import TracebackType
from typing import Any, Unpack

import grpc

from tallystick._channel import Channel
from tallystick._errors import DeadlineExceededError, TallystickError
from tallystick._money import amount_text
from tallystick._services import STUB_CLASSES, ServiceStubs, ServiceTargets
from tallystick._settings import (
    CHANNEL_OPTIONS,
    ClientSettings,
    StreamBackoff,
    resolve_targets,
)
from tallystick._statements import chunks, count_items
from tallystick._targets import load_credentials, split_target
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2, reconciliation_service_pb2


class Client(ServiceStubs):
    """Calls the platform at `target`: "https://host:port" with TLS, "host:port" or "unix:path" in
    plain text. A service at another address gets its own target: `ledger="https://host:port"`.

    Every call has a deadline. Within it, the client retries with the same ids when the platform
    allows it. A failed call raises a TallystickError.
    """

    def __init__(
        self,
        target: str,
        *,
        settings: ClientSettings | None = None,
        **targets: Unpack[ServiceTargets],
    ) -> None:
        self._settings = settings or ClientSettings()
        self._channels: dict[str, Channel] = {}
        self._close_event = threading.Event()
        addresses = resolve_targets(target, targets)
        self._credentials = load_credentials(addresses.values(), self._settings.ca_file)
        for service, address in addresses.items():
            setattr(self, service, STUB_CLASSES[service](self._channel(address)))

    def _channel(self, target: str) -> Channel:
        if target not in self._channels:
            address, has_tls = split_target(target)
            grpc_channel = (
                grpc.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
                if has_tls and self._credentials is not None
                else grpc.insecure_channel(address, CHANNEL_OPTIONS)
            )
            self._channels[target] = Channel(grpc_channel, self._settings, self._close_event)
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
        credit_card_info: str = "",
        **values: Any,
    ) -> payment_pb2.Payment:
        """Creates a payment and waits for its result, or until the buyer can pay on the hosted
        page: its URL is `hosted_page.url` of the result. `credit_card_info` is the provider's
        token; "" with a `hosted_page`. `values` are the other fields of CreatePaymentRequest.

        A repeat with the same values returns the current payment and never charges again.
        """
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id=checkout_id, payment_orders=payment_orders, **values
        )
        if credit_card_info:
            request.credit_card_info = credit_card_info
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

    def reconcile_statement_file(
        self,
        file: reconciliation_service_pb2.CreateStatementFileRequest,
        items: Iterable[reconciliation_service_pb2.StatementItem],
        *,
        preview: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> reconciliation_service_pb2.ReconcileStatementFileResponse:
        """Sends a statement file and compares it with the ledger. `items` are produced while
        earlier ones are sent, and are never all in memory. `on_progress` gets the number of items
        sent.

        A repeat returns the file as it was reconciled. With `preview` nothing is stored.
        """
        service = self.reconciliation
        stored = service.CreateStatementFile(file).statement_file
        item_count = 0
        if stored.state != reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED:
            with ThreadPoolExecutor(1) as sender:
                last: Future[Any] | None = None
                for chunk in chunks(file.statement_file_id, items):
                    if last is not None:
                        last.result()
                        if on_progress is not None:
                            on_progress(item_count)
                    item_count += count_items(chunk.items)
                    last = sender.submit(service.BatchAddStatementItems, chunk)
                if last is not None:
                    last.result()
        if on_progress is not None:
            on_progress(item_count)
        request = reconciliation_service_pb2.ReconcileStatementFileRequest(
            statement_file_id=file.statement_file_id, item_count=item_count, preview=preview
        )
        return service.ReconcileStatementFile(request)

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
