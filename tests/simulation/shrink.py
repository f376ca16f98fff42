"""Minimizes a failing run: removes everything that is not needed for the failure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.simulation.run import SimulationPlan, SimulationResult

T = TypeVar("T")


def shrink(
    run: Callable[[SimulationPlan], SimulationResult],
    failed_result: SimulationResult,
    timeout_seconds: float,
) -> SimulationResult:
    """The shortest run found within the given seconds that still fails in one of the same ways.
    Halves are removed first, then single payments and faults.
    """
    deadline = time.monotonic() + timeout_seconds
    shortest = failed_result
    original_kinds = _violation_kinds(failed_result)

    def still_fails(plan: SimulationPlan) -> bool:
        nonlocal shortest
        if time.monotonic() > deadline:
            return False
        result = run(plan)
        if original_kinds & _violation_kinds(result):
            shortest = result
            return True
        return False

    def plan_without(
        faults: Sequence[str] = (),
        payment_numbers: Sequence[int] = (),
        payout_numbers: Sequence[int] = (),
    ) -> SimulationPlan:
        plan = shortest.plan
        return replace(
            plan,
            without_faults=plan.without_faults | set(faults),
            without_payments=plan.without_payments | set(payment_numbers),
            without_payouts=plan.without_payouts | set(payout_numbers),
        )

    previous_plan = None
    # One removal may make another item unnecessary.
    while previous_plan != shortest.plan and time.monotonic() < deadline:
        previous_plan = shortest.plan
        payments = [
            number
            for number in range(previous_plan.payments)
            if number not in previous_plan.without_payments
        ]
        _remove_unneeded(payments, lambda subset: still_fails(plan_without(payment_numbers=subset)))
        payouts = [
            number
            for number in range(previous_plan.payouts)
            if number not in previous_plan.without_payouts
        ]
        _remove_unneeded(payouts, lambda subset: still_fails(plan_without(payout_numbers=subset)))
        _remove_unneeded(
            list(shortest.faults), lambda subset: still_fails(plan_without(faults=subset))
        )
    return shortest


def _violation_kinds(result: SimulationResult) -> set[str]:
    """The kinds of violations, without names and numbers."""
    return {re.sub(r"\S*[0-9]\S*|\{.*\}", "…", violation) for violation in result.violations}


def _remove_unneeded(items: Sequence[T], still_fails: Callable[[Sequence[T]], bool]) -> None:
    """Tries to remove parts of the items, in smaller and smaller pieces; keeps each removal after
    which the run still fails.
    """
    size = max(len(items) // 2, 1)
    remaining = list(items)
    while remaining:
        chunks = [remaining[offset : offset + size] for offset in range(0, len(remaining), size)]
        remaining = [item for chunk in chunks if not still_fails(chunk) for item in chunk]
        if size == 1:
            return
        size = max(size // 2, 1)
