"""Webhook events in the inbox: their ids and states."""

from __future__ import annotations

from enum import StrEnum

from tallystick_core.fingerprint import digest_text


class WebhookEventState(StrEnum):
    """The state of a webhook event."""

    RECEIVED = "RECEIVED"
    """It is stored. What it is about is to be looked up."""
    APPLIED = "APPLIED"
    """What it is about was looked up since, and the answer was applied."""
    IGNORED = "IGNORED"
    """The platform handles no events of its type."""
    CLOSED = "CLOSED"
    """It could not be applied, and an operator closed its dead letter."""


def derive_webhook_event_id(provider: str, event_id: str) -> str:
    """The id of a webhook event, derived from the provider's id of it."""
    return f"w-{digest_text(provider, event_id)}"
