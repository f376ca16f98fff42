"""What an event is about: the names of types and aggregates."""

from __future__ import annotations

from enum import StrEnum


class EventType(StrEnum):
    """What an event tells; the same names as `tallystick.event.v1.EventType`."""

    PAYMENT_CREATED = "PAYMENT_CREATED"
    PAYMENT_CLOSED = "PAYMENT_CLOSED"
    PAYMENT_ORDER_CHANGED = "PAYMENT_ORDER_CHANGED"
    WALLET_CHANGED = "WALLET_CHANGED"
    WALLET_POLICY_CHANGED = "WALLET_POLICY_CHANGED"
    TRANSACTION_POSTED = "TRANSACTION_POSTED"
    DEAD_LETTER_CHANGED = "DEAD_LETTER_CHANGED"
    UNAPPLIED_CHARGE_CHANGED = "UNAPPLIED_CHARGE_CHANGED"
    ALERT_CHANGED = "ALERT_CHANGED"
    PAYOUT_CREATED = "PAYOUT_CREATED"
    PAYOUT_CHANGED = "PAYOUT_CHANGED"
    PAYOUT_DESTINATION_CHANGED = "PAYOUT_DESTINATION_CHANGED"
    PAYOUT_BATCH_CHANGED = "PAYOUT_BATCH_CHANGED"
    PAYOUT_SCHEDULE_CHANGED = "PAYOUT_SCHEDULE_CHANGED"


def event_id(aggregate_id: str, version: int) -> str:
    return f"{aggregate_id}/{version}"
