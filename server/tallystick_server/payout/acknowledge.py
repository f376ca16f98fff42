"""Acknowledgement of payout alerts: an operator has handled an unmatched transfer or a conflicting
report, and its alert ends.

The money stays booked as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.errors import (
    ApiError,
    ErrorReason,
    key_reused_error,
    not_found_error,
    state_error,
)
from tallystick_core.validation import parse_id, parse_reason_text
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_server.payout.snapshot import transfer_of
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgements as store
from tallystick_storage.payout import payouts, transfers
from tallystick_storage.sql import Connection

_RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What an operator acknowledges of a payout, and why.

    It is the transfer with this provider_reference, or else the conflicting report with this
    number.
    """

    payout_id: str
    provider_reference: str
    report_number: int
    operator: str
    reason: str


def decode(request: pb.AcknowledgePayoutRequest, operator: str) -> Acknowledgement:
    """Raises ApiError with the first invalid field."""
    payout_id = parse_id(request.payout_id, "payout_id")
    reference, number = "", 0
    match request.WhichOneof("subject"):
        case "provider_reference":
            # the provider's own text: only compared, never stored
            reference = request.provider_reference
            if not reference:
                raise ApiError(
                    ErrorReason.FIELD_REQUIRED,
                    "provider_reference is required: the reference of the transfer.",
                    field="provider_reference",
                )
        case "report_number":
            number = request.report_number
            if number < 1:
                raise ApiError(
                    ErrorReason.FIELD_INVALID,
                    "report_number must be 1 or more.",
                    field="report_number",
                )
        case _:
            raise ApiError(
                ErrorReason.FIELD_REQUIRED,
                "subject is required: set provider_reference or report_number.",
                field="subject",
            )
    return Acknowledgement(
        payout_id, reference, number, operator, parse_reason_text(request.reason, "reason")
    )


async def acknowledge(database: Database, acknowledgement: Acknowledgement) -> bool:
    """Returns True if it is acknowledged now, False if it was before with the same reason.

    Raises NOT_FOUND, INVALID_STATE, CONFLICT, IDEMPOTENCY_KEY_REUSED.
    """

    def acknowledge(connection: Connection) -> bool:
        # The lock makes concurrent reports wait.
        row = payouts.lock(connection, [acknowledgement.payout_id]).get(acknowledgement.payout_id)
        if row is None:
            raise not_found_error("payout", acknowledgement.payout_id)
        subject = (
            _find_transfer(connection, acknowledgement)
            if acknowledgement.provider_reference
            else _find_report(connection, acknowledgement)
        )
        if subject.acknowledged_by:
            if subject.acknowledge_reason != acknowledgement.reason:
                raise key_reused_error("reason")
            return False
        if not row.booked:
            raise ApiError(
                ErrorReason.CONFLICT,
                "The payout is still being booked; retry.",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        if acknowledgement.provider_reference:
            changes = store.acknowledge_transfer(
                connection,
                acknowledgement.payout_id,
                acknowledgement.provider_reference,
                acknowledgement.operator,
                acknowledgement.reason,
            )
        else:
            changes = store.acknowledge_report(
                connection,
                acknowledgement.payout_id,
                acknowledgement.report_number,
                acknowledgement.operator,
                acknowledgement.reason,
            )
        with record_events(connection, changes) as publish_request:
            for change in changes:
                message = convert.payout(row)
                message.version = change.version
                message.update_time.CopyFrom(to_timestamp(change.update_time))
                events.add_payout_changed(publish_request, message, row.traceparent)
        return True

    return await database.transact(acknowledge)


def _find_transfer(
    connection: Connection, acknowledgement: Acknowledgement
) -> transfers.TransferRow:
    candidates = transfers.load_transfers(connection, [acknowledgement.payout_id]).get(
        acknowledgement.payout_id, ()
    )
    row = next(
        (row for row in candidates if row.provider_reference == acknowledgement.provider_reference),
        None,
    )
    if row is None:
        raise not_found_error(
            "transfer", f"of payout {acknowledgement.payout_id} by this provider_reference"
        )
    if transfer_of(row).needs_no_operator:
        message = "The transfer matches its payout; there is nothing to acknowledge."
        raise state_error(message, row.match, "ACKNOWLEDGE")
    return row


def _find_report(connection: Connection, acknowledgement: Acknowledgement) -> store.PayoutReportRow:
    candidates = store.load_reports(connection, [acknowledgement.payout_id]).get(
        acknowledgement.payout_id, ()
    )
    row = next((row for row in candidates if row.number == acknowledgement.report_number), None)
    if row is None and not candidates:
        message = "The payout has no conflicting report; there is nothing to acknowledge."
        raise state_error(message, "NO_CONFLICT", "ACKNOWLEDGE")
    if row is None:
        raise not_found_error(
            "conflicting report",
            f"{acknowledgement.report_number} of payout {acknowledgement.payout_id}",
        )
    return row
