"""The sandbox as a separate HTTP server. POST /charges takes an Idempotency-Key header, POST
/payouts one key per payout. POST /accounts/verify takes no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tallystick_core.errors import ApiError
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox

_CHARGE_FIELDS = {
    "charge_id": str,
    "amount": int,
    "currency": str,
    "payment_token": str,
    "method": str,
}
_PAYOUT_FIELDS = {
    "key": str,
    "payout_id": str,
    "amount": int,
    "currency": str,
    "bank_account_token": str,
}
_ACCOUNT_FIELDS = {"bank_account_token": str}
_MAX_PAYOUTS = 1000


class _MalformedRequest(Exception):
    """The body cannot be parsed."""


def create_app(sandbox: Sandbox, payouts: SandboxPayouts) -> web.Application:
    """The application with its routes. It starts and stops the sandbox."""

    async def start(_app: web.Application) -> None:
        sandbox.start()
        payouts.start()

    async def stop(_app: web.Application) -> None:
        await payouts.stop()
        await sandbox.stop()

    app = web.Application(client_max_size=1024 * 1024, middlewares=[_handle_errors])
    app.router.add_routes([*_charge_routes(sandbox), *_payout_routes(payouts)])
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


def _charge_routes(sandbox: Sandbox) -> list[web.RouteDef]:
    async def charge(request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        values = _parse_fields(await _read_body(request), _CHARGE_FIELDS)
        if not key:
            raise _MalformedRequest
        return _to_response(request, await sandbox.charge(ChargeRequest(key=key, **values)))

    async def look_up(request: web.Request) -> web.Response:
        return _to_response(request, await sandbox.look_up(request.match_info["id"]))

    async def cancel(request: web.Request) -> web.Response:
        return _to_response(request, await sandbox.cancel(request.match_info["id"]))

    return [
        web.post("/charges", charge),
        web.get("/charges/{id}", look_up),
        web.post("/charges/{id}/cancel", cancel),
    ]


def _payout_routes(payouts: SandboxPayouts) -> list[web.RouteDef]:
    async def submit(request: web.Request) -> web.Response:
        items = await _read_body(request)
        if not isinstance(items, list) or not 0 < len(items) <= _MAX_PAYOUTS:
            raise _MalformedRequest
        replies = await payouts.submit(
            [PayoutRequest(**_parse_fields(item, _PAYOUT_FIELDS)) for item in items]
        )
        if not any(reply.status for reply in replies):
            return _to_response(request, replies[0])
        body = [_reply_to_json(reply) for reply in replies]
        named = next((reply for reply in replies if reply.request_id), replies[0])
        return web.json_response(body, headers=_headers(named.request_id))

    async def look_up(request: web.Request) -> web.Response:
        return _to_response(request, await payouts.look_up(request.match_info["id"]))

    async def verify(request: web.Request) -> web.Response:
        return _to_response(
            request,
            await payouts.verify(
                _parse_fields(await _read_body(request), _ACCOUNT_FIELDS)["bank_account_token"]
            ),
        )

    return [
        web.post("/payouts", submit),
        web.get("/payouts/{id}", look_up),
        web.post("/accounts/verify", verify),
    ]


@web.middleware
async def _handle_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except _MalformedRequest:
        return _to_response(request, Reply(400, code="request_malformed"))
    except ApiError:  # the database is unavailable, as the log shows
        return _to_response(request, Reply(503, code="unavailable"))
    return response


async def _read_body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise _MalformedRequest from error


def _parse_fields(body: Any, fields: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a body, with their types checked. Raises _MalformedRequest."""
    if not isinstance(body, dict) or any(
        type(body.get(name)) is not type_ for name, type_ in fields.items()
    ):
        raise _MalformedRequest
    return {name: body[name] for name in fields}


def _to_response(request: web.Request, reply: Reply) -> web.Response:
    if not reply.status and request.transport is not None:  # simulates a lost reply
        request.transport.close()
    headers = _headers(reply.request_id)
    if reply.retry_after:
        headers["Retry-After"] = f"{reply.retry_after:g}"
    return web.json_response(_reply_to_json(reply), status=reply.status or 500, headers=headers)


def _headers(request_id: str) -> dict[str, str]:
    return {"Request-Id": request_id} if request_id else {}


def _reply_to_json(reply: Reply) -> dict[str, Any]:
    values = {
        "reference": reply.reference,
        "amount": reply.amount,
        "currency": reply.currency,
        "code": reply.code,
        "state": reply.state,
    }
    values["subject"] = reply.subject
    if reply.fee is not None:
        values["fee"] = reply.fee
    return {**values, "status": reply.status, "retry_after": reply.retry_after}
