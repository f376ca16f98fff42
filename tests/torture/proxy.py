"""A TCP proxy before PostgreSQL that can cut a connection at its COMMIT, before it is made or after, and freeze the connections that are open."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_WORK_SECONDS = 0.2  # in which a COMMIT that was handed on is made


class Proxy:
    """Listens on loopback, and hands everything on to the server's socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._armed: deque[str] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.Event] = set()
        self.cuts = self.frozen = 0

    async def start(self) -> int:
        """Returns the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def arm(self, when: str) -> None:
        """The next COMMIT is cut "before" it reaches the server or "after" it has been made."""
        self._armed.append(when)

    def freeze(self) -> None:
        """Every open connection passes nothing on any more, and is not closed: as one to a primary that a failover proxy has left. New ones work."""
        self.frozen += len(self._open)
        for flowing in self._open:
            flowing.clear()

    def disarm(self) -> None:
        self._armed.clear()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            writer.close()
            return
        flowing = asyncio.Event()
        flowing.set()
        self._open.add(flowing)
        pumps = [asyncio.create_task(self._up(reader, upstream, flowing)), asyncio.create_task(self._down(upstream_reader, writer, flowing))]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(flowing)
            for pump in pumps:
                pump.cancel()
                self._tasks.discard(pump)
            for end in (writer, upstream):
                end.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        """Ends, which cuts both sides, when the connection does or is to be cut."""
        while chunk := await reader.read(65_536):
            if not flowing.is_set():
                continue  # the other side has taken the bytes, as a kernel does; nobody reads them
            if chunk.endswith(_COMMIT) and self._armed:
                self.cuts += 1
                if self._armed.popleft() == "before":
                    return
                upstream.write(chunk)
                await upstream.drain()
                await asyncio.sleep(_WORK_SECONDS)
                return
            upstream.write(chunk)
            await upstream.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        while chunk := await reader.read(65_536):
            await flowing.wait()
            writer.write(chunk)
            await writer.drain()
