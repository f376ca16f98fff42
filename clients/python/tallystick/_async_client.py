"""The client for asyncio: the same methods as Client, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind
from tenacity import AsyncRetrying

from tallystick._errors import DeadlineExceededError, TallystickError, closed, closed_elsewhere, closed_meanwhile, elsewhere, from_rpc, unreadable
from tallystick._money import amount_text
from tallystick._settings import CHANNEL_OPTIONS, ClientSettings, Reopening, Tries, complete, short_name, tracer
from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.payout.v1 import payout_pb2, payout_service_pb2, payout_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2_grpc


class AsyncClient:
    """Calls the platform at `target`, as Client does. It can be made anywhere, belongs to the event loop of its first call, and is closed there."""

    payment: payment_service_pb2_grpc.PaymentServiceAsyncStub
    ledger: ledger_service_pb2_grpc.LedgerServiceAsyncStub
    wallet: wallet_service_pb2_grpc.WalletServiceAsyncStub
    payout: payout_service_pb2_grpc.PayoutServiceAsyncStub
    event: event_service_pb2_grpc.EventServiceAsyncStub

    def __init__(
        self, target: str, *, ledger: str = "", wallet: str = "", payout: str = "", event: str = "", settings: ClientSettings | None = None
    ) -> None:
        self._settings = settings or ClientSettings()
        self._life = _Life()
        self._channels: dict[str, _Channel] = {}

        def stub(make: Any, address: str) -> Any:
            address = address or target
            if address not in self._channels:
                self._channels[address] = _Channel(partial(self._channel, address), self._settings, self._life)
            return make(cast("grpc.aio.Channel", self._channels[address]))

        self.payment = stub(payment_service_pb2_grpc.PaymentServiceStub, target)
        self.ledger = stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self.wallet = stub(wallet_service_pb2_grpc.WalletServiceStub, wallet)
        self.payout = stub(payout_service_pb2_grpc.PayoutServiceStub, payout)
        self.event = stub(event_service_pb2_grpc.EventServiceStub, event)

    def _channel(self, target: str) -> grpc.aio.Channel:
        credentials = self._settings.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every connection. A call or a stream in flight, also one that waits before it is sent again, ends with TallystickError.

        Raises TallystickError in another event loop than the client's while that is not closed.
        """
        self._life.end()
        for channel in self._channels.values():
            await channel.close()

    async def create_payment(
        self, checkout_id: str, payment_orders: Sequence[payment_pb2.NewPaymentOrder], *, credit_card_info: str, **values: Any
    ) -> payment_pb2.Payment:
        """Takes a payment, and waits for its result. `credit_card_info` is the provider's token; `values` are CreatePaymentRequest's other fields.

        A repeat with the same values answers with the payment as it stands, and never charges again.
        """
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id=checkout_id, payment_orders=payment_orders, credit_card_info=credit_card_info, **values
        )
        return (await self.payment.CreatePayment(request)).payment

    async def get_payment(self, checkout_id: str) -> payment_pb2.Payment:
        """The payment as it stands."""
        return (await self.payment.GetPayment(payment_service_pb2.GetPaymentRequest(checkout_id=checkout_id))).payment

    def watch_payment(self, checkout_id: str, after_version: int = 0) -> AsyncGenerator[payment_pb2.Payment, None]:
        """The payment as it stands, then after each change, until its state is final. The stream is opened again when it ends early."""
        request = payment_service_pb2.WatchPaymentRequest(checkout_id=checkout_id, after_version=after_version)
        return self._watched(self.payment.WatchPayment, request, "payment")

    async def wait_for_payment(self, checkout_id: str, timeout: float = 60.0) -> payment_pb2.Payment:
        """The payment once its state is final. Raises DeadlineExceededError when the seconds are over before."""
        return await self._waited(self.watch_payment(checkout_id), "payment", timeout) or await self.get_payment(checkout_id)

    async def create_payout(self, payout_id: str, seller_account: str, currency: str, amount: str | Decimal = "", **values: Any) -> payout_pb2.Payout:
        """Pays a seller out, and waits until the money is held. `amount` in major units, "": whatever can be paid.

        `values` are CreatePayoutRequest's other fields. A repeat with the same values answers with the payout as it stands, and never pays again.
        """
        request = payout_service_pb2.CreatePayoutRequest(
            payout_id=payout_id, seller_account=seller_account, currency=currency, amount=amount_text(amount), **values
        )
        return (await self.payout.CreatePayout(request)).payout

    async def get_payout(self, payout_id: str) -> payout_pb2.Payout:
        """The payout as it stands."""
        return (await self.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=payout_id))).payout

    def watch_payout(self, payout_id: str, after_version: int = 0) -> AsyncGenerator[payout_pb2.Payout, None]:
        """The payout as it stands, then after each change, until it is settled at its end; a later return is told by an event."""
        request = payout_service_pb2.WatchPayoutRequest(payout_id=payout_id, after_version=after_version)
        return self._watched(self.payout.WatchPayout, request, "payout")

    async def wait_for_payout(self, payout_id: str, timeout: float = 60.0) -> payout_pb2.Payout:
        """The payout once it is settled at its end. Raises DeadlineExceededError when the seconds are over before."""
        return await self._waited(self.watch_payout(payout_id), "payout", timeout) or await self.get_payout(payout_id)

    async def events(self, after_cursor: int = 0, *, follow: bool = False, **filters: Any) -> AsyncGenerator[event_pb2.Event, None]:
        """Events in order, from a cursor on; `filters` are StreamEventsRequest's. With `follow` it does not end, however slowly it is read.

        The stream is opened again from the last event when it ends early; `aclose()` ends it.
        """
        request = event_service_pb2.StreamEventsRequest(after_cursor=after_cursor, follow=follow, **filters)
        async with aclosing(self._reopened(self.event.StreamEvents, request)) as responses:
            async for response in responses:
                request.after_cursor = response.event.cursor
                yield response.event

    async def pages(self, method: Callable[[Any], Awaitable[Any]], request: Any, field: str) -> AsyncIterator[Any]:
        """The items of all pages of a list call, as Client.pages."""
        request = type(request).FromString(request.SerializeToString())
        while True:
            response = await method(request)
            for item in getattr(response, field):
                yield item
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def _watched(self, stream: Callable[..., Any], request: Any, field: str) -> AsyncGenerator[Any, None]:
        """The versions of a resource, from the one after the request's on."""
        async with aclosing(self._reopened(stream, request)) as responses:
            async for response in responses:
                resource = getattr(response, field)
                request.after_version = resource.version
                yield resource

    async def _waited(self, versions: AsyncGenerator[Any, None], field: str, timeout: float) -> Any:
        """The last version of a resource, None if there was none to show. Raises DeadlineExceededError when the seconds are over before."""
        last = None
        try:
            async with aclosing(versions), asyncio.timeout(timeout):
                async for resource in versions:
                    last = resource
        except TimeoutError as error:
            raise DeadlineExceededError(f"the {field} was not final within {timeout:g} seconds") from error
        return last

    async def _reopened(self, stream: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """A stream's messages, over as many openings as it takes; the request is moved on by who reads them."""
        reopening = Reopening(self._settings)
        while True:
            try:
                reopening.opened()
                async with aclosing(stream(request)) as responses:
                    async for response in responses:
                        reopening.went_well()
                        yield response
                return
            except TallystickError as error:
                await self._life.rest(reopening.rest(error))


class _Life:
    """What the channels of one client share: its event loop, which is that of its first call, and whether it is closed."""

    def __init__(self) -> None:
        self.is_closed = False
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Raises TallystickError in another event loop than the client's, and once it is closed."""
        if self.is_closed:
            raise closed()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if not self.is_here:
            raise elsewhere()

    @property
    def is_here(self) -> bool:
        """Whether the running event loop is the client's."""
        return self._loop is asyncio.get_running_loop()

    async def rest(self, seconds: float) -> None:
        """Waits so long, or until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    def end(self) -> None:
        """Closes the client. Raises TallystickError in another event loop than its own, unless nothing runs there any more."""
        if self._loop is not None and not self.is_here and not self._loop.is_closed():
            raise closed_elsewhere()
        self.is_closed = True
        if self.is_here:
            self._woken.set()


class _Channel:
    """What a generated stub asks of a channel, with deadlines, retries, credentials, traces and typed errors."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], settings: ClientSettings, life: _Life) -> None:
        self._connect = connect
        self._settings = settings
        self._life = life
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        if self._channel is not None and self._life.is_here:
            await self._channel.close()
        self._channel = None

    def _open(self) -> grpc.aio.Channel:
        """The channel. Raises TallystickError in another event loop than the client's, and once it is closed."""
        self._life.enter()
        if self._channel is None:
            self._channel = self._connect()
        return self._channel

    def _ended_by_close(self) -> bool:
        """Whether it is closing the client that cancelled a call, which must not look as if somebody had cancelled the caller's task."""
        task = asyncio.current_task()
        return self._life.is_closed and not (task is not None and task.cancelling())

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        name = short_name(method)
        made: list[Any] = []

        def send(*values: Any, **named: Any) -> Any:
            channel = self._open()
            if not made:
                made.append(channel.unary_unary(method, *arguments, **options))
            return made[0](*values, **named)

        async def call(request: Any, timeout: float | None = None, metadata: Sequence[tuple[str, str]] = (), **_: Any) -> Any:
            end = asyncio.get_running_loop().time() + self._settings.seconds(name, timeout)
            with tracer().start_as_current_span(name, kind=SpanKind.CLIENT):
                return await self._sent(send, complete(request), end, metadata)

        return call

    async def _sent(self, send: Any, request: Any, end: float, metadata: Sequence[tuple[str, str]]) -> Any:
        """Sends once or more, within the deadline."""
        now = asyncio.get_running_loop().time

        async def once() -> Any:
            pairs = self._settings.metadata(metadata)
            try:
                return await send(request, timeout=max(end - now(), 0.001), metadata=pairs)
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error) from None
            except grpc.aio.UsageError:  # the channel is closed
                raise closed() from None
            except DecodeError:
                raise unreadable() from None
            except asyncio.CancelledError:
                if self._ended_by_close():
                    raise closed_meanwhile() from None
                raise

        tries = Tries()
        try:
            return await AsyncRetrying(sleep=self._life.rest, **self._settings.retries(end, now, tries))(once)
        except TallystickError as error:
            explained = tries.explained(error)
            raise explained from explained.__cause__

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        made: list[Any] = []

        async def call(request: Any, timeout: float | None = None, metadata: Sequence[tuple[str, str]] = (), **_: Any) -> AsyncGenerator[Any, None]:
            seconds = self._settings.seconds(method, self._settings.stream_seconds if timeout is None else timeout)
            pairs = self._settings.metadata(metadata)
            channel = self._open()
            if not made:
                made.append(channel.unary_stream(method, *arguments, **options))
            opened: Any = None
            try:
                opened = made[0](request, timeout=seconds, metadata=pairs)
                async with aclosing(aiter(opened)) as responses:
                    async for response in responses:
                        yield response
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error) from None
            except grpc.aio.UsageError:  # the channel is closed
                raise closed() from None
            except DecodeError:
                raise unreadable() from None
            except asyncio.CancelledError:
                if self._ended_by_close():
                    raise closed_meanwhile() from None
                raise
            finally:
                if isinstance(opened, grpc.aio.Call):
                    opened.cancel()  # a stream that is read no further is not left open

        return call
