"""The Stripe adapter's requests to a look-alike in this process, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from tallystick_server.providers.stripe.client import RequestBody, Transport
from tallystick_server.providers.stripe.errors import ForeignAnswer, NoAnswer, NotConnected


class Answer(NamedTuple):
    """An answer over HTTP. `status` 0: none."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Server(Protocol):
    """What answers: `StripeSandbox`, or anything with its method."""

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, /
    ) -> tuple[int, Mapping[str, str], bytes]: ...


class InProcessTransport(Transport):
    """Calls a server in this process. `is_down`: no connection can be made."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.is_down = False
        self._server = server

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self.is_down:
            raise NotConnected("down")
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        content = body.encode() if isinstance(body, str) else body or b""
        answer = Answer(*await self._server.handle(method.upper(), path, headers, content))
        length = answer.headers.get("Content-Length", str(len(answer.body)))
        if not answer.status or int(length) > len(answer.body):
            raise NoAnswer("the connection was closed")
        return answer

    async def download(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> AsyncIterator[bytes]:
        status, answer_headers, body = await self.send("GET", url, headers, None)
        if status != 200 or len(body) > max_bytes:
            raise ForeignAnswer(status, answer_headers)
        yield body
