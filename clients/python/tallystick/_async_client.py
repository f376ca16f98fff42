"""The client for asyncio: the same methods as Client, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, Unpack, cast

import grpc

from tallystick._async_channel import AsyncChannel, ClientState
from tallystick._errors import DeadlineExceededError, TallystickError
from tallystick._money import amount_text
from tallystick._services import STUB_CLASSES, AsyncServiceStubs, ServiceTargets
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


class AsyncClient(AsyncServiceStubs):
    """Calls the platform at `target`, as Client does. It can be created anywhere, is bound to the
    event loop of its first call, and must be closed there.
    """

    def __init__(
        self,
        target: str,
        *,
        settings: ClientSettings | None = None,
        **targets: Unpack[ServiceTargets],
    ) -> None:
        self._settings = settings or ClientSettings()
        self._state = ClientState()
        self._channels: dict[str, AsyncChannel] = {}

        addresses = resolve_targets(target, targets)
        self._credentials = load_credentials(addresses.values(), self._settings.ca_file)
        for service, address in addresses.items():
            if address not in self._channels:
                self._channels[address] = AsyncChannel(
                    partial(self._channel, address), self._settings, self._state
                )
            channel = cast("grpc.aio.Channel", self._channels[address])
            setattr(self, service, STUB_CLASSES[service](channel))

    def _channel(self, target: str) -> grpc.aio.Channel:
        address, has_tls = split_target(target)
        if has_tls and self._credentials is not None:
            return grpc.aio.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes every connection. Calls and streams in flight, including those that wait for a
        retry, raise TallystickError.

        Raises TallystickError if called in another event loop while the client's is not closed.
        """
        self._state.close()
        for channel in self._channels.values():
            await channel.close()

    async def create_payment(
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
        return (await self.payment.CreatePayment(request)).payment

    async def get_payment(self, checkout_id: str) -> payment_pb2.Payment:
        """Returns the current state of the payment."""
        return (
            await self.payment.GetPayment(
                payment_service_pb2.GetPaymentRequest(checkout_id=checkout_id)
            )
        ).payment

    def watch_payment(
        self, checkout_id: str, after_version: int = 0
    ) -> AsyncGenerator[payment_pb2.Payment, None]:
        """Yields the current state of the payment, then its state after each change, until it is
        final. A stream that ends early is reopened.
        """
        request = payment_service_pb2.WatchPaymentRequest(
            checkout_id=checkout_id, after_version=after_version
        )
        return self._watch(self.payment.WatchPayment, request, "payment")

    async def wait_for_payment(
        self, checkout_id: str, timeout: float = 60.0
    ) -> payment_pb2.Payment:
        """Waits until the payment is final and returns it. `timeout` is in seconds; raises
        DeadlineExceededError when it expires.
        """
        return await self._wait_until_final(
            self.watch_payment(checkout_id), "payment", timeout
        ) or await self.get_payment(checkout_id)

    async def create_payout(
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
        return (await self.payout.CreatePayout(request)).payout

    async def get_payout(self, payout_id: str) -> payout_pb2.Payout:
        """Returns the current state of the payout."""
        return (
            await self.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=payout_id))
        ).payout

    def watch_payout(
        self, payout_id: str, after_version: int = 0
    ) -> AsyncGenerator[payout_pb2.Payout, None]:
        """Yields the current state of the payout, then its state after each change, until it is
        final and booked. A later return is published as an event.
        """
        request = payout_service_pb2.WatchPayoutRequest(
            payout_id=payout_id, after_version=after_version
        )
        return self._watch(self.payout.WatchPayout, request, "payout")

    async def wait_for_payout(self, payout_id: str, timeout: float = 60.0) -> payout_pb2.Payout:
        """Waits until the payout is final and booked, and returns it. `timeout` is in seconds;
        raises DeadlineExceededError when it expires.
        """
        return await self._wait_until_final(
            self.watch_payout(payout_id), "payout", timeout
        ) or await self.get_payout(payout_id)

    async def reconcile_statement_file(
        self,
        file: reconciliation_service_pb2.CreateStatementFileRequest,
        items: Iterable[reconciliation_service_pb2.StatementItem],
        *,
        preview: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> reconciliation_service_pb2.ReconcileStatementFileResponse:
        """Sends a statement file and compares it with the ledger, as Client does."""
        service = self.reconciliation
        stored = (await service.CreateStatementFile(file)).statement_file
        item_count = 0
        if stored.state != reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED:
            for chunk in chunks(file.statement_file_id, items):
                await service.BatchAddStatementItems(chunk)
                item_count += count_items(chunk.items)
                if on_progress is not None:
                    on_progress(item_count)
        request = reconciliation_service_pb2.ReconcileStatementFileRequest(
            statement_file_id=file.statement_file_id, item_count=item_count, preview=preview
        )
        return await service.ReconcileStatementFile(request)

    async def events(
        self, after_cursor: int = 0, *, follow: bool = False, **filters: Any
    ) -> AsyncGenerator[event_pb2.Event, None]:
        """Yields events in order, after a cursor; `filters` are fields of StreamEventsRequest. With
        `follow` it does not end, even if the reader is slow.

        A stream that ends early is reopened after the last event; `aclose()` ends it.
        """
        request = event_service_pb2.StreamEventsRequest(
            after_cursor=after_cursor, follow=follow, **filters
        )
        async with aclosing(self._resume_stream(self.event.StreamEvents, request)) as responses:
            async for response in responses:
                request.after_cursor = response.event.cursor
                yield response.event

    async def pages(
        self, method: Callable[[Any], Awaitable[Any]], request: Any, field: str
    ) -> AsyncIterator[Any]:
        """Yields the items of all pages of a list call, as Client.pages does."""
        request = type(request).FromString(request.SerializeToString())
        while True:
            response = await method(request)
            for item in getattr(response, field):
                yield item
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def _watch(
        self, stream: Callable[..., Any], request: Any, field: str
    ) -> AsyncGenerator[Any, None]:
        """Yields the versions of a resource after the one in the request."""
        async with aclosing(self._resume_stream(stream, request)) as responses:
            async for response in responses:
                resource = getattr(response, field)
                request.after_version = resource.version
                yield resource

    async def _wait_until_final(
        self, versions: AsyncGenerator[Any, None], field: str, timeout: float
    ) -> Any:
        """Returns the last version of a resource, or None if the stream sent none. `timeout` is in
        seconds; raises DeadlineExceededError when it expires.
        """
        last = None
        try:
            async with aclosing(versions), asyncio.timeout(timeout):
                async for resource in versions:
                    last = resource
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the {field} was not final within {timeout:g} seconds"
            ) from error
        return last

    async def _resume_stream(
        self, stream: Callable[..., Any], request: Any
    ) -> AsyncGenerator[Any, None]:
        """Yields a stream's messages and reopens the stream when it ends early. The reader advances
        the position in the request.
        """
        backoff = StreamBackoff(self._settings)
        while True:
            try:
                backoff.mark_opened()
                async with aclosing(stream(request)) as responses:
                    async for response in responses:
                        backoff.reset()
                        yield response
                return
            except TallystickError as error:
                await self._state.sleep(backoff.delay(error))
