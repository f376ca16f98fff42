"""Each rule of the metrics and traces that the database enforces: direct SQL under the
service's own role violates it, and is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick.monitoring.v1 import trace_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.constraints import copy_of, execute_as
from tests.support.monitoring import COUNTER, START, RecordingProcess, serve_monitoring
from tests.support.platform import fresh_database


@pytest.fixture(scope="module")
def filled_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database with a series that has a sample, and a trace that has a span; no process serves it
    any more.
    """
    with fresh_database(admin_url, tmp_path_factory.mktemp("filled")) as databases:
        with serve_monitoring(databases) as monitoring:
            RecordingProcess(monitoring.client).record(COUNTER, 1)
            span = trace_pb2.Span(trace_id="a" * 32, span_id="b" * 16, name="x", service_name="x")
            span.start_time.seconds = START
            monitoring.client.monitoring.BatchRecordSpans(pb.BatchRecordSpansRequest(spans=[span]))
            monitoring.reduce()
        yield databases


def new_series(**values: str) -> str:
    """An insert of a series of the recorded process."""
    columns = {
        "process_id": "process_id",
        "metric": "'x'",
        "attributes": "'{}'",
        "kind": "'COUNTER'",
        "boundaries": "'{}'",
        "create_time": "clock()",
        **values,
    }
    return (
        f"insert into series ({', '.join(columns)}) "
        f"select {', '.join(columns.values())} from process"
    )


_OTHER_PROCESS = "00000000-0000-4000-8000-000000000000"
_BEFORE = "2000-01-01T00:00:00Z"
CASES = [
    ("a process without a name", copy_of("process", process_id=_OTHER_PROCESS, name=""), "23514"),
    (
        "a process without a request",
        copy_of("process", process_id=_OTHER_PROCESS, last_sequence=0),
        "23514",
    ),
    ("a process that is there twice", copy_of("process"), "23505"),
    ("a process with another name", "update process set name = 'x'", "42501"),
    ("a process whose series remain", "delete from process", "23503"),
    ("a series without a metric", new_series(metric="''"), "23514"),
    ("a series with a list of attributes", new_series(attributes="'[]'"), "23514"),
    ("a series of no kind", new_series(kind="'X'"), "23514"),
    ("a histogram without buckets", new_series(kind="'HISTOGRAM'"), "23514"),
    ("a counter with buckets", new_series(boundaries="'{1}'"), "23514"),
    ("a series of no process", new_series(process_id=f"uuid '{_OTHER_PROCESS}'"), "23503"),
    ("a series that is there twice", new_series(metric=f"'{COUNTER}'"), "23505"),
    ("a series of another metric", "update series set metric = 'x'", "42501"),
    ("a series whose samples remain", "delete from series", "23503"),
    ("a sample of no series", copy_of("sample", series_id=99), "23503"),
    ("a sample that is there twice", copy_of("sample"), "23505"),
    ("a sample that changes", "update sample set value = 2", "42501"),
    ("a distance of nothing", copy_of("thinning", resolution=0), "23514"),
    ("a distance that is there twice", copy_of("thinning"), "23505"),
    ("a distance that is forgotten", "delete from thinning", "42501"),
    (
        "a trace that ends before its start",
        copy_of("trace", trace_id="c", end_time=_BEFORE),
        "23514",
    ),
    ("a trace without a span", copy_of("trace", trace_id="c", span_count=0), "23514"),
    ("a trace of no size", copy_of("trace", trace_id="c", byte_count=0), "23514"),
    ("a trace that is there twice", copy_of("trace"), "23505"),
    ("a trace with another id", "update trace set trace_id = 'c'", "42501"),
    ("a trace that is received later", "update trace set receive_time = clock()", "42501"),
    ("a trace whose spans remain", "delete from trace", "23503"),
    ("a span that ends before its start", copy_of("span", span_id="c", end_time=_BEFORE), "23514"),
    ("a span of no kind", copy_of("span", span_id="c", kind="X"), "23514"),
    ("a span of no trace", copy_of("span", trace_id="c"), "23503"),
    ("a span that is there twice", copy_of("span"), "23505"),
    ("a span that changes", "update span set failed = true", "42501"),
    ("fewer spans than none", "update span_total set span_count = -1", "23514"),
    ("a negative size of all spans", "update span_total set byte_count = -1", "23514"),
    ("a second total", "insert into span_total values (false, 0, 0)", "42501"),
    ("no total", "delete from span_total", "42501"),
]


@pytest.mark.parametrize(
    ("sql", "sqlstate"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_database_rejects_invalid_rows(
    filled_database: DatabaseUrls, sql: str, sqlstate: str
) -> None:
    """The row that would violate the rule is rejected, by the intended constraint or privilege."""
    assert execute_as(filled_database, "monitoring", sql) == sqlstate


def test_the_owner_cannot_add_a_second_total(filled_database: DatabaseUrls) -> None:
    """Not even a row that is false."""
    for value, sqlstate in (("true", "23505"), ("false", "23514")):
        sql = f"insert into span_total values ({value}, 0, 0)"
        assert execute_as(filled_database, "monitoring", sql, "owner") == sqlstate


@pytest.mark.parametrize(
    "sql",
    [
        copy_of("process", process_id=_OTHER_PROCESS),
        new_series(),
        new_series(metric="'y'", kind="'HISTOGRAM'", boundaries="'{1}'"),
        copy_of("sample", record_time=_BEFORE),
        copy_of("thinning", "resolution = 60", resolution=7),
        copy_of("trace", trace_id="c"),
        copy_of("span", span_id="c"),
        "update span_total set span_count = 2",
    ],
)
def test_the_database_accepts_the_rows_that_the_cases_change(
    filled_database: DatabaseUrls, sql: str
) -> None:
    """Without their violation the statements of the cases are accepted."""
    assert execute_as(filled_database, "monitoring", sql) == ""
