"""The provider's webhooks: what it answers about a charge or payout it also reports, late, several
times, in any order, or never.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AsyncClient
from tallystick.operator.v1 import operator_pb2
from tallystick_sandbox.rules import Reply
from tests.simulation.call_until_success import call_until_success
from tests.simulation.loop import Node
from tests.simulation.world import World

_DELIVERY_WEIGHTS = {1: 6.0, 2: 3.0, 3: 1.0}
_MAX_DELAY_SECONDS = 20.0
_END_STATES = ("APPLIED", "CLOSED")
ParseEvent = Callable[[], operator_pb2.ReceivedWebhookEvent]
"""Reads a webhook as the HTTP server does."""
STATES_SQL = "select event_id, state from {schema}.webhook_event order by event_id"
"""The stored events of a service."""


class WebhookLoad:
    """Delivers events as the HTTP server passes them on, each until it is stored. `report_rate`:
    the share of the provider's changes that it also reports.
    """

    def __init__(self, world: World, report_rate: float) -> None:
        self._world = world
        self._report_rate = report_rate
        self._counts: Counter[str] = Counter()
        self._last_replies: dict[str, Reply] = {}
        self._open_count = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._delivered_ids: dict[str, set[str]] = {"payment": set(), "payout": set()}
        self._ignored_ids: set[str] = set()
        self.violations: list[str] = []

    @property
    def is_used(self) -> bool:
        """Whether the provider reports anything."""
        return self._report_rate > 0

    @property
    def is_idle(self) -> bool:
        """Whether every event that was to be delivered is stored."""
        return self._open_count == 0

    def report(
        self, client: AsyncClient, provider: str, service: str, subject_id: str, reply: Reply
    ) -> None:
        """Draws how often, and when, the provider reports an answer that differs from its last one
        about the same subject.
        """
        if not reply.reference or self._last_replies.get(subject_id) == reply:
            return
        self._last_replies[subject_id] = reply
        self._counts[subject_id] += 1
        event_id = f"evt-{subject_id}-{self._counts[subject_id]}"
        random = self._world.seeded_random
        if random.number(f"whether {event_id}") >= self._report_rate:
            return
        event = operator_pb2.ReceivedWebhookEvent(
            provider=provider,
            event_id=event_id,
            event_type=f"{service}.changed",
            subject=(
                operator_pb2.WEBHOOK_SUBJECT_PAYOUT
                if service == "payout"
                else operator_pb2.WEBHOOK_SUBJECT_CHARGE
            ),
            reference=reply.reference,
            client_reference=subject_id,
            provider_time=Timestamp(seconds=1_700_000_000),
        )
        self._schedule(client, event_id, lambda: event)

    def report_signed(self, client: AsyncClient, event_id: str, parse: ParseEvent) -> None:
        """Draws how often, and when, Stripe delivers an event. `parse`: verifies and reads its body
        on arrival.
        """
        if self._world.seeded_random.number(f"whether {event_id}") < self._report_rate:
            self._schedule(client, event_id, parse)

    def _schedule(self, client: AsyncClient, event_id: str, parse: ParseEvent) -> None:
        random = self._world.seeded_random
        for number in range(random.weighted_choice(f"deliveries {event_id}", _DELIVERY_WEIGHTS)):
            self._open_count += 1
            self._world.loop.deliver(
                Node(f"caller-{event_id}-{number}"),
                random.uniform(f"delay {event_id} {number}", 0, _MAX_DELAY_SECONDS),
                self._start,
                client,
                parse,
            )

    def _start(self, client: AsyncClient, parse: ParseEvent) -> None:
        self._tasks.append(asyncio.ensure_future(self._deliver(client, parse())))

    async def _deliver(self, client: AsyncClient, event: operator_pb2.ReceivedWebhookEvent) -> None:
        is_payout = event.subject == operator_pb2.WEBHOOK_SUBJECT_PAYOUT
        stub: Any = client.payout if is_payout else client.payment
        request = operator_pb2.BatchReceiveWebhookEventsRequest(events=[event])
        await call_until_success(
            lambda: stub.BatchReceiveWebhookEvents(request), event.event_id, self.violations
        )
        self._delivered_ids["payout" if is_payout else "payment"].add(event.event_id)
        if event.subject == operator_pb2.WEBHOOK_SUBJECT_OTHER:
            self._ignored_ids.add(event.event_id)
        self._open_count -= 1

    def audit(self, service: str, stored: Sequence[tuple[str, str]]) -> list[str]:
        """The events of a service, with their states, that are not stored and applied once."""
        delivered_ids = self._delivered_ids[service]
        return [
            *self.violations,
            *(
                f"webhook event {event_id} is {state}"
                for event_id, state in stored
                if state not in (("IGNORED",) if event_id in self._ignored_ids else _END_STATES)
            ),
            *(
                f"webhook event {event_id} was answered and is not stored"
                for event_id in sorted(delivered_ids - {event_id for event_id, _ in stored})
            ),
        ]
