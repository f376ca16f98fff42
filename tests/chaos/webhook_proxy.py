"""A proxy between the look-alike and the HTTP processes. It records every answer to a webhook, and
loses some of them.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import orjson
from aiohttp import web

_TIMEOUT_SECONDS = 5.0
_LOSS = 0.02  # the share of deliveries that are lost before they arrive, and again of the answers
_FORWARDED_HEADERS = ("Content-Type", "Stripe-Signature")


@dataclass
class WebhookLog:
    """What the HTTP processes answered to the webhooks of the look-alike."""

    accepted: Counter[str] = field(default_factory=Counter)
    """How many times each event was answered with 2xx, by its id."""
    rejected_count: int = 0
    """Deliveries with another status, such as the forged ones."""
    failed_count: int = 0
    """Deliveries without an answer: the process was killed or frozen, or there was none."""

    @property
    def repeated_count(self) -> int:
        """How many times an event was accepted after it had been accepted."""
        return self.accepted.total() - len(self.accepted)


class WebhookProxy:
    """Listens on loopback and forwards webhooks to `address`, which is set once it is known."""

    def __init__(self, seed: int) -> None:
        self.log = WebhookLog()
        self.address = ""
        self._random = random.Random(f"{seed}/webhooks")
        self._is_lossy = True

    async def start(self) -> str:
        """Starts listening and returns its URL."""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout)
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def heal(self) -> None:
        """Loses nothing any more."""
        self._is_lossy = False

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _is_lost(self) -> bool:
        return self._is_lossy and self._random.random() < _LOSS

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self._is_lost():
            return _disconnect(request)
        headers = {name: request.headers[name] for name in _FORWARDED_HEADERS}
        url = f"http://{self.address}{request.path}"
        try:
            async with self._session.post(url, data=body, headers=headers) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            self.log.failed_count += 1
            return _disconnect(request)
        if 200 <= status < 300:
            self.log.accepted[str(orjson.loads(body)["id"])] += 1
        else:
            self.log.rejected_count += 1
        return _disconnect(request) if self._is_lost() else web.Response(status=status)


def _disconnect(request: web.Request) -> web.StreamResponse:
    """Closes the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)
