"""The charts of the overview: payments, money and queues over a period."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from tallystick_core.currencies import EXPONENTS
from tallystick_server.http.console.charts import Step
from tallystick_server.http.console.history import (
    PERIOD_CHOICES,
    Group,
    History,
    HistoryReader,
    MetricQuery,
)
from tallystick_server.http.console.pages.work_queues import (
    WORK,
    WORK_AGE,
    is_alert,
    queue_name,
)
from tallystick_server.http.console.panels import (
    ACCEPTED,
    DECLINED,
    Panel,
    acceptance_panel,
    acceptances,
    bar_panel,
    latency_panel,
    latency_queries,
    line_panel,
    total_acceptance,
)
from tallystick_server.http.console.rendering import format_words
from tallystick_server.http.console.units import COUNT, SECONDS, money

IN_FLIGHT = MetricQuery("tallystick.money.in_flight", ("service", "currency"))
_CHARGES = "tallystick.charges.completed"
_CREATE_PAYMENT = "tallystick.payment.v1.PaymentService/CreatePayment"
_AGES = (
    ("less than 2 days", ("0", "1")),
    ("2 to 4 days", ("2", "3")),
    ("5 to 9 days", ("5",)),
    ("10 days or more", ("10", "30")),
)
"""The ages of expected entries, and the values of min_age_days that they have."""


class _Payments(NamedTuple):
    """Charges by an attribute and their outcome, and the latency of CreatePayment."""

    by_provider: History
    by_method: History
    by_currency: History
    median: History
    slow: History


_PAYMENT_QUERIES = (
    MetricQuery(_CHARGES, ("provider", "outcome")),
    MetricQuery(_CHARGES, ("payment_method_type", "outcome")),
    MetricQuery(_CHARGES, ("currency", "outcome")),
    *latency_queries(_CREATE_PAYMENT),
)


class _Queues(NamedTuple):
    """What waits for a person, and for a process."""

    work: History
    work_age: History
    queued: History
    due: History
    due_age: History


_QUEUE_QUERIES = (
    WORK,
    WORK_AGE,
    MetricQuery("tallystick.operations.queued", ("service",)),
    MetricQuery("tallystick.operations.due", ("service",)),
    MetricQuery("tallystick.operations.oldest_due.age", ("service",), "MAX"),
)


async def read_charts(
    reader: HistoryReader, owed: Sequence[Mapping[str, str]], chosen: Mapping[str, str]
) -> dict[str, Any]:
    """The panels, and the choices of the form above them. `owed`: the clearing accounts of
    providers. `chosen`: the currency and the account that were asked for.
    """
    of_payments, of_queues, (in_flight,) = await reader.read(
        _PAYMENT_QUERIES, _QUEUE_QUERIES, [IN_FLIGHT]
    )
    payments, queues = _Payments(*of_payments), _Queues(*of_queues)
    in_flight = in_flight.with_zeros_like(queues.work)
    currencies = _currencies(payments.by_currency, in_flight, owed)
    currency = _choice(chosen.get("currency", ""), currencies)
    accounts = [line["account"] for line in owed if line["currency"] == currency]
    account = _choice(chosen.get("account", ""), accounts)
    filters = [
        ("period", "Period", PERIOD_CHOICES),
        ("currency", "Currency of the money", [(name, name) for name in currencies]),
        ("account", "Clearing account", [(name, name) for name in accounts]),
    ]
    return {
        "filters": [item for item in filters if item[2]],
        "chosen": {"period": reader.period.name, "currency": currency, "account": account},
        **_payment_figures(payments),
        "payment_panels": _payment_panels(payments, reader.steps),
        "money_panels": [
            _in_flight_panel(reader.steps, in_flight, currency),
            *await _clearing_panel(reader, account, currency, queues.work),
        ],
        "queue_panels": _queue_panels(queues, reader.steps),
    }


def _payment_figures(payments: _Payments) -> dict[str, Any]:
    """The figures of the whole period."""
    by_provider, by_method, by_currency = map(acceptances, payments[:3])
    return {
        "acceptance": total_acceptance(by_provider),
        "acceptances": [
            ("Provider", [(part.name, part) for part in by_provider]),
            ("Payment method", [(format_words(part.name), part) for part in by_method]),
            ("Currency", [(part.name, part) for part in by_currency]),
        ],
        "median": _last(payments.median),
        "slow": _last(payments.slow),
    }


def _payment_panels(payments: _Payments, steps: Sequence[Step]) -> list[Panel]:
    title = "Acceptance rate by"
    return [
        bar_panel(
            "charges",
            "Charges",
            "Those that a provider accepted or declined.",
            steps,
            payments.by_provider,
            [
                ("accepted", "good", lambda group: group[1] == ACCEPTED),
                ("declined", "bad", lambda group: group[1] == DECLINED),
            ],
        ),
        acceptance_panel("by-provider", f"{title} provider", steps, payments.by_provider, str),
        acceptance_panel(
            "by-method", f"{title} payment method", steps, payments.by_method, format_words
        ),
        acceptance_panel("by-currency", f"{title} currency", steps, payments.by_currency, str),
        latency_panel("CreatePayment", steps, payments.median, payments.slow),
    ]


def _queue_panels(queues: _Queues, steps: Sequence[Step]) -> list[Panel]:
    return [
        line_panel(
            "operations",
            "Operations in the queue",
            "Charges, payouts and verifications that are not complete. Due: no process has "
            "claimed them yet.",
            steps,
            COUNT,
            (queues.queued.with_zeros_like(queues.due), lambda group: f"{group[0]}, queued"),
            (queues.due, lambda group: f"{group[0]}, due"),
        ),
        line_panel(
            "oldest",
            "Age of the oldest due operation",
            "Above a minute too few processes claim operations, or none.",
            steps,
            SECONDS,
            (queues.due_age, lambda group: group[0]),
        ),
        line_panel(
            "work",
            "Work",
            "What waits for a person.",
            steps,
            COUNT,
            (queues.work.without(is_alert), queue_name),
        ),
        line_panel(
            "work-age",
            "Age of the oldest work",
            "",
            steps,
            SECONDS,
            (queues.work_age.without(is_alert), queue_name),
        ),
        line_panel(
            "alerts",
            "Open alerts",
            "",
            steps,
            COUNT,
            (queues.work.only(is_alert), lambda group: group[0]),
        ),
    ]


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
    reader: HistoryReader, account: str, currency: str, reference: History
) -> list[Panel]:
    """What statements of a provider should still bring, by age; none without an account."""
    if not account:
        return []
    query = MetricQuery(
        "tallystick.clearing.expected",
        ("min_age_days",),
        filters=(f"account={account}", f"currency={currency}"),
    )
    ((expected,),) = await reader.read([query])
    expected = expected.with_zeros_like(reference)
    groups: dict[Group, Sequence[float | None]] = {
        (name,): _sum_of_ages(expected, ages) for name, ages in _AGES
    }
    return [
        line_panel(
            "clearing",
            f"Clearing by age of {account} in {currency}",
            "Owed by the provider, and in no statement yet.",
            reader.steps,
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
