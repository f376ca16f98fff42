"""How the samples of series become points: increases, rates and quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from math import inf
from typing import NamedTuple

from tallystick_core.errors import ApiError, ErrorReason


@unique
class MetricKind(StrEnum):
    """What the values of a metric are. Those of a counter and a histogram only grow while a process
    runs.
    """

    COUNTER = "COUNTER"
    GAUGE = "GAUGE"
    HISTOGRAM = "HISTOGRAM"


@unique
class Aggregation(StrEnum):
    """How the values of several series become a point."""

    RATE = "RATE"
    SUM = "SUM"
    MAX = "MAX"
    AVERAGE = "AVERAGE"
    QUANTILE = "QUANTILE"


AGGREGATIONS: Mapping[MetricKind, tuple[Aggregation, ...]] = {
    MetricKind.COUNTER: (Aggregation.RATE, Aggregation.SUM),
    MetricKind.GAUGE: (Aggregation.MAX, Aggregation.SUM),
    MetricKind.HISTOGRAM: (
        Aggregation.RATE,
        Aggregation.SUM,
        Aggregation.AVERAGE,
        Aggregation.QUANTILE,
    ),
}
"""The aggregations of each kind; the first one is the default."""


def require_aggregation(name: str, kind: MetricKind) -> Aggregation:
    """The aggregation of this name; "": the default of the kind. Raises FIELD_INVALID."""
    allowed = AGGREGATIONS[kind]
    if not name:
        return allowed[0]
    if name not in allowed:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"aggregation must be one of {', '.join(allowed)} for a {kind.lower()}.",
            field="aggregation",
        )
    return Aggregation(name)


class Sample(NamedTuple):
    """The value of a series in a step: of a gauge the highest one, otherwise the last total. The
    counts of a histogram's buckets are totals too.
    """

    step: int
    value: float
    bucket_counts: Sequence[int] = ()


class Increase(NamedTuple):
    """By how much the totals of a series grew in a step."""

    step: int
    value: float
    bucket_counts: Sequence[int] = ()


def increases(base: Sample, samples: Iterable[Sample]) -> list[Increase]:
    """The increases between the samples of a series, in order of time. `base`: its totals before
    the first one. The sum of the increases is the last total minus the base. Totals that have
    decreased begin at 0 again, so no increase is negative.
    """
    found = []
    before = base
    for sample in samples:
        is_reset = sample.value < before.value or any(
            now < then
            for now, then in zip(sample.bucket_counts, before.bucket_counts, strict=False)
        )
        if is_reset or not before.bucket_counts:
            counts = sample.bucket_counts
        else:
            counts = [
                now - then
                for now, then in zip(sample.bucket_counts, before.bucket_counts, strict=False)
            ]
        found.append(
            Increase(sample.step, sample.value - (0 if is_reset else before.value), counts)
        )
        before = sample
    return found


@dataclass(slots=True)
class StepTotals:
    """What all series of a group add in a step. `bucket_counts`: recorded values by the upper limit
    of their bucket.
    """

    value: float = 0
    bucket_counts: dict[float, int] = field(default_factory=dict)

    def add(self, increase: Increase, boundaries: Sequence[float]) -> None:
        self.value += increase.value
        limits = [*boundaries, inf]
        for limit, count in zip(limits, increase.bucket_counts, strict=False):
            self.bucket_counts[limit] = self.bucket_counts.get(limit, 0) + count

    @property
    def count(self) -> int:
        """The number of recorded values."""
        return sum(self.bucket_counts.values())


def point_of(
    totals: StepTotals,
    kind: MetricKind,
    aggregation: Aggregation,
    step_seconds: int,
    quantile: float,
) -> float | None:
    """The value of a step with increases. None: no values were recorded of which there is a
    quantile or an average.
    """
    if aggregation is Aggregation.SUM:
        return totals.value
    if aggregation is Aggregation.RATE:
        total = totals.count if kind is MetricKind.HISTOGRAM else totals.value
        return total / step_seconds
    if not totals.count:
        return None
    if aggregation is Aggregation.AVERAGE:
        return totals.value / totals.count
    return estimate_quantile(totals.bucket_counts, quantile)


def estimate_quantile(bucket_counts: Mapping[float, int], quantile: float) -> float:
    """Estimates a quantile of recorded values from their number by the upper limit of their bucket,
    as histogram_quantile of Prometheus does: values are spread evenly over a bucket, and those
    above all limits count as the highest limit. Raises ValueError if there are none.
    """
    limits = sorted(bucket_counts)
    rank = quantile * sum(bucket_counts.values())
    lower, seen = 0.0, 0
    for limit in limits:
        count = bucket_counts[limit]
        if count and seen + count >= rank:
            if limit == inf:
                return lower
            return lower + (limit - lower) * max(rank - seen, 0) / count
        seen += count
        if limit != inf:
            lower = limit
    raise ValueError("no values were recorded")
