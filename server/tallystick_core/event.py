"""Events: their ids, and the subject of each type."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import parse_id, reject_card_id

MAX_AGGREGATE_ID = 255

_AGGREGATE_ID = re.compile(r"\A([A-Za-z]+)/([A-Za-z0-9_-]+)(?:/([A-Za-z0-9_-]+))?\Z", re.ASCII)
_TRACEPARENT = re.compile(r"\A(?:[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class EventSubject:
    """The subject of an event type: the collection of its aggregate, and the field of
    Event.payload.
    """

    collection: str
    payload: str


EVENT_SUBJECTS = {
    "PAYMENT_CREATED": EventSubject("payments", "payment"),
    "PAYMENT_CLOSED": EventSubject("payments", "payment"),
    "PAYMENT_ORDER_CHANGED": EventSubject("paymentOrders", "payment_order"),
    "WALLET_CHANGED": EventSubject("wallets", "wallet_entry"),
    "WALLET_POLICY_CHANGED": EventSubject("walletPolicies", "wallet"),
    "TRANSACTION_POSTED": EventSubject("transactions", "transaction"),
    "DEAD_LETTER_CHANGED": EventSubject("deadLetters", "dead_letter"),
    "UNAPPLIED_CHARGE_CHANGED": EventSubject("unappliedCharges", "unapplied_charge"),
    "ALERT_CHANGED": EventSubject("alerts", "alert"),
    "PAYOUT_CREATED": EventSubject("payouts", "payout"),
    "PAYOUT_CHANGED": EventSubject("payouts", "payout"),
    "PAYOUT_DESTINATION_CHANGED": EventSubject("payoutDestinations", "payout_destination"),
    "PAYOUT_BATCH_CHANGED": EventSubject("payoutBatches", "payout_batch"),
    "PAYOUT_SCHEDULE_CHANGED": EventSubject("payoutSchedules", "payout_schedule"),
    "SELLER_CHANGED": EventSubject("sellers", "seller"),
    "SELLER_ASSIGNMENT_CHANGED": EventSubject("sellerAssignments", "seller_assignment"),
    "BREAK_CHANGED": EventSubject("breaks", "reconciliation_break"),
}
"""By event type."""


def format_event_id(aggregate_id: str, version: int) -> str:
    return f"{aggregate_id}/{version}"


def check_event(type_: str, aggregate_id: str, payload: str, caller: str, traceparent: str) -> None:
    """Raises FIELD_REQUIRED, FIELD_INVALID or CARD_NUMBER_REJECTED for values that do not fit the
    event type.

    `payload`: the name of the field that is set, "" for none.
    """
    subject = EVENT_SUBJECTS[type_]
    match = _AGGREGATE_ID.match(aggregate_id) if len(aggregate_id) <= MAX_AGGREGATE_ID else None
    if match is None or match[1] != subject.collection:
        message = (
            f"aggregate_id must be {subject.collection}/ and an id with the type {type_}, of at "
            f"most {MAX_AGGREGATE_ID} characters."
        )
        raise ApiError(ErrorReason.FIELD_INVALID, message, field="aggregate_id")
    for part in match.groups(default="")[1:]:
        reject_card_id(part, "aggregate_id")
    if payload != subject.payload:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"payload must be {subject.payload} with the type {type_}.",
            field="payload",
        )
    parse_id(caller, "caller")
    if _TRACEPARENT.match(traceparent) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "traceparent must be a W3C trace context of version 00, or empty.",
            field="traceparent",
        )
