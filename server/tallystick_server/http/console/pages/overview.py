"""The overview: what waits for people, and how payments go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tallystick_server.http.console.calls import CallFailed, Result, gather_results
from tallystick_server.http.console.charts import Bar, BarChart, Series, bar_chart
from tallystick_server.http.console.links import path_of, with_query
from tallystick_server.http.console.visit import Answer, Page, Visit

_MANY = 200
"""How many items of each list the overview reads."""
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Queue:
    """Work of one kind. `part`: the field of the response with its items."""

    name: str
    path: str
    call: str
    part: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueState:
    """`count`: such as 3, or 200+ if there are more. `oldest`: None: there is none. `is_exact`: no
    older item may exist.
    """

    queue: Queue
    error: CallFailed | None
    count: str
    oldest: timedelta | None
    is_exact: bool


_BREAKS = path_of("breaks")
QUEUES = (
    Queue(
        "Dead letters of charges",
        path_of("dead-letters"),
        "payment.ListDeadLetters",
        "dead_letters",
        {"state": "DEAD_LETTER_STATE_OPEN"},
    ),
    Queue(
        "Dead letters of payouts",
        with_query(path_of("dead-letters"), service="payout"),
        "payout.ListDeadLetters",
        "dead_letters",
        {"state": "DEAD_LETTER_STATE_OPEN"},
    ),
    Queue(
        "Payouts that await approval",
        path_of("approvals"),
        "payout.ListPayouts",
        "payouts",
        {"payout_state": "PAYOUT_STATE_AWAITING_APPROVAL"},
    ),
    Queue(
        "Unapplied charges",
        path_of("unapplied-charges"),
        "payment.ListUnappliedCharges",
        "unapplied_charges",
        {},
    ),
    Queue(
        "Breaks for finance",
        with_query(_BREAKS, **{"class": "FINANCE"}),
        "reconciliation.ListBreaks",
        "breaks",
        {"state": "BREAK_STATE_OPEN", "break_class": "BREAK_CLASS_FINANCE"},
    ),
    Queue(
        "Breaks to investigate",
        with_query(_BREAKS, **{"class": "INVESTIGATION"}),
        "reconciliation.ListBreaks",
        "breaks",
        {"state": "BREAK_STATE_OPEN", "break_class": "BREAK_CLASS_INVESTIGATION"},
    ),
    Queue(
        "Resolutions that await approval",
        with_query(_BREAKS, state="AWAITING_APPROVAL"),
        "reconciliation.ListBreaks",
        "breaks",
        {"state": "BREAK_STATE_AWAITING_APPROVAL"},
    ),
    Queue(
        "Reopenings that await approval",
        with_query(_BREAKS, state="AWAITING_REOPENING"),
        "reconciliation.ListBreaks",
        "breaks",
        {"state": "BREAK_STATE_AWAITING_REOPENING"},
    ),
)


async def show_overview(visit: Visit) -> Answer:
    """GET /console: the work queues, the open alerts, and the payments of the last day."""
    since = (visit.time - timedelta(hours=_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    attempt = visit.calls.attempt
    alert_queues = [
        Queue(
            f"Alerts of {service}",
            with_query(path_of("alerts"), service=service),
            f"{service}.ListAlerts",
            "alerts",
            {},
        )
        for service in visit.calls.services_with("ListAlerts")
    ]
    queues = [*QUEUES, *alert_queues]
    recent, providers, *lists = await gather_results(
        attempt("payment.ListPayments", create_time_from=since, page_size=_MANY),
        attempt("ledger.ListAccounts", prefix="psp/", page_size=_MANY),
        *(attempt(queue.call, **queue.fields, page_size=_MANY) for queue in queues),
    )
    states = [
        _queue_state(queue, result, visit.time) for queue, result in zip(queues, lists, strict=True)
    ]
    payments = recent.values.get("payments", [])
    values = {
        "recent": recent,
        "figures": payment_figures(payments),
        "is_part": bool(recent.values.get("next_page_token")),
        "chart": _hourly_chart(payments, visit.time),
        "providers": providers,
        "owed": _owed_by_providers(providers.values.get("accounts", [])),
        "work": [state for state in states if state.queue in QUEUES],
        "alerts": [state for state in states if state.queue not in QUEUES],
    }
    return Page("overview.html", "Overview", values)


def _owed_by_providers(accounts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The clearing accounts of providers, with what each owes: in the ledger a debit balance, which
    is below zero there.
    """
    return [
        {
            "account": line["account"],
            "currency": line["currency"],
            "amount": _negated(line["balance"]),
        }
        for line in accounts
        if line["account"].endswith("/clearing")
    ]


def _negated(amount: str) -> str:
    is_zero = not amount.strip("-0.")
    return amount if is_zero else amount[1:] if amount.startswith("-") else f"-{amount}"


def _queue_state(queue: Queue, result: Result, now: datetime) -> QueueState:
    items = result.values.get(queue.part, [])
    has_more = bool(result.values.get("next_page_token"))
    times = [item["create_time"] for item in items if item["create_time"] is not None]
    return QueueState(
        queue,
        result.error,
        f"{len(items)}+" if has_more else str(len(items)),
        now - min(times) if times else None,
        is_exact=not has_more,
    )


@dataclass(frozen=True, slots=True)
class PaymentFigures:
    """Of some payments. `acceptance_percent`: of those that ended, how many are PAID; None: none
    ended. The times are from creation to the last booking, of those that are done.
    """

    count: int
    open_count: int
    acceptance_percent: float | None
    median_time: timedelta | None
    slow_time: timedelta | None


def payment_figures(payments: Sequence[Mapping[str, Any]]) -> PaymentFigures:
    """The figures of payments. `slow_time`: 95 of 100 take no longer."""
    states = [payment["payment_state"] for payment in payments]
    ended = [state for state in states if state != "OPEN"]
    times = sorted(
        payment["done_time"] - payment["create_time"]
        for payment in payments
        if payment["done_time"] is not None and payment["create_time"] is not None
    )
    return PaymentFigures(
        count=len(states),
        open_count=len(states) - len(ended),
        acceptance_percent=100 * ended.count("PAID") / len(ended) if ended else None,
        median_time=times[(len(times) - 1) // 2] if times else None,
        slow_time=times[(95 * len(times) - 1) // 100] if times else None,
    )


def _hourly_chart(payments: Sequence[Mapping[str, Any]], now: datetime) -> BarChart:
    """The payments of each of the last hours, by how they ended."""
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=_HOURS - 1)
    counts = {state: [0] * _HOURS for state in ("PAID", "OPEN", "FAILED")}
    for payment in payments:
        hour = (payment["create_time"] - first) // timedelta(hours=1)
        state = payment["payment_state"]
        if 0 <= hour < _HOURS:
            counts[state if state in counts else "FAILED"][hour] += 1
    bars = [
        Bar(
            (first + timedelta(hours=hour)).strftime("%H:00"),
            [counts[state][hour] for state in counts],
        )
        for hour in range(_HOURS)
    ]
    series = [
        Series("paid", "good"),
        Series("open", "waiting"),
        Series("failed or partially paid", "bad"),
    ]
    return bar_chart("Payments created in each hour (UTC)", series, bars)
