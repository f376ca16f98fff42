"""Webhooks of Stripe: what each event is about."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSubject,
)
from tallystick_server.operations.webhook_handlers import parse_event as parse_received_event
from tallystick_server.operations.webhook_handlers import to_received_message
from tallystick_server.providers.stripe.webhooks import StripeWebhooks, parse_event
from tests.providers.stripe.scripted_stripe import ScriptedTransport, api_of, settings_with

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
OLD, NEW, CONNECT = "whsec_old_secret", "whsec_new_secret", "whsec_connect_secret"
INTENT = {
    "id": "pi_1",
    "object": "payment_intent",
    "metadata": {"charge_id": "o-po1", "key": "dev-o-po1-1"},
}


def source(transport: ScriptedTransport | None = None) -> StripeWebhooks:
    secrets = {"webhook_secrets": [OLD, NEW], "connect_webhook_secrets": [CONNECT]}
    return StripeWebhooks(
        "stripe", settings_with(**secrets), api_of(transport or ScriptedTransport())
    )


def event(type_: str, object_: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A snapshot event."""
    return {
        "id": "evt_1",
        "object": "event",
        "type": type_,
        "created": int(NOW.timestamp()),
        "data": {"object": object_},
        **changes,
    }


SOURCE = source()
BODY = orjson.dumps(event("payment_intent.succeeded", INTENT))
EVENT = WebhookEvent(
    "stripe",
    "evt_1",
    "payment_intent.succeeded",
    WebhookSubject.CHARGE,
    NOW,
    "pi_1",
    "o-po1",
)


def sign(body: bytes, *secrets: str, time: datetime = NOW, scheme: str = "v1") -> str:
    """The header of a delivery, by Stripe's published rule."""
    timestamp = str(int(time.timestamp()))
    signatures = [
        hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        for secret in secrets
    ]
    return ",".join([f"t={timestamp}", *(f"{scheme}={signature}" for signature in signatures)])


def parse(body: bytes, signature: str, endpoint: str = "", now: datetime = NOW) -> WebhookEvent:
    return SOURCE.parse(endpoint, body, {"Stripe-Signature": signature}, now)


@given(st.binary(max_size=200), st.text(max_size=100))
def test_any_body_and_any_header_are_rejected_by_name(body: bytes, header: str) -> None:
    """Nothing but the two exceptions of the interface leaves `parse`."""
    with pytest.raises(InvalidSignature):
        parse(body, header)
    with pytest.raises((InvalidSignature, UnreadableWebhook)):
        parse(body, sign(body, OLD))


CHARGE = {
    "id": "ch_1",
    "object": "charge",
    "payment_intent": "pi_1",
    "metadata": {"charge_id": "o-po1"},
}
TRANSFER = {"id": "tr_1", "object": "transfer", "metadata": {"payout_id": "p1"}}
PAYOUT = {"id": "po_1", "object": "payout", "metadata": {"payout_id": "p1", "transfer": "tr_1"}}
SESSION: Mapping[str, Any] = {
    "id": "cs_1",
    "object": "checkout.session",
    "payment_intent": None,
    "metadata": {},
}
DISPUTE = {"id": "dp_1", "object": "dispute", "payment_intent": "pi_1"}


