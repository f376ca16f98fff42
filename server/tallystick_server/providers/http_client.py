"""HTTP client of the provider adapters."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
import orjson

from tallystick_core.provider.outcome import NotSent, RetryReason, Unknown

_MAX_BODY_BYTES = 256 * 1024
MAX_RETRY_AFTER_SECONDS = 86_400.0
"""The longest wait that a provider may ask for."""

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
    retry_after = parse_retry_after(
        response.headers.get("Retry-After", ""), response.headers.get("Date", "")
    )
    try:
        return parse(response.status, await _read_body(response), retry_after)
    except (ValueError, KeyError, TypeError) as error:
        return Unknown(
            f"status {response.status} without a usable answer: {type(error).__name__}",
            _retry_reason(response.status),
            retry_after,
        )


def _retry_reason(status: int) -> RetryReason:
    """Why a request is tried again if only the status of its answer can be read."""
    match status:
        case 401 | 403:
            return RetryReason.UNAUTHORIZED
        case 429:
            return RetryReason.THROTTLED
        case _ if status >= 500:
            return RetryReason.SERVER_ERROR
        case _:
            return RetryReason.NO_ANSWER


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


def parse_retry_after(header: str, date: str) -> float:
    """Parses Retry-After in seconds, at most a day; 0 if it is missing or invalid. It is a number
    of seconds, or a time, which counts from the provider's own `date`.
    """
    if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,9})?", header, re.ASCII):
        return min(float(header), MAX_RETRY_AFTER_SECONDS)
    try:
        delay = parsedate_to_datetime(header) - parsedate_to_datetime(date)
    except (ValueError, TypeError):  # no date, or only one of them has a time zone
        return 0.0
    return min(max(delay.total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)
