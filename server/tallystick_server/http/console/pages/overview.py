"""The overview: what waits for people, how payments go, and where money is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from google.rpc import code_pb2

from tallystick_core.currencies import EXPONENTS
from tallystick_server.http.console.history import (
    NOW,
    History,
    HistoryReader,
    period_of,
)
from tallystick_server.http.console.links import path_of
from tallystick_server.http.console.pages.overview_charts import IN_FLIGHT, read_charts
from tallystick_server.http.console.pages.own_payments import show_own_payments
from tallystick_server.http.console.pages.work_queues import (
    QUEUES,
    WORK,
    WORK_AGE,
    alert_queues,
    queue_states,
)
from tallystick_server.http.console.units import money
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit

_MAX_ACCOUNTS = 200


async def show_overview(visit: Visit) -> Answer:
    """GET /console: the work queues and the alerts now, and the platform's figures over time. For a
    team its own payments; for a caller who may only pay out, the list of payouts.
    """
    reader_now = HistoryReader(visit.calls, NOW, visit.time)
    ((work_now, age_now, in_flight_now),) = await reader_now.read([WORK, WORK_AGE, IN_FLIGHT])
    if work_now.error and work_now.error.code == code_pb2.PERMISSION_DENIED:
        if not visit.session.may_have(("TEAM",)):
            return Redirect(path_of("payouts"))
        return await show_own_payments(visit)
    providers = await visit.calls.attempt(
        "ledger.ListAccounts", prefix="psp/", page_size=_MAX_ACCOUNTS
    )
    period = period_of(visit.query.get("period", ""))
    owed = _owed_by_providers(providers.values.get("accounts", []))
    values = {
        "error": work_now.error,
        "time": _time_of(work_now, visit.time),
        "work": queue_states(QUEUES, work_now, age_now),
        "alerts": queue_states(
            alert_queues(visit.calls.services_with("ListAlerts")), work_now, age_now
        ),
        "providers": providers,
        "owed": owed,
        "has_more_accounts": bool(providers.values.get("next_page_token")),
        "in_flight": _in_flight_now(in_flight_now.with_zeros_like(work_now)),
        "period": period,
    }
    if work_now.error is None:
        reader = HistoryReader(visit.calls, period, visit.time)
        values |= await read_charts(reader, owed, visit.query)
    return Page("overview.html", "Overview", values)


def _time_of(history: History, now: datetime) -> datetime | None:
    """When the figures were recorded; of several the earliest time. None: they were not."""
    steps = [step for step, _ in history.latest().values()]
    start = NOW.start_at(now)
    return start + timedelta(seconds=NOW.step_seconds * min(steps)) if steps else None


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


def _in_flight_now(in_flight: History) -> list[tuple[str, str, str]]:
    """By currency: the amount in charges, and in payouts."""
    latest = in_flight.latest()

    def amount(service: str, currency: str) -> str:
        _, minor_units = latest.get((service, currency), (0, 0.0))
        return money(currency).format(minor_units)

    currencies = sorted({currency for _, currency in latest if currency in EXPONENTS})
    return [(name, amount("payment", name), amount("payout", name)) for name in currencies]
