"""Samples are reduced as they grow old, and neither increases nor the highest values are lost."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.monitoring.time_range import GRACE_SECONDS
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.monitoring import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    Monitoring,
    RecordingProcess,
    new_metric,
    serve_monitoring,
)

HOUR, DAY = 3_600, 86_400
SUM = monitoring_pb2.AGGREGATION_SUM


@pytest.fixture
def monitoring(scratch_database: DatabaseUrls) -> Iterator[Monitoring]:
    with serve_monitoring(scratch_database) as served:
        yield served


def _record_all(process: RecordingProcess, count: int, gauge: int) -> None:
    """Records the same total as a counter and as a histogram, and a gauge."""
    process.send(
        [
            new_metric(COUNTER, [pb.RecordedSeries(value=count)]),
            new_metric(GAUGE, [pb.RecordedSeries(value=gauge)]),
            new_metric(HISTOGRAM, [pb.RecordedSeries(value=2 * count, bucket_counts=[count] * 4)]),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_reduced_samples_have_the_same_history(monitoring: Monitoring, seed: int) -> None:
    """Two processes record at random times, with gaps and a restart. The histories in steps of a
    minute after an hour, of ten minutes after a day, and of an hour after a week, are those of all
    samples; and each series has one sample for each step.
    """
    numbers = random.Random(seed)
    processes = [RecordingProcess(monitoring.client) for _ in range(2)]
    totals = [0, 0]
    for time in sorted(numbers.sample(range(2 * HOUR), 80)):
        index = numbers.randrange(2)
        if numbers.random() < 0.05:
            processes[index], totals[index] = RecordingProcess(monitoring.client), 0
        totals[index] += numbers.randrange(100)
        monitoring.set_clock(time)
        _record_all(processes[index], totals[index], numbers.randrange(100))

    def histories(step: int) -> list[object]:
        return [
            monitoring.history(metric, start=0, end=2 * HOUR, step=step, **fields)
            for metric, fields in (
                (COUNTER, {"aggregation": SUM}),
                (GAUGE, {}),
                (GAUGE, {"aggregation": SUM}),
                (HISTOGRAM, {"aggregation": SUM}),
                (HISTOGRAM, {}),
                (
                    HISTOGRAM,
                    {"aggregation": monitoring_pb2.AGGREGATION_QUANTILE, "quantile": "0.9"},
                ),
            )
        ]

    for age, step in ((HOUR, 60), (DAY, 600), (7 * DAY, HOUR)):
        monitoring.set_clock(2 * HOUR)
        before, sample_count = histories(step), monitoring.count("sample")
        monitoring.set_clock(2 * HOUR + age + GRACE_SECONDS)
        monitoring.reduce()
        assert histories(step) == before
        assert monitoring.count("sample") < sample_count
        repeated = (
            "(select from sample group by series_id, "
            f"trunc(extract(epoch from record_time) / {step}) having count(*) > 1) as repeated"
        )
        assert monitoring.count(repeated) == 0


def test_samples_are_kept_for_30_days(monitoring: Monitoring) -> None:
    """An older sample is deleted; its total is the base of the next increase. What an ended process
    recorded is deleted with its last sample.
    """
    living, ended = (RecordingProcess(monitoring.client) for _ in range(2))
    living.record(HISTOGRAM, 100, bucket_counts=[50, 0, 0, 0])
    ended.record(COUNTER, 5)
    monitoring.set_clock(10 * DAY)
    living.record(HISTOGRAM, 101, bucket_counts=[50, 1, 0, 0])
    monitoring.set_clock(31 * DAY)
    living.record(COUNTER, 1)
    monitoring.reduce()
    assert monitoring.count("process") == 1
    assert monitoring.count("series") == 2
    assert monitoring.count("sample") == 2
    monitoring.set_clock(41 * DAY)
    monitoring.reduce()
    assert monitoring.count("sample") == 1
    living.record(HISTOGRAM, 105, bucket_counts=[50, 2, 0, 0])
    monitoring.set_clock(41 * DAY + 10)
    assert monitoring.total(HISTOGRAM, 41 * DAY - HOUR, 41 * DAY + 10, 60) == 4
    ((_, points),) = monitoring.history(HISTOGRAM, start=41 * DAY - 60, step=10)
    assert [*points.values()] == [0.1]


def test_too_many_series_are_left_out(scratch_database: DatabaseUrls) -> None:
    """A flood of series stays below the limit: the response says how many were left out, and those
    that are recorded already continue.
    """
    with serve_monitoring(scratch_database, max_series=100) as monitoring:
        process = RecordingProcess(monitoring.client)
        process.record(COUNTER, 1)
        flood = [
            pb.RecordedSeries(attributes={"service": f"s-{number}"}, value=1)
            for number in range(1000)
        ]
        response = process.send([new_metric(GAUGE, flood)])
        assert (response.recorded_count, response.dropped_count) == (99, 901)
        response = process.send([new_metric(GAUGE, flood)])
        assert (response.recorded_count, response.dropped_count) == (99, 901)
        assert monitoring.count("series") == 100
        monitoring.set_clock(10)
        assert process.record(COUNTER, 3).dropped_count == 0
        assert monitoring.total(COUNTER, 0, 20, 10) == 3


def test_series_of_ended_processes_are_replaced(scratch_database: DatabaseUrls) -> None:
    """While there are nearly too many series, those of the process that ended first are deleted;
    those of a process that still records stay.
    """
    with serve_monitoring(scratch_database, max_series=100) as monitoring:
        living, first, second = (
            RecordingProcess(monitoring.client, name) for name in ("living", "first", "second")
        )
        for time, process in ((0, living), (10, first), (20, second)):
            monitoring.set_clock(time)
            series = [
                pb.RecordedSeries(attributes={"service": f"s-{number}"}, value=1)
                for number in range(31)
            ]
            process.send([new_metric(COUNTER, series)])
        monitoring.reduce()
        assert monitoring.count("series") == 93
        monitoring.set_clock(1000)
        living.record(GAUGE, 1)
        monitoring.reduce()
        assert monitoring.count("series") == 63
        groups = monitoring.history(COUNTER, start=0, end=600, step=10, group_by=["service.name"])
        assert [group["service.name"] for group, _ in groups] == ["living", "second"]
