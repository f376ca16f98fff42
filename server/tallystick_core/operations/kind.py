"""The names of the operation kinds, and the collections of their resource names."""

from __future__ import annotations

from enum import StrEnum


class KindName(StrEnum):
    """What a provider is asked for."""

    CHARGE = "charge"
    PAYOUT = "payout"
    DESTINATION_VERIFICATION = "destination_verification"
    WEBHOOK_EVENT = "webhook_event"


COLLECTIONS: dict[KindName, str] = {
    KindName.CHARGE: "charges",
    KindName.PAYOUT: "payouts",
    KindName.DESTINATION_VERIFICATION: "payoutDestinations",
    KindName.WEBHOOK_EVENT: "webhookEvents",
}
"""The collection of the resource names of each kind, as dead letters and alerts show them."""


def format_resource_name(kind: KindName, operation_id: str) -> str:
    """The public name of an operation: "{collection}/{id}"."""
    return f"{COLLECTIONS[kind]}/{operation_id}"