def types(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


SUBJECTS: Sequence[tuple[Sequence[str], Mapping[str, Any], WebhookSubject, str, str]] = (
    (
        types(
            "payment_intent",
            "succeeded",
            "payment_failed",
            "canceled",
            "processing",
            "requires_action",
            "amount_capturable_updated",
        ),
        INTENT,
        WebhookSubject.CHARGE,
        "pi_1",
        "o-po1",
    ),
    (
        types("charge", "succeeded", "failed", "captured", "refunded", "updated", "expired"),
        CHARGE,
        WebhookSubject.CHARGE,
        "pi_1",
        "o-po1",
    ),
    (
        types(
            "checkout.session",
            "completed",
            "expired",
            "async_payment_succeeded",
            "async_payment_failed",
        ),
        {**SESSION, "payment_intent": INTENT, "metadata": {"charge_id": "c-co1"}},
        WebhookSubject.CHARGE,
        "pi_1",
        "c-co1",
    ),
    (
        types("checkout.session", "expired"),
        {**SESSION, "metadata": {"charge_id": "c-co1"}},
        WebhookSubject.CHARGE,
        "cs_1",
        "c-co1",
    ),
    (types("checkout.session", "expired"), SESSION, WebhookSubject.OTHER, "", ""),
    (types("payment_intent", "succeeded"), {"id": "pi_2"}, WebhookSubject.OTHER, "", ""),
    (types("charge", "succeeded"), {"id": "py_1"}, WebhookSubject.OTHER, "", ""),
    (
        types("refund", "created", "updated", "failed"),
        {"id": "re_1", "object": "refund", "payment_intent": "pi_1"},
        WebhookSubject.OTHER,
        "",
        "",
    ),
    (
        types(
            "charge.dispute",
            "created",
            "updated",
            "closed",
            "funds_withdrawn",
            "funds_reinstated",
        ),
        DISPUTE,
        WebhookSubject.OTHER,
        "",
        "",
    ),
    (
        types("transfer", "created", "updated", "reversed"),
        TRANSFER,
        WebhookSubject.PAYOUT,
        "tr_1",
        "p1",
    ),
    (
        types("payout", "created", "updated", "paid", "failed", "canceled"),
        PAYOUT,
        WebhookSubject.PAYOUT,
        "tr_1",
        "p1",
    ),
    (
        types("payout", "paid", "reconciliation_completed"),
        {"id": "po_2", "object": "payout", "metadata": {}},
        WebhookSubject.OTHER,
        "",
        "",
    ),
    (
        types("reporting.report_run", "succeeded", "failed"),
        {"id": "frr_1", "object": "reporting.report_run"},
        WebhookSubject.OTHER,
        "",
        "",
    ),
    (
        ["account.updated"],
        {"id": "acct_1", "object": "account"},
        WebhookSubject.OTHER,
        "",
        "",
    ),
    (["new.type_of_event"], {"id": "x_1"}, WebhookSubject.OTHER, "", ""),
    (["new.type_of_event"], {}, WebhookSubject.OTHER, "", ""),
)
CASES = [
    (type_, object_, subject, reference, client_reference)
    for types_, object_, subject, reference, client_reference in SUBJECTS
    for type_ in types_
]


@pytest.mark.parametrize(("type_", "object_", "subject", "reference", "client_reference"), CASES)
def test_each_type_has_its_subject(
    type_: str,
    object_: Mapping[str, Any],
    subject: WebhookSubject,
    reference: str,
    client_reference: str,
) -> None:
    """Every type that the platform handles names the charge or the payout; an unknown type, and
    what does not carry the platform's id, is kept as OTHER.
    """
    parsed = parse_event("stripe", event(type_, object_, account="acct_1"))
    assert (parsed.subject, parsed.reference, parsed.client_reference, parsed.account) == (
        subject,
        reference,
        client_reference,
        "acct_1",
    )


@pytest.mark.parametrize(
    ("type_", "object_"),
    [
        ("payment_intent.succeeded", INTENT | {"id": "pi 1"}),
        ("payment_intent.succeeded", INTENT | {"metadata": {"charge_id": "o po1"}}),
        ("charge.succeeded", CHARGE | {"payment_intent": " pi_1"}),
        ("transfer.created", TRANSFER | {"id": "4242424242424242"}),
        ("payout.paid", PAYOUT | {"metadata": {"payout_id": "p1", "transfer": "tr 1"}}),
        ("customer.created", {"id": "cus 1"}),
    ],
)
def test_an_id_that_is_none_of_the_platforms_is_left_out(
    type_: str, object_: Mapping[str, Any]
) -> None:
    """The service would reject an event with it, and the list of missed events would get no
    further.
    """
    parsed = parse_event("stripe", event(type_, object_))
    assert parsed.subject is WebhookSubject.OTHER
    assert (parsed.reference, parsed.client_reference) == ("", "")
    assert parse_received_event(to_received_message(parsed)) == parsed


def thin(type_: str, related: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    return {
        "id": "evt_thin",
        "object": "v2.core.event",
        "type": type_,
        "created": "2026-11-30T12:00:00.250Z",
        "related_object": related,
        **changes,
    }


def test_thin_events_name_their_object() -> None:
    """A thin event has no object, and may name none, which is no error."""
    related = {"id": "pi_1", "type": "payment_intent", "url": "/v1/payment_intents/pi_1"}
    parsed = parse_event("stripe", thin("v1.payment_intent.succeeded", related, context="acct_1"))
    assert parsed == WebhookEvent(
        "stripe",
        "evt_thin",
        "v1.payment_intent.succeeded",
        WebhookSubject.CHARGE,
        NOW + timedelta(milliseconds=250),
        "pi_1",
        "",
        "acct_1",
    )
    for type_, object_ in itertools.product(
        ("v1.payment_intent.succeeded", "v1.payout.paid", "v2.core.account.updated"),
        (None, {"id": "po_1"}),
    ):
        assert parse_event("stripe", thin(type_, object_)).subject is WebhookSubject.OTHER


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        7,
        {},
        {"object": "charge"},
        {"object": ["event"]},
        event("payment_intent.succeeded", INTENT, id=""),
        event("payment_intent.succeeded", INTENT, id=None),
        event("payment_intent.succeeded", INTENT, id="e" * 256),
        event("payment_intent.succeeded", INTENT, id="evt 1"),
        event("payment_intent.succeeded", INTENT, type="payment intent"),
        event("payment_intent.succeeded", INTENT, account="acct 1"),
        event("payment_intent.succeeded", INTENT, type=7),
        event("payment_intent.succeeded", INTENT, created="now"),
        event("payment_intent.succeeded", INTENT, created=10**18),
        event("payment_intent.succeeded", INTENT, account="a\0b"),
        event("payment_intent.succeeded", INTENT | {"id": "\u202e"}),
        event("payment_intent.succeeded", INTENT | {"metadata": {"charge_id": "é"}}),
        event("charge.succeeded", CHARGE | {"payment_intent": {"id": 7}}),
        thin("v1.payment_intent.succeeded", None, created="yesterday"),
        thin("v1.payment_intent.succeeded", None, created="2026-11-30T12:00:00"),
        thin("v1.payment_intent.succeeded", None, created=7),
    ],
)
def test_a_signed_body_that_is_no_event_is_unreadable(fields: Any) -> None:
    """The error says what is wrong, without a value of the body."""
    body = orjson.dumps(fields)
    with pytest.raises(UnreadableWebhook):  # which is no text
        parse(b"\xff" + body, sign(b"\xff" + body, OLD))
    with pytest.raises(UnreadableWebhook) as failure:
        parse(body, sign(body, OLD))
    for value in ("202e", "\u202e", "é", "yesterday", "now", "eee"):
        assert value not in str(failure.value)
