"""The contract of adapters whose provider reports by webhooks: what they verify, read and list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol, TypeAlias

from multidict import CIMultiDict

from tallystick_core.provider.outcome import NotSent, Succeeded, Unknown
from tallystick_core.provider.webhook import (
    InvalidSignature,
    UnreadableWebhook,
    WebhookEvent,
    WebhookSource,
    WebhookSubject,
)
from tallystick_server.operations.webhook_handlers import parse_event, to_received_message
from tests.providers.contract import Answer, ChargeHarness, send
from tests.providers.contract_payouts import PayoutHarness, submit


class Delivery(NamedTuple):
    """A call of the provider to an endpoint of the platform."""

    endpoint: str
    headers: Mapping[str, str]
    body: bytes


class WebhookHarness(ChargeHarness, PayoutHarness, Protocol):
    """A provider with webhooks under the test's control."""

    @property
    def webhooks(self) -> WebhookSource:
        """The adapter."""
        ...

    async def deliveries(self, operation_id: str) -> list[Delivery]:
        """What the provider has delivered about a charge or a payout, in any order."""
        ...

    def signed(self, endpoint: str, body: bytes) -> Delivery:
        """A delivery of any body, with the provider's own signature of this moment."""
        ...

    def unreachable_webhooks(self) -> AbstractAsyncContextManager[WebhookSource]:
        """An adapter while no connection to its provider can be made."""
        ...


WebhookCase: TypeAlias = Callable[[WebhookHarness], Awaitable[None]]


def parse(
    harness: WebhookHarness, delivery: Delivery, later: timedelta = timedelta()
) -> WebhookEvent:
    """Reads a delivery, or raises. `later`: how long after its signature."""
    headers = CIMultiDict(delivery.headers)
    now = datetime.now(UTC) + later
    return harness.webhooks.parse(delivery.endpoint, delivery.body, headers, now)


def failure_of(
    harness: WebhookHarness, delivery: Delivery, later: timedelta = timedelta()
) -> type[Exception] | None:
    """The type of the exception that a delivery raises. None: it is read."""
    try:
        parse(harness, delivery, later)
    except (InvalidSignature, UnreadableWebhook) as error:
        return type(error)
    return None


async def _charge(harness: WebhookHarness) -> tuple[str, str, list[Delivery]]:
    """The id of a new charge, its reference, and what is delivered about it."""
    charge = harness.new_charge(Answer.SUCCEEDS)
    outcome = await send(harness, charge)
    assert isinstance(outcome, Succeeded)
    deliveries = await harness.deliveries(charge.charge_id)
    assert deliveries
    return charge.charge_id, outcome.reference, deliveries


async def a_charge_is_reported(harness: WebhookHarness) -> None:
    """An event of a charge names its id and its reference, so that it can be looked up."""
    charge_id, reference, deliveries = await _charge(harness)
    _require_subject(harness, deliveries, WebhookSubject.CHARGE, charge_id, reference)


async def a_payout_is_reported(harness: WebhookHarness) -> None:
    """So does an event of a payout."""
    payout = harness.new_payout(Answer.SUCCEEDS)
    (outcome,) = await submit(harness, payout)
    reference = getattr(outcome, "reference", "")
    assert reference
    deliveries = await harness.deliveries(payout.payout_id)
    _require_subject(harness, deliveries, WebhookSubject.PAYOUT, payout.payout_id, reference)


def _require_subject(
    harness: WebhookHarness,
    deliveries: Sequence[Delivery],
    subject: WebhookSubject,
    operation_id: str,
    reference: str,
) -> None:
    """An event is about the operation, and none is about another. Each can be stored."""
    events = [parse(harness, delivery) for delivery in deliveries]
    about = [event for event in events if event.subject is not WebhookSubject.OTHER]
    assert about
    for event in about:
        assert (event.subject, event.client_reference) == (subject, operation_id)
        assert event.reference in (reference, ""), event.event_type
    assert any(event.reference for event in about)
    for event in events:
        assert event.provider == harness.webhooks.name
        assert parse_event(to_received_message(event)) == event
        if event.subject is WebhookSubject.OTHER:
            assert event.reference == event.client_reference == ""


