"""Webhook events as the HTTP server passes them on, and the inbox as an operator sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.operator.v1 import operator_pb2
from tests.support.platform import eventually, unique_id


def new_event(**values: Any) -> operator_pb2.ReceivedWebhookEvent:
    """An event about a charge, as the HTTP server passes it on."""
    fields: dict[str, Any] = {
        "provider": "sandbox",
        "event_id": unique_id("evt"),
        "event_type": "charge.changed",
        "subject": operator_pb2.WEBHOOK_SUBJECT_CHARGE,
        "provider_time": Timestamp(seconds=1_700_000_000),
    }
    return operator_pb2.ReceivedWebhookEvent(**(fields | values))


def receive(stub: Any, *events: operator_pb2.ReceivedWebhookEvent) -> list[bool]:
    """Passes events to a service. Returns for each whether it is new."""
    request = operator_pb2.BatchReceiveWebhookEventsRequest(events=events)
    return list(stub.BatchReceiveWebhookEvents(request).is_new)


def find_event(
    stub: Any, event: operator_pb2.ReceivedWebhookEvent
) -> operator_pb2.WebhookEvent | None:
    """The event in the inbox of a service."""
    request = operator_pb2.ListWebhookEventsRequest(provider=event.provider, page_size=200)
    found: Sequence[operator_pb2.WebhookEvent] = stub.ListWebhookEvents(request).webhook_events
    return next((item for item in found if item.event_id == event.event_id), None)


def state_of(stub: Any, event: operator_pb2.ReceivedWebhookEvent) -> str:
    """The state of an event in the inbox; "": it is not there."""
    found = find_event(stub, event)
    if found is None:
        return ""
    return operator_pb2.WebhookEventState.Name(found.state).removeprefix("WEBHOOK_EVENT_STATE_")


def wait_for_event(
    stub: Any, event: operator_pb2.ReceivedWebhookEvent, state: str
) -> operator_pb2.WebhookEvent:
    """The event once it has this state."""
    assert eventually(lambda: state_of(stub, event) == state), state_of(stub, event)
    found = find_event(stub, event)
    assert found is not None
    return found


def open_dead_letter(stub: Any, webhook_event_id: str) -> operator_pb2.DeadLetter:
    """The open dead letter of a webhook event."""

    def find_dead_letter() -> operator_pb2.DeadLetter | None:
        request = operator_pb2.ListDeadLettersRequest(
            state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
        )
        found: Sequence[operator_pb2.DeadLetter] = stub.ListDeadLetters(request).dead_letters
        name = f"webhookEvents/{webhook_event_id}"
        return next((item for item in found if item.resource_name == name), None)

    dead_letter = eventually(find_dead_letter)
    assert dead_letter is not None, "no dead letter"
    return dead_letter
