"""The list of Stripe's events, the oldest first. Stripe lists the newest first, so the list is read
in slices of time that are small enough to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.webhook import WebhookEvent
from tallystick_server.providers.stripe.client import PAGE_SIZE, Answer, StripeApi
from tallystick_server.providers.stripe.errors import Rejection, to_unknown
from tallystick_server.providers.stripe.json_fields import read_number, read_objects

if TYPE_CHECKING:
    from stripe.params import EventListParams, EventListParamsCreated

LISTED_TYPES = (
    "charge.captured",
    "charge.expired",
    "charge.failed",
    "charge.refunded",
    "charge.succeeded",
    "charge.updated",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "payment_intent.amount_capturable_updated",
    "payment_intent.canceled",
    "payment_intent.payment_failed",
    "payment_intent.processing",
    "payment_intent.requires_action",
    "payment_intent.succeeded",
    "transfer.created",
    "transfer.reversed",
    "transfer.updated",
)
"""The types of the platform's account that are about a charge or a payout. Stripe allows 20."""
MAX_LISTED_EVENTS = 10_000
"""Of one answer. Of one second: half as many, so that the next answer always gets further."""
_MAX_SLICE_PAGES = 10
_SPARSE_COUNT = 250

Parse = Callable[[Mapping[str, Any]], WebhookEvent | None]
"""Reads an event; None: it cannot be read."""


async def list_oldest_events(
    api: StripeApi, since: int, parse: Parse
) -> Sequence[WebhookEvent] | NotSent | Unknown:
    """At most the MAX_LISTED_EVENTS oldest events since a time, in Unix seconds, and either all or
    none of each second. The rest is listed from the time of the last one.
    """
    end = await _find_end(api, since)
    if isinstance(end, NotSent | Unknown):
        return end
    events: list[WebhookEvent] = []
    start, width = since, end - since
    while start < end:
        width = min(max(width, 1), end - start)
        slice_ = await _list_slice(api, start, start + width, parse)
        if isinstance(slice_, NotSent | Unknown):
            return slice_
        if slice_ is None:
            width //= 2
            continue
        if len(events) + len(slice_) > MAX_LISTED_EVENTS:
            break
        events += slice_
        start += width
        if len(slice_) < _SPARSE_COUNT:
            width *= 2
    return tuple(events)


async def _find_end(api: StripeApi, since: int) -> int | NotSent | Unknown:
    """The second after the newest event; `since`: there is none."""

    def parse(answer: Answer) -> int:
        objects = read_objects(answer.body)
        return max([since, *(read_number(fields, "created") + 1 for fields in objects)])

    end = await api.call(api.v1.events.list_async({**_params({"gte": since}), "limit": 1}), parse)
    return to_unknown(end) if isinstance(end, Rejection) else end


async def _list_slice(
    api: StripeApi, start: int, stop: int, parse: Parse
) -> Sequence[WebhookEvent] | NotSent | Unknown | None:
    """The events from `start` until before `stop`, the oldest first. None: they are too many, and
    are not of one second.
    """
    is_second = stop - start == 1
    max_pages = MAX_LISTED_EVENTS // 2 // PAGE_SIZE if is_second else _MAX_SLICE_PAGES

    events: list[WebhookEvent] = []
    page_count = 0
    created: EventListParamsCreated = {"gte": start, "lt": stop}
    async for page in api.read_pages(api.v1.events.list_async, _params(created), max_pages + 1):
        if isinstance(page, Rejection):
            return to_unknown(page)
        if isinstance(page, NotSent | Unknown):
            return page
        page_count += 1
        if page_count > max_pages:
            return Unknown(f"too many events of the second {start}") if is_second else None
        events += [event for event in map(parse, page) if event is not None]
    events.reverse()
    return events


def _params(created: EventListParamsCreated) -> EventListParams:
    return {"created": created, "types": list(LISTED_TYPES)}
