"""The sandbox as its own HTTP server: POST /charges with an Idempotency-Key, GET /charges/{charge_id}."""

from __future__ import annotations

from aiohttp import web

from tallystick_core.provider import ChargeDemand
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox

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
        reply = await sandbox.charge(ChargeDemand(key=key, **values))
        if not reply.status and request.transport is not None:  # no answer is to come
            request.transport.close()
        return _response(reply)

    async def look_up(request: web.Request) -> web.Response:
        return _response(await sandbox.look_up(request.match_info["charge_id"]))

    async def cancel(request: web.Request) -> web.Response:
        return _response(await sandbox.cancel(request.match_info["charge_id"]))

    async def start(_app: web.Application) -> None:
        sandbox.start()

    async def stop(_app: web.Application) -> None:
        await sandbox.stop()

    app = web.Application(client_max_size=64 * 1024)
    app.router.add_post("/charges", charges)
    app.router.add_get("/charges/{charge_id}", look_up)
    app.router.add_post("/charges/{charge_id}/cancel", cancel)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


def _response(reply: Reply) -> web.Response:
    answer = {"reference": reply.reference, "amount": reply.amount, "currency": reply.currency, "code": reply.code}
    headers = {"Retry-After": f"{reply.retry_after:g}"} if reply.retry_after else {}
    return web.json_response(answer, status=reply.status or 500, headers=headers)
