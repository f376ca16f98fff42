"""Expressions of Prometheus: the metrics and labels that they name, and Prometheus' own checks."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

import pytest

from tallystick_server.observability import names
from tallystick_server.observability.names import MetricKind

_LABEL_LIST = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_KEYWORDS = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring"}
_OF_PROMETHEUS = {"le", "job", "instance"}


def exported_metrics() -> Mapping[str, set[str]]:
    """The labels of each series name that a process exports, without those of Prometheus."""
    suffixes = {MetricKind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    return {
        metric.prometheus_name + suffix: {
            name.replace(".", "_") for name in (*metric.attributes, *metric.fixed_attributes)
        }
        for metric in names.METRICS
        for suffix in suffixes.get(metric.kind, ("",))
    }


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics that an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\[[^\]]*\]", "", _LABEL_LIST.sub("", _SELECTOR.sub("", bare)))
    words = re.findall(r"(?<![\w.])([a-zA-Z_]\w*)(?!\s*\(|\w)", bare)
    return set(words) - _KEYWORDS


def labels_in(expression: str) -> set[str]:
    """The names of the labels that an expression selects or groups by."""
    texts = {
        text: f"text{number}" for number, text in enumerate(re.findall(r'"[^"]*"', expression))
    }
    for text, replacement in texts.items():  # a text may contain a bracket
        expression = expression.replace(text, replacement)
    selected = re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", ",".join(_SELECTOR.findall(expression)))
    grouped = re.findall(r"\w+", ",".join(_LABEL_LIST.findall(expression)))
    return {*selected, *grouped}


def check_names(expression: str) -> None:
    """Asserts that an expression names only metrics and labels that a process exports, and `up`."""
    exported = exported_metrics()
    metrics = metrics_in(expression) - {"up"}
    assert metrics <= exported.keys(), expression
    labels = set().union(*(exported[metric] for metric in metrics))
    assert labels_in(expression) <= labels | _OF_PROMETHEUS, expression


def promtool(*arguments: str) -> None:
    """Runs Prometheus' own checks. Skips the test if promtool is not installed."""
    completed = run_promtool(*arguments)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As `promtool`, and returns what it found."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not here; .ci/run installs it on Debian")
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
