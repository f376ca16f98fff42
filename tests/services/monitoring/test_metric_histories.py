"""Several metrics are returned by one call, each as by a call of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from google.rpc import error_details_pb2, status_pb2

from benchmarks.growth.plans import QueryPlans, StatementRecorders, count_statements
from tallystick import TallystickError
from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.monitoring import metric_history
from tests.support.monitoring import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    SHARED_GAUGE,
    Monitoring,
    RecordingProcess,
    new_metric,
    new_query,
    serve_monitoring,
)

_KINDS = {
    COUNTER: ("SUM", "RATE"),
    GAUGE: ("SUM", "MAX"),
    SHARED_GAUGE: ("SUM", "MAX"),
    HISTOGRAM: ("SUM", "RATE", "AVERAGE", "QUANTILE"),
}
_RECORDINGS = 40
_STATEMENTS_OF_A_CALL = 3


@pytest.fixture
def recorders() -> StatementRecorders:
    return StatementRecorders()


@pytest.fixture
def monitoring(
    scratch_database: DatabaseUrls, recorders: StatementRecorders
) -> Iterator[Monitoring]:
    with serve_monitoring(scratch_database, dependencies=recorders.dependencies) as served:
        yield served


def _record_much(monitoring: Monitoring, seeded: random.Random) -> None:
    """Samples of all kinds over some minutes, by processes that start at different times."""
    processes = [
        RecordingProcess(monitoring.client, f"tallystick-{number % 2}") for number in range(3)
    ]
    totals: dict[tuple[str, str, str], list[int]] = {}
    for number in range(_RECORDINGS):
        monitoring.set_clock(10 * number + seeded.randrange(10))
        process = seeded.choice(processes)
        metrics = []
        for metric in seeded.sample(sorted(_KINDS), 3):
            service = seeded.choice(["payment", "payout", ""])
            counts = totals.setdefault((process.process_id, metric, service), [0] * 4)
            counts[seeded.randrange(4)] += seeded.randint(1, 9)
            is_gauge = metric in (GAUGE, SHARED_GAUGE)
            series = pb.RecordedSeries(
                attributes={"service": service} if service else {},
                value=seeded.randint(0, 50) if is_gauge else sum(counts),
                bucket_counts=counts if metric == HISTOGRAM else (),
            )
            metrics.append(new_metric(metric, [series]))
        process.send(metrics)
    monitoring.set_clock(10 * _RECORDINGS)


def _random_query(seeded: random.Random) -> pb.GetMetricHistoryRequest:
    """A query, which is sometimes invalid."""
    metric = seeded.choice(sorted(_KINDS))
    aggregation = seeded.choice(_KINDS[metric])
    return new_query(
        seeded.choice([metric] * 9 + ["up"]),
        start=seeded.choice([-600, 0, 95, 250]),
        end=seeded.choice([300, 400]),
        step=seeded.choice([10, 20, 60, 60, 15]),
        aggregation=f"AGGREGATION_{aggregation}",
        quantile=seeded.choice(["0.5", "0.99"]) if aggregation == "QUANTILE" else "",
        group_by=seeded.sample(["service", "service.name"], seeded.randrange(3)),
        filters=seeded.choice([[], ["service=payment"], ["service!=payout"], ["service"]]),
    )


def _field_of(status: status_pb2.Status) -> str:
    """The invalid field of an error."""
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    field: str = bad_request.field_violations[0].field
    return field


def _assert_same(
    monitoring: Monitoring, queries: Sequence[pb.GetMetricHistoryRequest]
) -> list[str]:
    """Compares the results of one call with those of a call for each. Returns the invalid fields
    of the single calls.
    """
    fields = []
    results = monitoring.get_histories(*queries)
    for number, (query, result) in enumerate(zip(queries, results, strict=True)):
        try:
            assert result.history == monitoring.client.monitoring.GetMetricHistory(query)
            assert result.WhichOneof("result") == "history"
        except TallystickError as error:
            (violation,) = error.field_violations
            assert _field_of(result.error) == f"queries[{number}].{violation.field}"
            assert result.error.message == f"queries[{number}].{error.message}"
            fields.append(violation.field)
    return fields


@pytest.mark.parametrize("seed", range(3))
def test_a_call_for_several_returns_the_same_as_one_for_each(
    monitoring: Monitoring, seed: int
) -> None:
    """Points, groups, units and steps of any queries, and the errors of those that are invalid."""
    seeded = random.Random(seed)
    _record_much(monitoring, seeded)
    fields: list[str] = []
    for count in (1, 7, 20):
        fields += _assert_same(monitoring, [_random_query(seeded) for _ in range(count)])
    assert {"metric", "step", "filters[0]"} <= {*fields}
    assert len(fields) < 20


def test_a_metric_that_was_not_recorded_has_no_histories(monitoring: Monitoring) -> None:
    """It is no error, and neither is the query after it."""
    RecordingProcess(monitoring.client).record(COUNTER, 1)
    missing, recorded = monitoring.get_histories(new_query(HISTOGRAM), new_query(COUNTER))
    assert missing.WhichOneof("result") == "history"
    assert not missing.history.histories
    assert len(recorded.history.histories) == 1


def test_a_query_of_too_many_groups_fails_alone(monitoring: Monitoring) -> None:
    """Its error names it."""
    series = [pb.RecordedSeries(attributes={"service": f"s-{n}"}, value=1) for n in range(51)]
    RecordingProcess(monitoring.client).send([new_metric(COUNTER, series)])
    queries = [new_query(COUNTER), new_query(COUNTER, group_by=["service"]), new_query(COUNTER)]
    assert _assert_same(monitoring, queries) == ["group_by"]


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "queries must have at least one item"), (21, "queries must have at most 20 items")],
)
def test_a_call_has_1_to_20_queries(monitoring: Monitoring, count: int, message: str) -> None:
    with pytest.raises(TallystickError, match=message):
        monitoring.get_histories(*[new_query(COUNTER)] * count)


def _record_series(monitoring: Monitoring, count: int) -> None:
    """Series of a counter and of a gauge, with one sample each."""
    for metric in (COUNTER, GAUGE):
        series = [
            pb.RecordedSeries(attributes={"service": f"s-{number}"}, value=1)
            for number in range(count)
        ]
        RecordingProcess(monitoring.client).send([new_metric(metric, series)])


@pytest.mark.parametrize(
    ("limit", "field", "message"),
    [
        ("_MAX_SERIES", "filters", "must select at most 3 series; narrow them."),
        ("_MAX_ROWS", "step", "step must be longer: the 4 series have too many samples in the"),
    ],
)
def test_a_query_reads_a_bounded_number(
    monitoring: Monitoring, monkeypatch: pytest.MonkeyPatch, limit: str, field: str, message: str
) -> None:
    """Of series and of samples, alone and among others: one more is an error."""
    _record_series(monitoring, 4)
    monkeypatch.setattr(metric_history, limit, 3)
    with pytest.raises(TallystickError, match=message):
        monitoring.get_history(GAUGE)
    queries = [new_query(GAUGE, filters=["service=s-1"]), new_query(GAUGE)]
    assert _assert_same(monitoring, queries) == [field]
    monkeypatch.setattr(metric_history, limit, 4)
    assert monitoring.history(GAUGE)


@pytest.mark.parametrize(
    ("limit", "name", "metric", "rows_per_query"),
    [
        ("_MAX_TOTAL_SERIES", "series", COUNTER, 2),
        ("_MAX_TOTAL_ROWS", "samples", GAUGE, 2),
        ("_MAX_TOTAL_ROWS", "samples", COUNTER, 4),  # with the totals before the range
    ],
)
def test_a_call_reads_a_bounded_number(
    monitoring: Monitoring,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    name: str,
    metric: str,
    rows_per_query: int,
) -> None:
    """The queries before the one that exceeds the limit have their histories. It and those after it
    are to be sent in another call.
    """
    _record_series(monitoring, 2)
    maximum = 2 * rows_per_query + 1
    monkeypatch.setattr(metric_history, limit, maximum)
    results = monitoring.get_histories(*[new_query(metric)] * 4)
    assert [result.WhichOneof("result") for result in results] == ["history"] * 2 + ["error"] * 2
    assert results[0] == results[1]
    assert results[0].history == monitoring.get_history(metric)
    assert [_field_of(result.error) for result in results[2:]] == ["queries[2]", "queries[3]"]
    assert results[2].error.message == (
        f"The queries up to this one have more than {maximum} {name} together: send this one in "
        "another call."
    )
    monkeypatch.setattr(metric_history, limit, 4 * rows_per_query)
    results = monitoring.get_histories(*[new_query(metric)] * 4)
    assert {result.WhichOneof("result") for result in results} == {"history"}


def test_a_call_executes_as_many_statements_as_one_for_a_metric(
    monitoring: Monitoring, recorders: StatementRecorders
) -> None:
    """The clock, the series and the samples, however many queries there are."""
    _record_series(monitoring, 2)
    for queries in (1, 20):
        for metrics in ([COUNTER], [GAUGE], [COUNTER, GAUGE, HISTOGRAM, "up"]):
            plans = QueryPlans()
            with plans.capture(*recorders.reads):
                monitoring.get_histories(*[new_query(name) for name in metrics * queries][:20])
            assert count_statements(plans) == _STATEMENTS_OF_A_CALL
    plans = QueryPlans()
    with plans.capture(*recorders.reads):
        monitoring.get_history(COUNTER, aggregation=monitoring_pb2.AGGREGATION_SUM)
    assert count_statements(plans) == _STATEMENTS_OF_A_CALL
