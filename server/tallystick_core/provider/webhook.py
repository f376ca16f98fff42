"""The interface of webhooks: what a provider reports on its own, by calling the platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tallystick_core.provider.outcome import NotSent, Unknown


class WebhookSubject(StrEnum):
    """What a webhook event is about."""

    CHARGE = "charge"
    PAYOUT = "payout"
    OTHER = "other"
    """Nothing that the platform handles. The event is kept and counted."""


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified webhook event. It is a hint: the object is looked up at the provider, and only
    that answer changes anything. So an event may be repeated, late and out of order.

    It has no personal data. Its texts are printable ASCII of at most 255 characters.
    """

    provider: str
    event_id: str
    """The provider's id of the event: unique for the provider."""
    event_type: str
    """The provider's name of what happened."""
    subject: WebhookSubject
    provider_time: datetime
    """When the provider created the event, by its own clock."""
    reference: str = ""
    """The provider's id of the charge or payout; "": the event does not name it."""
    client_reference: str = ""
    """The operation's id, as the provider echoes it; "": the event does not name it."""
    account: str = ""
    """The provider's id of the connected account that the event belongs to; "": the platform's
    own.
    """


class InvalidSignature(Exception):
    """A webhook is not signed by the provider, or its signature is too old or lies in the
    future.
    """


class UnreadableWebhook(Exception):
    """A signed webhook has no form that the adapter knows. The text says what is wrong, without
    values of the body.
    """


class WebhookSource(Protocol):
    """The webhooks of a provider: how they are verified, and how missed ones are fetched."""

    name: str
    endpoints: Sequence[str]
    """The endpoints that the provider calls, each with secrets of its own: "" for the platform's
    account, and a name for each other one.
    """

    def parse(
        self, endpoint: str, body: bytes, headers: Mapping[str, str], now: datetime
    ) -> WebhookEvent:
        """Verifies and reads a webhook. `headers` ignores the case of names. Raises
        InvalidSignature and UnreadableWebhook.
        """
        ...

    async def list_events(
        self, endpoint: str, since: datetime
    ) -> Sequence[WebhookEvent] | NotSent | Unknown:
        """The events that the provider has created since this time, the oldest first, also those
        that it has delivered. Used after an outage.
        """
        ...
