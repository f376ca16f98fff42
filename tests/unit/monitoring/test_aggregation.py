"""The rules by which samples become points: increases, quantiles and steps."""

from __future__ import annotations

from bisect import bisect_left
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError
from tallystick_core.monitoring.aggregation import (
    Aggregation,
    MetricKind,
    Sample,
    StepTotals,
    estimate_quantile,
    increases,
    point_of,
    require_aggregation,
)
from tallystick_core.monitoring.time_range import GRACE_SECONDS, MAX_STEPS, TIERS, plan_range

NOW = 1_800_000_000
_COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=4)
_SAMPLE_GAINS = st.lists(st.tuples(st.integers(0, 10**6), _COUNTS), max_size=20)


def _cumulate(gains: list[tuple[int, list[int]]], start: Sample) -> list[Sample]:
    samples, value, counts = [], start.value, list(start.bucket_counts)
    for step, (gain, bucket_gains) in enumerate(gains):
        value += gain
        counts = [a + b for a, b in zip(counts, bucket_gains, strict=True)]
        samples.append(Sample(step, value, counts))
    return samples


@given(_SAMPLE_GAINS, st.integers(0, 2**20 - 1))
def test_increases_add_up_whichever_samples_are_missing(
    gains: list[tuple[int, list[int]]], missing: int
) -> None:
    """The sum of the increases is the last total minus the base, also without some of the samples:
    a missing one adds nothing and loses nothing.
    """
    base = Sample(-1, 5, (1, 2, 3, 4))
    samples = _cumulate(gains, base)
    kept = [sample for sample in samples[:-1] if not missing >> sample.step & 1] + samples[-1:]
    found = increases(base, kept)
    assert sum(item.value for item in found) == sum(gain for gain, _ in gains)
    for bucket in range(4):
        assert sum(item.bucket_counts[bucket] for item in found) == sum(
            counts[bucket] for _, counts in gains
        )


@given(st.lists(st.tuples(st.integers(0, 100), _COUNTS), max_size=20))
def test_no_increase_is_negative(totals: list[tuple[int, list[int]]]) -> None:
    """Totals that have decreased begin at 0 again, whatever the samples are."""
    samples = [Sample(step, value, counts) for step, (value, counts) in enumerate(totals)]
    for increase in increases(Sample(-1, 0), samples):
        assert increase.value >= 0
        assert min(increase.bucket_counts, default=0) >= 0


def test_a_decrease_is_a_new_start() -> None:
    """After 10, a total of 4 is an increase by 4."""
    found = increases(Sample(-1, 0), [Sample(0, 10), Sample(1, 4), Sample(2, 5)])
    assert [item.value for item in found] == [10, 4, 1]


_BOUNDARIES = (1.0, 2.0, 5.0, 10.0)


@given(
    st.lists(st.floats(0.001, 10, allow_nan=False), min_size=1, max_size=50),
    st.floats(0.01, 0.99),
)
def test_a_quantile_is_in_the_bucket_of_the_exact_one(values: list[float], quantile: float) -> None:
    """The estimate is between the limits of the bucket that has the exact quantile."""
    counts: dict[float, int] = {}
    for value in values:
        limit = _BOUNDARIES[bisect_left(_BOUNDARIES, value)]
        counts[limit] = counts.get(limit, 0) + 1
    rank = quantile * len(values)
    position = min(int(rank) + (rank != int(rank)), len(values)) - 1
    exact = sorted(values)[max(position, 0)]
    bucket = bisect_left(_BOUNDARIES, exact)
    lower = _BOUNDARIES[bucket - 1] if bucket else 0
    all_limits = {limit: counts.get(limit, 0) for limit in _BOUNDARIES}
    assert lower <= estimate_quantile(all_limits, quantile) <= _BOUNDARIES[bucket]


def test_values_above_all_limits_count_as_the_highest_limit() -> None:
    assert estimate_quantile({1.0: 1, 2.0: 0, inf: 9}, 0.99) == 2.0
    with pytest.raises(ValueError, match="no values"):
        estimate_quantile({1.0: 0}, 0.5)


def test_series_with_other_buckets_are_added_by_their_limits() -> None:
    """Series of two versions of the platform, whose buckets differ, make one quantile."""
    totals = StepTotals()
    (first,) = increases(Sample(-1, 0), [Sample(0, 3.0, (2, 0, 0))])
    (second,) = increases(Sample(-1, 0), [Sample(0, 9.0, (0, 2))])
    totals.add(first, (1.0, 2.0))
    totals.add(second, (4.0,))
    assert totals.bucket_counts == {1.0: 2, 2.0: 0, inf: 2, 4.0: 0}
    assert totals.count == 4
    assert point_of(totals, MetricKind.HISTOGRAM, Aggregation.AVERAGE, 10, 0) == 3.0
    assert point_of(totals, MetricKind.HISTOGRAM, Aggregation.RATE, 10, 0) == 0.4


def test_an_average_of_nothing_has_no_point() -> None:
    for aggregation in (Aggregation.AVERAGE, Aggregation.QUANTILE):
        assert point_of(StepTotals(), MetricKind.HISTOGRAM, aggregation, 10, 0.5) is None


def test_an_aggregation_must_fit_the_kind() -> None:
    """The error names the aggregations that the kind has."""
    assert require_aggregation("", MetricKind.GAUGE) is Aggregation.MAX
    with pytest.raises(ApiError, match="one of RATE, SUM for a counter") as error:
        require_aggregation("QUANTILE", MetricKind.COUNTER)
    assert error.value.field == "aggregation"


@given(
    st.integers(1, TIERS[-1].max_age),
    st.integers(0, TIERS[-1].max_age),
    st.one_of(st.none(), st.integers(1, 10_000)),
)
def test_a_range_is_covered_by_steps_that_samples_fill(
    age: int, length: int, step: int | None
) -> None:
    """The steps begin at or before the start, end at or after the end, are multiples of the
    distance of samples, and are at most 1,000; or the error names the field.
    """
    start, end = NOW - age, NOW - age + length
    try:
        planned = plan_range(NOW, start, end, step)
    except ApiError as error:
        assert error.field in ("start_time", "step")
        assert step is not None or length == 0
        return
    assert planned.start <= start < planned.start + planned.step
    assert planned.end - planned.step < end <= planned.end
    assert planned.start % planned.step == 0
    assert planned.step_count <= MAX_STEPS
    resolution = next(t.resolution for t in TIERS if age <= t.max_age + GRACE_SECONDS)
    assert planned.step % resolution == 0
    assert step in (None, planned.step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (NOW, NOW, NOW, None),
            "start_time must be before end_time, which is now if it is unset.",
        ),
        (
            (NOW, NOW - 2_600_000, None, None),
            "start_time must be at most 30 days ago: samples are not kept longer.",
        ),
        (
            (NOW, NOW - 7200, None, 10),
            "step must be a multiple of 60 seconds, the distance of samples at start_time.",
        ),
        (
            (NOW, NOW - 86_400, None, 60),
            "step must be at least 120 seconds for this range.",
        ),
    ],
)
def test_an_invalid_range_is_rejected(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ApiError) as error:
        plan_range(*arguments)
    assert str(error.value.message) == message
