"""Converts queries of metrics to values, and what they read to messages. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.monitoring.aggregation import Aggregation, MetricKind, require_aggregation
from tallystick_core.monitoring.series_filter import parse_filters, parse_group_attributes
from tallystick_core.monitoring.time_range import plan_range
from tallystick_server.monitoring.metric_history import HistoryQuery, PointsByGroup
from tallystick_server.observability import names
from tallystick_server.observability.metrics import STORED_GAUGES
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_timestamp
from tallystick_storage.monitoring.history import SeriesRow

_KINDS = EnumNames(monitoring_pb2.MetricKind.DESCRIPTOR)
_AGGREGATIONS = EnumNames(monitoring_pb2.Aggregation.DESCRIPTOR)
_QUANTILE = re.compile(r"0\.[0-9]{1,6}", re.ASCII)
_METRICS = {metric.name: metric for metric in names.METRICS}
_METRICS_BY_PROMETHEUS_NAME = {metric.prometheus_name: metric for metric in names.METRICS}


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


def parse_query(request: pb.GetMetricHistoryRequest, now: datetime) -> HistoryQuery:
    """The query of a request at a time. Raises ApiError with the first invalid field."""
    metric = find_metric(request.metric)
    kind = MetricKind[metric.kind.name]
    aggregation = require_aggregation(
        _AGGREGATIONS.parse(request.aggregation, "aggregation", ""), kind
    )
    return HistoryQuery(
        metric.name,
        kind,
        parse_filters(request.filters, "filters"),
        parse_group_attributes(request.group_by, "group_by"),
        aggregation,
        _parse_quantile(request.quantile, is_required=aggregation is Aggregation.QUANTILE),
        plan_range(
            int(now.timestamp()) + 1,
            _parse_seconds(request, "start_time"),
            _parse_seconds(request, "end_time"),
            _parse_step(request),
        ),
        is_shared=metric.name in STORED_GAUGES,
    )


def _parse_quantile(text: str, *, is_required: bool) -> float:
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


def _parse_seconds(request: pb.GetMetricHistoryRequest, field: str) -> int | None:
    """A time as whole seconds since 1970; None: it is unset. Raises FIELD_INVALID."""
    time = parse_time(request, field)
    return None if time is None else int(time.timestamp() // 1)


def _parse_step(request: pb.GetMetricHistoryRequest) -> int | None:
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
        kind=_KINDS.number(row.kind),
        unit=metric.unit if metric else "",
        attributes=dict(row.attributes),
        process_name=row.process_name,
        process_id=str(row.process_id),
        create_time=to_timestamp(row.create_time),
        last_record_time=to_timestamp(row.last_record_time),
    )


def history_response(query: HistoryQuery, points: PointsByGroup) -> pb.GetMetricHistoryResponse:
    """The message of what a query has read, in the order of its groups."""
    return pb.GetMetricHistoryResponse(
        histories=[
            _history(zip(query.group_by, key, strict=True), points[key]) for key in sorted(points)
        ],
        kind=_KINDS.number(query.kind),
        unit=_METRICS[query.metric].unit,
        aggregation=_AGGREGATIONS.number(query.aggregation),
        start_time=Timestamp(seconds=query.range.start),
        end_time=Timestamp(seconds=query.range.end),
        step=Duration(seconds=query.range.step),
    )


def _history(
    attributes: Iterable[tuple[str, str]], points: Iterable[tuple[int, float]]
) -> monitoring_pb2.MetricHistory:
    """The attributes that a group of series has, and its points by their time in seconds."""
    message = monitoring_pb2.MetricHistory(
        attributes={name: value for name, value in attributes if value}
    )
    for time, value in points:
        point = message.points.add(value=value)
        point.time.seconds = time
    return message


def _invalid(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} {text}.", field=field)
