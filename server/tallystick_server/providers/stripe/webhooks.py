"""Stripe's webhooks: how they are verified and read."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from tallystick_core.errors import ApiError
from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSubject,
)
from tallystick_core.validation import parse_token
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.event_list import list_oldest_events
from tallystick_server.providers.stripe.json_fields import (
    read_id,
    read_number,
    read_optional_table,
    read_optional_text,
    read_text,
)
from tallystick_server.providers.stripe.settings import StripeSettings

PLATFORM, CONNECT = "", "connect"
"""The endpoints: events of the platform's account, and of the connected accounts."""
_TIME = re.compile(r"[0-9]{1,12}", re.ASCII)

Ids = tuple[str, str]
"""The reference and the client reference of what an event is about."""


class StripeWebhooks:
    """The webhooks of one account of Stripe."""

    def __init__(self, name: str, settings: StripeSettings, api: StripeApi) -> None:
        self.name = name
        secrets = {
            PLATFORM: settings.webhook_secrets,
            CONNECT: settings.connect_webhook_secrets,
        }
        self._secrets = {endpoint: values for endpoint, values in secrets.items() if values}
        self.endpoints: Sequence[str] = tuple(self._secrets)
        self._tolerance_seconds = settings.webhook_tolerance
        self._api = api

    def parse(
        self, endpoint: str, body: bytes, headers: Mapping[str, str], now: datetime
    ) -> WebhookEvent:
        """As in `WebhookSource`."""
        self._verify(endpoint, body, headers.get("Stripe-Signature", ""), now)
        try:
            fields = orjson.loads(body)
        except ValueError as error:
            raise UnreadableWebhook("the body is no JSON") from error
        return parse_event(self.name, fields)

    def _verify(self, endpoint: str, body: bytes, signature: str, now: datetime) -> None:
        """Raises InvalidSignature unless one of the endpoint's secrets has signed the body now."""
        time, signatures = _parse_signature(signature)
        if abs(now.timestamp() - int(time)) > self._tolerance_seconds:
            raise InvalidSignature("the signature is too old, or lies in the future")
        signed = time.encode() + b"." + body
        if not any(
            _is_signed(signed, signatures, secret) for secret in self._secrets.get(endpoint, ())
        ):
            raise InvalidSignature("no secret of the endpoint has signed the body")

    async def list_events(
        self, endpoint: str, since: datetime
    ) -> Sequence[WebhookEvent] | NotSent | Unknown:
        """The events of LISTED_TYPES of the platform's account, at most the MAX_LISTED_EVENTS
        oldest; the rest is listed from the time of the last one. An event that cannot be read is
        left out.

        Stripe has no list of the events of all connected accounts, so there are none for that
        endpoint; their payouts are looked up anyway.
        """
        if endpoint != PLATFORM:
            return ()
        return await list_oldest_events(self._api, int(since.timestamp()), self._parse_or_none)

    def _parse_or_none(self, fields: Mapping[str, Any]) -> WebhookEvent | None:
        try:
            return parse_event(self.name, fields)
        except UnreadableWebhook:
            return None


