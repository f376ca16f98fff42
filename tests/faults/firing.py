"""Which rules of Prometheus fire for the figures that a platform has exported.

The time of Prometheus is not waited for: three scrapes are drawn out to hours. What happened
between the first two then happens in each healthy minute, and what happened between the last two in
each minute of the fault. `promtool` evaluates the rules on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tallystick_server.observability import names
from tallystick_server.observability.names import MetricKind
from tests.faults.table import read_rules
from tests.support.metrics import Scrape
from tests.support.promql import metrics_in, run_promtool

HEALTHY_MINUTES = 30
"""How long the platform was healthy before a fault."""
_ADDED_BY_PROMETHEUS = {"job": "tallystick", "instance": "test"}
_GAUGES = {metric.prometheus_name for metric in names.METRICS if metric.kind is MetricKind.GAUGE}
_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Healthy:
    """Two scrapes of a healthy platform, with some traffic in between."""

    start: Scrape
    end: Scrape


def firing(rule: str, healthy: Healthy, broken: Scrape, minutes: int, folder: Path) -> bool:
    """Whether a rule fires `minutes` after the fault, and not before it."""
    rules = [read_rules()[rule]]
    series = list(_series(rules, healthy.start, healthy.end, broken, minutes))
    checks = [
        _check(HEALTHY_MINUTES, []),
        _check(HEALTHY_MINUTES + 1 + minutes, [{"labels": f'{{alertname="{rule}"}}', "value": 1}]),
    ]
    return not _failures(rules, series, checks, folder)


def alarms(healthy: Healthy, folder: Path) -> str:
    """What promtool says of the rules that fire for a healthy platform; "": none does."""
    rules = list(read_rules().values())
    series = list(_series(rules, healthy.start, healthy.end, healthy.end, 0))
    return _failures(rules, series, [_check(HEALTHY_MINUTES, [])], folder)


def _check(minute: int, samples: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """That these are the rules that fire in a minute."""
    expression = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def _failures(
    rules: list[Mapping[str, Any]],
    series: list[Mapping[str, str]],
    checks: list[Mapping[str, Any]],
    folder: Path,
) -> str:
    """The output of promtool if a check fails; else ""."""
    (folder / "rules.json").write_bytes(
        orjson.dumps({"groups": [{"name": "rules", "rules": rules}]})
    )
    test = {"interval": "1m", "input_series": series, "promql_expr_test": checks}
    path = folder / "tests.json"
    path.write_bytes(orjson.dumps({"rule_files": ["rules.json"], "tests": [test]}))
    completed = run_promtool("test", "rules", str(path))
    return completed.stdout + completed.stderr if completed.returncode else ""


def _series(
    rules: list[Mapping[str, Any]], start: Scrape, healthy: Scrape, broken: Scrape, minutes: int
) -> Iterator[Mapping[str, str]]:
    """The series that the rules read, in promtool's notation."""
    metrics = set().union(*(metrics_in(rule["expr"]) for rule in rules))
    scrapes = [_by_key(scrape, metrics) for scrape in (start, healthy, broken)]
    yield {"series": _notation("up", {}), "values": f"1x{HEALTHY_MINUTES + minutes + 1}"}
    for name, labels in dict.fromkeys(key for scrape in scrapes for key in scrape):
        first, second, third = (scrape.get((name, labels)) for scrape in scrapes)
        values = (
            _gauge(second, third, minutes)
            if name in _GAUGES
            else _counter(first, second, third, minutes)
        )
        yield {"series": _notation(name, dict(labels)), "values": values}


def _by_key(scrape: Scrape, metrics: set[str]) -> dict[_Key, float]:
    return {
        (name, tuple(sorted(labels.items()))): value
        for name, labels, value in scrape.samples
        if name in metrics
    }


def _notation(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(
        f'{key}="{value}"' for key, value in {**labels, **_ADDED_BY_PROMETHEUS}.items()
    )
    return f"{name}{{{pairs}}}"


def _gauge(healthy: float | None, broken: float | None, minutes: int) -> str:
    """The last value of each time."""
    before = f"_x{HEALTHY_MINUTES + 1}" if healthy is None else f"{healthy:.6f}x{HEALTHY_MINUTES}"
    return f"{before} stale" if broken is None else f"{before} {broken:.6f}x{minutes}"


def _counter(start: float | None, healthy: float | None, broken: float | None, minutes: int) -> str:
    """Grows in each minute by what it grew between two scrapes."""
    first, second = start or 0.0, healthy or 0.0
    step = second - first
    before = f"{first:.6f}+{step:.6f}x{HEALTHY_MINUTES}"
    if healthy is None:
        before = f"_x{HEALTHY_MINUTES + 1}"
    if broken is None:
        return f"{before} stale"
    growth = broken - second
    begin = first + step * HEALTHY_MINUTES + growth
    return f"{before} {begin:.6f}+{growth:.6f}x{minutes}"
