"""The dashboards of Grafana: every panel asks for what a running platform exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.charges import WAIT_FOR_ACCEPTANCE, wait_for_dead_letter
from tests.support.metrics import scrape
from tests.support.payments import create_payment
from tests.support.platform import (
    ROOT,
    ServedPlatform,
    eventually,
    free_address,
    serve_platform,
)
from tests.support.prometheus import run_prometheus
from tests.support.promql import check_names, exported_metrics, labels_in, metrics_in, promtool

_FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
_DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(_FOLDER.glob("*.json"))}
_TARGETS: list[Mapping[str, Any]] = [
    target
    for dashboard in _DASHBOARDS.values()
    for panel in dashboard["panels"]
    for target in panel["targets"]
]
# what a platform exports only after a fault, or with a provider that sends webhooks
_ONLY_AT_TIMES = {
    "tallystick_leases_lost_total",
    "tallystick_events_rejected_total",
    "tallystick_webhooks_received_total",
    "tallystick_webhook_events_received_total",
    "tallystick_operations_queued",
    "tallystick_metrics_recording_failures_total",
    "tallystick_spans_lost_total",
}


def test_prometheus_accepts_each_expression(tmp_path: Path) -> None:
    """Each expression is a rule that Prometheus can read."""
    rules = [
        {"record": f"panel:{number}", "expr": target["expr"]}
        for number, target in enumerate(_TARGETS)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


@pytest.mark.parametrize("target", _TARGETS, ids=lambda target: str(target["expr"])[:60])
def test_an_expression_names_what_exists(target: Mapping[str, Any]) -> None:
    """Its metrics and labels are exported, and each label of the legend is one of its labels."""
    check_names(target["expr"])
    labels = labels_in(target["expr"]) | {"instance"}
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


@contextmanager
def busy_platform(databases: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform that exports metrics, after a payment, and a charge that is a dead letter with an
    alert.
    """
    settings = Settings().replace(
        metrics__listen=free_address(),
        retry={("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)},
        worker__monitor_interval=0.1,
        reconciliation__posting_interval=0.1,
    )
    with serve_platform(databases, settings) as platform, platform.client() as client:
        create_payment(client, "5.00")
        payment = create_payment(client, "7.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        wait_for_dead_letter(client, payment)
        yield platform


def test_a_running_platform_exports_what_the_dashboards_show(
    scratch_database: DatabaseUrls,
) -> None:
    """A scrape has each metric of the dashboards, except those that need a fault or a webhook."""
    expected_names = set().union(*(metrics_in(target["expr"]) for target in _TARGETS))
    expected_names -= {"up", *_ONLY_AT_TIMES}
    with busy_platform(scratch_database) as platform:

        def missing() -> set[str]:
            return expected_names - {name for name, _, _ in scrape(platform).samples}

        eventually(lambda: not missing())
        assert not missing()


def test_prometheus_evaluates_each_rule_and_each_expression(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """A running Prometheus scrapes a platform, and has no error in any rule. Each expression of the
    dashboards has a value, except those that need an error or a webhook. An open alert fires.
    """
    unseen = {
        target["expr"]
        for target in _TARGETS
        if not metrics_in(target["expr"]) & _ONLY_AT_TIMES
        and 'error_type!=""' not in target["expr"]
    }
    with (
        busy_platform(scratch_database) as platform,
        run_prometheus(platform.settings.metrics.listen, tmp_path) as prometheus,
    ):

        def query_unseen() -> set[str]:
            unseen.difference_update([item for item in unseen if prometheus.query(item)])
            return unseen

        assert eventually(lambda: not query_unseen(), 60), unseen
        assert eventually(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, 60)
        fires = 'ALERTS{alertname="TallystickDeadLetter"}'
        assert eventually(lambda: prometheus.query(fires), 60)


def test_each_metric_is_on_a_dashboard() -> None:
    """Everything that the platform exports is somewhere: of a histogram one of its series."""
    visible = {_base(name) for target in _TARGETS for name in metrics_in(target["expr"])}
    # how often an alert was raised is the subject of the rules; open ones are on it
    assert {_base(name) for name in exported_metrics()} - visible == {
        "tallystick_alerts_raised_total"
    }


def _base(series: str) -> str:
    """The name of a histogram of one of its series; of another metric its name."""
    base = re.sub(r"_(bucket|count|sum)$", "", series)
    return base if f"{base}_bucket" in exported_metrics() else series


def test_panels_have_titles_and_places_of_their_own() -> None:
    """Panels of a dashboard do not overlap; each has a title, a description and a unit. The
    addresses of dashboards are unique.
    """
    assert set(_DASHBOARDS) == {"overview", "providers", "processes"}
    uids = [dashboard["uid"] for dashboard in _DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    for dashboard in _DASHBOARDS.values():
        panels = dashboard["panels"]
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert {x for x, _ in cells} <= set(range(24))
        assert len({panel["title"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"] in {"s", "short", "ops", "percentunit"}
