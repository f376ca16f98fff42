"""The transport to Stripe over HTTP: what it reads is bounded."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from aiohttp import web

from tallystick_core.provider.outcome import Unknown
from tallystick_server.providers.stripe.client import MAX_BODY_BYTES, StripeApi
from tallystick_server.providers.stripe.errors import ForeignAnswer
from tests.providers.stripe.scripted_stripe import settings_with
from tests.support.http import serve_app


def json_of(size: int) -> bytes:
    """A JSON object of this many bytes."""
    return b'{"object":"' + b"x" * (size - 13) + b'"}'


async def read(body: bytes, headers: dict[str, str]) -> Any:
    """What a call makes of an answer, and of the same answer as a file of at most 1,000 bytes."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serve_app(app) as url:
        api = StripeApi(settings_with(url=url))
        try:
            request = api.v1.payment_intents.retrieve_async("pi_1")
            result = await api.call(request, lambda parsed: len(parsed.body["object"]))
            try:
                file = [part async for part in api.download_file("file_1", 1_000)]
            except ForeignAnswer:
                return result, None
            return result, b"".join(file)
        finally:
            await api.close()


@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_answer_above_the_limit_is_none(is_compressed: bool) -> None:
    """A longer one is no answer, even if it is valid, and even if it arrives in few bytes."""
    headers = {"Content-Type": "application/json"}
    if is_compressed:
        headers["Content-Encoding"] = "gzip"
    for size, expected in (
        (MAX_BODY_BYTES, MAX_BODY_BYTES - 13),
        (MAX_BODY_BYTES + 1, Unknown("status 200 without a usable answer")),
    ):
        body = gzip.compress(json_of(size)) if is_compressed else json_of(size)
        result, file = asyncio.run(read(body, headers))
        assert result == expected
        assert file is None, "a file has a limit of its own"


def test_a_short_answer_is_read() -> None:
    """An answer and a file within their limits are whole."""
    body = json_of(1_000)
    assert asyncio.run(read(body, {})) == (987, body)
