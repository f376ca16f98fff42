"""What an adapter asks over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import orjson

from tallystick_core.provider.outcome import NotSent, Unknown

_MAX_BODY_BYTES = 256 * 1024

R = TypeVar("R")


class HttpClient:
    """A provider that is reached over HTTP: whatever happens is an answer or an outcome."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, parse: Callable[[int, Any, float], R], **options: Any
    ) -> R | NotSent | Unknown:
        """What `parse` makes of status, body and Retry-After in seconds."""
        if self._session is None:  # made inside the loop it is used in
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.request(
                method, f"{self._url}{path}", allow_redirects=False, **options
            ) as response:
                body = await _read_body(response)
                return parse(
                    response.status,
                    body,
                    _parse_retry_after(response.headers.get("Retry-After", "")),
                )
        except aiohttp.ClientConnectorError as error:
            return NotSent(f"no connection: {type(error).__name__}")
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            return Unknown(f"no usable answer: {type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _read_body(response: aiohttp.ClientResponse) -> Any:
    """A whole body, which may come in pieces. Raises ValueError for what is too long, or no
    JSON.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    return orjson.loads(bytes(body))


def _parse_retry_after(header: str) -> float:
    """A Retry-After in seconds, at most a day; 0 for none and for what is no such number."""
    return (
        min(float(header), 86_400.0)
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header, re.ASCII)
        else 0.0
    )
