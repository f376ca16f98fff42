"""The sandbox as its own HTTP server: POST /charges with an Idempotency-Key."""

from __future__ import annotations

from aiohttp import web

from tallystick_core.provider import Demand
from tallystick_sandbox.sandbox import AnswerLost, Sandbox

_FIELDS = {"charge_id": str, "amount": int, "currency": str, "payment_token": str, "method": str}


def application(sandbox: Sandbox) -> web.Application:
    """The routes; the sandbox starts and stops with the application."""

    async def charges(request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        try:
            body = await request.json()
            values = {name: body[name] for name in _FIELDS}
        except (ValueError, KeyError, TypeError):
            return web.json_response({"code": "request_malformed"}, status=400)
        if not key or any(type(values[name]) is not kind for name, kind in _FIELDS.items()):
            return web.json_response({"code": "request_malformed"}, status=400)
        try:
            reply = await sandbox.charge(Demand(key=key, **values))
        except AnswerLost:
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        answer = {"reference": reply.reference, "amount": reply.amount, "currency": reply.currency, "code": reply.code}
        return web.json_response(answer, status=reply.status)

    async def start(_app: web.Application) -> None:
        sandbox.start()

    async def stop(_app: web.Application) -> None:
        await sandbox.stop()

    app = web.Application(client_max_size=64 * 1024)
    app.router.add_post("/charges", charges)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app
