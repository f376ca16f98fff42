"""What waits for people: the queues, and how many items each has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tallystick_server.http.console.history import Group, History, MetricQuery
from tallystick_server.http.console.links import path_of, with_query

WORK = MetricQuery("tallystick.work.open", ("service", "queue"))
WORK_AGE = MetricQuery("tallystick.work.oldest.age", ("service", "queue"), "MAX")
ALERT = "ALERT"
"""The queue of alerts, which each service has."""


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """What waits for a person. `service` and `queue`: its attributes in tallystick.work.open."""

    name: str
    path: str
    service: str
    queue: str


_DEAD_LETTERS, _BREAKS = path_of("dead-letters"), path_of("breaks")
QUEUES = (
    WorkQueue("Dead letters of charges", _DEAD_LETTERS, "payment", "DEAD_LETTER"),
    WorkQueue(
        "Dead letters of payouts",
        with_query(_DEAD_LETTERS, service="payout"),
        "payout",
        "DEAD_LETTER",
    ),
    WorkQueue("Payouts that await approval", path_of("approvals"), "payout", "PAYOUT_APPROVAL"),
    WorkQueue("Unapplied charges", path_of("unapplied-charges"), "payment", "UNAPPLIED_CHARGE"),
    WorkQueue(
        "Breaks for finance",
        with_query(_BREAKS, **{"class": "FINANCE"}),
        "reconciliation",
        "BREAK_FINANCE",
    ),
    WorkQueue(
        "Breaks to investigate",
        with_query(_BREAKS, **{"class": "INVESTIGATION"}),
        "reconciliation",
        "BREAK_INVESTIGATION",
    ),
    WorkQueue(
        "Resolutions that await approval",
        with_query(_BREAKS, state="AWAITING_APPROVAL"),
        "reconciliation",
        "RESOLUTION_APPROVAL",
    ),
    WorkQueue(
        "Reopenings that await approval",
        with_query(_BREAKS, state="AWAITING_REOPENING"),
        "reconciliation",
        "REOPENING_APPROVAL",
    ),
)
_QUEUE_NAMES = {(queue.service, queue.queue): queue.name for queue in QUEUES}


@dataclass(frozen=True, slots=True)
class QueueState:
    """`count`: None if it was not recorded. `oldest`: None if nothing waits."""

    queue: WorkQueue
    count: int | None
    oldest: timedelta | None


def alert_queues(services: Iterable[str]) -> list[WorkQueue]:
    """The open alerts of some services."""
    path = path_of("alerts")
    return [
        WorkQueue(f"Alerts of {service}", with_query(path, service=service), service, ALERT)
        for service in services
    ]


def is_alert(group: Group) -> bool:
    """Whether a group of WORK counts alerts."""
    return group[1] == ALERT


def queue_name(group: Group) -> str:
    """The name of a group of WORK."""
    return _QUEUE_NAMES.get((group[0], group[1]), " ".join(group))


def queue_states(queues: Sequence[WorkQueue], work: History, ages: History) -> list[QueueState]:
    """The last values of some queues."""
    counts, oldest = work.latest(), ages.latest()
    states = []
    for queue in queues:
        group = (queue.service, queue.queue)
        count = round(counts[group][1]) if group in counts else None
        age = timedelta(seconds=oldest[group][1]) if count and group in oldest else None
        states.append(QueueState(queue, count, age))
    return states
