"""Helpers for tests of RPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick import (
    Client,
    ClientSettings,
)
from tallystick_server.app.services import SERVICES
from tallystick_server.app.wiring import implementation_of
from tallystick_server.rpc.authentication import Authenticator, NoAuthentication
from tallystick_server.rpc.bulkhead import CallLimits
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.server import RpcServer
from tests.support.platform import free_address

DESCRIPTORS = {spec.descriptor.name: spec.descriptor for spec in SERVICES}
"""The RPCs of each service, by its name in the contract."""
ACCESS = {spec.descriptor.name: implementation_of(spec).access for spec in SERVICES}
"""The access rules of each service, by its name in the contract."""


class UniformHandlers:
    """Handlers that all do the same."""

    def __init__(self, respond: Callable[[], Any]) -> None:
        self._respond = respond

    def __getattr__(self, name: str) -> Callable[[Message, Call], Any]:
        async def handle(_request: Message, _call: Call) -> Any:
            response = self._respond()
            return response if isinstance(response, AsyncIterator) else await response

        return handle


@contextmanager
def serve_rpc(
    rpc_server: RpcServer, servicers: Mapping[str, object]
) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """The address of a server and its loop. `servicers`: the test's servicers, by service."""
    address = free_address()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> grpc.aio.Server:
        server = grpc.aio.server()
        for name, servicer in servicers.items():
            rpc_server.add_service(server, DESCRIPTORS[name], servicer, ACCESS[name])
        server.add_insecure_port(address)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield address, loop
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class RpcClient(Client):
    """A client that sends each call once, and the server that it calls."""

    def __init__(
        self, address: str, rpc_server: RpcServer, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(address, settings=ClientSettings(tries=1))
        self.address = address
        self.rpc_server = rpc_server
        self.loop = loop


@contextmanager
def rpc_client(
    respond: Callable[[], Any] | GatedHandlers,
    limits: CallLimits | None = None,
    *,
    stream_time: float = 300,
    authenticator: Authenticator | None = None,
) -> Iterator[RpcClient]:
    """A client of a server with the test's handlers; it sends each call once."""
    servicer = respond if isinstance(respond, GatedHandlers) else UniformHandlers(respond)
    rpc_server = RpcServer(
        authenticator or NoAuthentication(), limits, max_stream_seconds=stream_time
    )
    with serve_rpc(rpc_server, {"PaymentService": servicer}) as (address, loop):
        client = RpcClient(address, rpc_server, loop)
        with client:
            yield client


class GatedHandlers:
    """A CreatePayment handler that waits until it is released, and a handler for all other methods
    that answers at once.
    """

    def __init__(self, waits_for_provider: bool) -> None:
        self.entered = threading.Semaphore(0)
        self.release_event = threading.Event()
        self._waits_for_provider = waits_for_provider

    def __getattr__(self, name: str) -> Callable[[Any, Call], Any]:
        method = DESCRIPTORS["PaymentService"].methods_by_name.get(name)
        if method is None:
            raise AttributeError(name)
        response = GetMessageClass(method.output_type)

        async def handle(_request: Message, call: Call) -> Message:
            if name == "CreatePayment" and self._waits_for_provider:
                with call.waiting_slot() as has_slot:
                    if has_slot:
                        self.entered.release()
                        await asyncio.to_thread(self.release_event.wait, 30)
            elif name == "CreatePayment":
                self.entered.release()
                await asyncio.to_thread(self.release_event.wait, 30)
            message: Message = response()
            return message

        return handle
