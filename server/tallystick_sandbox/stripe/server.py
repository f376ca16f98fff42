"""The look-alike as an HTTP server: a thin application around `StripeSandbox.handle`."""

from __future__ import annotations

from aiohttp import web

from tallystick_sandbox.stripe.faults import HttpAnswer
from tallystick_sandbox.stripe.form import MAX_BODY_BYTES
from tallystick_sandbox.stripe.sandbox import StripeSandbox


def create_app(sandbox: StripeSandbox) -> web.Application:
    """The application. Every path goes to the look-alike."""

    async def serve(request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        answer = await sandbox.handle(request.method, request.raw_path, request.headers, body)
        return await _respond(request, answer)

    app = web.Application(client_max_size=MAX_BODY_BYTES + 1)
    app.router.add_route("*", "/{path:.*}", serve)
    return app


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
