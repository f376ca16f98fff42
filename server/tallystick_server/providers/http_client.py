"""HTTP client of the provider adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import orjson

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_server.providers.http_answer import parse_retry_after, retry_reason_of
from tallystick_server.providers.request_ids import note_request_id

_MAX_BODY_BYTES = 256 * 1024

R = TypeVar("R")


class HttpClient:
    """A provider reached over HTTP. Every failure is returned as an outcome."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, parse: Callable[[int, Any, float], R], **options: Any
    ) -> R | NotSent | Unknown:
        """Returns the result of `parse` for status, body and Retry-After in seconds, or NotSent or
        Unknown.
        """
        if self._session is None:  # created inside the loop that uses it
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.request(
                method, f"{self._url}{path}", allow_redirects=False, **options
            ) as response:
                return await _parse_response(response, parse)
        except aiohttp.ClientConnectorError as error:
            return NotSent(f"no connection: {type(error).__name__}")
        except (aiohttp.ClientError, ValueError) as error:
            return Unknown(f"no usable answer: {type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _parse_response(
    response: aiohttp.ClientResponse, parse: Callable[[int, Any, float], R]
) -> R | Unknown:
    """The result of `parse`. An answer that is not the provider's own, such as the error page of a
    proxy, is Unknown; its status says why.
    """
    note_request_id(response.headers.get("Request-Id", ""), response.status)
    retry_after = parse_retry_after(
        response.headers.get("Retry-After", ""), response.headers.get("Date", "")
    )
    try:
        return parse(response.status, await _read_body(response), retry_after)
    except (ValueError, KeyError, TypeError) as error:
        return Unknown(
            f"status {response.status} without a usable answer: {type(error).__name__}",
            retry_reason_of(response.status),
            retry_after,
        )


async def _read_body(response: aiohttp.ClientResponse) -> Any:
    """Reads a whole body, which may arrive in chunks. Raises ValueError if it is too long or not
    JSON.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    return orjson.loads(bytes(body))
