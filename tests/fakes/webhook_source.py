"""Signed webhooks of a provider that exists only in tests."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSubject,
)

SECRET = b"secret of the tests"


def sign(body: bytes, secret: bytes = SECRET) -> dict[str, str]:
    """The headers of a webhook that the provider signs."""
    return {"X-Signature": hmac.digest(secret, body, "sha256").hex()}


class SignedWebhookSource:
    """Bodies are JSON objects with the fields of WebhookEvent; a header has the HMAC."""

    name = "sandbox"
    endpoints: Sequence[str] = ("", "connect")

    def __init__(self) -> None:
        self.undelivered: list[WebhookEvent] = []
        """The events that it lists, the oldest first, three at a time."""
        self.is_unreachable = False
        self.listed_since: list[datetime] = []

    def parse(
        self, endpoint: str, body: bytes, headers: Mapping[str, str], now: datetime
    ) -> WebhookEvent:
        if not hmac.compare_digest(headers.get("x-signature", ""), sign(body)["X-Signature"]):
            raise InvalidSignature
        try:
            values: dict[str, Any] = orjson.loads(body)
            return WebhookEvent(
                provider=self.name,
                event_id=values["event_id"],
                event_type=values["event_type"],
                subject=WebhookSubject(values["subject"]),
                provider_time=datetime.fromtimestamp(values["time"], UTC),
                reference=values.get("reference", ""),
                account=endpoint,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UnreadableWebhook(f"the body is no event: {type(error).__name__}") from None

    async def list_events(
        self, endpoint: str, since: datetime
    ) -> Sequence[WebhookEvent] | NotSent | Unknown:
        self.listed_since.append(since)
        if endpoint:
            return []
        if self.is_unreachable:
            return NotSent("no connection")
        return [event for event in self.undelivered if event.provider_time >= since][:3]
