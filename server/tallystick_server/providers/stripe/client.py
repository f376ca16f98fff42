"""How Stripe is called: by its own library, over a bounded transport that can be replaced."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import aiohttp
import orjson
import stripe
from yarl import URL

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_server.providers.request_ids import note_request_id
from tallystick_server.providers.stripe.errors import (
    ForeignAnswer,
    NoAnswer,
    NotConnected,
    Rejection,
    to_result,
)
from tallystick_server.providers.stripe.json_fields import read_flag, read_objects, read_text
from tallystick_server.providers.stripe.settings import StripeSettings

MAX_BODY_BYTES = 4 * 1024 * 1024
"""A page of 100 events, each with its object, has less."""
PAGE_SIZE = 100
"""The most objects of a page."""
_MAX_CONNECTIONS = 256
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=20.0, sock_connect=3.0, sock_read=20.0)
"""Seconds. The gateway's own limit counts for a whole call, which may be several requests."""
_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

R = TypeVar("R")


RequestBody: TypeAlias = str | bytes | None


class Transport(stripe.HTTPClient):
    """Carries the requests of Stripe's library. Its answers have at most MAX_BODY_BYTES, and are
    JSON objects, or it raises ForeignAnswer. It raises NotConnected if nothing was sent, and
    NoAnswer if no whole answer came.
    """

    name = "tallystick"

    async def request_async(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: RequestBody = None,
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """The answer to one request."""
        status, plain_headers, body = await self.send(method, url, headers, post_data)
        answer_headers = {name.lower(): value for name, value in plain_headers.items()}
        note_request_id(answer_headers.get("request-id", ""), status)
        if not _is_stripe_answer(status, body):
            raise ForeignAnswer(status, answer_headers)
        return body, status, answer_headers

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Sends one request. Returns the status, the headers and the body of the answer."""
        raise NotImplementedError

    async def close_async(self) -> None:
        """Closes its connections."""

    def download(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> AsyncIterator[bytes]:
        """The parts of a file. Raises ForeignAnswer if it is none, or is too long."""
        raise NotImplementedError


class HttpTransport(Transport):
    """Connections to Stripe. No redirect is followed."""

    def __init__(self) -> None:
        super().__init__()
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        async with self._request(method, url, headers, body) as response:
            parts = [part async for part in _parts(response, MAX_BODY_BYTES)]
            return response.status, response.headers, b"".join(parts)

    async def download(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> AsyncIterator[bytes]:
        async with self._request("GET", url, headers, None) as response:
            if response.status != 200:
                raise ForeignAnswer(response.status, response.headers)
            async for part in _parts(response, max_bytes):
                yield part

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one request, which the block reads."""
        if self._session is None:  # made inside the loop that uses it
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=_TIMEOUT,
            )
        # the library has encoded the URL
        sent_url = URL(url, encoded=True)
        try:
            async with self._session.request(
                method, sent_url, headers=headers, data=body or None, allow_redirects=False
            ) as response:
                yield response
        except _NOT_CONNECTED as error:
            raise NotConnected(type(error).__name__) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswer(type(error).__name__) from error

    async def close_async(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _parts(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > max_bytes:
            raise ForeignAnswer(response.status, response.headers)
        yield part


def _is_stripe_answer(status: int, body: bytes) -> bool:
    """Whether an answer has the form of Stripe's: an object, or an error with its table."""
    try:
        content = orjson.loads(body)
    except ValueError:
        return False
    if not isinstance(content, dict) or 300 <= status < 400:
        return False
    return status < 300 or isinstance(content.get("error"), dict)


def _parse_page(answer: Answer) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """The objects of a page, and whether there are more. Raises ValueError."""
    objects = read_objects(answer.body)
    for fields in objects:
        read_text(fields, "id")
    return objects, read_flag(answer.body, "has_more")


@dataclass(frozen=True, slots=True)
class Answer:
    """Stripe's answer to a request that it accepted."""

    body: Mapping[str, Any]
    is_replayed: bool
    """Whether it is the first answer to the same idempotency key, which may be out of date."""
    date: str
    """When it was sent, as an HTTP date of Stripe's clock; "": unknown."""


class StripeApi:
    """The API of Stripe with one key. `files_url`: the server that holds files."""

    def __init__(self, settings: StripeSettings, transport: Transport | None = None) -> None:
        stripe.enable_telemetry = False
        logging.getLogger("stripe").setLevel(logging.WARNING)  # it logs addresses and error texts
        self.transport = transport or HttpTransport()
        self._api_key = settings.api_key
        self._files_url = settings.files_base.rstrip("/")
        url = settings.url.rstrip("/")
        self.is_plain = url.startswith("http://")
        """Whether it is reached without TLS: it is a server on this machine."""
        client = stripe.StripeClient(
            settings.api_key,
            http_client=self.transport,
            max_network_retries=0,
            base_addresses={
                "api": url,
                "connect": url,
                "files": self._files_url,
                "meter_events": url,
            },
        )
        self.v1 = client.v1
        """The calls of Stripe's library. Each is awaited by `call`."""

    async def call(
        self, request: Awaitable[Any], parse: Callable[[Answer], R]
    ) -> R | Rejection | NotSent | Unknown:
        """The result of `parse`. An answer that `parse` rejects with KeyError, TypeError or
        ValueError is Unknown.
        """
        try:
            response = cast(stripe.StripeObject, await request).last_response
            if response is None or not isinstance(response.data, dict):
                return Unknown("an answer without an object")
            headers = response.headers
            is_replayed = headers.get("idempotent-replayed", "") == "true"
            return parse(Answer(response.data, is_replayed, headers.get("date", "")))
        except stripe.StripeError as error:
            return to_result(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return Unknown(f"an answer that cannot be read: {type(error).__name__}")

    async def read_pages(
        self,
        request: Callable[..., Awaitable[Any]],
        params: Mapping[str, Any],
        max_pages: int,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Sequence[Mapping[str, Any]] | Rejection | NotSent | Unknown]:
        """The objects of a list, a page each, the newest first. `request`: the library's call, with
        its parameters and options. A page without a usable answer is the last, and so is Unknown
        after `max_pages`.
        """
        page_params = {**params, "limit": PAGE_SIZE}
        for _ in range(max_pages):
            page = await self.call(request(page_params, options), _parse_page)
            if not isinstance(page, tuple):
                yield page
                return
            objects, has_more = page
            yield objects
            if not has_more or not objects:
                return
            page_params["starting_after"] = read_text(objects[-1], "id")
        yield Unknown(f"a list of more than {max_pages} pages")

    async def download_file(self, file_id: str, max_bytes: int) -> AsyncIterator[bytes]:
        """The parts of a file. Raises `stripe.StripeError` if it cannot be read as a whole."""
        url = f"{self._files_url}/v1/files/{file_id}/contents"
        headers = {"Authorization": f"Bearer {self._api_key}"}
        async for part in self.transport.download(url, headers, max_bytes):
            yield part

    async def close(self) -> None:
        await self.transport.close_async()
