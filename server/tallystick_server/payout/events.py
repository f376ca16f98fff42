"""Events of PayoutService. Each event holds the resource in its state after the change."""

from __future__ import annotations

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payout.v1 import payout_pb2
from tallystick_server.outbox.events import add_event


def add_payout_changed(
    publish_request: BatchPublishRequest, payout: payout_pb2.Payout, traceparent: str
) -> None:
    """Adds the event of a new or changed payout."""
    type_ = (
        event_pb2.EVENT_TYPE_PAYOUT_CREATED
        if payout.version == 1
        else event_pb2.EVENT_TYPE_PAYOUT_CHANGED
    )
    add_event(
        publish_request,
        type_,
        f"payouts/{payout.payout_id}",
        payout.version,
        payout.update_time,
        payout.caller,
        traceparent,
        payout.owner,
        payout=payout,
    )


def add_destination_changed(
    publish_request: BatchPublishRequest,
    destination: payout_pb2.PayoutDestination,
    traceparent: str,
) -> None:
    """Adds the event of a destination that was registered or has changed.

    It does not contain the bank account token.
    """
    aggregate, update_time = (
        f"payoutDestinations/{destination.payout_destination_id}",
        destination.update_time,
    )
    type_ = event_pb2.EVENT_TYPE_PAYOUT_DESTINATION_CHANGED
    add_event(
        publish_request,
        type_,
        aggregate,
        destination.version,
        update_time,
        destination.caller,
        traceparent,
        destination.owner,
        payout_destination=destination,
    )


def add_batch_changed(
    publish_request: BatchPublishRequest, batch: payout_pb2.PayoutBatch, traceparent: str
) -> None:
    """Adds the event of a batch that was created or has changed its state; it has no totals."""
    type_, aggregate = (
        event_pb2.EVENT_TYPE_PAYOUT_BATCH_CHANGED,
        f"payoutBatches/{batch.payout_batch_id}",
    )
    add_event(
        publish_request,
        type_,
        aggregate,
        batch.version,
        batch.update_time,
        batch.caller,
        traceparent,
        batch.owner,
        payout_batch=batch,
    )


def add_schedule_changed(
    publish_request: BatchPublishRequest,
    schedule: payout_pb2.PayoutSchedule,
    owner: str,
    traceparent: str,
) -> None:
    """Adds the event of a schedule that was set.

    `owner`: the seller's owner; "": the platform's default schedule.
    """
    aggregate = f"payoutSchedules/{schedule.seller_account or '-'}/{schedule.currency}"
    type_ = event_pb2.EVENT_TYPE_PAYOUT_SCHEDULE_CHANGED
    add_event(
        publish_request,
        type_,
        aggregate,
        schedule.version,
        schedule.update_time,
        schedule.caller,
        traceparent,
        owner,
        payout_schedule=schedule,
    )
