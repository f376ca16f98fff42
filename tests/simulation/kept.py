"""Runs that failed once, kept as regression tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulation.crash_points import CRASH_PLANS
from tests.simulation.faults import InjectedFault
from tests.simulation.run import SimulationPlan

REGRESSIONS_FILE = Path(__file__).with_name("kept.json")


@dataclass(frozen=True)
class RegressionRun:
    """A plan that was kept. `trace_pattern` matches the line of its trace that it was kept for;
    without that line the plan no longer proves anything.
    """

    plan: SimulationPlan
    trace_pattern: str


def load_regressions() -> list[RegressionRun]:
    """All plans that were kept."""
    return [
        RegressionRun(_parse_plan(entry), entry["shows"])
        for entry in json.loads(REGRESSIONS_FILE.read_text())
    ]


def add_regression(plan: SimulationPlan, violation: str) -> None:
    """Adds a plan and its violations. The developer then writes the trace pattern by hand."""
    entry = {
        "why": violation,
        "shows": "",
        "seed": plan.seed,
        "payments": plan.payments,
        "fault_rate": plan.fault_rate,
        "without_payments": sorted(plan.without_payments),
        "without_faults": sorted(plan.without_faults),
        "planned": dict(plan.planned),
        "payouts": plan.payouts,
        "without_payouts": sorted(plan.without_payouts),
        "outage": plan.outage,
        "poison": plan.poison,
        "report_rate": plan.report_rate,
        "routing": plan.routing,
        "stripe": plan.stripe,
        "crash_point": next(
            (
                name
                for name, crash_plan in CRASH_PLANS.items()
                if (plan.payment_requests, plan.withdrawals, plan.statement_seconds)
                == (
                    crash_plan.payment_requests,
                    crash_plan.withdrawals,
                    crash_plan.statement_seconds,
                )
            ),
            "",
        ),
    }
    REGRESSIONS_FILE.write_text(
        "[\n"
        + ",\n".join(
            json.dumps(saved_entry)
            for saved_entry in [*json.loads(REGRESSIONS_FILE.read_text()), entry]
        )
        + "\n]\n"
    )


def _parse_plan(entry: dict[str, Any]) -> SimulationPlan:
    crash_plan = CRASH_PLANS.get(entry["crash_point"])
    return SimulationPlan(
        entry["seed"],
        entry["payments"],
        entry["fault_rate"],
        frozenset(entry["without_payments"]),
        frozenset(entry["without_faults"]),
        {call: InjectedFault(fault) for call, fault in entry["planned"].items()},
        crash_plan.payment_requests if crash_plan else (),
        entry["payouts"],
        frozenset(entry["without_payouts"]),
        crash_plan.withdrawals if crash_plan else (),
        single_process_services=crash_plan.single_process_services if crash_plan else frozenset(),
        outage=entry.get("outage", False),
        poison=entry.get("poison", False),
        report_rate=entry.get("report_rate", 0.0),
        routing=entry.get("routing", False),
        stripe=entry.get("stripe", False),
        statement_seconds=crash_plan.statement_seconds if crash_plan else None,
    )
