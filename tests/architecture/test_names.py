"""The names of metrics, spans, batches and log events: each is declared, and each is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from threading import Lock
from typing import Any

import pytest

from tallystick_server.app.services import SERVICES
from tallystick_server.app.wiring import implementation_of
from tallystick_server.observability import metrics, names
from tallystick_server.observability.exporting import MetricsExporter
from tallystick_server.observability.names import Metric, MetricKind
from tests.architecture.test_structure import source_files
from tests.support.metrics import parse
from tests.support.platform import ROOT
from tests.support.promql import check_names, metrics_in

_DECLARED_IN = "server/tallystick_server/observability/names.py"
_SPAN_FUNCTIONS = {"server_span", "client_span", "batch_span"}
_BATCHER_FUNCTIONS = {"Batcher", "_make_batcher"}
_LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
_INSTRUMENTS: tuple[Any, ...] = (*metrics.COUNTERS, *metrics.GAUGES, *metrics.HISTOGRAMS)


@pytest.fixture(scope="module", autouse=True)
def _free_nodes() -> Iterator[None]:
    yield
    _nodes.cache_clear()


@cache
def _nodes() -> Sequence[tuple[str, ast.AST]]:
    """Each node of the server's code, with its file."""
    return [
        (name, node)
        for path in source_files("server")
        if (name := path.relative_to(ROOT).as_posix()) != _DECLARED_IN
        for node in ast.walk(ast.parse(path.read_text()))
    ]


def _calls(functions: set[str]) -> Iterator[tuple[str, ast.Call]]:
    for file, node in _nodes():
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in functions:
            yield f"{file}:{node.lineno}", node


def _declared(*types: type) -> set[str]:
    """The constants of names.py of these types."""
    return {name for name, value in vars(names).items() if isinstance(value, types)}


def test_every_declared_name_is_used() -> None:
    """Each constant of names.py is read somewhere else."""
    used = {
        node.attr
        for _, node in _nodes()
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "names"
    }
    # the name of a batch's span is that of its batcher
    assert _declared(Metric, names.SpanName, names.LogEvent) - used == set()


def test_instruments_are_declared() -> None:
    """Each declared metric has one instrument, of its kind; names and units have their form."""
    assert sorted(instrument.metric.name for instrument in _INSTRUMENTS) == sorted(
        metric.name for metric in names.METRICS
    )
    for kind, instruments in (
        (MetricKind.COUNTER, metrics.COUNTERS),
        (MetricKind.GAUGE, metrics.GAUGES),
        (MetricKind.HISTOGRAM, metrics.HISTOGRAMS),
    ):
        assert {instrument.metric.kind for instrument in instruments} == {kind}
    for metric in names.METRICS:
        assert re.fullmatch(r"(rpc|db|process|system|tallystick)(\.[a-z_]+)+", metric.name), metric
        assert re.fullmatch(r"s|1|By|\{[a-z_]+\}", metric.unit), metric
        assert bool(metric.boundaries) == (metric.kind is MetricKind.HISTOGRAM), metric
        assert metric.description.endswith("."), metric


def test_no_instrument_is_made_elsewhere() -> None:
    """Only metrics.py creates instruments, and only exporting.py those of OpenTelemetry."""
    constructor = re.compile(
        r"(metrics\.)?(Counter|Gauge|Histogram)\((names\.|metric\b)|.*get_meter\("
    )
    makers = {
        file
        for file, node in _nodes()
        if isinstance(node, ast.Call) and constructor.match(ast.unparse(node))
    }
    assert makers == {
        "server/tallystick_server/observability/metrics.py",
        "server/tallystick_server/observability/exporting.py",
    }


def test_every_instrument_is_recorded() -> None:
    """Each instrument has a place that adds to it, records in it or makes it track something."""
    recorded = {
        ast.unparse(call.func.value).split(".", 1)[-1]
        for _, call in _calls({"add", "record", "track"})
        if isinstance(call.func, ast.Attribute)
    }
    instruments = {
        name
        for name, value in vars(metrics).items()
        if isinstance(value, metrics.Counter | metrics.Gauge | metrics.Histogram)
    }
    assert instruments - recorded == set()
    assert "STORED_GAUGES[query.metric]" in recorded


def test_gauges_of_the_database_are_declared() -> None:
    """The queries fill all stored gauges, and no others."""
    queried = {query.metric for spec in SERVICES for query in implementation_of(spec).gauge_queries}
    assert queried == set(metrics.STORED_GAUGES)


def test_span_names_are_declared() -> None:
    """Each span is named by a constant of names.py, or by a variable that one was formatted to."""
    places = list(_calls(_SPAN_FUNCTIONS))
    assert len(places) >= 7
    for place, call in places:
        argument = ast.unparse(call.args[0])
        assert re.match(r"span_name|names\.[A-Z_]+_SPAN\.format\(", argument), place
    for place, node in _nodes():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "span_name":
            assert re.match(r"names\.[A-Z_]+_SPAN\.format\(", ast.unparse(node.value)), place


