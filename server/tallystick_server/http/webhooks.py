"""`POST /webhooks/{provider}`: verifies a provider's webhook, has its event stored, and answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from aiohttp import web

from tallystick.operator.v1 import operator_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSource,
    WebhookSubject,
)
from tallystick_server.http.errors import HttpError
from tallystick_server.http.request import Request
from tallystick_server.http.responses import json_response
from tallystick_server.http.routing import Route
from tallystick_server.observability import metrics, names
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher, bisect_on_error
from tallystick_server.operations.webhook_handlers import to_received_message
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient

log = logging.getLogger(__name__)

_PATH = "/webhooks"
_RETRY_AFTER_SECONDS = 5.0
_CONCURRENCY = 2

_NOT_STORED = (InvalidSignature, UnreadableWebhook, ApiError, ServiceCallRejected)

ReceiveCall = Callable[..., Awaitable[operator_pb2.BatchReceiveWebhookEventsResponse]]


class WebhookEndpoints:
    """The endpoints of all providers. `receive_calls`: BatchReceiveWebhookEvents of the service
    that keeps the events about each subject.
    """

    def __init__(
        self,
        sources: Sequence[WebhookSource],
        receive_calls: Mapping[WebhookSubject, ReceiveCall],
        service_client: ServiceClient,
        now: Callable[[], datetime],
    ) -> None:
        self._sources = sources
        self._service_client = service_client
        self._now = now
        self._batchers: dict[WebhookSubject, Batcher[WebhookEvent, bool]] = {
            subject: Batcher(
                "http.send_webhook_events",
                self._make_sender(call),
                max_batch=MAX_ITEMS,
                concurrency=_CONCURRENCY,
                max_queued=MAX_QUEUED_CALLS,
            )
            for subject, call in receive_calls.items()
        }

    def routes(self) -> list[Route]:
        """One for each endpoint of each provider."""
        return [
            Route(
                "POST",
                "/".join(filter(None, (_PATH, source.name, endpoint))),
                self._make_handler(source, endpoint),
            )
            for source in self._sources
            for endpoint in source.endpoints
        ]

    async def store(self, event: WebhookEvent) -> bool:
        """Has an event stored. Returns whether it is new. Raises ApiError, ServiceCallRejected."""
        return await self._batchers[event.subject].submit(event)

    def start(self) -> None:
        for source in self._sources:
            for result in ("stored", "fetched"):  # a counter that begins at 0 shows its first event
                metrics.WEBHOOKS.add(0, source.name, result)
            if not source.endpoints:
                log.warning(
                    "no webhooks of %s are accepted: its settings have no secrets for them, so "
                    "results wait for the next lookup",
                    source.name,
                    extra=names.WEBHOOKS_NOT_ACCEPTED.extra,
                )
        for batcher in self._batchers.values():
            batcher.start()

    async def stop(self) -> None:
        for batcher in self._batchers.values():
            await batcher.stop()

    def _make_handler(
        self, source: WebhookSource, endpoint: str
    ) -> Callable[[Request], Awaitable[web.StreamResponse]]:
        async def receive(request: Request) -> web.StreamResponse:
            body = await request.read_body()
            try:
                event = source.parse(endpoint, body, request.http.headers, self._now())
                await self.store(event)
            except _NOT_STORED as error:
                result, rejection = _reject(source.name, error)
                metrics.WEBHOOKS.add(1, source.name, result)
                raise rejection from None
            metrics.WEBHOOKS.add(1, source.name, "stored")
            return json_response(b"{}")

        return receive

    def _make_sender(
        self, call: ReceiveCall
    ) -> Callable[[Sequence[WebhookEvent]], Awaitable[Sequence[bool | Exception]]]:
        async def send(events: Sequence[WebhookEvent]) -> Sequence[bool | Exception]:
            request = operator_pb2.BatchReceiveWebhookEventsRequest(
                events=[to_received_message(event) for event in events]
            )
            response = await self._service_client.call(call, request)
            return list(response.is_new)

        # one event that the service rejects does not hold up the others
        return lambda events: bisect_on_error(send, events)


def _reject(provider: str, error: Exception) -> tuple[str, HttpError]:
    """The metric's result and the response for a webhook that was not stored."""
    match error:
        case InvalidSignature():
            message = "The webhook must have a current signature of the provider."
            return "signature_invalid", HttpError(
                ApiError(ErrorReason.CREDENTIALS_INVALID, message), 400
            )
        case UnreadableWebhook():
            log.error(
                "a signed webhook of %s cannot be read: %s",
                provider,
                error,
                extra=names.WEBHOOK_UNREADABLE.extra,
            )
            message = "The webhook is signed, and has no known form. Deliver it again later."
            return "unreadable", HttpError(ApiError(ErrorReason.INTERNAL, message), 500)
        case _:
            log.warning(
                "a webhook of %s cannot be stored: %s",
                provider,
                error,
                extra=names.WEBHOOK_NOT_STORED.extra,
            )
            return "not_stored", HttpError(
                ApiError(
                    ErrorReason.DEPENDENCY_UNAVAILABLE,
                    "The webhook cannot be stored now. Deliver it again later.",
                    retry_after=_RETRY_AFTER_SECONDS,
                ),
                503,
            )
