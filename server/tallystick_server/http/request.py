"""A request as its handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError

_CHUNK_BYTES = 16 * 1024


class BodyBudget:
    """The bytes of all bodies in flight."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes

    def take(self, size: int) -> None:
        """Raises HttpError with OVERLOADED if there are too many."""
        if size > self._free:
            raise HttpError(
                ApiError(
                    ErrorReason.OVERLOADED,
                    "Too many bytes of requests are in flight; retry after 0.5 s.",
                    retry_after=0.5,
                )
            )
        self._free -= size

    def give_back(self, size: int) -> None:
        self._free += size


@dataclass(slots=True)
class Request:
    """`http`: method, path and headers. `variables`: those of the path, decoded. `closing`: set
    when the process stops; a stream ends then.
    """

    http: web.BaseRequest
    closing: asyncio.Event
    _budget: BodyBudget
    _max_body_bytes: int
    _body_timeout_seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)
    _taken: int = 0

    async def read_body(
        self,
        max_bytes: int | None = None,
        timeout_seconds: float | None = None,
        *,
        is_counted: bool = True,
    ) -> bytes:
        """The raw body. None: the limit of all requests. Raises HttpError: 413 if it is too large,
        408 if it takes too long, 415 if it is compressed, 429 if the bodies of all requests are too
        large. Not counted among those: its handler bounds how many there are.
        """
        max_bytes = self._max_body_bytes if max_bytes is None else max_bytes
        timeout = self._body_timeout_seconds if timeout_seconds is None else timeout_seconds
        if self.http.headers.get("Content-Encoding", "identity") != "identity":
            raise HttpError(
                ApiError(ErrorReason.MESSAGE_MALFORMED, "The body must not be compressed."), 415
            )
        if (self.http.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        if self.http.headers.get("Expect", "").lower() == "100-continue":
            await self.http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.http.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(timeout):
                while chunk := await self.http.content.read(_CHUNK_BYTES):
                    if len(body) + len(chunk) > max_bytes:
                        raise _too_large(max_bytes)
                    if is_counted:
                        self._budget.take(len(chunk))
                        self._taken += len(chunk)
                    body += chunk
        except TimeoutError:
            raise HttpError(
                ApiError(
                    ErrorReason.DEADLINE_EXCEEDED,
                    f"The body must arrive within {timeout:g} s.",
                ),
                408,
                {"Connection": "close"},
            ) from None
        except web.RequestPayloadError:
            raise HttpError(
                ApiError(ErrorReason.MESSAGE_MALFORMED, "The body must be complete HTTP.")
            ) from None
        return bytes(body)

    def release_body(self) -> None:
        """Gives back the bytes of the body, which is no longer needed."""
        self._budget.give_back(self._taken)
        self._taken = 0


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        ApiError(ErrorReason.MESSAGE_TOO_LARGE, f"The body must have at most {max_bytes} bytes."),
        413,
        {"Connection": "close"},
    )
