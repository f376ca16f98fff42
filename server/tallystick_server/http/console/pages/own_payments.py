"""The overview of a team: its own payments of the last day. The figures of the platform are for
operators and auditors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tallystick_server.http.console.charts import Chart, Series, Step, bar_chart
from tallystick_server.http.console.visit import Answer, Page, Visit

_MAX_PAYMENTS = 200
_HOURS = 24


async def show_own_payments(visit: Visit) -> Answer:
    """The figures of the newest payments that the person may see."""
    since = (visit.time - timedelta(hours=_HOURS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    response = await visit.calls.call(
        "payment.ListPayments", create_time_from=since, page_size=_MAX_PAYMENTS
    )
    payments = response["payments"]
    values = {
        "figures": payment_figures(payments),
        "is_part": bool(response["next_page_token"]),
        "chart": _hourly_chart(payments, visit.time),
    }
    return Page("own_payments.html", "Overview", values)


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


def _hourly_chart(payments: Sequence[Mapping[str, Any]], now: datetime) -> Chart:
    """The payments of each of the last hours, by how they ended."""
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=_HOURS - 1)
    counts = {state: [0] * _HOURS for state in ("PAID", "OPEN", "FAILED")}
    for payment in payments:
        hour = (payment["create_time"] - first) // timedelta(hours=1)
        state = payment["payment_state"]
        if 0 <= hour < _HOURS:
            counts[state if state in counts else "FAILED"][hour] += 1
    times = [first + timedelta(hours=hour) for hour in range(_HOURS)]
    steps = [Step(f"{time:%Y-%m-%d %H:%M}", f"{time:%H:%M}") for time in times]
    series = [
        Series("paid", counts["PAID"], "good"),
        Series("open", counts["OPEN"], "waiting"),
        Series("failed or partially paid", counts["FAILED"], "bad"),
    ]
    return bar_chart("payments", "Payments created in each hour (UTC)", steps, series)
