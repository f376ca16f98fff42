"""The metrics of this process: plain numbers, which the event loop's thread changes and an export
reads. A record costs less than a microsecond, and calls no library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from tallystick_server.observability import names
from tallystick_server.observability.names import Metric

T = TypeVar("T")
AttributeValues: TypeAlias = tuple[str, ...]
"""The values of a metric's attributes, in their order."""


def attributes_of(metric: Metric, values: AttributeValues) -> Mapping[str, str]:
    """The attributes of a series; those with an empty value are left out."""
    pairs = zip(metric.attributes, values, strict=True)
    return {**metric.fixed_attributes, **{name: value for name, value in pairs if value}}


class Counter:
    """A total that only grows, for each combination of attribute values."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._totals: dict[AttributeValues, int] = {}

    def add(self, number: int, *attributes: str) -> None:
        self._totals[attributes] = self._totals.get(attributes, 0) + number

    def observe(self) -> Mapping[AttributeValues, float]:
        """The totals. Callable from any thread."""
        return dict(self._totals)


class HistogramSeries(NamedTuple):
    """The values recorded under one combination of attribute values: their number in each bucket,
    the last one without an upper limit, and their sum.
    """

    bucket_counts: Sequence[int]
    total: float


class Histogram:
    """Numbers of recorded values in fixed buckets, for each combination of attribute values."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._boundaries = metric.boundaries
        self._series: dict[AttributeValues, tuple[list[int], list[float]]] = {}

    def record(self, value: float, *attributes: str) -> None:
        series = self._series.get(attributes)
        if series is None:
            series = self._series[attributes] = ([0] * (len(self._boundaries) + 1), [0.0])
        bucket_counts, total = series
        bucket_counts[bisect_left(self._boundaries, value)] += 1
        total[0] += value

    def observe(self) -> Mapping[AttributeValues, HistogramSeries]:
        """Copies of the series. Callable from any thread."""
        return {
            attributes: HistogramSeries(tuple(bucket_counts), total)
            for attributes, (bucket_counts, (total,)) in dict(self._series).items()
        }


