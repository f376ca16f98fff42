"""The RPCs of EventService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial

from tallystick.event.v1 import event_pb2
from tallystick.event.v1 import event_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason, key_reused_error
from tallystick_core.event import MAX_AGGREGATE_ID, check_event, format_event_id
from tallystick_core.validation import parse_id, parse_text, require_item_count
from tallystick_server.operations.batcher import MAX_QUEUED_BATCHES, Batcher, bisect_on_error
from tallystick_server.rpc.batch import check_batch
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import parse_page_size
from tallystick_server.rpc.streaming import (
    SequenceSource,
    SequenceTail,
    StreamFilter,
    stream_resource,
)
from tallystick_server.rpc.timestamps import has_time
from tallystick_storage.database import Database
from tallystick_storage.event import events as store
from tallystick_storage.sql import Connection

_UNRESTRICTED_ROLES = frozenset({Role.SERVICE, Role.OPERATOR, Role.AUDITOR})
ACCESS: Access = {
    "BatchPublish": frozenset({Role.SERVICE}),
    "StreamEvents": _UNRESTRICTED_ROLES | {Role.TEAM, Role.PAYOUTS},
    "ListEvents": frozenset({Role.SERVICE}),
}
_TYPES = EnumNames(event_pb2.EventType.DESCRIPTOR)
_MAX_TYPES = len(event_pb2.EventType.DESCRIPTOR.values) - 1  # without the unset value
_MAX_AGGREGATES = 100
_MAX_GROUPS = 4  # requests published in one transaction, of at most 1,000 events each


class EventHandlers:
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.tail = SequenceTail(
            database,
            SequenceSource(
                store.last_cursor,
                _read_between,
                lambda row: int(row.cursor),
                lambda row: len(row.body),
                store.horizon,
            ),
        )
        self._publish_batcher: Batcher[Sequence[store.NewEvent], int] = Batcher(
            "event.publish",
            lambda groups: bisect_on_error(self._publish_groups, groups),
            max_batch=_MAX_GROUPS,
            max_linger=0,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_BATCHES,
        )  # the items arrive in batches already

    def start(self) -> None:
        self._publish_batcher.start()

    async def stop(self) -> None:
        await self._publish_batcher.stop()

    async def BatchPublish(
        self, request: pb.BatchPublishRequest, _call: Call
    ) -> pb.BatchPublishResponse:
        check_batch(request.events, "events")
        events: dict[store.EventKey, store.NewEvent] = {}
        for index, message in enumerate(request.events):
            try:
                event = _new_event(message)
            except ApiError as error:
                raise error.with_field_prefix(f"events[{index}]") from None
            if event.key in events:
                raise ApiError(
                    ErrorReason.DUPLICATE_ITEM,
                    f"events[{index}].event_id must be unique in the request.",
                    field=f"events[{index}].event_id",
                )
            events[event.key] = event
        try:
            return pb.BatchPublishResponse(
                published=await self._publish_batcher.submit(list(events.values()))
            )
        except store.EventConflict as error:
            index = list(events).index(error.key)
            raise key_reused_error(
                f"events[{index}].{_first_difference(events[error.key].body, error.stored_body)}"
            ) from None

    async def StreamEvents(
        self, request: pb.StreamEventsRequest, call: Call
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        aggregate = parse_text(request.aggregate_id, "aggregate_id", MAX_AGGREGATE_ID)
        if len(request.types) > _MAX_TYPES:
            raise ApiError(
                ErrorReason.TOO_MANY_ITEMS,
                f"types must have at most {_MAX_TYPES} items: each type once.",
                field="types",
            )
        types = frozenset(
            _TYPES.parse(number, f"types[{index}]") for index, number in enumerate(request.types)
        )
        owner = call.caller.owner if _UNRESTRICTED_ROLES.isdisjoint(call.caller.roles) else ""

        def matches(row: store.EventRow) -> bool:
            return (
                (not types or row.type in types)
                and aggregate in ("", row.aggregate_id)
                and owner in ("", row.owner)
            )

        stream_filter = StreamFilter(
            partial(_read_between, types=types, aggregate=aggregate, owner=owner),
            matches,
            call.caller.owner,
            is_indexed=bool(aggregate),
        )
        return stream_resource(
            self.tail.stream(
                stream_filter, request.after_cursor, "after_cursor", follow=request.follow
            ),
            _stream_response,
        )

    async def ListEvents(self, request: pb.ListEventsRequest, _call: Call) -> pb.ListEventsResponse:
        require_item_count(request.aggregate_ids, "aggregate_ids", _MAX_AGGREGATES)
        ids = [
            parse_text(id_, f"aggregate_ids[{index}]", MAX_AGGREGATE_ID)
            for index, id_ in enumerate(request.aggregate_ids)
        ]
        limit = parse_page_size(request.page_size)
        rows = await self._database.read(
            lambda connection: store.list_of_aggregates(connection, sorted(set(ids)), limit)
        )
        return pb.ListEventsResponse(events=map(_event, rows))

    async def _publish_groups(
        self, groups: Sequence[Sequence[store.NewEvent]]
    ) -> Sequence[int | Exception]:
        """Publishes groups in one transaction; an event in two groups counts for the first.

        Raises EventConflict for two different events of one id, so that bisection finds the group.
        """
        unique: dict[store.EventKey, store.NewEvent] = {}
        for group in groups:
            for event in group:
                first = unique.setdefault(event.key, event)
                if first.body != event.body:
                    raise store.EventConflict(event.key, first.body)

        def publish(connection: Connection) -> set[store.EventKey]:
            return store.publish(connection, list(unique.values()))

        new_keys = unique.keys() - await self._database.transact(publish, idempotent=True)
        counts = []
        for group in groups:
            keys = {event.key for event in group} & new_keys
            counts.append(len(keys))
            new_keys -= keys
        return counts


def _read_between(
    connection: Connection,
    after: int,
    until: int,
    limit: int,
    types: Collection[str] = (),
    aggregate: str = "",
    owner: str = "",
) -> Sequence[store.EventRow]:
    return store.list_between(connection, after, until, list(types), aggregate, owner, limit)


def _stream_response(row: store.EventRow) -> pb.StreamEventsResponse:
    return pb.StreamEventsResponse(event=_event(row))


def _event(row: store.EventRow) -> event_pb2.Event:
    event = event_pb2.Event.FromString(bytes(row.body))
    event.cursor = row.cursor
    return event


def _first_difference(sent: bytes, published: bytes) -> str:
    """The first field in which two events with the same id differ."""
    sent_event, published_event = (
        event_pb2.Event.FromString(sent),
        event_pb2.Event.FromString(published),
    )
    fields = (
        field.name
        for field in event_pb2.Event.DESCRIPTOR.fields
        if getattr(sent_event, field.name) != getattr(published_event, field.name)
    )
    return next(fields, "event_id")  # they differ in fields unknown here


def _new_event(message: event_pb2.Event) -> store.NewEvent:
    """A validated new event; its payload is trusted.

    Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    aggregate, version = message.aggregate_id, message.aggregate_version
    type_ = _TYPES.parse(message.type, "type")
    check_event(
        type_, aggregate, message.WhichOneof("payload") or "", message.caller, message.traceparent
    )
    if message.owner:
        parse_id(message.owner, "owner")
    if version < 1:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "aggregate_version must be 1 or more.",
            field="aggregate_version",
        )
    if message.event_id != format_event_id(aggregate, version):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "event_id must be {aggregate_id}/{aggregate_version}.",
            field="event_id",
        )
    if message.cursor:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "cursor must be unset; EventService assigns it.",
            field="cursor",
        )
    if not has_time(message, "create_time"):
        raise ApiError(ErrorReason.FIELD_REQUIRED, "create_time is required.", field="create_time")
    return store.NewEvent(
        aggregate, version, type_, message.owner, message.SerializeToString(deterministic=True)
    )
