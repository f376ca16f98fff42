"""The alerting rules of Prometheus: they cover every alert kind, and fire when they should."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tallystick_core.errors import ErrorReason
from tallystick_core.operations.alert import AlertKind
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.app.wiring import implementation_of
from tallystick_server.http.console.pages.symptoms import SYMPTOMS
from tallystick_server.observability.names import METRICS
from tests.architecture.test_docs import anchors_of
from tests.faults.table import read_faults
from tests.support.platform import ROOT
from tests.support.promql import check_names, metrics_in, promtool

_PROMETHEUS = ROOT / "deploy" / "prometheus"
_ALERTS, _SYMPTOMS = _PROMETHEUS / "rules" / "alerts.yaml", _PROMETHEUS / "rules" / "symptoms.yaml"
_SYMPTOM_TESTS = _PROMETHEUS / "tests" / "symptoms.yaml"
_SERVICE = "payment"


def _rules(path: Path) -> list[Mapping[str, Any]]:
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


_RULES = [*_rules(_ALERTS), *_rules(_SYMPTOMS)]


def _name_of(kind: str) -> str:
    return f"Tallystick{kind.title().replace('_', '')}"


def _name(rule: Mapping[str, Any]) -> str:
    return str(rule["alert"])


def test_prometheus_accepts_configuration_and_rules() -> None:
    promtool("check", "config", str(_PROMETHEUS / "prometheus.yaml"))
    promtool("check", "rules", str(_ALERTS), str(_SYMPTOMS))


def test_each_alert_kind_has_a_rule() -> None:
    """Each kind has one rule, with its name, its kind as a label, and its runbook."""
    rules = {str(rule["alert"]): rule for rule in _rules(_ALERTS)}
    assert rules.keys() == {_name_of(kind) for kind in AlertKind}
    for kind in AlertKind:
        rule = rules[_name_of(kind)]
        assert rule["labels"]["kind"] == kind
        assert f'{{kind="{kind}"}}' in rule["expr"]
        runbook = f"docs/operations/alerts/{kind.lower().replace('_', '-')}.md"
        assert rule["annotations"]["runbook_url"] == runbook


@pytest.mark.parametrize("rule", _RULES, ids=_name)
def test_a_rule_is_complete(rule: Mapping[str, Any]) -> None:
    """A severity, a summary and a description; the runbook has a heading for the rule; each metric
    and label of the expression exists.
    """
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    page = (ROOT / path).read_text()
    assert not anchor or anchor in anchors_of(page)
    check_names(rule["expr"])


def test_no_service_can_be_gone_without_an_alert() -> None:
    """The rules of missing services name each service, and the HTTP server; the rule of missing
    monitors names each service that raises alerts.
    """
    rules = {rule["alert"]: rule["expr"] for rule in _rules(_SYMPTOMS)}
    pools = re.findall(r'pool_name="(\w+)"', rules["TallystickServiceDown"])
    assert sorted(pools) == sorted(service_names())
    assert f'batcher="{HTTP_SERVER}.' in rules["TallystickServiceDown"]
    monitored = re.findall(r'service="(\w+)"', rules["TallystickMonitorDown"])
    assert sorted(monitored) == sorted(
        spec.name for spec in SERVICES if implementation_of(spec).gauge_queries
    )


def test_symptoms_of_the_console_have_the_limits_of_their_rules() -> None:
    """The console works without Prometheus, and says the same: the same metric above the same
    limit. Each fault that the console shows as a symptom has one.
    """
    rules = {rule["alert"]: rule["expr"] for rule in _rules(_SYMPTOMS)}
    prometheus_names = {metric.name: metric.prometheus_name for metric in METRICS}
    for symptom in SYMPTOMS:
        (metric,) = metrics_in(rules[symptom.rule])
        assert metric.removesuffix("_bucket") == prometheus_names[symptom.metric]
        assert re.findall(r"> ([\d.]+)", rules[symptom.rule])[0] == f"{symptom.limit:g}"
        assert (" unless " in rules[symptom.rule]) == bool(symptom.unless)
    promised = {fault.rule for fault in read_faults().values() if fault.is_symptom}
    assert promised == {symptom.rule for symptom in SYMPTOMS}


def test_the_error_reasons_of_the_rules_exist() -> None:
    (expression,) = (r["expr"] for r in _RULES if r["alert"] == "TallystickErrorRate")
    (reasons,) = re.findall(r'error_type=~"([^"]*)"', expression)
    assert set(reasons.split("|")) <= set(ErrorReason)


def _alert_of(rule: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The alert that a rule of an alert kind fires for `number` open alerts of a service."""
    values = {"$labels.service": _SERVICE, "$value": str(number)}
    annotations = {
        name: re.sub(r"\{\{ (\S+) \}\}", lambda match: values[match[1]], text)
        for name, text in rule["annotations"].items()
    }
    return {
        "exp_labels": {**rule["labels"], "service": _SERVICE},
        "exp_annotations": annotations,
    }


def _expectations(kind: str) -> Iterator[Mapping[str, Any]]:
    """Nothing fires before there is an alert; then the rule of the kind does, and no other one. It
    still fires while no process exports figures.
    """
    for rule in _rules(_ALERTS):
        is_of_kind = rule["labels"]["kind"] == kind
        yield {"alertname": rule["alert"], "eval_time": "5m", "exp_alerts": []}
        for time in ("15m", "21m"):
            expected = [_alert_of(rule, 3)] if is_of_kind else []
            yield {"alertname": rule["alert"], "eval_time": time, "exp_alerts": expected}
        yield {"alertname": rule["alert"], "eval_time": "30m", "exp_alerts": []}


def test_an_open_alert_fires_the_rule_of_its_kind(tmp_path: Path) -> None:
    """With open alerts of one kind its rule fires, with the texts filled in, and no other rule;
    without an open alert none does. While another process becomes the monitor it still fires.
    """
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {
                    "series": f'tallystick_alerts_open{{service="{_SERVICE}",kind="{kind}"}}',
                    "values": "0x9 3x10 stale 3 stale",
                }
            ],
            "alert_rule_test": list(_expectations(kind)),
        }
        for kind in AlertKind
    ]
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(_ALERTS)], "tests": tests}))
    promtool("test", "rules", str(path))


def test_symptoms_fire_when_they_should() -> None:
    promtool("test", "rules", str(_SYMPTOM_TESTS))


def test_each_symptom_has_figures_that_fire_it_and_others_that_do_not() -> None:
    cases = [
        case
        for test in yaml.safe_load(_SYMPTOM_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    rules = {rule["alert"] for rule in _rules(_SYMPTOMS)}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == rules
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == rules
