"""The overview: what waits for people, how payments go, and where money is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from google.rpc import code_pb2

from tallystick_core.currencies import EXPONENTS
from tallystick_server.http.console.charts import Step
from tallystick_server.http.console.history import (
    NOW,
    PERIOD_CHOICES,
    Group,
    History,
    MetricQuery,
    Period,
    period_of,
    read_histories,
)
from tallystick_server.http.console.links import path_of
from tallystick_server.http.console.pages.own_payments import show_own_payments
from tallystick_server.http.console.pages.work_queues import (
    QUEUES,
    WORK,
    WORK_AGE,
    alert_queues,
    is_alert,
    queue_name,
    queue_states,
)
from tallystick_server.http.console.panels import (
    ACCEPTED,
    DECLINED,
    Panel,
    acceptance_panel,
    acceptances,
    bar_panel,
    line_panel,
    total_acceptance,
)
from tallystick_server.http.console.rendering import format_words
from tallystick_server.http.console.units import COUNT, SECONDS, money
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit

_MAX_ACCOUNTS = 200
_CHARGES = "tallystick.charges.completed"
_IN_FLIGHT = MetricQuery("tallystick.money.in_flight", ("service", "currency"))
_CREATE_PAYMENT = "rpc.method=tallystick.payment.v1.PaymentService/CreatePayment"
_LATENCY = "rpc.server.call.duration"
_AGES = (
    ("less than 2 days", ("0", "1")),
    ("2 to 4 days", ("2", "3")),
    ("5 to 9 days", ("5",)),
    ("10 days or more", ("10", "30")),
)
"""The ages of expected entries, and the values of min_age_days that they have."""


async def show_overview(visit: Visit) -> Answer:
    """GET /console: the work queues and the alerts now, and the platform's figures over time. For a
    team its own payments; for a caller who may only pay out, the list of payouts.
    """
    work_now, age_now, in_flight_now = await read_histories(
        visit.calls, NOW, visit.time, WORK, WORK_AGE, _IN_FLIGHT
    )
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
        values |= await _read_charts(visit, period, owed)
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


async def _read_charts(
    visit: Visit, period: Period, owed: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The panels of a period, and the choices of the form above them."""
    (
        by_provider,
        by_method,
        by_currency,
        median,
        slow,
        work,
        work_age,
        queued,
        due,
        due_age,
        in_flight,
    ) = await read_histories(
        visit.calls,
        period,
        visit.time,
        MetricQuery(_CHARGES, ("provider", "outcome")),
        MetricQuery(_CHARGES, ("payment_method_type", "outcome")),
        MetricQuery(_CHARGES, ("currency", "outcome")),
        MetricQuery(_LATENCY, (), "QUANTILE", (_CREATE_PAYMENT,), "0.5"),
        MetricQuery(_LATENCY, (), "QUANTILE", (_CREATE_PAYMENT,), "0.99"),
        WORK,
        WORK_AGE,
        MetricQuery("tallystick.operations.queued", ("service",)),
        MetricQuery("tallystick.operations.due", ("service",)),
        MetricQuery("tallystick.operations.oldest_due.age", ("service",), "MAX"),
        _IN_FLIGHT,
    )
    steps = period.steps_at(visit.time)
    in_flight = in_flight.with_zeros_like(work)
    currencies = _currencies(by_currency, in_flight, owed)
    currency = _choice(visit.query.get("currency", ""), currencies)
    accounts = [line["account"] for line in owed if line["currency"] == currency]
    account = _choice(visit.query.get("account", ""), accounts)
    clearing = await _clearing_panel(visit, period, steps, account, currency, work)
    filters = [
        ("period", "Period", PERIOD_CHOICES),
        ("currency", "Currency of the money", [(name, name) for name in currencies]),
        ("account", "Clearing account", [(name, name) for name in accounts]),
    ]
    return {
        "filters": [item for item in filters if item[2]],
        "chosen": {"period": period.name, "currency": currency, "account": account},
        "acceptance": total_acceptance(acceptances(by_provider)),
        "acceptances": [
            ("Provider", [(part.name, part) for part in acceptances(by_provider)]),
            (
                "Payment method",
                [(format_words(part.name), part) for part in acceptances(by_method)],
            ),
            ("Currency", [(part.name, part) for part in acceptances(by_currency)]),
        ],
        "median": _last(median),
        "slow": _last(slow),
        "payment_panels": [
            bar_panel(
                "charges",
                "Charges",
                "Those that a provider accepted or declined.",
                steps,
                by_provider,
                [
                    ("accepted", "good", lambda group: group[1] == ACCEPTED),
                    ("declined", "bad", lambda group: group[1] == DECLINED),
                ],
            ),
            acceptance_panel("by-provider", "Acceptance rate by provider", steps, by_provider, str),
            acceptance_panel(
                "by-method", "Acceptance rate by payment method", steps, by_method, format_words
            ),
            acceptance_panel("by-currency", "Acceptance rate by currency", steps, by_currency, str),
            line_panel(
                "latency",
                "Latency of CreatePayment",
                "Half of the calls are faster than the median, 99 of 100 than the other line.",
                steps,
                SECONDS,
                (median, lambda _: "median"),
                (slow, lambda _: "99 %"),
            ),
        ],
        "money_panels": [_in_flight_panel(steps, in_flight, currency), *clearing],
        "queue_panels": [
            line_panel(
                "operations",
                "Operations in the queue",
                "Charges, payouts and verifications that are not complete. Due: no process has "
                "claimed them yet.",
                steps,
                COUNT,
                (queued.with_zeros_like(due), lambda group: f"{group[0]}, queued"),
                (due, lambda group: f"{group[0]}, due"),
            ),
            line_panel(
                "oldest",
                "Age of the oldest due operation",
                "Above a minute too few processes claim operations, or none.",
                steps,
                SECONDS,
                (due_age, lambda group: group[0]),
            ),
            line_panel(
                "work",
                "Work",
                "What waits for a person.",
                steps,
                COUNT,
                (work.without(is_alert), queue_name),
            ),
            line_panel(
                "work-age",
                "Age of the oldest work",
                "",
                steps,
                SECONDS,
                (work_age.without(is_alert), queue_name),
            ),
            line_panel(
                "alerts",
                "Open alerts",
                "",
                steps,
                COUNT,
                (work.only(is_alert), lambda group: group[0]),
            ),
        ],
    }


