"""A served MonitoringService whose clock a test sets, and processes that record."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tallystick import Client
from tallystick.monitoring.v1 import monitoring_pb2, trace_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.monitoring.retention import delete_old
from tallystick_storage.monitoring.traces import TraceLimits
from tests.support.platform import ServedPlatform, database_of, serve_platform

START = 1_800_000_000
"""A full day in seconds since 1970, at which the clocks of tests start."""
COUNTER, GAUGE, SHARED_GAUGE, HISTOGRAM = (
    "tallystick.leases.lost",
    "tallystick.operations.in_flight",
    "tallystick.money.in_flight",
    "tallystick.batch.size",
)
KINDS = {
    COUNTER: monitoring_pb2.METRIC_KIND_COUNTER,
    GAUGE: monitoring_pb2.METRIC_KIND_GAUGE,
    SHARED_GAUGE: monitoring_pb2.METRIC_KIND_GAUGE,
    HISTOGRAM: monitoring_pb2.METRIC_KIND_HISTOGRAM,
}
BOUNDARIES = (1.0, 2.0, 5.0)


@dataclass
class Monitoring:
    """A MonitoringService alone, which no process records by itself."""

    platform: ServedPlatform
    databases: DatabaseUrls
    client: Client
    max_series: int

    def set_clock(self, seconds: float) -> None:
        """Sets the clock of its database, in seconds since START."""
        with psycopg.connect(self.databases.admin, autocommit=True) as admin:
            admin.execute(
                "create or replace function monitoring.clock() returns timestamptz language sql "
                f"volatile as 'select to_timestamp({START + seconds})'".encode()
            )

    def history(self, metric: str, **fields: Any) -> list[tuple[dict[str, str], dict[int, float]]]:
        """The histories of a metric: their attributes, and their values by seconds since START.
        `fields`: see new_query.
        """
        response = self.get_history(metric, **fields)
        return [
            (
                dict(history.attributes),
                {point.time.seconds - START: point.value for point in history.points},
            )
            for history in response.histories
        ]

    def get_history(self, metric: str, **fields: Any) -> pb.GetMetricHistoryResponse:
        """`fields`: see new_query."""
        response: pb.GetMetricHistoryResponse = self.client.monitoring.GetMetricHistory(
            new_query(metric, **fields)
        )
        return response

    def get_histories(
        self, *queries: pb.GetMetricHistoryRequest
    ) -> Sequence[pb.MetricHistoryResult]:
        """The results of several queries in one call."""
        results: Sequence[pb.MetricHistoryResult] = self.client.monitoring.BatchGetMetricHistories(
            pb.BatchGetMetricHistoriesRequest(queries=queries)
        ).results
        return results

    def total(self, metric: str, start: float, end: float, step: int) -> float:
        """The sum of the points of all histories."""
        histories = self.history(
            metric, start=start, end=end, step=step, aggregation=monitoring_pb2.AGGREGATION_SUM
        )
        return sum(value for _, points in histories for value in points.values())

    def reduce(self) -> None:
        """Runs the retention once."""
        self.platform.run_in_loop(
            delete_old,
            database_of(self.platform, "monitoring"),
            self.max_series,
            self.trace_limits,
        )

    @property
    def trace_limits(self) -> TraceLimits:
        settings = self.platform.settings.monitoring
        return TraceLimits(settings.max_spans, settings.max_span_bytes, settings.trace_retention)

    def count(self, table: str) -> int:
        """The number of rows of a table, or of a query in brackets."""
        with psycopg.connect(self.databases.admin) as admin:
            admin.execute("set search_path = monitoring")
            row = admin.execute(f"select count(*) from {table}".encode()).fetchone()
        return int(row[0]) if row else 0


@dataclass
class RecordingProcess:
    """A process that records what a test says."""

    client: Client
    name: str = "tallystick-all"
    process_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    sequence: int = 0

    def record(
        self,
        metric: str,
        value: float,
        attributes: Mapping[str, str] | None = None,
        bucket_counts: Sequence[int] = (),
    ) -> pb.BatchRecordSamplesResponse:
        """Records one series with its present total, or its value."""
        series = pb.RecordedSeries(
            attributes=attributes or {}, value=value, bucket_counts=bucket_counts
        )
        return self.send([new_metric(metric, [series])])

    def send(self, metrics: Sequence[pb.RecordedMetric]) -> pb.BatchRecordSamplesResponse:
        """Records several metrics."""
        self.sequence += 1
        request = pb.BatchRecordSamplesRequest(
            process_id=self.process_id,
            process_name=self.name,
            sequence=self.sequence,
            metrics=metrics,
        )
        response: pb.BatchRecordSamplesResponse = self.client.monitoring.BatchRecordSamples(request)
        return response


def new_metric(metric: str, series: Sequence[pb.RecordedSeries]) -> pb.RecordedMetric:
    """The message of one of the metrics of the tests."""
    boundaries = BOUNDARIES if metric == HISTOGRAM else ()
    return pb.RecordedMetric(
        metric=metric, kind=KINDS[metric], boundaries=boundaries, series=series
    )


def new_query(
    metric: str,
    start: float | None = None,
    end: float | None = None,
    step: int | None = None,
    **fields: Any,
) -> pb.GetMetricHistoryRequest:
    """The query of a metric. `start`, `end` and `step` are in seconds, the first two since
    START.
    """
    request = pb.GetMetricHistoryRequest(metric=metric, **fields)
    if start is not None:
        request.start_time.FromSeconds(int(START + start))
    if end is not None:
        request.end_time.FromSeconds(int(START + end))
    if step is not None:
        request.step.seconds = step
    return request


def trace_id_of(number: int) -> str:
    """A trace id of a test."""
    return f"{number:032x}"


def new_span(trace: int, number: int, *, parent: int = 0, **fields: object) -> trace_pb2.Span:
    """A span of a millisecond, which begins `number` seconds after START."""
    values: dict[str, object] = {"name": "work", "service_name": "tallystick-all", **fields}
    span = trace_pb2.Span(
        trace_id=trace_id_of(trace),
        span_id=f"{number:016x}",
        parent_span_id=f"{parent:016x}" if parent else "",
        **values,  # type: ignore[arg-type]
    )
    if not span.HasField("start_time"):
        span.start_time.seconds = START + number
    if not span.HasField("duration"):
        span.duration.nanos = 1_000_000
    return span


@contextmanager
def serve_monitoring(
    databases: DatabaseUrls,
    max_series: int = 10_000,
    dependencies: Dependencies | None = None,
    **values: object,
) -> Iterator[Monitoring]:
    """Serves MonitoringService until the block ends, with its clock at START. `values`: of its
    settings.
    """
    settings = Settings().replace(
        monitoring__record_interval=0.0,
        monitoring__max_series=max_series,
        **{f"monitoring__{name}": value for name, value in values.items()},
    )
    with (
        serve_platform(databases, settings, ("monitoring",), dependencies) as platform,
        platform.client() as client,
    ):
        monitoring = Monitoring(platform, databases, client, max_series)
        monitoring.set_clock(0)
        yield monitoring
