"""Responses in JSON."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

JSON_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": "tallystick",
}


def json_response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A response with a body in JSON."""
    return web.Response(
        body=body,
        status=status,
        headers={**JSON_HEADERS, **(headers or {})},
        content_type="application/json",
    )
