"""Converts MonitoringService messages to values and back. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import NamedTuple
from uuid import UUID

from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.monitoring.aggregation import MetricKind
from tallystick_core.validation import parse_text, require_item_count
from tallystick_server.observability import names
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.timestamps import parse_time, to_timestamp
from tallystick_storage.monitoring.history import SeriesRow
from tallystick_storage.monitoring.recording import NewSample

KINDS = EnumNames(monitoring_pb2.MetricKind.DESCRIPTOR)
AGGREGATIONS = EnumNames(monitoring_pb2.Aggregation.DESCRIPTOR)
_METRIC = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+){1,9}", re.ASCII)
_MAX_NAME, _MAX_VALUE = 100, 255
_QUANTILE = re.compile(r"0\.[0-9]{1,6}", re.ASCII)
_METRICS = {metric.name: metric for metric in names.METRICS}
_METRICS_BY_PROMETHEUS_NAME = {metric.prometheus_name: metric for metric in names.METRICS}


class Recording(NamedTuple):
    """The samples of a process."""

    process_id: UUID
    process_name: str
    sequence: int
    samples: Sequence[NewSample]


def parse_recording(request: pb.BatchRecordSamplesRequest) -> Recording:
    """Parses the metrics of a process. Raises ApiError with the first invalid field."""
    try:
        process_id = UUID(request.process_id)
    except ValueError:
        raise _invalid("process_id", "must be a UUID") from None
    name = parse_text(request.process_name, "process_name", _MAX_NAME)
    if not name:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED, "process_name is required.", field="process_name"
        )
    if request.sequence < 1:
        raise _invalid("sequence", "must be 1 or more")
    require_item_count(request.metrics, "metrics", MAX_ITEMS, "metric")
    samples: dict[tuple[object, ...], NewSample] = {}
    for index, metric in enumerate(request.metrics):
        path = f"metrics[{index}]"
        try:
            parsed = _parse_metric(metric)
        except ApiError as error:
            raise error.with_field_prefix(path) from None
        for position, sample in enumerate(parsed):
            key = (sample.metric, *sorted(sample.attributes.items()))
            if key in samples:
                field = f"{path}.series[{position}].attributes"
                raise ApiError(
                    ErrorReason.DUPLICATE_ITEM,
                    f"{field} must be unique for the metric.",
                    field=field,
                )
            samples[key] = sample
    return Recording(process_id, name, request.sequence, list(samples.values()))


def _parse_metric(message: pb.RecordedMetric) -> list[NewSample]:
    if len(message.metric) > _MAX_NAME or _METRIC.fullmatch(message.metric) is None:
        raise _invalid("metric", "must be the name of a metric, such as process.cpu.time")
    kind = KINDS.parse(message.kind, "kind")
    boundaries = list(message.boundaries)
    if boundaries != sorted({*boundaries}) or not all(map(isfinite, boundaries)):
        raise _invalid("boundaries", "must be finite and ascending")
    if bool(boundaries) != (kind == MetricKind.HISTOGRAM):
        raise _invalid("boundaries", "must be set for a histogram, and for nothing else")
    require_item_count(message.series, "series", MAX_ITEMS)
    samples = []
    for index, series in enumerate(message.series):
        try:
            samples.append(_parse_series(message.metric, kind, boundaries, series))
        except ApiError as error:
            raise error.with_field_prefix(f"series[{index}]") from None
    return samples


def _parse_series(
    metric: str, kind: str, boundaries: Sequence[float], message: pb.RecordedSeries
) -> NewSample:
    attributes = {}
    for name, value in message.attributes.items():
        if not name or not value:
            raise _invalid("attributes", "must have no empty names and values")
        attributes[parse_text(name, "attributes", _MAX_NAME)] = parse_text(
            value, "attributes", _MAX_VALUE
        )
    if not isfinite(message.value):
        raise _invalid("value", "must be finite")
    counts = list(message.bucket_counts)
    if len(counts) != (len(boundaries) + 1 if boundaries else 0) or min(counts, default=0) < 0:
        raise _invalid(
            "bucket_counts", "must have one number, 0 or more, for each bucket of a histogram"
        )
    return NewSample(
        metric, kind, attributes, boundaries, message.value, counts if boundaries else None
    )


def find_metric(name: str) -> names.Metric:
    """The metric of this name, here or in Prometheus. Raises FIELD_REQUIRED, FIELD_INVALID."""
    if not name:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "metric is required.", field="metric")
    metric = _METRICS.get(name) or _METRICS_BY_PROMETHEUS_NAME.get(name)
    if metric is None:
        raise _invalid(
            "metric",
            "must be one of docs/reference/metrics.md, such as rpc.server.call.duration or "
            "rpc_server_call_duration_seconds; ListMetricSeries has those that were recorded",
        )
    return metric


def parse_quantile(text: str, *, is_required: bool) -> float:
    """A quantile, such as 0.99; 0 if it is not required. Raises FIELD_REQUIRED, FIELD_INVALID."""
    if not is_required:
        if text:
            raise _invalid("quantile", "must be empty unless aggregation is QUANTILE")
        return 0
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            "quantile is required for QUANTILE: a decimal such as 0.99.",
            field="quantile",
        )
    if _QUANTILE.fullmatch(text) is None or not 0 < float(text) < 1:
        raise _invalid("quantile", "must be a decimal between 0 and 1, such as 0.99")
    return float(text)


def parse_seconds(request: pb.GetMetricHistoryRequest, field: str) -> int | None:
    """A time as whole seconds since 1970; None: it is unset. Raises FIELD_INVALID."""
    time = parse_time(request, field)
    return None if time is None else int(time.timestamp() // 1)


def parse_step(request: pb.GetMetricHistoryRequest) -> int | None:
    """The length of a step in seconds; None: it is unset. Raises FIELD_INVALID."""
    if not request.HasField("step"):
        return None
    if request.step.nanos or request.step.seconds < 1:
        raise _invalid("step", "must be whole seconds, 1 or more")
    return request.step.seconds


def series(row: SeriesRow) -> monitoring_pb2.MetricSeries:
    """The message of a series. A metric of another version has no unit here."""
    metric = _METRICS.get(row.metric)
    return monitoring_pb2.MetricSeries(
        metric=row.metric,
        prometheus_name=metric.prometheus_name if metric else "",
        kind=KINDS.number(row.kind),
        unit=metric.unit if metric else "",
        attributes=dict(row.attributes),
        process_name=row.process_name,
        process_id=str(row.process_id),
        create_time=to_timestamp(row.create_time),
        last_record_time=to_timestamp(row.last_record_time),
    )


def history(
    attributes: Iterable[tuple[str, str]], points: Iterable[tuple[int, float]]
) -> monitoring_pb2.MetricHistory:
    """The message of a group of series: the attributes that it has, and its points by their time in
    seconds.
    """
    message = monitoring_pb2.MetricHistory(
        attributes={name: value for name, value in attributes if value}
    )
    for time, value in points:
        point = message.points.add(value=value)
        point.time.seconds = time
    return message


def _invalid(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} {text}.", field=field)
