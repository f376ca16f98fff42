"""A payment and a payout whose processes crash before and after each of their port calls, then at
every pair of port calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tests.simulation.buyers import Buyer
from tests.simulation.faults import InjectedFault
from tests.simulation.load import PaymentFollowUp, PaymentRequest
from tests.simulation.payout_load import PayoutFollowUp, WithdrawalRequest
from tests.simulation.run import SimulationPlan, SimulationResult
from tests.simulation.world import PROCESS_DEATH

_PAYMENT_REQUEST = PaymentRequest(
    number=0,
    team="team-1",
    start_seconds=0.1,
    token="tok_visa",
    currency="EUR",
    is_combined=True,
    all_or_nothing=False,
    sellers=("seller-a", "seller-b"),
    amounts=(1234, 500),
    fees=(None, 10),
    expires_in_seconds=None,
    concurrent_calls=1,
    waits_for_result=True,
    follow_up=PaymentFollowUp.NOTHING,
    delivery_count=1,
)
PAYMENT_PLAN = SimulationPlan(
    seed=1,
    payments=0,
    fault_rate=0.0,
    payment_requests=(_PAYMENT_REQUEST,),
    single_process_services=frozenset({"payout"}),
)
"""A payment of two orders in one charge, without random faults. Payouts are not called: one process
shows that it finds no work.
"""
_SALE_REQUEST = replace(
    _PAYMENT_REQUEST, is_combined=False, sellers=("seller-a",), amounts=(5000,), fees=(None,)
)
_WITHDRAWAL_REQUEST = WithdrawalRequest(
    number=0,
    team="team-1",
    start_seconds=2.0,
    token="ba_returned_part",
    currency="EUR",
    seller="seller-a",
    amount=3000,
    concurrent_calls=1,
    is_approved=True,
    follow_up=PayoutFollowUp.NOTHING,
)
PAYOUT_PLAN = SimulationPlan(
    seed=2,
    payments=0,
    fault_rate=0.0,
    payment_requests=(_SALE_REQUEST,),
    withdrawals=(_WITHDRAWAL_REQUEST,),
    single_process_services=frozenset({"payment", "event"}),
)
"""A payout of a seller with an earlier sale: its destination, the payout, and the provider's
reports. Services without crash points have one process.
"""
WEBHOOK_PLAN = SimulationPlan(
    seed=11,  # whose webhook arrives before a poll learns the outcome
    payments=0,
    fault_rate=0.0,
    payment_requests=(replace(_SALE_REQUEST, token="tok_pending:paid", delivery_count=0),),
    report_rate=1.0,
    single_process_services=frozenset({"payout", "event"}),
)
"""A payment that its provider holds for review, and reports by webhook. Only processes of
PaymentService have crash points that another plan does not cover.
"""
FALLBACK_PLAN = replace(
    PAYMENT_PLAN,
    seed=4,
    routing=True,
    payment_requests=(replace(_PAYMENT_REQUEST, token="tok_unreachable"),),
)
"""A payment whose first provider is unreachable once, so that its fallback is asked."""
STRIPE_PLAN = replace(
    PAYMENT_PLAN,
    seed=5,
    stripe=True,
    payment_requests=(replace(_PAYMENT_REQUEST, token="tok_pending:action-declined"),),
)
"""A payment by Stripe that waits for its buyer and is declined, so that the adapter ends it: it is
created, read and cancelled by HTTP calls.
"""
STRIPE_PAYOUT_PLAN = replace(
    PAYOUT_PLAN,
    seed=6,
    stripe=True,
    withdrawals=(replace(_WITHDRAWAL_REQUEST, token="acct_returned"),),
)
"""A payout by Stripe that is returned: a transfer, a payout, and the reversal of the transfer."""
_BUYER = Buyer(
    steps=((BuyerCard.DECLINED,), (BuyerCard.SUCCESS,)),
    is_late=False,
    start_seconds=1.0,
    pause_seconds=0.3,
    return_seconds=0.0,
    cancel_seconds=0.0,
)
HOSTED_PAGE_PLAN = replace(
    PAYMENT_PLAN,
    seed=9,
    stripe=True,
    payment_requests=(replace(_PAYMENT_REQUEST, token="", buyer=_BUYER),),
    report_rate=1.0,
)
"""A payment by hosted page. Its buyer pays after a decline, and returns: the payment is looked up,
and reported by webhooks too.
"""
PAGE_EXPIRY_PLAN = replace(
    PAYMENT_PLAN,
    seed=10,
    stripe=True,
    payment_requests=(
        replace(
            _PAYMENT_REQUEST,
            token="",
            delivery_count=0,
            buyer=replace(_BUYER, steps=((BuyerCard.THREE_D_SECURE,),), return_seconds=None),
        ),
    ),
)
"""A payment by hosted page whose buyer leaves, so that the adapter ends it once it has expired."""
RECONCILIATION_PLAN = replace(
    PAYOUT_PLAN,
    seed=12,
    payment_requests=(_SALE_REQUEST, replace(_SALE_REQUEST, number=1, token="tok_delay:4000")),
    statement_seconds=4.0,
)
"""Two sales and a payout that is returned, whose statement comes before the last of them is booked:
it is sent twice at a time, compared, and what follows from it is posted.
"""
CRASH_PLANS = {
    "payment": PAYMENT_PLAN,
    "payout": PAYOUT_PLAN,
    "webhook": WEBHOOK_PLAN,
    "fallback": FALLBACK_PLAN,
    "stripe": STRIPE_PLAN,
    "stripe-payout": STRIPE_PAYOUT_PLAN,
    "hosted-page": HOSTED_PAGE_PLAN,
    "page-expiry": PAGE_EXPIRY_PLAN,
    "reconciliation": RECONCILIATION_PLAN,
}
_EVENT_CALLS = (
    "event-",
    "Relay.",
    "OutboxSource",
    "BatchPublish",
    "relay_positions",
    "LedgerEvents",
)
_IMMORTAL_NODES = ("caller", "outside", "provider")


@dataclass
class CrashResults:
    """The number of runs with two crashes, and the runs that failed."""

    pair_count: int = 0
    failed: list[SimulationResult] = field(default_factory=list)


def single_crash_plans(fault_free_result: SimulationResult) -> list[SimulationPlan]:
    """A plan for each possible crash of a run that has no faults yet."""
    return [
        replace(fault_free_result.plan, planned={call: death})
        for call, death in _possible_deaths(
            _relevant_calls(fault_free_result.plan, fault_free_result.port_calls)
        )
    ]


def run_with_crashes(
    run: Callable[[SimulationPlan], SimulationResult],
    plan: SimulationPlan,
    *,
    with_pairs: bool = True,
) -> CrashResults:
    """Runs a plan with one crash, then with each second crash that can follow it."""
    results = CrashResults()
    first_result = run(plan)
    _check_deaths(results, first_result, expected_deaths=1)
    later_calls = (
        _relevant_calls(
            plan, first_result.port_calls[first_result.port_calls.index(PROCESS_DEATH) + 1 :]
        )
        if not first_result.violations
        else []
    )
    for call, death in _possible_deaths(later_calls) if with_pairs else []:
        results.pair_count += 1
        _check_deaths(
            results, run(replace(plan, planned={**plan.planned, call: death})), expected_deaths=2
        )
    return results


def _relevant_calls(plan: SimulationPlan, calls: Sequence[str]) -> Sequence[str]:
    """The port calls under test. Those of a payout, and of a webhook, start at its first call and
    exclude the publishing of events, which a payment covers. Those of a hosted page exclude it too.
    Those of reconciliation, and the reads of the ledger for it, are under test in its own plan
    only.
    """
    if plan.statement_seconds is not None:
        return [call for call in calls if call.startswith("reconciliation-")]
    calls = [call for call in calls if not _is_of_reconciliation(call)]
    has_page = any(request.buyer for request in plan.payment_requests)
    if not plan.withdrawals and not plan.report_rate and not has_page:
        return calls
    first_name = "payout-" if plan.withdrawals else "" if has_page else "WebhookInbox"
    first_index = next((index for index, call in enumerate(calls) if first_name in call), 0)
    return [call for call in calls[first_index:] if not any(name in call for name in _EVENT_CALLS)]


def _is_of_reconciliation(call: str) -> bool:
    """Whether a port call is made for reconciliation, which alone streams the ledger's entries."""
    return call.startswith("reconciliation-") or (
        call.startswith("ledger-") and "SequenceTail" in call
    )


def _check_deaths(results: CrashResults, result: SimulationResult, expected_deaths: int) -> None:
    if result.port_calls.count(PROCESS_DEATH) != expected_deaths:
        result.violations.append(
            f"{result.port_calls.count(PROCESS_DEATH)} processes died instead of {expected_deaths}"
        )
    result.trace = result.trace if result.violations else []
    if result.violations:
        results.failed.append(result)


def _possible_deaths(calls: Sequence[str]) -> list[tuple[str, InjectedFault]]:
    """Each port call of a node that can crash, with a crash before it and one after it."""
    mortal_calls = [
        call for call in calls if not call.startswith((*_IMMORTAL_NODES, PROCESS_DEATH))
    ]
    return [
        (call, death)
        for call in mortal_calls
        for death in (InjectedFault.CRASH_BEFORE, InjectedFault.CRASH_AFTER)
    ]
