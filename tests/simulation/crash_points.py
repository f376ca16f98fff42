"""A payment, and a payout, whose processes die before and after each of their port calls, then at every two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .faults import Fault
from .load import Then, Wish
from .payout_load import Then as PayoutThen
from .payout_load import Withdrawal
from .run import Plan, Result
from .world import DEATH

_WISH = Wish(
    number=0, team="team-1", start=0.1, token="tok_visa", currency="EUR", together=True, all_or_nothing=False, sellers=("seller-a", "seller-b"),
    amounts=(1234, 500), fees=(None, 10), expires_in=None, at_once=1, patient=True, then=Then.NOTHING, delivers=1,
)  # fmt: skip
PAY_IN = Plan(seed=1, payments=0, share=0.0, wishes=(_WISH,), alone=frozenset({"payout"}))
"""A payment of two orders in one charge, and nothing that goes wrong by chance. Payouts are not called: one process shows that it finds no work."""
_SALE = replace(_WISH, together=False, sellers=("seller-a",), amounts=(5000,), fees=(None,))
_WITHDRAWAL = Withdrawal(
    number=0, team="team-1", start=2.0, token="ba_returned_part", currency="EUR", seller="seller-a", amount=3000, at_once=1, approves=True, then=PayoutThen.NOTHING,
)  # fmt: skip
PAY_OUT = Plan(seed=2, payments=0, share=0.0, wishes=(_SALE,), withdrawals=(_WITHDRAWAL,), alone=frozenset({"payment", "event"}))
"""A payout of a seller who has sold before: its destination, the payout, and what its bank sends back. What no death befalls is one process."""
CRASHES = {"payment": PAY_IN, "payout": PAY_OUT}
_TELLING = ("event-", "Relay.", "FromOutbox", "BatchPublish", "relayed", "LedgerEvents")
_IMMORTAL = ("caller", "outside", "provider")


@dataclass
class Crashes:
    """How many runs there were with one death and with two, and those that failed."""

    singles: int = 0
    pairs: int = 0
    failed: list[Result] = field(default_factory=list)


def singles(quiet: Result) -> list[Plan]:
    """A plan for each death that can befall a run in which nothing goes wrong yet."""
    return [replace(quiet.plan, planned={call: death}) for call, death in _deaths(_of_interest(quiet.plan, quiet.calls))]


def crash(run: Callable[[Plan], Result], plan: Plan, *, pairs: bool = True) -> Crashes:
    """Runs a plan with one death, then with every second death that can come after it."""
    crashes = Crashes(singles=1)
    first = run(plan)
    _judge(crashes, first, deaths=1)
    later = _of_interest(plan, first.calls[first.calls.index(DEATH) + 1 :]) if not first.violations else []
    for call, death in _deaths(later) if pairs else []:
        crashes.pairs += 1
        _judge(crashes, run(replace(plan, planned={**plan.planned, call: death})), deaths=2)
    return crashes


def _of_interest(plan: Plan, calls: Sequence[str]) -> Sequence[str]:
    """All calls; of a payout those from its first on, but not those that tell of changes, which are a payment's too."""
    if not plan.withdrawals:
        return calls
    first = next((place for place, call in enumerate(calls) if call.startswith("payout-")), 0)
    return [call for call in calls[first:] if not any(name in call for name in _TELLING)]


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
