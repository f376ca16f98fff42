"""Spans are stored within limits, and returned by trace, without personal data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick import NotFoundError, TallystickError
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick.monitoring.v1 import trace_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.monitoring import (
    START,
    Monitoring,
    new_span,
    serve_monitoring,
    trace_id_of,
)

HOUR = 3_600


@pytest.fixture
def monitoring(scratch_database: DatabaseUrls) -> Iterator[Monitoring]:
    with serve_monitoring(scratch_database) as served:
        yield served


def record(monitoring: Monitoring, *spans: trace_pb2.Span) -> pb.BatchRecordSpansResponse:
    response: pb.BatchRecordSpansResponse = monitoring.client.monitoring.BatchRecordSpans(
        pb.BatchRecordSpansRequest(spans=spans)
    )
    return response


def get(monitoring: Monitoring, trace: int) -> pb.GetTraceResponse:
    response: pb.GetTraceResponse = monitoring.client.monitoring.GetTrace(
        pb.GetTraceRequest(trace_id=trace_id_of(trace))
    )
    return response


def listed(monitoring: Monitoring, **fields: object) -> list[int]:
    """The numbers of the listed traces, over all pages."""
    numbers: list[int] = []
    token = ""
    while True:
        request = pb.ListTracesRequest(page_token=token, **fields)  # type: ignore[arg-type]
        response = monitoring.client.monitoring.ListTraces(request)
        numbers += [int(trace.trace_id, 16) for trace in response.traces]
        token = response.next_page_token
        if not token:
            return numbers


def test_a_trace_has_its_spans_by_their_start(monitoring: Monitoring) -> None:
    """Spans arrive in any order and in several requests; the trace has the name of the earliest
    one, and lasts until the end of the last one. A repeat has no effect.
    """
    child = new_span(1, 5, parent=2, kind=trace_pb2.SPAN_KIND_CLIENT, failed=True)
    root = new_span(1, 2, name="root", service_name="tallystick-payment")
    assert record(monitoring, child).recorded_count == 1
    assert record(monitoring, root, child).recorded_count == 1
    response = get(monitoring, 1)
    assert list(response.spans) == [root, child]
    trace = response.trace
    assert (trace.name, trace.service_name, trace.failed) == ("root", "tallystick-payment", True)
    assert (trace.span_count, trace.start_time.seconds - START) == (2, 2)
    assert trace.duration.ToMilliseconds() == 3_001


def test_what_may_be_personal_is_not_stored(monitoring: Monitoring) -> None:
    """Attributes that are not listed are left out, and so are values and names that have another
    form than those of the platform.
    """
    attributes = {
        "rpc.method": "tallystick.payment.v1.PaymentService/CreatePayment",
        "error.type": "ada@mail.example",
        "enduser.id": "ada",
        "url.full": "https://shop.example/?name=ada",
        "code.function.name": "4242424242424242",
    }
    record(monitoring, new_span(1, 1, name="GET /users/ada@mail.example", attributes=attributes))
    (span,) = get(monitoring, 1).spans
    assert span.name == "_OTHER"
    assert dict(span.attributes) == {
        "rpc.method": attributes["rpc.method"],
        "error.type": "_OTHER",
        "code.function.name": "_OTHER",
    }


def test_traces_are_listed_newest_first(monitoring: Monitoring) -> None:
    """With their filters, and by pages."""
    slow = new_span(3, 30, name="slow")
    slow.duration.FromSeconds(2)
    record(
        monitoring,
        new_span(1, 10, failed=True),
        new_span(2, 20),
        slow,
        new_span(4, 40, failed=True),
    )
    assert listed(monitoring) == [4, 3, 2, 1]
    assert listed(monitoring, page_size=1) == [4, 3, 2, 1]
    assert listed(monitoring, failed=True) == [4, 1]
    assert listed(monitoring, name="slow") == [3]
    request = pb.ListTracesRequest()
    request.min_duration.FromSeconds(2)
    assert listed(monitoring, min_duration=request.min_duration) == [3]


def test_the_oldest_traces_are_deleted_above_the_number(scratch_database: DatabaseUrls) -> None:
    """A flood of spans never stores more than the limit, and leaves the newest traces whole."""
    with serve_monitoring(scratch_database, max_spans=2_000) as monitoring:
        for trace in range(1, 8):
            monitoring.set_clock(trace)
            record(monitoring, *(new_span(trace, number) for number in range(1, 501)))
            assert monitoring.count("span") <= 2_000
        assert listed(monitoring) == [7, 6, 5, 4]
        assert get(monitoring, 4).trace.span_count == len(get(monitoring, 4).spans) == 500
        with pytest.raises(NotFoundError):
            get(monitoring, 3)


def test_the_oldest_traces_are_deleted_above_the_size(scratch_database: DatabaseUrls) -> None:
    """The size of the spans is limited too."""
    with serve_monitoring(scratch_database, max_span_bytes=1024 * 1024) as monitoring:
        name = "n" * 200
        for trace in range(1, 6):
            record(monitoring, *(new_span(trace, number, name=name) for number in range(1, 1001)))
        assert listed(monitoring) == [5, 4]


def test_a_trace_has_up_to_2000_spans(monitoring: Monitoring) -> None:
    """Further ones are left out, and the response says how many."""
    for part in range(2):
        record(monitoring, *(new_span(1, 1 + part * 1000 + number) for number in range(1000)))
    response = record(monitoring, new_span(1, 5000), new_span(1, 5001), new_span(2, 1))
    assert (response.recorded_count, response.dropped_count) == (1, 2)
    assert len(get(monitoring, 1).spans) == 2_000


def test_traces_are_deleted_after_their_retention(scratch_database: DatabaseUrls) -> None:
    """By the time at which they were received, whatever their clocks are."""
    with serve_monitoring(scratch_database, trace_retention=6 * HOUR) as monitoring:
        record(monitoring, new_span(1, 1))
        monitoring.set_clock(5 * HOUR)
        record(monitoring, new_span(2, 1))
        monitoring.set_clock(7 * HOUR)
        monitoring.reduce()
        assert listed(monitoring) == [2]
        monitoring.set_clock(12 * HOUR)
        monitoring.reduce()
        assert listed(monitoring) == []
        assert monitoring.count("span") == 0
        assert monitoring.count("(select from span_total where span_count + byte_count = 0) x") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trace_id": "X" * 32}, "trace_id must be 32 hexadecimal digits"),
        ({"span_id": ""}, "span_id must be 16 hexadecimal digits"),
        ({"parent_span_id": "1"}, "parent_span_id must be 16 hexadecimal digits"),
        ({"kind": 9}, "kind must be one of INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER"),
    ],
)
def test_an_invalid_span_is_left_out_and_names_its_field(
    monitoring: Monitoring, fields: dict[str, object], message: str
) -> None:
    """The others are stored."""
    span = new_span(1, 1)
    for name, value in fields.items():
        setattr(span, name, value)
    assert message in error_of(monitoring, span)
    response = record(monitoring, span, new_span(2, 1), new_span(2, 2), span)
    assert (response.recorded_count, response.invalid_count) == (2, 2)
    assert listed(monitoring) == [2]


def error_of(monitoring: Monitoring, span: trace_pb2.Span) -> str:
    """Why a span is not stored."""
    response = record(monitoring, span)
    assert (response.recorded_count, response.invalid_count) == (0, 1)
    return response.first_error


def test_a_span_has_a_start_and_a_duration(monitoring: Monitoring) -> None:
    span = new_span(1, 1)
    span.duration.seconds = -1
    assert "duration must be between 0 and 30 days" in error_of(monitoring, span)
    span.ClearField("start_time")
    assert "start_time is required" in error_of(monitoring, span)
    for seconds in (2**63 - 1, -(2**63)):
        span.start_time.seconds, span.duration.seconds = START, seconds
        assert "duration must be between 0 and 30 days" in error_of(monitoring, span)
    with pytest.raises(TallystickError, match="trace_id must be 32 hexadecimal digits"):
        monitoring.client.monitoring.GetTrace(pb.GetTraceRequest(trace_id="1"))


def test_a_span_in_the_last_year_is_rejected(monitoring: Monitoring) -> None:
    """Its end would be after the latest time that there is."""
    span = new_span(1, 1)
    for time, matches in (("9998-12-31T23:59:59Z", False), ("9999-12-31T23:59:59Z", True)):
        span.start_time.FromJsonString(time)
        span.duration.FromSeconds(30 * 86_400)
        if matches:
            assert "start_time must be before the year 9999" in error_of(monitoring, span)
        else:
            assert record(monitoring, span).recorded_count == 1


@pytest.mark.parametrize(("seconds", "is_valid"), [(2**63 - 1, True), (-(2**63), False)])
def test_any_minimum_duration_is_understood(
    monitoring: Monitoring, seconds: int, is_valid: bool
) -> None:
    """One that no span has selects none."""
    request = pb.ListTracesRequest()
    request.min_duration.seconds = seconds
    record(monitoring, new_span(1, 1))
    if is_valid:
        assert not monitoring.client.monitoring.ListTraces(request).traces
    else:
        with pytest.raises(TallystickError, match="min_duration must not be negative"):
            monitoring.client.monitoring.ListTraces(request)
