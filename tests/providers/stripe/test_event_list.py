"""The list of Stripe's events: what an outage has missed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
import pytest

from tallystick_core.provider.outcome import NotSent, RetryReason, Unknown
from tallystick_core.provider.webhook import WebhookEvent, WebhookSubject
from tallystick_server.providers.stripe import event_list
from tallystick_server.providers.stripe.client import RequestBody, Transport
from tallystick_server.providers.stripe.errors import NotConnected
from tallystick_server.providers.stripe.webhooks import StripeWebhooks, parse_event
from tests.providers.stripe.scripted_stripe import (
    Answer,
    ScriptedTransport,
    api_of,
    error,
    settings_with,
)
from tests.support.platform import ROOT

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
START = int(NOW.timestamp())


def event(id_: str, seconds: int = 0) -> dict[str, Any]:
    """A snapshot event, so long after NOW."""
    return {
        "id": id_,
        "object": "event",
        "type": "payment_intent.succeeded",
        "created": START + seconds,
        "data": {
            "object": {
                "id": "pi_1",
                "object": "payment_intent",
                "metadata": {"charge_id": "o-po1"},
            }
        },
    }


def listed(*ids: str, has_more: bool = False) -> dict[str, Any]:
    data = [event(id_) for id_ in ids]
    return {"object": "list", "data": data, "has_more": has_more}


def list_events(
    transport: Transport, endpoint: str = "", since: datetime = NOW
) -> Sequence[WebhookEvent] | NotSent | Unknown:
    return asyncio.run(
        StripeWebhooks("stripe", settings_with(), api_of(transport)).list_events(endpoint, since)
    )


class ListingStripe(Transport):
    """A Stripe that lists events as it documents: the newest first, page by page."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self.events = sorted(events, key=lambda item: item["created"], reverse=True)
        self.requests: list[dict[str, str]] = []

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        values = dict(parse_qsl(urlsplit(url).query))
        self.requests.append(values)
        first, stop = int(values["created[gte]"]), int(values.get("created[lt]", 2**62))
        items = [item for item in self.events if first <= item["created"] < stop]
        ids = [item["id"] for item in items]
        begin = ids.index(values["starting_after"]) + 1 if "starting_after" in values else 0
        limit = int(values["limit"])
        data = items[begin : begin + limit]
        page = {"object": "list", "data": data, "has_more": len(items) > begin + limit}
        return 200, {}, orjson.dumps(page)


def list_all(stripe: ListingStripe) -> list[str]:
    """The ids of all events, as the caller collects them: each answer from the last one's time."""
    ids: list[str] = []
    since = NOW
    while True:
        events = list_events(stripe, since=since)
        assert isinstance(events, tuple), events
        assert len(events) <= event_list.MAX_LISTED_EVENTS
        assert [item.provider_time for item in events] == sorted(
            item.provider_time for item in events
        )
        ids += [item.event_id for item in events if item.event_id not in ids]
        if not events or events[-1].provider_time <= since:
            return ids
        since = events[-1].provider_time


def test_missed_events_are_listed_page_by_page_the_oldest_first() -> None:
    """Each page begins after the last event of the one before. An event that cannot be read is left
    out, and does not stop the others. Only types that the platform handles are listed.
    """
    transport = ScriptedTransport()
    broken = listed("evt_1")
    broken["data"].insert(0, {"id": "evt_broken", "object": "event"})
    newest = listed("evt_3", has_more=True)
    transport.script("GET /v1/events", newest, listed("evt_3", "evt_2", has_more=True), broken)
    events = list_events(transport)
    assert isinstance(events, tuple)
    assert [item.event_id for item in events] == ["evt_1", "evt_2", "evt_3"]
    probe, first, second = transport.requests
    types = {f"types[{index}]": name for index, name in enumerate(event_list.LISTED_TYPES)}
    assert probe.values == {"created[gte]": str(START), "limit": "1"} | types
    slice_ = {"created[gte]": str(START), "created[lt]": str(START + 1), "limit": "100"}
    assert first.values == slice_ | types
    assert second.values == slice_ | types | {"starting_after": "evt_2"}


def test_every_listed_type_has_a_subject() -> None:
    """Stripe allows 20 types in a request; each is about a charge or a payout."""
    assert len(set(event_list.LISTED_TYPES)) <= 20
    for type_ in event_list.LISTED_TYPES:
        fields = {"id": "x_1", "payment_intent": "pi_1"}
        metadata = {"charge_id": "o-po1", "payout_id": "p1"}
        item = event("evt_1") | {"type": type_, "data": {"object": fields | {"metadata": metadata}}}
        assert parse_event("stripe", item).subject is not WebhookSubject.OTHER, type_


@pytest.mark.parametrize("seed", range(2))
def test_any_number_of_events_is_listed_in_bounded_answers(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """However the events lie in time, the caller gets each, and the requests grow with their number
    only.
    """
    monkeypatch.setattr(event_list, "MAX_LISTED_EVENTS", 400)
    monkeypatch.setattr(event_list, "_MAX_SLICE_PAGES", 1)
    monkeypatch.setattr(event_list, "_SPARSE_COUNT", 25)
    random = Random(seed)
    times = [random.randrange(30 * 86_400) for _ in range(1_000)]
    burst = random.randrange(30 * 86_400)
    times += [burst] * 200 + [burst + 1] * 200 + [burst + 2 + index // 50 for index in range(1_000)]
    stripe = ListingStripe([event(f"evt_{n}", seconds) for n, seconds in enumerate(times)])
    ids = list_all(stripe)
    assert sorted(ids) == sorted(item["id"] for item in stripe.events)
    assert len(stripe.requests) < len(times) / 5


def test_a_second_with_too_many_events_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and nothing is left out silently."""
    monkeypatch.setattr(event_list, "MAX_LISTED_EVENTS", 400)
    monkeypatch.setattr(event_list, "_MAX_SLICE_PAGES", 1)
    stripe = ListingStripe([event(f"evt_{n}", 7) for n in range(201)])
    assert isinstance(list_events(stripe), Unknown)


def test_no_events_are_one_request() -> None:
    """Stripe is asked for the newest event first."""
    stripe = ListingStripe([])
    assert list_events(stripe) == ()
    assert len(stripe.requests) == 1


def test_a_list_that_is_not_answered_is_no_list() -> None:
    """A part of the events is never taken for all of them."""
    transport = ScriptedTransport()
    page = listed("evt_2", has_more=True)
    transport.script("GET /v1/events", page, page, error(500, "api_error"))
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


def test_the_page_about_stripe_lists_the_types_to_select() -> None:
    """An operator copies them to the webhook endpoint of the platform's account."""
    page = (ROOT / "docs/operations/stripe.md").read_text()
    assert ", ".join(f"`{type_}`" for type_ in event_list.LISTED_TYPES) in page
