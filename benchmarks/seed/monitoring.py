"""Fills MonitoringService: 30 days of every metric of several processes, and as many traces as it
keeps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

from tallystick_core.monitoring.spans import MAX_SPANS_OF_TRACE
from tallystick_core.monitoring.time_range import TIERS
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import SERVICES
from tallystick_server.observability.names import METRICS, RPC_SERVER_CALL_DURATION

LARGE_TRACE_ID = "1".zfill(32)
"""A trace with as many spans as one may have."""
_PROCESSES = ("payment", "payout", "wallet,ledger,event", "http")
_PAYMENTS_PER_METHOD = 20_000
_PAYMENTS_PER_TRACE = 10
_SPANS_PER_TRACE = 10
_VALUES = {"provider": "sandbox", "currency": "EUR", "service": "payment", "error.type": ""}
"""The values of attributes; of others "seed"."""


def seed_monitoring(connection: psycopg.Connection[Any], payments: int) -> None:
    """Fills the tables for a platform of this many payments: the more, the more methods are called
    and the more traces are stored, within the limits of the settings.
    """
    # the templates have recorded themselves
    connection.execute("truncate monitoring.process, monitoring.series, monitoring.sample")
    _insert_series(connection, payments)
    _insert_samples(connection)
    max_traces = (Settings().monitoring.max_spans - MAX_SPANS_OF_TRACE) // _SPANS_PER_TRACE
    _insert_traces(connection, min(payments // _PAYMENTS_PER_TRACE, max_traces))


def _insert_series(connection: psycopg.Connection[Any], payments: int) -> None:
    connection.execute(
        "insert into monitoring.process select gen_random_uuid(), name, 1000000, clock_timestamp() "
        "from unnest(cast(%s as text[])) name",
        (list(_PROCESSES),),
    )
    series = list(_series(max(payments // _PAYMENTS_PER_METHOD, 1)))
    connection.execute(
        """
        insert into monitoring.series (process_id, metric, attributes, kind, boundaries,
            create_time)
        select p.process_id, s.metric, s.attributes, s.kind, s.boundaries,
            clock_timestamp() - interval '30 days'
        from monitoring.process p cross join json_to_recordset(%s)
            as s (metric text, attributes jsonb, kind text, boundaries float8[])
        """,
        (json.dumps(series),),
    )


def _series(method_count: int) -> Iterator[Mapping[str, Any]]:
    """The series of one process: one of each metric, and one of each called method."""
    methods = [
        f"{spec.descriptor.full_name}/{method.name}"
        for spec in SERVICES
        for method in spec.descriptor.methods
    ]
    for metric in METRICS:
        called = metric is RPC_SERVER_CALL_DURATION
        for method in methods[:method_count] if called else ("",):
            values = {**_VALUES, "rpc.method": method, "rpc.response.status_code": "OK"}
            attributes = {name: values.get(name, "seed") for name in metric.attributes}
            yield {
                "metric": metric.name,
                "attributes": {
                    **metric.fixed_attributes,
                    **{name: value for name, value in attributes.items() if value},
                },
                "kind": metric.kind.name,
                "boundaries": metric.boundaries,
            }


def _insert_samples(connection: psycopg.Connection[Any]) -> None:
    """Samples at the resolution of their age. Totals rise by one in ten seconds; the values of
    gauges go up and down.
    """
    starts = (0, *(tier.max_age for tier in TIERS))
    ages = " union all ".join(
        f"select generate_series({start}, {tier.max_age - 1}, {tier.resolution}) as age"
        for start, tier in zip(starts, TIERS, strict=False)
    )
    connection.execute(f"""
        insert into monitoring.sample
        select s.series_id, now() - make_interval(secs => t.age),
            case s.kind when 'GAUGE' then t.age % 97 else t.count end,
            case s.kind when 'HISTOGRAM' then
                array_fill(t.count, array[cardinality(s.boundaries) + 1]) end
        from monitoring.series s
        cross join (select age, cast((30 * 86400 - age) / 10 as bigint) as count from ({ages}) a) t
    """)


def _insert_traces(connection: psycopg.Connection[Any], count: int) -> None:
    """Traces of the last hour, each tenth of which failed. The first is large."""
    connection.execute(
        """
        insert into monitoring.trace
        select lpad(cast(n as text), 32, '0'), 'tallystick.payment.v1.PaymentService/CreatePayment',
            'payment', start_time, start_time + interval '100 ms' * (1 + n %% 20), n %% 10 = 0,
            case n when 1 then %(large)s else %(small)s end, 200 * %(small)s, start_time
        from generate_series(1, %(count)s) n
        cross join lateral (select now() - n * (interval '1 hour' / %(count)s) as start_time) t
        """,
        {"count": count, "large": MAX_SPANS_OF_TRACE, "small": _SPANS_PER_TRACE},
    )
    connection.execute("""
        insert into monitoring.span
        select t.trace_id, lpad(cast(n as text), 16, '0'),
            case n when 1 then '' else lpad(cast(n / 2 as text), 16, '0') end,
            case n when 1 then t.name else 'transaction of payment' end,
            case n when 1 then 'SERVER' else 'INTERNAL' end, t.service_name,
            t.start_time + n * interval '10 us', t.end_time, t.failed and n = 1, '{}'
        from monitoring.trace t cross join generate_series(1, t.span_count) n
    """)
    connection.execute("""
        update monitoring.span_total u
        set span_count = t.span_count, byte_count = t.byte_count
        from (select sum(span_count) as span_count, sum(byte_count) as byte_count
            from monitoring.trace) t
    """)
