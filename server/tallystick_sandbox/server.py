"""The sandbox as its own HTTP server: POST /charges with an Idempotency-Key, POST /payouts with a key for each, POST /accounts/verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tallystick_core.provider import ChargeDemand, PayoutDemand
from tallystick_core.refusal import Refused
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox

_CHARGE = {"charge_id": str, "amount": int, "currency": str, "payment_token": str, "method": str}
_PAYOUT = {"key": str, "payout_id": str, "amount": int, "currency": str, "bank_account_token": str}
_ACCOUNT = {"bank_account_token": str, "currency": str}
_MOST_PAYOUTS = 1000


class _Malformed(Exception):
    """A body that cannot be read."""


def application(sandbox: Sandbox, payouts: SandboxPayouts) -> web.Application:
    """The routes; the sandbox starts and stops with the application."""

    async def start(_app: web.Application) -> None:
        sandbox.start()
        payouts.start()

    async def stop(_app: web.Application) -> None:
        await payouts.stop()
        await sandbox.stop()

    app = web.Application(client_max_size=1024 * 1024, middlewares=[_refuse])
    app.router.add_routes([*_charges(sandbox), *_payouts(payouts)])
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


def _charges(sandbox: Sandbox) -> list[web.RouteDef]:
    async def charge(request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        values = _values(await _body(request), _CHARGE)
        if not key:
            raise _Malformed
        return _answer(request, await sandbox.charge(ChargeDemand(key=key, **values)))

    async def look_up(request: web.Request) -> web.Response:
        return _answer(request, await sandbox.look_up(request.match_info["id"]))

    async def cancel(request: web.Request) -> web.Response:
        return _answer(request, await sandbox.cancel(request.match_info["id"]))

    return [web.post("/charges", charge), web.get("/charges/{id}", look_up), web.post("/charges/{id}/cancel", cancel)]


def _payouts(payouts: SandboxPayouts) -> list[web.RouteDef]:
    async def submit(request: web.Request) -> web.Response:
        items = await _body(request)
        if not isinstance(items, list) or not 0 < len(items) <= _MOST_PAYOUTS:
            raise _Malformed
        replies = await payouts.submit([PayoutDemand(**_values(item, _PAYOUT)) for item in items])
        if not any(reply.status for reply in replies):
            return _answer(request, replies[0])
        return web.json_response([_shown(reply) for reply in replies])

    async def look_up(request: web.Request) -> web.Response:
        return _answer(request, await payouts.look_up(request.match_info["id"]))

    async def verify(request: web.Request) -> web.Response:
        return _answer(request, await payouts.verify(_values(await _body(request), _ACCOUNT)["bank_account_token"]))

    return [web.post("/payouts", submit), web.get("/payouts/{id}", look_up), web.post("/accounts/verify", verify)]


@web.middleware
async def _refuse(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except _Malformed:
        return _answer(request, Reply(400, code="request_malformed"))
    except Refused:  # the database is away, and the log says so
        return _answer(request, Reply(503, code="unavailable"))
    return answer


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise _Malformed from error


def _values(body: Any, fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a body, each of its kind. Raises _Malformed."""
    if not isinstance(body, dict) or any(type(body.get(name)) is not kind for name, kind in fields.items()):
        raise _Malformed
    return {name: body[name] for name in fields}


def _answer(request: web.Request, reply: Reply) -> web.Response:
    if not reply.status and request.transport is not None:  # no answer is to come
        request.transport.close()
    headers = {"Retry-After": f"{reply.retry_after:g}"} if reply.retry_after else {}
    return web.json_response(_shown(reply), status=reply.status or 500, headers=headers)


def _shown(reply: Reply) -> dict[str, Any]:
    values = {"reference": reply.reference, "amount": reply.amount, "currency": reply.currency, "code": reply.code, "state": reply.state}
    values["subject"] = reply.subject
    return {**values, "status": reply.status, "retry_after": reply.retry_after}