def test_batchers_are_declared() -> None:
    """The name of each batcher is declared, and each declared one exists."""
    used = set()
    for place, call in _calls(_BATCHER_FUNCTIONS):
        name = call.args[0]
        if isinstance(name, ast.Name):  # a function that makes batchers
            continue
        text = ast.literal_eval(re.sub(r"^f(?=['\"])", "", ast.unparse(name)))
        text = re.sub(r"\{\w+\.\w+\}", "{provider}", text)
        assert text in names.BATCHES, place
        used.add(text)
    assert used == set(names.BATCHES)


def test_log_lines_have_an_event() -> None:
    """Each line that the server logs has an event, and the level of its event. Lines of the storage
    layer have none: it is below.
    """
    for file, node in _nodes():
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "log"
            and node.func.attr in _LOG_METHODS
        ):
            extras = [ast.unparse(k.value) for k in node.keywords if k.arg == "extra"]
            assert extras, f"{file}:{node.lineno}"
            assert re.fullmatch(r"names\.[A-Z_]+\.extra", extras[0]), f"{file}:{node.lineno}"
            event = getattr(names, extras[0].split(".")[1])
            assert isinstance(event, names.LogEvent), f"{file}:{node.lineno}"
            level = {"exception": "error"}.get(node.func.attr, node.func.attr).upper()
            assert level == event.level, f"{file}:{node.lineno}"


_NAMED_BY_THEIR_ERROR = {
    "%s": "ServiceCallRejected names the method",
    "the database rejected an item: %s": "ConstraintViolation names the constraint",
    "%s The certificate and key that were loaded before stay in use.": "it names the file",
}


def test_severe_log_lines_name_what_they_are_about() -> None:
    """Each line at WARNING or above has a value in its text: the id of a resource, a service, a
    provider, or a method. Or it is about this process as a whole, and says so: every line has the
    process and its service. The text of an error alone may name nothing.
    """
    for file, node in _nodes():
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "log"
            and node.func.attr in ("warning", "error", "exception", "critical")
        ):
            message = ast.literal_eval(node.args[0])
            values = [ast.unparse(value) for value in node.args[1:]]
            names_something = (
                set(values) - {"error"}
                or "this process" in message
                or re.search(r"\b[A-Z][a-z]+Service\b", message)
                or message in _NAMED_BY_THEIR_ERROR
            )
            assert names_something, f"{file}:{node.lineno}"


@pytest.mark.parametrize("declared", [names.METRICS, names.SPANS, names.LOG_EVENTS])
def test_names_are_unique(declared: tuple[object, ...]) -> None:
    texts = [str(getattr(item, "name", "") or item) for item in declared]
    assert len(set(texts)) == len(texts)


def _zero(key: tuple[str, ...], _owner: object) -> dict[tuple[str, ...], float]:
    return {key: 0}


def test_names_in_prometheus_are_those_of_a_scrape() -> None:
    """With a value for every metric a scrape has the documented names and attributes."""

    owner = Lock()  # any object
    values = {
        instrument.metric.name: tuple("x" for _ in instrument.metric.attributes)
        for instrument in _INSTRUMENTS
    }
    for counter in metrics.COUNTERS:
        if isinstance(counter, metrics.Counter):
            counter.add(0, *values[counter.metric.name])
    for histogram in metrics.HISTOGRAMS:
        histogram.record(0.0, *values[histogram.metric.name])
    for gauge in metrics.GAUGES:
        gauge.track(owner, partial(_zero, values[gauge.metric.name]))
    exporter = MetricsExporter("x", None)
    try:
        scrape = parse(exporter.render().decode())
    finally:
        exporter.stop()
        for gauge in metrics.GAUGES:
            gauge.untrack(owner)
    for metric in names.METRICS:
        suffix = "_count" if metric.kind is MetricKind.HISTOGRAM else ""
        labels = {
            **{name.replace(".", "_"): "x" for name in metric.attributes},
            **{name.replace(".", "_"): value for name, value in metric.fixed_attributes.items()},
        }
        assert scrape.has(metric.prometheus_name + suffix, **labels), metric.name


def test_example_queries_use_existing_metrics() -> None:
    """Each query of the page has balanced brackets, and only metrics and attributes that exist."""
    page = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    blocks = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    queries = [line for block in blocks for line in block.splitlines()]
    assert len(queries) >= 10
    found = set()
    for query in queries:
        for opening, closing in ("()", "[]", "{}"):
            assert query.count(opening) == query.count(closing), query
        check_names(query)
        found |= metrics_in(query)
    assert len(found) >= 8
