"""Makes a failing run as short as it can: what is not needed to fail is left out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from .run import Plan, Result

T = TypeVar("T")


def shrink(run: Callable[[Plan], Result], failed: Result, seconds: float) -> Result:
    """The shortest run found within so many seconds that still fails in one of the same ways. Halves are left out first, then single payments and faults."""
    end = time.monotonic() + seconds
    shortest = failed
    wanted = _kinds(failed)

    def fails(plan: Plan) -> bool:
        nonlocal shortest
        if time.monotonic() > end:
            return False
        result = run(plan)
        if wanted & _kinds(result):
            shortest = result
            return True
        return False

    def without(faults: Sequence[str] = (), payments: Sequence[int] = (), payouts: Sequence[int] = ()) -> Plan:
        plan = shortest.plan
        return replace(
            plan,
            without_faults=plan.without_faults | set(faults),
            without_payments=plan.without_payments | set(payments),
            without_payouts=plan.without_payouts | set(payouts),
        )

    before = None
    while before != shortest.plan and time.monotonic() < end:  # what one leaves out may make another needless
        before = shortest.plan
        payments = [number for number in range(before.payments) if number not in before.without_payments]
        _leave_out(payments, lambda some: fails(without(payments=some)))
        payouts = [number for number in range(before.payouts) if number not in before.without_payouts]
        _leave_out(payouts, lambda some: fails(without(payouts=some)))
        _leave_out(list(shortest.faults), lambda some: fails(without(faults=some)))
    return shortest


def _kinds(result: Result) -> set[str]:
    """What is wrong, without the names and numbers it is wrong with."""
    return {re.sub(r"\S*[0-9]\S*|\{.*\}", "…", violation) for violation in result.violations}


def _leave_out(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> None:
    """Tries to do without parts of the items, smaller and smaller ones; what it still fails without stays out."""
    size = max(len(items) // 2, 1)
    left = list(items)
    while left:
        parts = [left[place : place + size] for place in range(0, len(left), size)]
        left = [item for part in parts if not fails(part) for item in part]
        if size == 1:
            return
        size = max(size // 2, 1)
