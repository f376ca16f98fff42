"""`GET /p/{token}`: the buyer's status page of a payment. Everyone who has the token may see it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.status_link import RETURNED_QUERY, STATUS_PATH
from tallystick_server.http.errors import RETRY_AFTER
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route
from tallystick_server.http.status_page.languages import (
    Language,
    choose_language,
    load_languages,
)
from tallystick_server.http.status_page.view import (
    View,
    not_found_view,
    payment_view,
    unavailable_view,
)
from tallystick_server.http.web_pages import page_headers, static_routes, template_environment
from tallystick_server.observability import names
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient

log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_READ_SECONDS, _LOOK_UP_SECONDS = 2.0, 5.0
_RETRY_AFTER_SECONDS = 5
_MAX_CALLS_IN_FLIGHT = 200
"""Above it a page is unavailable, so that readers without a token cannot use the whole service."""
_NOT_FOUND_CODES = {"NOT_FOUND", "INVALID_ARGUMENT"}

_HEADERS = {
    **page_headers(
        "script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'none'",
        "no-referrer",
    ),
    "Vary": "Accept-Language",
}

StatusCall = Callable[..., Awaitable[payment_service_pb2.RefreshBuyerStatusResponse]]


class StatusPage:
    """The page and its files. `status_call`: RefreshBuyerStatus of PaymentService."""

    def __init__(self, status_call: StatusCall, service_client: ServiceClient) -> None:
        self._status_call = status_call
        self._service_client = service_client
        self._calls_in_flight = 0
        self._languages = load_languages()
        self._template = template_environment(_FOLDER / "templates").get_template("page.html")

    def routes(self) -> list[Route]:
        """The page, and its files, which no token can name."""
        return [
            Route("GET", f"{STATUS_PATH}/{{token}}", self.respond, is_encoded=True),
            *static_routes(_FOLDER / "static", f"{STATUS_PATH}/static"),
        ]

    async def respond(self, request: Request) -> web.StreamResponse:
        """The page of a token. Raises no error for an unknown one."""
        accept_language = request.http.headers.get("Accept-Language", "")
        language = choose_language(self._languages, accept_language)
        token = request.variables["token"]
        if _TOKEN.fullmatch(token) is None:
            return self._page(not_found_view(language), language, 404)
        try:
            status = await self._read_status(token, look_up=_is_return(request.http))
        except ServiceCallRejected as error:
            if error.status in _NOT_FOUND_CODES:
                return self._page(not_found_view(language), language, 404)
            return self._unavailable(language, error.status)
        except (ApiError, TimeoutError) as error:
            return self._unavailable(language, type(error).__name__)
        language = choose_language(self._languages, accept_language, status.locale)
        return self._page(payment_view(status, language), language)

    async def _read_status(self, token: str, *, look_up: bool) -> payment_pb2.BuyerStatus:
        """Raises ServiceCallRejected, ApiError, TimeoutError."""
        if self._calls_in_flight >= _MAX_CALLS_IN_FLIGHT:
            raise ApiError(ErrorReason.OVERLOADED, "Too many readers of status pages.")
        request = payment_service_pb2.RefreshBuyerStatusRequest(status_token=token, look_up=look_up)
        self._calls_in_flight += 1
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS if look_up else _READ_SECONDS):
                response = await self._service_client.call(self._status_call, request)
        finally:
            self._calls_in_flight -= 1
        return response.buyer_status

    def _unavailable(self, language: Language, error: str) -> web.Response:
        log.warning(
            "PaymentService has no status for a page: %s",
            error,
            extra=names.STATUS_PAGE_UNAVAILABLE.extra,
        )
        response = self._page(unavailable_view(language), language, 503)
        response.headers[RETRY_AFTER] = str(_RETRY_AFTER_SECONDS)
        return response

    def _page(self, view: View, language: Language, status: int = 200) -> web.Response:
        return web.Response(
            text=self._template.render(view=view, language=language),
            status=status,
            content_type="text/html",
            headers={**_HEADERS, "Content-Language": language.tag},
        )


def _is_return(request: web.BaseRequest) -> bool:
    """Whether a buyer comes from the provider's page. Providers add fields of their own."""
    fields = request.rel_url.raw_query_string.split("&")
    return request.method == "GET" and any(
        field.partition("=")[0] == RETURNED_QUERY for field in fields
    )