class Gauge:
    """Values that are read from their owners at an export. Values of several owners with the same
    attributes are added.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._lock = Lock()
        self._sources: WeakKeyDictionary[Any, Callable[[Any], Mapping[AttributeValues, float]]] = (
            WeakKeyDictionary()
        )

    def track(self, owner: T, source: Callable[[T], Mapping[AttributeValues, float]]) -> None:
        """Reads `source(owner)` at each export, until `untrack`, or until the owner is gone."""
        with self._lock:
            self._sources[owner] = source

    def untrack(self, owner: object) -> None:
        with self._lock:
            self._sources.pop(owner, None)

    def observe(self) -> Mapping[AttributeValues, float]:
        """The values now. Callable from any thread."""
        with self._lock:
            sources = list(self._sources.items())
        sums: dict[AttributeValues, float] = {}
        for owner, source in sources:
            for attributes, number in source(owner).items():
                sums[attributes] = sums.get(attributes, 0) + number
        return sums


class _ProcessorTime:
    """The processor time of this process, read at an export."""

    metric = names.PROCESS_CPU_TIME

    def observe(self) -> Mapping[AttributeValues, float]:
        return {(): time.process_time()}


RPC_SERVER_CALLS = Histogram(names.RPC_SERVER_CALL_DURATION)
PROVIDER_CALLS = Histogram(names.PROVIDER_CALL_DURATION)
DB_OPERATIONS = Histogram(names.DB_OPERATION_DURATION)
BATCH_SIZES = Histogram(names.BATCH_SIZE)
BATCH_DURATIONS = Histogram(names.BATCH_DURATION)
BATCH_QUEUE_LENGTH = Gauge(names.BATCH_QUEUE_LENGTH)
OPERATIONS_IN_FLIGHT = Gauge(names.OPERATIONS_IN_FLIGHT)
LEASES_LOST = Counter(names.LEASES_LOST)
DEAD_LETTERS_CREATED = Counter(names.DEAD_LETTERS_CREATED)
CHARGES_COMPLETED = Counter(names.CHARGES_COMPLETED)
WEBHOOKS = Counter(names.WEBHOOKS)
WEBHOOK_EVENTS = Counter(names.WEBHOOK_EVENTS)
ALERTS_RAISED = Counter(names.ALERTS_RAISED)
EVENTS_REJECTED = Counter(names.EVENTS_REJECTED)
RECORDING_FAILURES = Counter(names.RECORDING_FAILURES)
SPANS_LOST = Counter(names.SPANS_LOST)
DROPPED_SERIES = Gauge(names.DROPPED_SERIES)
DB_CONNECTIONS = Gauge(names.DB_CONNECTION_COUNT)
DB_PENDING_REQUESTS = Gauge(names.DB_PENDING_REQUESTS)
CLOCK_DEVIATION = Gauge(names.CLOCK_DEVIATION)
DISK_UTILIZATION = Gauge(names.DISK_UTILIZATION)
_PROCESSOR_TIME = _ProcessorTime()
STORED_GAUGES = {
    metric.name: Gauge(metric)
    for metric in (
        names.OPERATIONS_QUEUED,
        names.OPERATIONS_DUE,
        names.OLDEST_DUE_AGE,
        names.DEAD_LETTERS_OPEN,
        names.ALERTS_OPEN,
        names.WORK_OPEN,
        names.OLDEST_WORK_AGE,
        names.OUTBOX_LAG,
        names.MONEY_IN_FLIGHT,
        names.CLEARING_EXPECTED,
    )
}
"""Gauges that a monitor reads from its database, by name."""

HISTOGRAMS = (RPC_SERVER_CALLS, PROVIDER_CALLS, DB_OPERATIONS, BATCH_SIZES, BATCH_DURATIONS)
COUNTERS = (
    LEASES_LOST,
    DEAD_LETTERS_CREATED,
    CHARGES_COMPLETED,
    WEBHOOKS,
    WEBHOOK_EVENTS,
    ALERTS_RAISED,
    EVENTS_REJECTED,
    RECORDING_FAILURES,
    SPANS_LOST,
    _PROCESSOR_TIME,
)
GAUGES = (
    BATCH_QUEUE_LENGTH,
    OPERATIONS_IN_FLIGHT,
    DB_CONNECTIONS,
    DB_PENDING_REQUESTS,
    CLOCK_DEVIATION,
    DISK_UTILIZATION,
    DROPPED_SERIES,
    *STORED_GAUGES.values(),
)


class SeriesSnapshot(NamedTuple):
    """The present values of a series. `value`: of a histogram the sum of the recorded values."""

    metric: Metric
    attributes: Mapping[str, str]
    value: float
    bucket_counts: Sequence[int] = ()


def snapshot() -> list[SeriesSnapshot]:
    """The series of this process now."""
    instruments: Sequence[Counter | _ProcessorTime | Gauge] = (*COUNTERS, *GAUGES)
    numbers = [
        SeriesSnapshot(instrument.metric, attributes_of(instrument.metric, values), number)
        for instrument in instruments
        for values, number in instrument.observe().items()
    ]
    return numbers + [
        SeriesSnapshot(
            histogram.metric,
            attributes_of(histogram.metric, values),
            series.total,
            series.bucket_counts,
        )
        for histogram in HISTOGRAMS
        for values, series in histogram.observe().items()
    ]


class CallMeasurement:
    """Records the duration and the result of a received call when its block ends."""

    __slots__ = ("_method", "_reason", "_start_time", "_status")

    def __init__(self, method: str) -> None:
        self._method = method
        self._status, self._reason = "OK", ""

    def fail(self, status: str, reason: str) -> None:
        """The call returns this gRPC status and error reason."""
        self._status, self._reason = status, reason

    def __enter__(self) -> Self:
        self._start_time = time.perf_counter()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None and not self._reason:  # the caller did not wait for the response
            self.fail("CANCELLED", "CANCELLED")
        RPC_SERVER_CALLS.record(
            time.perf_counter() - self._start_time, self._method, self._status, self._reason
        )


def record_batch(batcher: str, size: int, seconds: float) -> None:
    """Records a batch that has run."""
    BATCH_SIZES.record(size, batcher)
    BATCH_DURATIONS.record(seconds, batcher)
