"""The checker of webhooks: every accepted event is in an inbox, once, and was applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import psycopg

from tests.chaos.webhook_proxy import WebhookLog

_INBOX = """
    select event_id, state from payment.webhook_event where provider = 'stripe'
    union all select event_id, state from payout.webhook_event where provider = 'stripe'
"""
_DELIVERIES = """
    select event_id, coalesce(status, 0) between 200 and 299 from sandbox.stripe_delivery
"""
_OPEN_DELIVERIES = "select count(*) from sandbox.stripe_delivery where next_try_time is not null"
_END_STATES = ("APPLIED", "IGNORED")
_MIN_MINUTES = 1.0
"""The length of a run in which every process is killed."""


def open_deliveries(admin: str) -> dict[str, int]:
    """The number of webhooks that the look-alike has still to deliver. Empty: none."""
    with psycopg.connect(admin, connect_timeout=5) as connection:
        row = connection.execute(_OPEN_DELIVERIES).fetchone()
    return {"sandbox.stripe_delivery": row[0]} if row and row[0] else {}


def check_webhooks(admin: str, log: WebhookLog) -> dict[str, Any]:
    """Counts of webhooks, how many accepted events are `lost`, and `violations`, a line for each
    breach. An event is accepted if an HTTP process or the look-alike says so.
    """
    with psycopg.connect(admin) as connection:
        inbox = connection.execute(_INBOX).fetchall()
        deliveries: dict[str, bool] = dict(connection.execute(_DELIVERIES).fetchall())
    accepted = set(log.accepted) | {event_id for event_id, is_done in deliveries.items() if is_done}
    lost = accepted - {event_id for event_id, _ in inbox}
    violations = [f"event {event_id} was accepted, but is not stored" for event_id in sorted(lost)]
    violations += [
        f"event {event_id} was never accepted"
        for event_id, is_done in deliveries.items()
        if not is_done
    ]
    return {
        "webhooks_delivered": len(accepted),
        "webhooks_repeated": log.repeated_count,
        "webhooks_rejected": log.rejected_count,
        "webhooks_failed": log.failed_count,
        "webhooks_lost": len(lost),
        "violations": violations + _inbox_violations(inbox, deliveries),
    }


def check_coverage(minutes: float, http_kills: int, webhooks_delivered: int) -> list[str]:
    """A line for each thing that never happened in a run of this length, which therefore proves
    nothing about webhooks.
    """
    violations = []
    if minutes >= _MIN_MINUTES and http_kills == 0:
        violations.append("no HTTP process was killed")
    if minutes >= _MIN_MINUTES and webhooks_delivered == 0:
        violations.append("no webhook was delivered")
    return violations


def _inbox_violations(inbox: list[Any], deliveries: Mapping[str, bool]) -> list[str]:
    """The events that are stored twice, not applied, or were never sent."""
    counts = Counter(event_id for event_id, _ in inbox)
    return [
        *(f"event {id_} is stored {count} times" for id_, count in counts.items() if count > 1),
        *(f"event {id_} is {state}" for id_, state in inbox if state not in _END_STATES),
        *(f"event {id_} is stored, and was never sent" for id_ in counts if id_ not in deliveries),
    ]
