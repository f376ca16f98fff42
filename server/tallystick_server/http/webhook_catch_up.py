"""Fetches the events that a provider could not deliver, such as during an outage of this server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.webhook import WebhookEvent, WebhookSource
from tallystick_server.observability import metrics, names
from tallystick_server.rpc.service_client import ServiceCallRejected

log = logging.getLogger(__name__)

_OVERLAP = timedelta(seconds=60)
"""How far a run goes back behind the last one: a provider may list an event a moment late."""
_MAX_STORED_AT_ONCE = 500


class WebhookCatchUp:
    """Lists the events of each endpoint, and stores those that are missing. `window`: how far back
    the first run goes.
    """

    def __init__(
        self,
        sources: Sequence[WebhookSource],
        store: Callable[[WebhookEvent], Awaitable[bool]],
        now: Callable[[], datetime],
        window: timedelta,
    ) -> None:
        self._sources = sources
        self._store = store
        self._now = now
        self._listed_until = {
            (source.name, endpoint): now() - window
            for source in sources
            for endpoint in source.endpoints
        }

    async def run_once(self) -> None:
        """Catches up with each endpoint. Raises ApiError if an event cannot be stored now; the next
        run begins where this one did.
        """
        for source in self._sources:
            for endpoint in source.endpoints:
                await self._catch_up(source, endpoint)

    async def _catch_up(self, source: WebhookSource, endpoint: str) -> None:
        """Stores the events up to the start of this run. Later ones are delivered, or listed by the
        next run. Only the provider's own times count.
        """
        start_time, since = self._now(), self._listed_until[source.name, endpoint]
        missed_count = 0
        while True:
            events = await source.list_events(endpoint, since)
            if isinstance(events, NotSent | Unknown):
                log.warning(
                    "%s does not list its events: %s",
                    source.name,
                    events.detail,
                    extra=names.WEBHOOKS_NOT_LISTED.extra,
                )
                break
            missed_count += await self._store_all(events)
            if not events or events[-1].provider_time <= since:
                break
            since = events[-1].provider_time
            self._listed_until[source.name, endpoint] = since - _OVERLAP
            if since > start_time:
                break
        if missed_count:
            metrics.WEBHOOKS.add(missed_count, source.name, "fetched")
            log.info(
                "%s: %d events that were not delivered are stored",
                source.name,
                missed_count,
                extra=names.WEBHOOKS_FETCHED.extra,
            )

    async def _store_all(self, events: Sequence[WebhookEvent]) -> int:
        """Stores events. Returns how many are new."""
        new_count = 0
        for start in range(0, len(events), _MAX_STORED_AT_ONCE):
            part = events[start : start + _MAX_STORED_AT_ONCE]
            new_count += sum(await asyncio.gather(*(self._try_store(event) for event in part)))
        return new_count

    async def _try_store(self, event: WebhookEvent) -> bool:
        """Stores an event. One that the service rejects does not hold up the others."""
        try:
            return await self._store(event)
        except ServiceCallRejected as error:
            if error.rejects_caller:
                raise
            log.error(  # noqa: TRY400 - the traceback adds nothing
                "a listed event of %s cannot be stored: %s",
                event.provider,
                error,
                extra=names.WEBHOOK_EVENT_REJECTED.extra,
            )
            return False