def _choice(chosen: str, choices: Sequence[str]) -> str:
    """What was chosen, if it is a choice; otherwise the first one."""
    return chosen if chosen in choices else next(iter(choices), "")


def _currencies(
    charges: History, in_flight: History, owed: Sequence[Mapping[str, str]]
) -> list[str]:
    """The currencies that there is something of, the one with most charges first."""
    names = [
        *(part.name for part in acceptances(charges)),
        *(currency for _, currency in in_flight.groups),
        *(line["currency"] for line in owed),
    ]
    return [name for name in dict.fromkeys(names) if name in EXPONENTS]


def _last(history: History) -> timedelta | None:
    """The last value of a history of one group, which is in seconds."""
    for _, seconds in history.latest().values():
        return timedelta(seconds=seconds)
    return None


def _in_flight_now(in_flight: History) -> list[tuple[str, str, str]]:
    """By currency: the amount in charges, and in payouts."""
    latest = in_flight.latest()

    def amount(service: str, currency: str) -> str:
        _, minor_units = latest.get((service, currency), (0, 0.0))
        return money(currency).format(minor_units)

    currencies = sorted({currency for _, currency in latest if currency in EXPONENTS})
    return [(name, amount("payment", name), amount("payout", name)) for name in currencies]


def _in_flight_panel(steps: Sequence[Step], in_flight: History, currency: str) -> Panel:
    names = {"payment": "charges", "payout": "payouts"}
    return line_panel(
        "in-flight",
        f"Money in flight in {currency}" if currency else "Money in flight",
        "Sent, pending, or not booked yet.",
        steps,
        money(currency) if currency else COUNT,
        (
            in_flight.only(lambda group: group[1] == currency),
            lambda group: names.get(group[0], group[0]),
        ),
    )


async def _clearing_panel(
    visit: Visit,
    period: Period,
    steps: Sequence[Step],
    account: str,
    currency: str,
    reference: History,
) -> list[Panel]:
    """What statements of a provider should still bring, by age; none without an account."""
    if not account:
        return []
    (expected,) = await read_histories(
        visit.calls,
        period,
        visit.time,
        MetricQuery(
            "tallystick.clearing.expected",
            ("min_age_days",),
            filters=(f"account={account}", f"currency={currency}"),
        ),
    )
    expected = expected.with_zeros_like(reference)
    groups: dict[Group, Sequence[float | None]] = {
        (name,): _sum_of_ages(expected, ages) for name, ages in _AGES
    }
    return [
        line_panel(
            "clearing",
            f"Clearing by age of {account} in {currency}",
            "Owed by the provider, and in no statement yet.",
            steps,
            money(currency),
            (History(groups, expected.error), lambda group: group[0]),
        )
    ]


def _sum_of_ages(expected: History, ages: Sequence[str]) -> list[float | None]:
    """The sum of some ages by step."""
    parts = [expected.groups[(age,)] for age in ages if (age,) in expected.groups]
    return [
        sum(value or 0.0 for value in values) if any(v is not None for v in values) else None
        for values in zip(*parts, strict=True)
    ]
