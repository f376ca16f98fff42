"""The RPCs about webhook events of every service that calls providers."""

from __future__ import annotations

from tallystick.operator.v1 import operator_pb2
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.webhook import WebhookEvent, WebhookSubject
from tallystick_core.validation import (
    parse_id,
    parse_optional_id,
    parse_reason_text,
    parse_token,
)
from tallystick_server.operations.webhook_inbox import WebhookInbox
from tallystick_server.rpc.batch import check_batch
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_server.rpc.timestamps import parse_time, to_optional_timestamp, to_timestamp
from tallystick_storage import webhook_events as store
from tallystick_storage.database import Database

_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "BatchReceiveWebhookEvents": frozenset({Role.SERVICE}),
    "ListWebhookEvents": _OPERATOR,
    "GetWebhookEvent": _OPERATOR,
    "ReplayWebhookEvent": _OPERATOR,
}
_SUBJECTS = EnumNames(operator_pb2.WebhookSubject.DESCRIPTOR)
_STATES = EnumNames(operator_pb2.WebhookEventState.DESCRIPTOR)


class WebhookHandlers:
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, inbox: WebhookInbox) -> None:
        self._database = database
        self._inbox = inbox

    async def BatchReceiveWebhookEvents(
        self, request: operator_pb2.BatchReceiveWebhookEventsRequest, _call: Call
    ) -> operator_pb2.BatchReceiveWebhookEventsResponse:
        check_batch(request.events, "events")
        events = []
        for index, message in enumerate(request.events):
            try:
                events.append(parse_event(message))
            except ApiError as error:
                raise error.with_field_prefix(f"events[{index}]") from None
        return operator_pb2.BatchReceiveWebhookEventsResponse(
            is_new=await self._inbox.receive(events)
        )

    async def ListWebhookEvents(
        self, request: operator_pb2.ListWebhookEventsRequest, _call: Call
    ) -> operator_pb2.ListWebhookEventsResponse:
        state = _STATES.parse(request.state, "state", "")
        filters = store.WebhookEventFilter(
            WebhookEventState(state) if state else None,
            parse_optional_id(request.provider, "provider") or None,
            _parse_optional_token(request.reference, "reference") or None,
        )
        events, next_page_token = await list_page(self._database, _EVENTS, request, filters)
        return operator_pb2.ListWebhookEventsResponse(
            webhook_events=events, next_page_token=next_page_token
        )

    async def GetWebhookEvent(
        self, request: operator_pb2.GetWebhookEventRequest, _call: Call
    ) -> operator_pb2.GetWebhookEventResponse:
        id_ = parse_id(request.webhook_event_id, "webhook_event_id")
        return operator_pb2.GetWebhookEventResponse(
            webhook_event=await self.find_webhook_event(id_)
        )

    async def find_webhook_event(self, webhook_event_id: str) -> operator_pb2.WebhookEvent:
        """A webhook event in the inbox. Raises NOT_FOUND."""
        row = await self._database.read(lambda connection: store.find(connection, webhook_event_id))
        if row is None:
            raise not_found_error("webhook event", webhook_event_id)
        return to_message(row)

    async def ReplayWebhookEvent(
        self, request: operator_pb2.ReplayWebhookEventRequest, call: Call
    ) -> operator_pb2.ReplayWebhookEventResponse:
        id_ = parse_id(request.webhook_event_id, "webhook_event_id")
        reason = parse_reason_text(request.reason, "reason")
        row = await self._inbox.replay(id_, call.caller.name, reason)
        return operator_pb2.ReplayWebhookEventResponse(webhook_event=to_message(row))


def parse_event(message: operator_pb2.ReceivedWebhookEvent) -> WebhookEvent:
    """Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED."""
    provider_time = parse_time(message, "provider_time")
    if provider_time is None:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED, "provider_time is required.", field="provider_time"
        )
    return WebhookEvent(
        provider=parse_id(message.provider, "provider"),
        event_id=parse_token(message.event_id, "event_id"),
        event_type=parse_token(message.event_type, "event_type"),
        subject=WebhookSubject[_SUBJECTS.parse(message.subject, "subject")],
        provider_time=provider_time,
        reference=_parse_optional_token(message.reference, "reference"),
        client_reference=_parse_optional_token(message.client_reference, "client_reference"),
        account=_parse_optional_token(message.account, "account"),
    )


def to_received_message(event: WebhookEvent) -> operator_pb2.ReceivedWebhookEvent:
    """What a provider reported, as a message."""
    return operator_pb2.ReceivedWebhookEvent(
        provider=event.provider,
        event_id=event.event_id,
        event_type=event.event_type,
        subject=_SUBJECTS.number(event.subject.name),
        reference=event.reference,
        client_reference=event.client_reference,
        account=event.account,
        provider_time=to_timestamp(event.provider_time),
    )


def to_message(row: store.WebhookEventRow) -> operator_pb2.WebhookEvent:
    """A webhook event in the inbox, as a message."""
    return operator_pb2.WebhookEvent(
        webhook_event_id=row.webhook_event_id,
        state=_STATES.number(row.state),
        provider=row.provider,
        event_id=row.event_id,
        event_type=row.event_type,
        subject=_SUBJECTS.number(row.subject.upper()),
        reference=row.reference,
        client_reference=row.client_reference,
        account=row.account,
        resource_name=row.resource_name,
        provider_time=to_timestamp(row.provider_time),
        receive_time=to_timestamp(row.receive_time),
        end_time=to_optional_timestamp(row.end_time),
    )


def _parse_optional_token(text: str, field: str) -> str:
    return parse_token(text, field) if text else ""


_EVENTS = Listing(
    "ListWebhookEvents",
    store.list_webhook_events,
    NEWEST_FIRST,
    lambda row: (row.receive_time, row.webhook_event_id),
    to_message,
)
