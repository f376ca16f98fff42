"""Acknowledge: an operator has dealt with what fits no move of a payout, so that its alert ends. The money stays booked as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.identifier import parse_id, parse_words
from tallystick_core.refusal import Reason, Refused, key_reused, not_found
from tallystick_server.payout import encode, events
from tallystick_server.payout.standing import transfer_of
from tallystick_server.runtime.fields import to_timestamp
from tallystick_server.runtime.relay import telling
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgement as store
from tallystick_storage.payout import payouts
from tallystick_storage.payout import transfer as transfers

_BOOKED_WITHIN = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What an operator acknowledges of a payout, and why: the transfer of that provider_reference, or else the conflicting report of that number."""

    payout_id: str
    provider_reference: str
    report_number: int
    operator: str
    reason: str


def decode(request: pb.AcknowledgePayoutRequest, operator: str) -> Acknowledgement:
    """Raises Refused with the first field that is wrong."""
    payout_id = parse_id(request.payout_id, "payout_id")
    reference, number = "", 0
    match request.WhichOneof("subject"):
        case "provider_reference":
            reference = request.provider_reference  # the provider's own text: it is compared, and never stored
            if not reference:
                raise Refused(Reason.FIELD_REQUIRED, "provider_reference is required: that of the transfer.", field="provider_reference")
        case "report_number":
            number = request.report_number
            if number < 1:
                raise Refused(Reason.FIELD_INVALID, "report_number must be 1 or more.", field="report_number")
        case _:
            raise Refused(Reason.FIELD_REQUIRED, "subject is required: set provider_reference or report_number.", field="subject")
    return Acknowledgement(payout_id, reference, number, operator, parse_words(request.reason, "reason"))


async def acknowledge(database: Database, what: Acknowledgement) -> bool:
    """Whether it is acknowledged now; it was before for the same reason, if not. Raises NOT_FOUND, STATE_FORBIDS, CONFLICT, KEY_REUSED."""

    def acknowledge(connection: Connection) -> bool:
        row = payouts.lock(connection, [what.payout_id]).get(what.payout_id)  # what becomes known meanwhile waits
        if row is None:
            raise not_found("payout", what.payout_id)
        subject = _transfer(connection, what) if what.provider_reference else _report(connection, what)
        if subject.acknowledged_by:
            if subject.acknowledge_reason != what.reason:
                raise key_reused("reason")
            return False
        if not row.settled:
            raise Refused(Reason.CONFLICT, "The payout is being settled; acknowledge it once wallet and ledger show it.", retry_after=_BOOKED_WITHIN)
        if what.provider_reference:
            changed = store.acknowledge_transfer(connection, what.payout_id, what.provider_reference, what.operator, what.reason)
        else:
            changed = store.acknowledge_report(connection, what.payout_id, what.report_number, what.operator, what.reason)
        with telling(connection, changed) as told:
            for one in changed:
                message = encode.payout(row)
                message.version = one.version
                message.update_time.CopyFrom(to_timestamp(one.update_time))
                events.payout_changed(told, message, row.traceparent)
        return True

    return await database.transact(acknowledge)


def _transfer(connection: Connection, what: Acknowledgement) -> Row[Any]:
    known = transfers.of(connection, [what.payout_id]).get(what.payout_id, ())
    row = next((row for row in known if row.provider_reference == what.provider_reference), None)
    if row is None:
        raise not_found("transfer", f"of payout {what.payout_id} by this provider_reference")
    if transfer_of(row).matches:
        message = "The transfer was paid as asked; there is nothing to acknowledge."
        raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": row.fit, "verb": "ACKNOWLEDGE"})
    return row


def _report(connection: Connection, what: Acknowledgement) -> Row[Any]:
    known = store.reports(connection, [what.payout_id]).get(what.payout_id, ())
    row = next((row for row in known if row.number == what.report_number), None)
    if row is None and not known:
        message = "No report of the provider conflicts with another about this payout; there is nothing to acknowledge."
        raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": "NO_CONFLICT", "verb": "ACKNOWLEDGE"})
    if row is None:
        raise not_found("conflicting report", f"{what.report_number} of payout {what.payout_id}")
    return row
