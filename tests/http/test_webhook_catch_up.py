"""Events that a provider could not deliver are fetched."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest

from tallystick_core.provider.webhook import WebhookEvent, WebhookSubject
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.app.wiring import Dependencies
from tallystick_server.http.webhook_catch_up import WebhookCatchUp
from tallystick_server.rpc.service_client import ServiceCallRejected
from tests.fakes.webhook_source import SignedWebhookSource
from tests.support.platform import eventually, serve_platform, unique_id
from tests.support.webhooks import new_event, state_of

START = datetime(2026, 11, 28, tzinfo=UTC)


def event_at(time: datetime) -> WebhookEvent:
    return WebhookEvent("sandbox", unique_id("evt"), "customer.created", WebhookSubject.OTHER, time)


class Store:
    """Keeps events, each once."""

    def __init__(self) -> None:
        self.event_ids: list[str] = []

    async def __call__(self, event: WebhookEvent) -> bool:
        is_new = event.event_id not in self.event_ids
        if is_new:
            self.event_ids.append(event.event_id)
        return is_new


def test_every_event_since_the_last_run_is_stored_once() -> None:
    """A provider lists three events at a time: all ten are stored, oldest first. The next run
    begins shortly before the last of them, and stores only what is new.
    """
    source, store, now = SignedWebhookSource(), Store(), START
    source.undelivered = [event_at(START - timedelta(hours=10 - hour)) for hour in range(10)]
    catch_up = WebhookCatchUp([source], store, lambda: now, timedelta(days=1))
    asyncio.run(catch_up.run_once())
    assert store.event_ids == [event.event_id for event in source.undelivered]
    now += timedelta(hours=1)
    source.undelivered.append(event_at(START + timedelta(minutes=1)))
    source.listed_since.clear()
    asyncio.run(catch_up.run_once())
    assert store.event_ids == [event.event_id for event in source.undelivered]
    assert source.listed_since[0] == START - timedelta(hours=1, minutes=1)


def test_an_event_that_the_service_rejects_does_not_hold_up_the_others() -> None:
    """The other events of the list are stored, and the next run begins behind it."""
    source = SignedWebhookSource()
    source.undelivered = [event_at(START - timedelta(hours=3 - hour)) for hour in range(3)]
    stored: list[str] = []

    async def store(event: WebhookEvent) -> bool:
        if event is source.undelivered[1]:
            raise ServiceCallRejected("BatchReceiveWebhookEvents", "INVALID_ARGUMENT", "reference")
        stored.append(event.event_id)
        return True

    catch_up = WebhookCatchUp([source], store, lambda: START, timedelta(days=1))
    asyncio.run(catch_up.run_once())
    first, _, last = source.undelivered
    assert set(stored) == {first.event_id, last.event_id}
    source.listed_since.clear()
    asyncio.run(catch_up.run_once())
    assert source.listed_since[0] == last.provider_time - timedelta(minutes=1)


def test_a_run_ends_although_new_events_come() -> None:
    """A run lists what happened before its start. A provider with a steady stream of events does
    not keep it from the other endpoints.
    """
    store = Store()
    source = SignedWebhookSource()
    source.undelivered = [event_at(START + timedelta(minutes=minute)) for minute in range(-3, 60)]
    asyncio.run(WebhookCatchUp([source], store, lambda: START, timedelta(days=1)).run_once())
    assert 3 <= len(store.event_ids) <= 9
    assert len(source.listed_since) <= 5


def test_events_older_than_the_window_are_not_fetched() -> None:
    """The first run goes back as far as the setting says."""
    source, store = SignedWebhookSource(), Store()
    source.undelivered = [event_at(START - timedelta(days=days)) for days in (4, 2)]
    asyncio.run(WebhookCatchUp([source], store, lambda: START, timedelta(days=3)).run_once())
    assert store.event_ids == [source.undelivered[1].event_id]


def test_a_provider_that_does_not_answer_is_asked_again_for_the_same_events() -> None:
    """Nothing is skipped while the list cannot be read."""
    source, store, now = SignedWebhookSource(), Store(), START
    source.undelivered = [event_at(START - timedelta(hours=1))]
    source.is_unreachable = True
    catch_up = WebhookCatchUp([source], store, lambda: now, timedelta(days=1))
    asyncio.run(catch_up.run_once())
    assert store.event_ids == []
    source.is_unreachable = False
    now += timedelta(hours=3)
    asyncio.run(catch_up.run_once())
    assert store.event_ids == [source.undelivered[0].event_id]


def test_events_fetched_before_a_failed_list_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, though the run ends without the rest."""
    caplog.set_level(logging.INFO)
    source = SignedWebhookSource()
    source.undelivered = [event_at(START - timedelta(hours=5 - hour)) for hour in range(5)]

    async def store(_event: WebhookEvent) -> bool:
        source.is_unreachable = True
        return True

    asyncio.run(WebhookCatchUp([source], store, lambda: START, timedelta(days=1)).run_once())
    assert [record.getMessage() for record in caplog.records] == [
        "sandbox does not list its events: no connection",
        "sandbox: 3 events that were not delivered are stored",
    ]


def test_the_http_server_catches_up_at_its_start(scratch_database: DatabaseUrls) -> None:
    """An event that was created while the server was down is in the inbox soon after its start."""
    source = SignedWebhookSource()
    source.undelivered = [event_at(datetime.now(UTC) - timedelta(hours=1))]
    dependencies = Dependencies(webhook_sources={"sandbox": source})
    with (
        serve_platform(
            scratch_database, Settings(), (*service_names(), HTTP_SERVER), dependencies
        ) as platform,
        platform.client() as client,
    ):
        event = new_event(event_id=source.undelivered[0].event_id)
        assert eventually(lambda: state_of(client.payment, event) == "IGNORED")
