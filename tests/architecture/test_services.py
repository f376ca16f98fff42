"""The services: each has one declaration, and nothing else lists them."""

from __future__ import annotations

import ast
from configparser import ConfigParser

import pytest

from tallystick_core.event import EVENT_SUBJECTS
from tallystick_server.app.services import SERVICES, find_spec, service_names, stop_order
from tallystick_server.app.wiring import implementation_of
from tallystick_server.service_spec import ServiceSpec
from tests.support.platform import ROOT

_MIN_LISTED = 3  # from this number on, names of services are a list of them
_ALLOWED_FILES = ("service.py", "_services.py")


def _spec(name: str, *dependencies: str) -> ServiceSpec:
    return ServiceSpec(name, "", "", "", "", "", dependencies)


def test_a_service_stops_before_the_services_that_it_calls() -> None:
    """The order follows from the dependencies, whatever the order of the list."""
    for specs in (SERVICES, SERVICES[::-1]):
        names = [spec.name for spec in stop_order(specs)]
        assert sorted(names) == sorted(service_names())
        for position, name in enumerate(names):
            assert not {*names[:position]} & {*find_spec(name).dependencies}


def test_a_service_may_stop_without_the_services_that_it_calls() -> None:
    """Services of other processes have no place in the order."""
    assert [spec.name for spec in stop_order([_spec("a", "b", "c"), _spec("c")])] == ["a", "c"]


def test_services_that_call_each_other_in_a_circle_have_no_order() -> None:
    """A circle is an error that names its services."""
    circle = [_spec("start", "a"), _spec("a", "b"), _spec("b", "a")]
    with pytest.raises(ValueError, match="call each other in a circle: a, b"):
        stop_order(circle)


@pytest.mark.parametrize("spec", SERVICES, ids=service_names())
def test_a_declaration_agrees_with_its_modules(spec: ServiceSpec) -> None:
    """A service's modules exist and have what its declaration says: access rules for its methods,
    lists of alerts and dead letters, queries of its own schema, and checks.
    """
    implementation = implementation_of(spec)
    methods = {method.name for method in spec.descriptor.methods}
    assert set(implementation.access) == methods
    assert spec.publishes_events == ("ListAlerts" in methods)
    assert spec.publishes_events == (implementation.alert_queries is not None)
    assert spec.calls_providers == ("ListDeadLetters" in methods)
    queries = spec.load_queries()
    assert {name.partition(".")[0] for name in queries} == {spec.name}
    assert set(spec.load_inconsistency_queries()) <= set(queries)
    assert spec.load_checks()
    assert spec.publishes_events == (f"{spec.name}.outbox" in queries)
    assert spec.publishes_events == ("event" in spec.dependencies)
    assert {*spec.dependencies} <= {*service_names()} - {spec.name}
    collections = {*spec.event_tables, *filter(None, [spec.history_collection])}
    assert collections <= {subject.collection for subject in EVENT_SUBJECTS.values()}


def test_nothing_else_lists_the_services() -> None:
    """No source has a tuple, list, set or dict with the names of several services, except as
    dependencies in a declaration, and in the generated list of the SDK.
    """
    names = {*service_names()}
    found = []
    for root in ("server", "storage", "scripts", "benchmarks", "clients/python/tallystick"):
        for path in (ROOT / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                    continue
                items = node.keys if isinstance(node, ast.Dict) else node.elts
                listed = {item.value for item in items if isinstance(item, ast.Constant)} & names
                if len(listed) >= _MIN_LISTED and path.name not in _ALLOWED_FILES:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_importlinter_knows_every_service() -> None:
    """Each service has a contract for its boundary, and its place among the layers."""
    contracts = ConfigParser()
    contracts.read(ROOT / "importlinter.ini")
    for name in service_names():
        boundary = contracts[f"importlinter:contract:{name}"]
        assert boundary["source_modules"].strip() == f"tallystick_server.{name}"
        for other in {*service_names()} - {name}:
            assert f"tallystick_storage.{other}" in boundary["forbidden_modules"].split()
        for layer in ("storage-siblings", "server-siblings"):
            assert name in contracts[f"importlinter:contract:{layer}"]["layers"].split()
        assert f"tallystick_server.{name}" in (
            contracts["importlinter:contract:stubs"]["source_modules"].split()
        )
