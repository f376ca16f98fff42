"""A provider's HTTP server that answers anything if the contract wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TypeAlias

from aiohttp import web

from tests.support.http import serve_app

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FaultyServer:
    """Serves a provider, and another server that redirects may name. `success_body`: the body of a
    success of a charge.
    """

    def __init__(self, success_body: bytes) -> None:
        self.success_body = success_body
        self.other_url = ""
        """The URL of a server that answers every request with a success."""
        self.other_requests = 0
        """How many requests that server has got."""
        self._replacement: Handler | None = None

    @asynccontextmanager
    async def serve(self, app: web.Application) -> AsyncIterator[str]:
        """Serves the provider until the block ends; its URL."""
        other_app = web.Application()

        @web.middleware
        async def replace_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await (self._replacement or handler)(request)

        async def count_request(_request: web.Request) -> web.Response:
            self.other_requests += 1
            return web.Response(body=self.success_body)

        app.middlewares.append(replace_answer)
        other_app.router.add_route("*", "/{path:.*}", count_request)
        async with serve_app(app) as url, serve_app(other_app) as self.other_url:
            yield url

    @contextmanager
    def replacing_answers(self, handler: Handler) -> Iterator[None]:
        """The handler answers every request until the block ends."""
        self._replacement = handler
        yield
        self._replacement = None

    def answering(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Every request gets this answer until the block ends."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            content_type = {"Content-Type": "application/json"}
            return web.Response(
                status=status, body=body, headers={**content_type, **(headers or {})}
            )

        return self.replacing_answers(answer)

    def cutting_answers(self) -> AbstractContextManager[None]:
        """Every answer is cut after its first bytes until the block ends."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = await self._begin_answer(request)
            assert request.transport is not None
            request.transport.close()
            return response

        return self.replacing_answers(answer)

    def stalling_answers(self) -> AbstractContextManager[None]:
        """Every answer stops after its first bytes until the block ends, and stays open."""

        async def answer(request: web.Request) -> web.StreamResponse:
            await self._begin_answer(request)
            await asyncio.Event().wait()
            raise AssertionError

        return self.replacing_answers(answer)

    async def _begin_answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(self.success_body))})
        await response.prepare(request)
        await response.write(self.success_body[:10])
        return response
