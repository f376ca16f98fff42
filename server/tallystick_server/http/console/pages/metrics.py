"""Metrics of the platform over time, for engineers on call."""

from __future__ import annotations

from tallystick_server.http.console.history import (
    PERIOD_CHOICES,
    MetricQuery,
    period_of,
    read_histories,
)
from tallystick_server.http.console.panels import bar_panel, line_panel
from tallystick_server.http.console.rendering import format_words
from tallystick_server.http.console.units import COUNT, FRACTION, SECONDS
from tallystick_server.http.console.visit import Answer, Page, Visit

_CALLS = "rpc.server.call.duration"
_PROVIDER_CALLS = "tallystick.provider.call.duration"
_DEFAULT_METHOD = "payment.CreatePayment"


async def show_metrics(visit: Visit) -> Answer:
    """GET /console/metrics: calls, providers, queues and processes over a period."""
    period = period_of(visit.query.get("period", ""))
    methods = visit.calls.full_names()
    method = visit.query.get("method", "")
    method = method if method in methods else _DEFAULT_METHOD
    of_method = f"rpc.method={methods[method]}"
    (
        median,
        slow,
        calls,
        failed,
        provider_slow,
        unknown,
        not_sent,
        dead_letters,
        lag,
        database,
        processor,
    ) = await read_histories(
        visit.calls,
        period,
        visit.time,
        MetricQuery(_CALLS, (), "QUANTILE", (of_method,), "0.5"),
        MetricQuery(_CALLS, (), "QUANTILE", (of_method,), "0.99"),
        MetricQuery(_CALLS, ("error.type",), "RATE", (of_method,)),
        MetricQuery(_CALLS, ("error.type",), "RATE", ("error.type!=",)),
        MetricQuery(_PROVIDER_CALLS, ("provider",), "QUANTILE", quantile="0.99"),
        MetricQuery(_PROVIDER_CALLS, ("provider",), "RATE", ("outcome=Unknown",)),
        MetricQuery(_PROVIDER_CALLS, ("provider",), "RATE", ("outcome=NotSent",)),
        MetricQuery("tallystick.dead_letters.created", ("cause",)),
        MetricQuery("tallystick.outbox.lag", ("service",), "MAX"),
        MetricQuery("db.client.operation.duration", ("db.namespace",), "QUANTILE", (), "0.99"),
        MetricQuery("process.cpu.time", ("service.name",), "RATE"),
    )
    steps = period.steps_at(visit.time)
    seconds = period.step_seconds
    call_panels = [
        line_panel(
            "latency",
            f"Latency of {method}",
            "Half of the calls are faster than the median, 99 of 100 than the other line.",
            steps,
            SECONDS,
            (median, lambda _: "median"),
            (slow, lambda _: "99 %"),
        ),
        bar_panel(
            "calls",
            f"Calls of {method}",
            "",
            steps,
            calls.counts(seconds),
            [
                ("succeeded", "good", lambda group: not group[0]),
                ("failed", "bad", lambda group: bool(group[0])),
            ],
        ),
        line_panel(
            "failed",
            "Failed calls of all methods",
            "By the reason of the error.",
            steps,
            COUNT,
            (failed.counts(seconds), lambda group: format_words(group[0])),
        ),
    ]
    provider_panels = [
        line_panel(
            "provider-latency",
            "Latency of providers",
            "99 of 100 calls to the provider are faster.",
            steps,
            SECONDS,
            (provider_slow, lambda group: group[0]),
        ),
        line_panel(
            "provider-failures",
            "Failed calls to providers",
            "Unknown: no usable answer, so the operation is looked up. Not sent: it is retried.",
            steps,
            COUNT,
            (unknown.counts(seconds), lambda group: f"{group[0]}, unknown"),
            (not_sent.counts(seconds), lambda group: f"{group[0]}, not sent"),
        ),
        line_panel(
            "dead-letters",
            "New dead letters",
            "By cause.",
            steps,
            COUNT,
            (dead_letters.counts(), lambda group: format_words(group[0])),
        ),
    ]
    process_panels = [
        line_panel(
            "lag",
            "Age of the oldest unpublished event",
            "How far consumers of events are behind.",
            steps,
            SECONDS,
            (lag, lambda group: group[0]),
        ),
        line_panel(
            "database",
            "Duration of transactions and reads",
            "99 of 100 are faster, with the wait for a connection; by schema.",
            steps,
            SECONDS,
            (database, lambda group: group[0]),
        ),
        line_panel(
            "processor",
            "Processors in use",
            "1: one processor is fully used; by name of the process.",
            steps,
            FRACTION,
            (processor, lambda group: group[0]),
        ),
    ]
    values = {
        "period": period,
        "filters": [
            ("period", "Period", PERIOD_CHOICES),
            ("method", "Method", [(name, name) for name in sorted(methods)]),
        ],
        "chosen": {"period": period.name, "method": method},
        "sections": [
            ("Calls", call_panels),
            ("Providers", provider_panels),
            ("Processes", process_panels),
        ],
    }
    return Page("metrics.html", "Metrics", values)
