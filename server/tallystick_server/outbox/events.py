"""Adds the events of a change to the outbox, in the transaction that makes the change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick_core.event import format_event_id
from tallystick_storage import outbox
from tallystick_storage.sql import Connection


@contextmanager
def record_events(
    connection: Connection, changed_rows: Iterable[outbox.ChangedRow]
) -> Iterator[BatchPublishRequest]:
    """Collects the events for the rows a statement changed, and stores them in the outbox row it
    created. Each changed row names that outbox row as `outbox_sequence`. Stores nothing if no row
    changed.
    """
    request = BatchPublishRequest()
    yield request
    row = next(iter(changed_rows), None)
    if row is not None:
        outbox.store_events(connection, row.outbox_sequence, request.SerializeToString())


def add_event(
    request: BatchPublishRequest,
    event_type: event_pb2.EventType.ValueType,
    aggregate_id: str,
    version: int,
    create_time: Timestamp,
    caller: str,
    traceparent: str = "",
    owner: str = "",
    **resource: Any,  # the event's field for the changed resource
) -> None:
    """Adds an event to the request. `owner`: the owner whose callers may stream it; "": only the
    platform.
    """
    request.events.add(
        event_id=format_event_id(aggregate_id, version),
        type=event_type,
        aggregate_id=aggregate_id,
        aggregate_version=version,
        create_time=create_time,
        caller=caller,
        traceparent=traceparent,
        owner=owner,
        **resource,
    )
