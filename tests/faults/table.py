"""The table of faults in docs/operations/alerts/README.md, and the rules that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.platform import ROOT

_RULES = ROOT / "deploy" / "prometheus" / "rules"
_ALERTS = ROOT / "docs" / "operations" / "alerts"
_ROW = re.compile(
    r"^\| (?P<name>[\w ]+) \| (?P<rule>Tallystick\w+) \| (?P<time>\d+) (?P<unit>min|h)"
    r" \| \[runbook\]\((?P<runbook>[^)]+)\) \| (?P<page>[\w ]+)(?P<symptom>, too high)?:"
    r" `(?P<text>[^`]+)` \|$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What an operator is promised: the rule that fires `minutes` after the fault, its runbook
    (path, and heading), and the text on a page of the console. `is_symptom`: the text is in a row
    that says "too high".
    """

    name: str
    rule: str
    minutes: int
    runbook: Path
    heading: str
    page: str
    text: str
    is_symptom: bool


def read_faults() -> Mapping[str, Fault]:
    """The faults by name."""
    page = (_ALERTS / "README.md").read_text()
    return {match["name"]: _to_fault(match) for match in _ROW.finditer(page)}


def _to_fault(match: re.Match[str]) -> Fault:
    path, _, heading = match["runbook"].partition("#")
    return Fault(
        match["name"],
        match["rule"],
        int(match["time"]) * (60 if match["unit"] == "h" else 1),
        _ALERTS / path,
        heading,
        match["page"],
        match["text"],
        is_symptom=match["symptom"] is not None,
    )


@cache
def read_rules() -> Mapping[str, Mapping[str, Any]]:
    """The rules of Prometheus by name."""
    return {
        str(rule["alert"]): rule
        for path in sorted(_RULES.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }
