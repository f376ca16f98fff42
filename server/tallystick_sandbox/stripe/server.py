"""The look-alike as an HTTP server: a thin application around `StripeSandbox.handle`, and the tasks
that advance objects and deliver events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

from tallystick_sandbox.stripe.faults import HttpAnswer
from tallystick_sandbox.stripe.form import MAX_BODY_BYTES
from tallystick_sandbox.stripe.hosted_page import HostedPage
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.webhooks import Send
from tallystick_server.operations.periodic import Periodic

_INTERVAL_SECONDS, _PRUNE_INTERVAL_SECONDS = 0.2, 60.0
_SEND_TIMEOUT_SECONDS = 10.0


def create_app(sandbox: StripeSandbox, *, delivers: bool = True) -> web.Application:
    """The application: the pages of Checkout Sessions, and the API on every other path. `delivers`:
    it delivers the events, else another process does.
    """

    async def serve(request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        answer = await sandbox.handle(request.method, request.raw_path, request.headers, body)
        return await _respond(request, answer)

    async def run_tasks(_app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=_SEND_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            tasks = [
                Periodic("sandbox.due", _INTERVAL_SECONDS, sandbox.advance_due),
                Periodic("sandbox.keys", _PRUNE_INTERVAL_SECONDS, sandbox.prune_keys),
            ]
            if delivers:
                deliver_due = sandbox.deliverer(_sender(session)).deliver_due
                tasks.append(Periodic("sandbox.webhooks", _INTERVAL_SECONDS, deliver_due))
            for task in tasks:
                task.start()
            yield
            for task in tasks:
                await task.stop()

    app = web.Application(client_max_size=MAX_BODY_BYTES + 1)
    app.add_routes(HostedPage(sandbox).routes())
    app.router.add_route("*", "/{path:.*}", serve)
    app.cleanup_ctx.append(run_tasks)
    return app


def _sender(session: aiohttp.ClientSession) -> Send:
    async def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        try:
            async with session.post(
                url, headers=headers, data=body, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    return send


async def _read(request: web.Request) -> bytes:
    """The body, cut after one byte more than is allowed."""
    chunks = bytearray()
    async for chunk in request.content.iter_any():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            break
    return bytes(chunks[: MAX_BODY_BYTES + 1])


async def _respond(request: web.Request, answer: HttpAnswer) -> web.StreamResponse:
    """Sends an answer, cut or not at all if it says so."""
    length = answer.headers.get("Content-Length")
    if answer.status and length is None:
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
    response = web.StreamResponse(status=answer.status or 500, headers=answer.headers)
    if answer.status:
        await response.prepare(request)
        await response.write(answer.body)
    if request.transport is not None:
        request.transport.close()
    return response
