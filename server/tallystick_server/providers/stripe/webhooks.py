"""Stripe's webhooks: how they are verified and read, and the list of events after an outage."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from tallystick_core.provider.outcome import NotSent, Unknown
from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSubject,
)
from tallystick_server.providers.stripe.client import PAGE_SIZE, StripeApi
from tallystick_server.providers.stripe.errors import Rejection, to_unknown
from tallystick_server.providers.stripe.json_fields import (
    read_id,
    read_number,
    read_optional_table,
    read_optional_text,
    read_text,
)
from tallystick_server.providers.stripe.settings import StripeSettings

if TYPE_CHECKING:
    from stripe.params import EventListParams

PLATFORM, CONNECT = "", "connect"
"""The endpoints: events of the platform's account, and of the connected accounts."""
MAX_LISTED_EVENTS = 10_000
_MAX_PAGES = 1_000
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
        """The events of the platform's account, at most the MAX_LISTED_EVENTS oldest; the rest is
        listed from the time of the last one. An event that cannot be read is left out.

        Stripe has no list of the events of all connected accounts, so there are none for that
        endpoint; their payouts are looked up anyway.
        """
        if endpoint != PLATFORM:
            return ()
        events: deque[WebhookEvent] = deque(maxlen=MAX_LISTED_EVENTS)
        created_since = int(since.timestamp())

        def request_page(after: str) -> Awaitable[Any]:
            params: EventListParams = {"created": {"gte": created_since}, "limit": PAGE_SIZE}
            if after:
                params["starting_after"] = after
            return self._api.v1.events.list_async(params)

        async for page in self._api.read_pages(request_page, _MAX_PAGES):
            if isinstance(page, Rejection):
                return to_unknown(page)
            if isinstance(page, NotSent | Unknown):
                return page
            events.extend(self._parse_page(page))
        return tuple(reversed(events))  # the newest came first, and gave way to older ones

    def _parse_page(self, page: Sequence[Mapping[str, Any]]) -> Iterator[WebhookEvent]:
        for fields in page:
            try:
                yield parse_event(self.name, fields)
            except UnreadableWebhook:
                continue


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
    reference, client_reference = read_ids(object_)
    if not client_reference:  # such as a payout of the platform to its own bank
        subject = WebhookSubject.OTHER
    return WebhookEvent(
        provider=provider,
        event_id=read_text(fields, "id"),
        event_type=event_type,
        subject=subject,
        provider_time=_to_time(read_number(fields, "created")),
        reference=reference,
        client_reference=client_reference,
        account=read_optional_text(fields, "account"),
    )


def _parse_thin_event(provider: str, fields: Mapping[str, Any]) -> WebhookEvent:
    """A thin event has only the id of the object. Its type is that of a snapshot, after "v1."."""
    event_type = read_text(fields, "type")
    subject, _ = _rule_of(event_type.removeprefix("v1."))
    related = read_optional_table(fields, "related_object")
    reference = read_optional_text(related, "id")
    if not _names_subject(subject, reference):
        subject = WebhookSubject.OTHER  # nothing of the platform has such a reference
    return WebhookEvent(
        provider=provider,
        event_id=read_text(fields, "id"),
        event_type=event_type,
        subject=subject,
        provider_time=_to_time(read_text(fields, "created")),
        reference=reference,
        account=read_optional_text(fields, "context"),
    )


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
            return reference.startswith("pi_")
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
    """A charge, a refund, a dispute, or a page: each has the id of its PaymentIntent."""
    return read_id(object_, "payment_intent"), _metadata(object_, "charge_id")


def _transfer(object_: Mapping[str, Any]) -> Ids:
    return read_optional_text(object_, "id"), _metadata(object_, "payout_id")


def _payout(object_: Mapping[str, Any]) -> Ids:
    return _metadata(object_, "transfer"), _metadata(object_, "payout_id")


ReadIds = Callable[[Mapping[str, Any]], Ids]
_RULES: Sequence[tuple[str, WebhookSubject, ReadIds]] = (
    ("checkout.session.", WebhookSubject.CHARGE, _of_payment_intent),
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
