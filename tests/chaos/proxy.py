"""A TCP proxy before PostgreSQL that can cut a connection before or after its COMMIT, and freeze
open connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

_COMMIT_MESSAGE = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_COMMIT_SECONDS = 0.2  # time in which PostgreSQL executes a COMMIT that was forwarded


class PostgresProxy:
    """Listens on loopback and forwards everything to the server's socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._pending_cuts: deque[str] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_connections: set[asyncio.Event] = set()
        self.cut_count = self.frozen_count = 0

    async def start(self) -> int:
        """Starts listening and returns the port."""
        self._server = await asyncio.start_server(self._handle_connection, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def arm(self, when: str) -> None:
        """Cuts the next COMMIT "before" it reaches the server or "after" it has been executed."""
        self._pending_cuts.append(when)

    def freeze(self) -> None:
        """Freezes every open connection: it forwards nothing and is not closed, like a connection
        to a primary that a failover proxy has left. New connections work.
        """
        self.frozen_count += len(self._open_connections)
        for flow_event in self._open_connections:
            flow_event.clear()

    def disarm(self) -> None:
        self._pending_cuts.clear()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            writer.close()
            return
        flow_event = asyncio.Event()
        flow_event.set()
        self._open_connections.add(flow_event)
        pumps = [
            asyncio.create_task(self._pump_to_server(reader, upstream_writer, flow_event)),
            asyncio.create_task(self._pump_to_client(upstream_reader, writer, flow_event)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open_connections.discard(flow_event)
            for pump in pumps:
                pump.cancel()
                self._tasks.discard(pump)
            for peer_writer in (writer, upstream_writer):
                peer_writer.transport.abort()

    async def _pump_to_server(
        self,
        reader: asyncio.StreamReader,
        upstream_writer: asyncio.StreamWriter,
        flow_event: asyncio.Event,
    ) -> None:
        """Returns, which cuts both sides, when the connection ends or is to be cut."""
        while chunk := await reader.read(65_536):
            if not flow_event.is_set():
                continue  # as a kernel does, accepts the other side's bytes, which are dropped
            if chunk.endswith(_COMMIT_MESSAGE) and self._pending_cuts:
                self.cut_count += 1
                if self._pending_cuts.popleft() == "before":
                    return
                upstream_writer.write(chunk)
                await upstream_writer.drain()
                await asyncio.sleep(_COMMIT_SECONDS)
                return
            upstream_writer.write(chunk)
            await upstream_writer.drain()

    async def _pump_to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow_event: asyncio.Event
    ) -> None:
        while chunk := await reader.read(65_536):
            await flow_event.wait()
            writer.write(chunk)
            await writer.drain()
