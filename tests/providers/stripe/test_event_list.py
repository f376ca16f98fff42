"""The list of Stripe's events: what an outage has missed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tallystick_core.provider.outcome import NotSent, RetryReason, Unknown
from tallystick_core.provider.webhook import WebhookEvent
from tallystick_server.providers.stripe import webhooks
from tallystick_server.providers.stripe.errors import NotConnected
from tallystick_server.providers.stripe.webhooks import StripeWebhooks
from tests.providers.stripe.scripted_stripe import (
    Answer,
    ScriptedTransport,
    api_of,
    error,
    settings_with,
)

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def event(id_: str) -> dict[str, Any]:
    """A snapshot event."""
    return {
        "id": id_,
        "object": "event",
        "type": "payment_intent.succeeded",
        "created": int(NOW.timestamp()),
        "data": {"object": {"id": "pi_1", "object": "payment_intent"}},
    }


def listed(*ids: str, has_more: bool = False) -> dict[str, Any]:
    data = [event(id_) for id_ in ids]
    return {"object": "list", "data": data, "has_more": has_more}


def list_events(
    transport: ScriptedTransport, endpoint: str = ""
) -> Sequence[WebhookEvent] | NotSent | Unknown:
    return asyncio.run(
        StripeWebhooks("stripe", settings_with(), api_of(transport)).list_events(endpoint, NOW)
    )


def test_missed_events_are_listed_page_by_page_the_oldest_first() -> None:
    """Each page begins after the last event of the one before. An event that cannot be read is left
    out, and does not stop the others.
    """
    transport = ScriptedTransport()
    broken = listed("evt_1")
    broken["data"].insert(0, {"id": "evt_broken", "object": "event"})
    transport.script("GET /v1/events", listed("evt_3", "evt_2", has_more=True), broken)
    events = list_events(transport)
    assert isinstance(events, tuple)
    assert [item.event_id for item in events] == ["evt_1", "evt_2", "evt_3"]
    first, second = transport.requests
    assert first.values == {"created[gte]": str(int(NOW.timestamp())), "limit": "100"}
    assert second.values["starting_after"] == "evt_2"


def test_the_oldest_events_are_kept_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded; the caller asks again from the time of the last one."""
    monkeypatch.setattr(webhooks, "MAX_LISTED_EVENTS", 3)
    transport = ScriptedTransport()
    transport.script(
        "GET /v1/events",
        listed("evt_5", "evt_4", has_more=True),
        listed("evt_3", "evt_2", has_more=True),
        listed("evt_1"),
    )
    events = list_events(transport)
    assert isinstance(events, tuple)
    assert [item.event_id for item in events] == ["evt_1", "evt_2", "evt_3"]


def test_a_list_that_is_not_answered_is_no_list() -> None:
    """A part of the events is never taken for all of them."""
    transport = ScriptedTransport()
    transport.script("GET /v1/events", listed("evt_2", has_more=True), error(500, "api_error"))
    outcome = list_events(transport)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.SERVER_ERROR
    transport.script("GET /v1/events", NotConnected("no server"))
    assert isinstance(list_events(transport), NotSent)
    transport.script("GET /v1/events", Answer(200, {"object": "list", "data": [7]}))
    assert isinstance(list_events(transport), Unknown)


def test_connected_accounts_have_no_list() -> None:
    """Stripe lists the events of one account only."""
    transport = ScriptedTransport()
    assert list_events(transport, "connect") == ()
    assert not transport.requests
