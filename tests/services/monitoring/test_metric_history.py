"""Samples that processes record are returned over time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallystick import TallystickError
from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.monitoring import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    SHARED_GAUGE,
    START,
    Monitoring,
    RecordingProcess,
    new_metric,
    serve_monitoring,
)

SUM, RATE, MAX, AVERAGE, QUANTILE = (
    monitoring_pb2.AGGREGATION_SUM,
    monitoring_pb2.AGGREGATION_RATE,
    monitoring_pb2.AGGREGATION_MAX,
    monitoring_pb2.AGGREGATION_AVERAGE,
    monitoring_pb2.AGGREGATION_QUANTILE,
)


@pytest.fixture
def monitoring(scratch_database: DatabaseUrls) -> Iterator[Monitoring]:
    with serve_monitoring(scratch_database) as served:
        yield served


def test_a_counter_is_a_rate_per_second(monitoring: Monitoring) -> None:
    """Increases are added over two processes, each from 0 at its start; a step without a sample has
    no point.
    """
    first, second = (RecordingProcess(monitoring.client) for _ in range(2))
    for time, process, total in (
        (0, first, 10),
        (10, first, 15),
        (10, second, 100),
        (30, first, 25),
        (30, second, 120),
    ):
        monitoring.set_clock(time)
        process.record(COUNTER, total, {"service": "payment"})
    monitoring.set_clock(40)
    ((attributes, points),) = monitoring.history(COUNTER, start=0, end=40, step=10)
    assert attributes == {}
    assert points == {0: 1.0, 10: 10.5, 30: 3.0}
    assert monitoring.history(COUNTER, start=0, end=40, step=10, aggregation=SUM) == [
        ({}, {0: 10, 10: 105, 30: 30})
    ]


def test_a_range_begins_with_the_total_before_it(monitoring: Monitoring) -> None:
    """What a counter had before the range is no increase in it."""
    process = RecordingProcess(monitoring.client)
    process.record(COUNTER, 1000)
    monitoring.set_clock(600)
    process.record(COUNTER, 1001)
    monitoring.set_clock(610)
    assert monitoring.total(COUNTER, 300, 610, 10) == 1


def test_a_restart_is_no_negative_rate(monitoring: Monitoring) -> None:
    """A process that starts again has a new id and begins at 0: all of its total is an increase."""
    RecordingProcess(monitoring.client).record(COUNTER, 500)
    monitoring.set_clock(10)
    RecordingProcess(monitoring.client).record(COUNTER, 3)
    ((_, points),) = monitoring.history(COUNTER, start=0, end=20, step=10, aggregation=SUM)
    assert points == {0: 500, 10: 3}


def test_missing_samples_lose_no_increase(monitoring: Monitoring) -> None:
    """After a gap, the increase counts in the step of the sample that shows it."""
    process = RecordingProcess(monitoring.client)
    process.record(COUNTER, 5)
    monitoring.set_clock(300)
    process.record(COUNTER, 65)
    ((_, points),) = monitoring.history(COUNTER, start=0, end=310, step=10, aggregation=SUM)
    assert points == {0: 5, 300: 60}


def test_a_late_request_has_no_effect(monitoring: Monitoring) -> None:
    """A request that arrives after a later one of the process is dropped, so its lower total is no
    new start. A repeat of the last one has no effect either.
    """
    process = RecordingProcess(monitoring.client)
    process.sequence = 1
    assert process.record(COUNTER, 20).recorded_count == 1
    process.sequence = 0
    assert process.record(COUNTER, 10).recorded_count == 0
    monitoring.set_clock(10)
    process.sequence = 1
    assert process.record(COUNTER, 20).recorded_count == 0
    process.record(COUNTER, 21)
    assert monitoring.total(COUNTER, 0, 20, 10) == 21


def test_a_gauge_has_its_highest_value(monitoring: Monitoring) -> None:
    """MAX is the highest value of all processes in a step, SUM adds the highest of each."""
    first, second = (RecordingProcess(monitoring.client) for _ in range(2))
    for time, process, value in ((0, first, 3), (5, first, 7), (5, second, 4), (12, first, 0)):
        monitoring.set_clock(time)
        process.record(GAUGE, value)
    assert monitoring.history(GAUGE, start=0, end=20, step=10) == [({}, {0: 7, 10: 0})]
    assert monitoring.history(GAUGE, start=0, end=20, step=10, aggregation=SUM) == [
        ({}, {0: 11, 10: 0})
    ]


def test_a_figure_of_all_processes_counts_once(monitoring: Monitoring) -> None:
    """Another process becomes the leader in the middle of a step, and reads the same figures: SUM
    has the highest value of each figure, not of each process.
    """
    first, second = (RecordingProcess(monitoring.client) for _ in range(2))
    for time, process, euros in ((0, first, 700), (5, second, 800)):
        monitoring.set_clock(time)
        figures = [
            pb.RecordedSeries(attributes={"service": "payment", "currency": currency}, value=value)
            for currency, value in (("EUR", euros), ("USD", 100))
        ]
        process.send([new_metric(SHARED_GAUGE, figures)])
    assert monitoring.history(SHARED_GAUGE, start=0, end=10, step=10, aggregation=SUM) == [
        ({}, {0: 900})
    ]


def test_a_histogram_has_a_rate_an_average_and_quantiles(monitoring: Monitoring) -> None:
    """Of the values that were recorded in each step."""
    process = RecordingProcess(monitoring.client)
    process.record(HISTOGRAM, 10.0, bucket_counts=[10, 0, 0, 0])
    monitoring.set_clock(10)
    process.record(HISTOGRAM, 30.0, bucket_counts=[10, 10, 0, 0])
    expected = {
        RATE: {0: 1.0, 10: 1.0},
        SUM: {0: 10.0, 10: 20.0},
        AVERAGE: {0: 1.0, 10: 2.0},
    }
    for aggregation, points in expected.items():
        assert monitoring.history(HISTOGRAM, start=0, end=20, step=10, aggregation=aggregation) == [
            ({}, points)
        ]
    ((_, quantiles),) = monitoring.history(
        HISTOGRAM, start=0, end=20, step=10, aggregation=QUANTILE, quantile="0.5"
    )
    assert quantiles == {0: 0.5, 10: 1.5}


def test_a_month_is_read_at_once(monitoring: Monitoring) -> None:
    """A query of 30 days of each kind has at most 300 steps, and its points are those of the
    samples.
    """
    process = RecordingProcess(monitoring.client)
    for day in (1, 30):
        monitoring.set_clock(day * 86_400)
        process.record(COUNTER, day)
        process.record(GAUGE, day)
        process.record(HISTOGRAM, day, bucket_counts=[day, 0, 0, 0])
    monitoring.set_clock(30 * 86_400 + 1)
    for metric, second in ((COUNTER, 29), (GAUGE, 30), (HISTOGRAM, 29)):
        fields = {} if metric == GAUGE else {"aggregation": SUM}
        response = monitoring.get_history(metric, start=1, **fields)
        assert response.step.seconds == 10_800
        (history,) = response.histories
        assert [point.value for point in history.points] == [1, second]


def test_series_are_filtered_and_grouped(monitoring: Monitoring) -> None:
    """By attributes, by their absence, and by the process; the name in Prometheus is a name too."""
    first = RecordingProcess(monitoring.client, "tallystick-payment")
    second = RecordingProcess(monitoring.client, "tallystick-payout")
    for service, total in (("payment", 1), ("ledger", 2)):
        first.record(COUNTER, total, {"service": service})
    second.record(COUNTER, 4)

    def sums(metric: str = COUNTER, **fields: object) -> list[tuple[dict[str, str], float]]:
        histories = monitoring.history(metric, aggregation=SUM, **fields)
        return [(attributes, sum(points.values())) for attributes, points in histories]

    assert sums("tallystick_leases_lost_total") == [({}, 7)]
    assert sums(filters=["service=payment"]) == [({}, 1)]
    assert sums(filters=["service!=payment"]) == [({}, 6)]
    assert sums(filters=["service="]) == [({}, 4)]
    assert sums(filters=["service!=", "service!=ledger"]) == [({}, 1)]
    assert sums(filters=["service=other"]) == []
    assert sums(group_by=["service"]) == [
        ({}, 4),
        ({"service": "ledger"}, 2),
        ({"service": "payment"}, 1),
    ]
    assert sums(group_by=["service.name"]) == [
        ({"service.name": "tallystick-payment"}, 3),
        ({"service.name": "tallystick-payout"}, 4),
    ]
    assert sums(filters=[f"service.instance.id={second.process_id}"]) == [({}, 4)]


def test_series_are_listed_by_pages(monitoring: Monitoring) -> None:
    """With the metric's names, kind and unit, and the process."""
    process = RecordingProcess(monitoring.client)
    process.record(COUNTER, 1, {"service": "payment"})
    monitoring.set_clock(60)
    process.record(GAUGE, 1, {"service": "payment"})

    def page(**fields: object) -> pb.ListMetricSeriesResponse:
        request = pb.ListMetricSeriesRequest(**fields)  # type: ignore[arg-type]
        response: pb.ListMetricSeriesResponse = monitoring.client.monitoring.ListMetricSeries(
            request
        )
        return response

    first = page(page_size=1)
    (series,) = first.series
    assert (series.metric, series.prometheus_name) == (COUNTER, "tallystick_leases_lost_total")
    assert (series.kind, series.unit) == (monitoring_pb2.METRIC_KIND_COUNTER, "{lease}")
    assert dict(series.attributes) == {"service": "payment"}
    assert (series.process_name, series.process_id) == (process.name, process.process_id)
    assert series.create_time.seconds - START == 0
    assert series.last_record_time.seconds - START == 60
    (other,) = page(page_size=1, page_token=first.next_page_token).series
    assert other.metric == GAUGE
    assert [item.metric for item in page(metric="tallystick_leases_lost_total").series] == [COUNTER]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"metric": ""}, "metric", "metric is required."),
        ({"metric": "up"}, "metric", "metric must be one of docs/reference/metrics.md"),
        ({"filters": ["service"]}, "filters[0]", "must be attribute=value or attribute!=value"),
        ({"filters": ["a=b"] * 11}, "filters", "filters must have at most 10 items."),
        ({"group_by": ["Service"]}, "group_by[0]", "must be the name of an attribute"),
        ({"aggregation": QUANTILE}, "aggregation", "must be one of RATE, SUM for a counter."),
        ({"aggregation": 9}, "aggregation", "aggregation must be one of RATE, SUM, MAX"),
        ({"quantile": "0.5"}, "quantile", "must be empty unless aggregation is QUANTILE."),
        ({"start": 5, "end": 5}, "start_time", "must be before end_time, which is now"),
        ({"start": -2_600_000}, "start_time", "must be at most 30 days ago"),
        ({"step": 15}, "step", "must be a multiple of 10 seconds"),
        ({"step": -1}, "step", "must be whole seconds, 1 or more."),
    ],
)
def test_an_invalid_query_names_its_field(
    monitoring: Monitoring, fields: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(TallystickError) as error:
        monitoring.get_history(**{"metric": COUNTER, **fields})  # type: ignore[arg-type]
    assert message in str(error.value)
    assert field in str(error.value)


@pytest.mark.parametrize("quantile", ["", "1", "0", "0.0", "x", "0.5e1", "-0.5"])
def test_a_quantile_is_a_decimal_between_0_and_1(monitoring: Monitoring, quantile: str) -> None:
    with pytest.raises(TallystickError, match="quantile"):
        monitoring.get_history(HISTOGRAM, aggregation=QUANTILE, quantile=quantile)


def test_a_query_makes_a_bounded_number_of_histories(monitoring: Monitoring) -> None:
    """More than 50 groups are rejected."""
    process = RecordingProcess(monitoring.client)
    series = [pb.RecordedSeries(attributes={"service": f"s-{n}"}, value=1) for n in range(51)]
    process.send([new_metric(COUNTER, series)])
    assert len(monitoring.history(COUNTER, group_by=["service"], filters=["service!=s-1"])) == 50
    with pytest.raises(TallystickError, match="group_by must make at most 50 groups; narrow"):
        monitoring.get_history(COUNTER, group_by=["service"])


def _invalid_metric(**changes: object) -> list[pb.RecordedMetric]:
    message = new_metric(COUNTER, [pb.RecordedSeries(value=1)])
    for name, value in changes.items():
        if isinstance(value, list):
            message.ClearField(name)  # type: ignore[arg-type]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return [message]


@pytest.mark.parametrize(
    ("metrics", "field"),
    [
        ([], "metrics must have at least one metric"),
        (_invalid_metric(metric="x"), "metrics[0].metric must be the name"),
        (_invalid_metric(kind=0), "metrics[0].kind is required"),
        (_invalid_metric(boundaries=[1.0]), "metrics[0].boundaries must be set for a histogram"),
        (_invalid_metric(boundaries=[2.0, 1.0]), "metrics[0].boundaries must be finite and asc"),
        (_invalid_metric(series=[]), "metrics[0].series must have at least one"),
        (
            _invalid_metric(series=[pb.RecordedSeries(value=float("nan"))]),
            "metrics[0].series[0].value must be finite",
        ),
        (
            _invalid_metric(series=[pb.RecordedSeries(bucket_counts=[1])]),
            "metrics[0].series[0].bucket_counts must have one number",
        ),
        (
            _invalid_metric(series=[pb.RecordedSeries(attributes={"a": ""})]),
            "metrics[0].series[0].attributes must have no empty",
        ),
        (
            _invalid_metric(series=[pb.RecordedSeries()] * 2),
            "metrics[0].series[1].attributes must be unique",
        ),
    ],
)
def test_an_invalid_recording_names_its_field(
    monitoring: Monitoring, metrics: list[pb.RecordedMetric], field: str
) -> None:
    """Nothing of it is recorded."""
    with pytest.raises(TallystickError) as error:
        RecordingProcess(monitoring.client).send(metrics)
    assert field in str(error.value)
    assert monitoring.count("process") == 0
