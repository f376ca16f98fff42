"""A payment whose processes die before and after each of its port calls, then at every two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .faults import Fault
from .load import Then, Wish
from .run import Plan, Result
from .world import DEATH

_WISH = Wish(
    number=0, team="team-1", start=0.1, token="tok_visa", currency="EUR", together=True, all_or_nothing=False, sellers=("seller-a", "seller-b"),
    amounts=(1234, 500), fees=(None, 10), expires_in=None, at_once=1, patient=True, then=Then.NOTHING, delivers=1,
)  # fmt: skip
PAY_IN = Plan(seed=1, payments=0, share=0.0, wishes=(_WISH,))
"""A payment of two orders in one charge, and nothing that goes wrong by chance."""
_IMMORTAL = ("caller", "outside", "provider")


@dataclass
class Crashes:
    """How many runs there were with one death and with two, and those that failed."""

    singles: int = 0
    pairs: int = 0
    failed: list[Result] = field(default_factory=list)


def singles(quiet: Result) -> list[Plan]:
    """A plan for each death that can befall a run in which nothing goes wrong yet."""
    return [replace(quiet.plan, planned={call: death}) for call, death in _deaths(quiet.calls)]


def crash(run: Callable[[Plan], Result], plan: Plan, *, pairs: bool = True) -> Crashes:
    """Runs a plan with one death, then with every second death that can come after it."""
    crashes = Crashes(singles=1)
    first = run(plan)
    _judge(crashes, first, deaths=1)
    later = first.calls[first.calls.index(DEATH) + 1 :] if not first.violations else []
    for call, death in _deaths(later) if pairs else []:
        crashes.pairs += 1
        _judge(crashes, run(replace(plan, planned={**plan.planned, call: death})), deaths=2)
    return crashes


def _judge(crashes: Crashes, result: Result, deaths: int) -> None:
    if result.calls.count(DEATH) != deaths:
        result.violations.append(f"{result.calls.count(DEATH)} processes died instead of {deaths}")
    result.trace = result.trace if result.violations else []
    if result.violations:
        crashes.failed.append(result)


def _deaths(calls: Sequence[str]) -> list[tuple[str, Fault]]:
    """Every call of whom can die, with a death before and one after it."""
    mortal = [call for call in calls if not call.startswith((*_IMMORTAL, DEATH))]
    return [(call, death) for call in mortal for death in (Fault.DIES_BEFORE, Fault.DIES_AFTER)]