def _parse_signature(header: str) -> tuple[str, Sequence[bytes]]:
    """The time as it is signed, in Unix seconds, and the signatures. Stripe's own verifier is not
    used: it ignores all times but one, and reads the clock. Raises InvalidSignature.
    """
    items = [item.partition("=") for item in header.split(",")] if header.isascii() else []
    times = [value for name, _, value in items if name == "t"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        raise InvalidSignature("the signature must have one time, in Unix seconds")
    return times[0], [value.encode() for name, _, value in items if name == "v1"]


def _is_signed(signed: bytes, signatures: Sequence[bytes], secret: str) -> bool:
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    return any(hmac.compare_digest(expected, signature) for signature in signatures)


def parse_event(provider: str, fields: Any) -> WebhookEvent:
    """Reads an event: a snapshot, which has the object, or a thin one, which names it. Raises
    UnreadableWebhook.
    """
    kind = fields.get("object") if isinstance(fields, dict) else None
    parse = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        raise UnreadableWebhook("the body is no event")
    try:
        return parse(provider, fields)
    except ValueError as error:
        raise UnreadableWebhook(f"the event cannot be read: {error}") from error


def _parse_snapshot_event(provider: str, fields: Mapping[str, Any]) -> WebhookEvent:
    event_type = read_text(fields, "type")
    subject, read_ids = _rule_of(event_type)
    object_ = read_optional_table(read_optional_table(fields, "data"), "object")
    ids = read_ids(object_)
    if not ids[1]:  # such as a payout of the platform to its own bank
        subject = WebhookSubject.OTHER
    time = _to_time(read_number(fields, "created"))
    return _build_event(provider, fields, subject, ids, time, "account")


def _parse_thin_event(provider: str, fields: Mapping[str, Any]) -> WebhookEvent:
    """A thin event has only the id of the object. Its type is that of a snapshot, after "v1."."""
    event_type = read_text(fields, "type")
    subject, _ = _rule_of(event_type.removeprefix("v1."))
    related = read_optional_table(fields, "related_object")
    reference = read_optional_text(related, "id")
    if not _names_subject(subject, reference):
        subject = WebhookSubject.OTHER  # nothing of the platform has such a reference
    time = _to_time(read_text(fields, "created"))
    return _build_event(provider, fields, subject, (reference, ""), time, "context")


def _build_event(
    provider: str,
    fields: Mapping[str, Any],
    subject: WebhookSubject,
    ids: Ids,
    time: datetime,
    account_field: str,
) -> WebhookEvent:
    """An event that the service accepts. One whose ids are none of the platform's is OTHER, and an
    event of OTHER has none. Raises ValueError.
    """
    account = read_optional_text(fields, account_field)
    texts = {"id": read_text(fields, "id"), "type": read_text(fields, "type")}
    if account:
        texts[account_field] = account
    for name, text in texts.items():
        if not _is_token(text):
            raise ValueError(f"{name} is no token")
    if not all(_is_token(id_) for id_ in ids if id_):
        subject = WebhookSubject.OTHER
    reference, client_reference = ("", "") if subject is WebhookSubject.OTHER else ids
    return WebhookEvent(
        provider=provider,
        event_id=texts["id"],
        event_type=texts["type"],
        subject=subject,
        provider_time=time,
        reference=reference,
        client_reference=client_reference,
        account=account,
    )


def _is_token(text: str) -> bool:
    """Whether the service accepts a text as an id of a provider."""
    try:
        parse_token(text, "id")
    except ApiError:
        return False
    return True


def _to_time(created: int | str) -> datetime:
    """The time of an event: seconds since 1970, or in a thin event ISO 8601. Raises ValueError."""
    try:
        if isinstance(created, int):
            return datetime.fromtimestamp(created, UTC)
        time = datetime.fromisoformat(created)
    except (ValueError, OverflowError, OSError):
        raise ValueError("created is no time") from None
    if time.tzinfo is None:
        raise ValueError("created has no time zone")
    return time.astimezone(UTC)


_PARSERS = {"event": _parse_snapshot_event, "v2.core.event": _parse_thin_event}
"""How an event is read, by its kind of object."""


def _names_subject(subject: WebhookSubject, reference: str) -> bool:
    """Whether an id has the form of the reference that the platform stores."""
    match subject:
        case WebhookSubject.CHARGE:
            return reference.startswith(("pi_", "cs_"))
        case WebhookSubject.PAYOUT:
            return reference.startswith("tr_")
        case WebhookSubject.OTHER:
            return True


def _metadata(object_: Mapping[str, Any], name: str) -> str:
    return read_optional_text(read_optional_table(object_, "metadata"), name)


def _own_id(object_: Mapping[str, Any]) -> Ids:
    return read_optional_text(object_, "id"), ""


def _payment_intent(object_: Mapping[str, Any]) -> Ids:
    return read_optional_text(object_, "id"), _metadata(object_, "charge_id")


def _of_payment_intent(object_: Mapping[str, Any]) -> Ids:
    """A charge, a refund or a dispute: each has the id of its PaymentIntent."""
    return read_id(object_, "payment_intent"), _metadata(object_, "charge_id")


def _checkout_session(object_: Mapping[str, Any]) -> Ids:
    """A page has no PaymentIntent until the buyer tries to pay."""
    reference = read_id(object_, "payment_intent") or read_optional_text(object_, "id")
    return reference, _metadata(object_, "charge_id")


def _transfer(object_: Mapping[str, Any]) -> Ids:
    return read_optional_text(object_, "id"), _metadata(object_, "payout_id")


def _payout(object_: Mapping[str, Any]) -> Ids:
    return _metadata(object_, "transfer"), _metadata(object_, "payout_id")


ReadIds = Callable[[Mapping[str, Any]], Ids]
_RULES: Sequence[tuple[str, WebhookSubject, ReadIds]] = (
    ("checkout.session.", WebhookSubject.CHARGE, _checkout_session),
    ("payment_intent.", WebhookSubject.CHARGE, _payment_intent),
    ("charge.dispute.", WebhookSubject.OTHER, _of_payment_intent),
    ("charge.refund.", WebhookSubject.OTHER, _of_payment_intent),
    ("charge.", WebhookSubject.CHARGE, _of_payment_intent),
    ("refund.", WebhookSubject.OTHER, _of_payment_intent),
    ("transfer.", WebhookSubject.PAYOUT, _transfer),
    ("payout.", WebhookSubject.PAYOUT, _payout),
)
"""What each type of event is about, and its ids. The first row that the type begins with counts;
every other type is OTHER.
"""


def _rule_of(event_type: str) -> tuple[WebhookSubject, ReadIds]:
    return next(
        (
            (subject, read_ids)
            for prefix, subject, read_ids in _RULES
            if event_type.startswith(prefix)
        ),
        (WebhookSubject.OTHER, _own_id),
    )
