"""Runs that failed once, kept so that they never fail again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .crash_points import CRASHES
from .faults import Fault
from .run import Plan

KEPT = Path(__file__).with_name("kept.json")


@dataclass(frozen=True)
class Kept:
    """A plan that was kept. `shows`: a pattern of the line of its trace that it was kept for, without which it proves nothing any more."""

    plan: Plan
    shows: str


def kept() -> list[Kept]:
    """All plans that were kept."""
    return [Kept(_plan(entry), entry["shows"]) for entry in json.loads(KEPT.read_text())]


def keep(plan: Plan, violation: str) -> None:
    """Adds a plan, and what was wrong. What its trace must show from then on is to be written by hand."""
    entry = {
        "why": violation,
        "shows": "",
        "seed": plan.seed,
        "payments": plan.payments,
        "share": plan.share,
        "without_payments": sorted(plan.without_payments),
        "without_faults": sorted(plan.without_faults),
        "planned": dict(plan.planned),
        "payouts": plan.payouts,
        "without_payouts": sorted(plan.without_payouts),
        "outage": plan.outage,
        "poison": plan.poison,
        "crash_point": next((name for name, known in CRASHES.items() if (plan.wishes, plan.withdrawals) == (known.wishes, known.withdrawals)), ""),
    }
    KEPT.write_text("[\n" + ",\n".join(json.dumps(one) for one in [*json.loads(KEPT.read_text()), entry]) + "\n]\n")


def _plan(entry: dict[str, Any]) -> Plan:
    crashed = CRASHES.get(entry["crash_point"])
    return Plan(
        entry["seed"],
        entry["payments"],
        entry["share"],
        frozenset(entry["without_payments"]),
        frozenset(entry["without_faults"]),
        {call: Fault(fault) for call, fault in entry["planned"].items()},
        crashed.wishes if crashed else (),
        entry["payouts"],
        frozenset(entry["without_payouts"]),
        crashed.withdrawals if crashed else (),
        alone=crashed.alone if crashed else frozenset(),
        outage=entry.get("outage", False),
        poison=entry.get("poison", False),
    )
