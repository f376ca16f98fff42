"""Converts recorded metrics to values. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple
from uuid import UUID

from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.monitoring.aggregation import MetricKind
from tallystick_core.validation import parse_text, require_item_count
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage.monitoring.recording import NewSample

_KINDS = EnumNames(monitoring_pb2.MetricKind.DESCRIPTOR)
_METRIC = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+){1,9}", re.ASCII)
_MAX_NAME, _MAX_VALUE = 100, 255


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
    kind = _KINDS.parse(message.kind, "kind")
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


def _invalid(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} {text}.", field=field)