async def another_body_is_rejected(harness: WebhookHarness) -> None:
    """A delivery counts only with the very bytes that the provider signed, and its headers."""
    _, _, (delivery, *_) = await _charge(harness)
    parse(harness, delivery)
    for body in _other_bodies(delivery.body):
        assert failure_of(harness, delivery._replace(body=body)) is InvalidSignature, body
    assert failure_of(harness, delivery._replace(headers={})) is InvalidSignature
    for name, value in delivery.headers.items():
        if name.lower().endswith("signature"):
            for other in ("", value[:-1], value[::-1], value.upper()):
                changed = delivery._replace(headers={**delivery.headers, name: other})
                assert failure_of(harness, changed) is InvalidSignature, other


def _other_bodies(body: bytes) -> Iterator[bytes]:
    yield from (b"", body + b"\n", b" " + body, body[:-1], body + body)
    for index in range(0, len(body), 97):
        yield body[:index] + bytes([body[index] ^ 1]) + body[index + 1 :]


async def another_endpoint_is_rejected(harness: WebhookHarness) -> None:
    """Each endpoint has secrets of its own, and an unknown one has none."""
    body = b"{}"
    for endpoint in harness.webhooks.endpoints:
        delivery = harness.signed(endpoint, body)
        assert failure_of(harness, delivery) is UnreadableWebhook
        for other in {*harness.webhooks.endpoints, "unknown"} - {endpoint}:
            moved = delivery._replace(endpoint=other)
            assert failure_of(harness, moved) is InvalidSignature, (endpoint, other)


async def another_time_is_rejected(harness: WebhookHarness) -> None:
    """A signature counts for minutes only, so that a copied delivery is of no use; and one of the
    future does not count.
    """
    _, _, (delivery, *_) = await _charge(harness)
    for later in (timedelta(hours=1), -timedelta(hours=1), timedelta(days=36_500)):
        assert failure_of(harness, delivery, later) is InvalidSignature, later
    for later in (timedelta(minutes=1), -timedelta(minutes=1)):
        assert failure_of(harness, delivery, later) is None, later


async def a_signed_body_that_is_no_event_is_unreadable(harness: WebhookHarness) -> None:
    """It is an error of its own, which says nothing of the body."""
    bodies = (
        b"",
        b"secret-word",
        b'{"secret-word": ',
        b'"secret-word"',
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'[{"id": "secret-word"}]',
        b'{"id": "secret-word"}',
        b'{"id": ["secret-word"], "type": {"secret-word": 1}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"9" * 100_000,
    )
    for body in bodies:
        try:
            parse(harness, harness.signed("", body))
        except UnreadableWebhook as error:
            assert "secret-word" not in str(error)
        else:
            raise AssertionError(body[:100])


async def missed_events_are_listed(harness: WebhookHarness) -> None:
    """After an outage the platform lists what it would have received: the same events, the oldest
    first. An adapter may leave out types that report no result.
    """
    charge_id, _, deliveries = await _charge(harness)
    delivered = [parse(harness, delivery) for delivery in deliveries]
    since = min(event.provider_time for event in delivered)
    listed = await harness.webhooks.list_events("", since)
    assert not isinstance(listed, NotSent | Unknown)
    about = [event for event in listed if event.client_reference == charge_id]
    assert about
    assert [event for event in about if event not in delivered] == []
    times = [event.provider_time for event in listed]
    assert times == sorted(times)
    assert times[0] >= since
    after = await harness.webhooks.list_events("", datetime.now(UTC) + timedelta(hours=1))
    assert after == ()


async def an_unreachable_provider_lists_nothing(harness: WebhookHarness) -> None:
    """No connection is no empty list, which would end the catch-up."""
    async with harness.unreachable_webhooks() as webhooks:
        listed = await webhooks.list_events("", datetime.now(UTC) - timedelta(hours=1))
    assert isinstance(listed, NotSent)


WEBHOOK_CASES: Sequence[WebhookCase] = (
    a_charge_is_reported,
    a_payout_is_reported,
    another_body_is_rejected,
    another_endpoint_is_rejected,
    another_time_is_rejected,
    a_signed_body_that_is_no_event_is_unreadable,
    missed_events_are_listed,
    an_unreachable_provider_lists_nothing,
)
"""The cases that every adapter with webhooks passes."""
