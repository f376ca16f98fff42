"""Converts the messages of traces to values and back. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick.monitoring.v1 import trace_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.monitoring.spans import safe_attributes, safe_name
from tallystick_core.validation import parse_text
from tallystick_server.rpc.batch import check_batch
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_timestamp
from tallystick_storage.monitoring.traces import SpanRow, TraceCriteria, TraceRow

_KINDS = EnumNames(trace_pb2.SpanKind.DESCRIPTOR)
_TRACE_ID, _SPAN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII), re.compile(r"[0-9a-f]{16}", re.ASCII)
_MAX_NAME = 200
_MAX_DURATION = timedelta(days=30)
_MAX_TIME = datetime(9999, 1, 1, tzinfo=UTC)
"""A span that begins before can end within the year 9999."""


class ParsedSpans(NamedTuple):
    """The valid spans of a request, and why each other one is invalid."""

    spans: Sequence[SpanRow]
    errors: Sequence[str]


def parse_spans(request: pb.BatchRecordSpansRequest) -> ParsedSpans:
    """Parses spans; of two with the same ids the first one. Attributes and names that may hold
    personal data are left out. Raises FIELD_REQUIRED, TOO_MANY_ITEMS.
    """
    check_batch(request.spans, "spans")
    spans: dict[tuple[str, str], SpanRow] = {}
    errors = []
    for message in request.spans:
        try:
            span = _parse_span(message)
        except ApiError as error:
            errors.append(error.message)
        else:
            spans.setdefault((span.trace_id, span.span_id), span)
    return ParsedSpans(list(spans.values()), errors)


def _parse_span(message: trace_pb2.Span) -> SpanRow:
    if _SPAN_ID.fullmatch(message.span_id) is None:
        raise _invalid("span_id", "must be 16 hexadecimal digits in lower case")
    if message.parent_span_id and _SPAN_ID.fullmatch(message.parent_span_id) is None:
        raise _invalid("parent_span_id", "must be 16 hexadecimal digits in lower case, or empty")
    start_time = parse_time(message, "start_time")
    if start_time is None:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "start_time is required.", field="start_time")
    if start_time > _MAX_TIME:
        raise _invalid("start_time", f"must be before the year {_MAX_TIME.year}")
    duration = _parse_duration(message.duration)
    if not timedelta() <= duration <= _MAX_DURATION:
        raise _invalid("duration", f"must be between 0 and {_MAX_DURATION.days} days")
    return SpanRow(
        parse_trace_id(message.trace_id),
        message.span_id,
        message.parent_span_id,
        safe_name(message.name),
        _KINDS.parse(message.kind, "kind", ""),
        safe_name(message.service_name),
        start_time,
        start_time + duration,
        message.failed,
        safe_attributes(message.attributes),
    )


def parse_trace_id(text: str) -> str:
    """Parses a trace id. Raises FIELD_INVALID."""
    if _TRACE_ID.fullmatch(text) is None:
        raise _invalid("trace_id", "must be 32 hexadecimal digits in lower case")
    return text


def parse_criteria(request: pb.ListTracesRequest) -> TraceCriteria:
    """Parses the filters of a list. Raises FIELD_INVALID."""
    min_duration = _parse_duration(request.min_duration)
    if min_duration < timedelta():
        raise _invalid("min_duration", "must not be negative")
    return TraceCriteria(request.failed, min_duration, parse_text(request.name, "name", _MAX_NAME))


def _parse_duration(message: Duration) -> timedelta:
    """A duration, to the microsecond. One beyond the limit of a span, before or after 0, is just
    beyond it.
    """
    limit = int(_MAX_DURATION.total_seconds()) + 1
    seconds = max(-limit, min(message.seconds, limit))
    return timedelta(seconds=seconds, microseconds=message.nanos // 1000)


def trace(row: TraceRow) -> trace_pb2.Trace:
    """The message of a trace."""
    message = trace_pb2.Trace(
        trace_id=row.trace_id,
        name=row.name,
        service_name=row.service_name,
        start_time=to_timestamp(row.start_time),
        failed=row.failed,
        span_count=row.span_count,
    )
    message.duration.FromTimedelta(row.end_time - row.start_time)
    return message


def spans(rows: Sequence[SpanRow]) -> list[trace_pb2.Span]:
    """The messages of spans."""
    messages = []
    for row in rows:
        message = trace_pb2.Span(
            trace_id=row.trace_id,
            span_id=row.span_id,
            parent_span_id=row.parent_span_id,
            name=row.name,
            kind=_KINDS.number(row.kind),
            service_name=row.service_name,
            start_time=to_timestamp(row.start_time),
            failed=row.failed,
            attributes=dict(row.attributes),
        )
        message.duration.FromTimedelta(row.end_time - row.start_time)
        messages.append(message)
    return messages


def _invalid(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} {text}.", field=field)
