"""The simulation is deterministic, detects a deliberate bug and minimizes failing runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick_server.payment.operations import charge
from tests.simulation import world
from tests.simulation.crash_points import (
    CRASH_PLANS,
    FALLBACK_PLAN,
    HOSTED_PAGE_PLAN,
    PAGE_EXPIRY_PLAN,
    PAYMENT_PLAN,
    PAYOUT_PLAN,
    RECONCILIATION_PLAN,
    STRIPE_PAYOUT_PLAN,
    STRIPE_PLAN,
    WEBHOOK_PLAN,
    run_with_crashes,
    single_crash_plans,
)
from tests.simulation.faults import InjectedFault
from tests.simulation.kept import RegressionRun, load_regressions
from tests.simulation.run import Simulation, SimulationPlan, SimulationResult
from tests.simulation.shrink import shrink
from tests.simulation.workers import run_traced, worker_pool
from tests.support.platform import ROOT, fresh_database

WORLD_PLANS = [SimulationPlan(seed, 15, payouts=5) for seed in range(1, 4)]
PLAN = SimulationPlan(seed=7, payments=6, fault_rate=0.1, payouts=3, stripe=False)

EXPECTED_POISONED = {"wallet": 4, "ledger": 22, "event": 18}
"""Seeds of simulations in which this service fails on many items."""


@pytest.fixture(scope="module")
def simulation(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with fresh_database(admin_url, tmp_path_factory.mktemp("simulation")) as databases:
        opened_simulation = Simulation(databases)
        yield opened_simulation
        opened_simulation.close()


@pytest.fixture(scope="module")
def run_plan(simulation: Simulation) -> Callable[[SimulationPlan], SimulationResult]:
    """Runs a plan once for all tests that examine its result."""
    results: dict[str, SimulationResult] = {}

    def run_once(plan: SimulationPlan) -> SimulationResult:
        if repr(plan) not in results:
            results[repr(plan)] = simulation.run(plan)
        return results[repr(plan)]

    return run_once


def test_the_same_seed_gives_the_same_trace(simulation: Simulation, tmp_path: Path) -> None:
    """A run is identical byte for byte, with the sandbox and with Stripe: as the first run and
    after another run, in another process with another hash seed, and on another database.
    """
    plans = [PLAN, replace(PLAN, stripe=True, report_rate=0.7)]
    here = [simulation.run(plan).trace for plan in plans]
    with worker_pool(tmp_path, 1) as pool:
        elsewhere = [pool.submit(run_traced, plan).result(300).trace for plan in reversed(plans)]
    assert min(map(len, here)) > 200
    assert here == elsewhere[::-1]


@pytest.mark.parametrize("plan", WORLD_PLANS, ids=lambda plan: str(plan.seed))
def test_simulations_keep_the_invariants(
    run_plan: Callable[[SimulationPlan], SimulationResult], plan: SimulationPlan
) -> None:
    """Under every injected fault no cent is lost, nothing is charged or paid out twice, every
    answer stays true, and every operation completes.
    """
    assert run_plan(plan).violations == []


def test_every_kind_of_fault_is_injected(simulation: Simulation) -> None:
    """Every kind of fault is injected in some run."""
    happened: set[InjectedFault] = set()
    for seed in range(20, 30):
        happened |= set(
            simulation.run(SimulationPlan(seed, 10, fault_rate=0.15, payouts=4)).faults.values()
        )
        if happened == set(InjectedFault):
            break
    assert happened == set(InjectedFault)


@pytest.mark.parametrize("seed", EXPECTED_POISONED.values(), ids=EXPECTED_POISONED)
def test_simulations_with_failing_items_keep_the_invariants(
    simulation: Simulation, seed: int
) -> None:
    """A service that fails on some items for a time delays only those items: everything completes
    without an operator, and events keep their order.
    """
    result = simulation.run(
        SimulationPlan(seed, 15, fault_rate=0.02, payouts=4, outage=False, poison=True)
    )
    assert result.violations == []
    assert any(" fails on " in line for line in result.trace)


def test_simulations_with_several_providers_keep_the_invariants(simulation: Simulation) -> None:
    """With three payment providers, of which one has an outage, no order is charged by two, and
    each is booked at the provider that charged it. Charges of the failed provider go to their
    fallback.
    """
    result = simulation.run(
        SimulationPlan(1, 15, fault_rate=0.05, payouts=2, outage=True, routing=True)
    )
    assert result.violations == []
    assert sum("the next attempt goes to" in line for line in result.trace) > 2


def test_simulations_with_stripe_keep_the_invariants(simulation: Simulation) -> None:
    """With the Stripe adapters and their look-alike no buyer is charged and no seller paid twice,
    and the platform agrees with the look-alike's log, although HTTP calls fail and signed webhooks
    arrive late, repeatedly or never.
    """
    result = simulation.run(
        SimulationPlan(18, 15, fault_rate=0.12, payouts=8, stripe=True, report_rate=0.7)
    )
    assert result.violations == []
    http_faults = {fault for call, fault in result.faults.items() if " /v1/" in call}
    assert len(http_faults) > 2
    assert sum("BatchReceiveWebhookEvents: OK" in line for line in result.trace) > 10
    assert sum("Stripe answers POST /v1/payouts" in line for line in result.trace) > 2


def test_simulations_with_hosted_pages_keep_the_invariants(simulation: Simulation) -> None:
    """Buyers pay on pages of the look-alike, also twice and just as their page is closed. Each page
    is registered once, and its end is that of its orders.
    """
    result = simulation.run(SimulationPlan(62, 30, stripe=True, routing=False, report_rate=0.7))
    assert result.violations == []
    acts = [line for line in result.trace if " the page of " in line]
    assert sum("'success'>: it is complete" in line for line in acts) > 2
    assert sum(": it is expired" in line for line in acts) > 2
    assert sum("RefreshBuyerStatus: OK" in line for line in result.trace) > 5
    assert any("/checkout/sessions/expire for" in line for line in result.trace)


def test_a_crash_plan_takes_the_fallback(
    run_plan: Callable[[SimulationPlan], SimulationResult],
) -> None:
    """The crash points of the fallback's plan include its transaction."""
    result = run_plan(FALLBACK_PLAN)
    assert result.violations == []
    assert any("ChargeFallback" in call for call in result.port_calls)


@pytest.mark.parametrize("one", load_regressions(), ids=lambda one: f"seed {one.plan.seed}")
def test_kept_failures_pass(
    run_plan: Callable[[SimulationPlan], SimulationResult], one: RegressionRun
) -> None:
    """Kept plans, in their minimized form, pass and still show what they were kept for."""
    result = run_plan(one.plan)
    assert result.violations == []
    assert one.trace_pattern, "write the pattern of what its trace must show into kept.json"
    assert any(re.search(one.trace_pattern, line) for line in result.trace), (
        "what it was kept for happens no more: find it again, or remove it"
    )


def test_operator_and_caller_actions_occur(
    run_plan: Callable[[SimulationPlan], SimulationResult],
) -> None:
    """Within a few simulations operators acknowledge charges and payouts and retry in bulk, callers
    cancel payments and calls, and services fail on items.
    """
    calls = {
        f"{name}: OK "
        for name in (
            "AcknowledgeUnappliedCharge",
            "AcknowledgePayout",
            "RetryDeadLetters",
            "CancelPayment",
        )
    }
    missing: set[object] = {*calls, " fails on ", InjectedFault.CANCELLED}
    for plan in (
        *WORLD_PLANS,
        *(regression.plan for regression in load_regressions()),
        *(SimulationPlan(seed, 15, payouts=5) for seed in range(4, 12)),
    ):
        result = run_plan(plan)
        missing -= {
            line.rpartition(" answers ")[2].partition(" ")[2]
            for line in result.trace
            if " answers " in line
        }
        missing -= {" fails on " for line in result.trace if " fails on " in line}
        missing -= set(result.faults.values())
        if not missing:
            break
    assert missing == set()


@pytest.mark.parametrize(
    ("plan", "nodes", "min_points"),
    [
        (PAYMENT_PLAN, {"payment", "wallet", "ledger", "event"}, 50),
        (PAYOUT_PLAN, {"payout", "wallet", "ledger"}, 50),
        (WEBHOOK_PLAN, {"payment", "wallet", "ledger"}, 25),
        (FALLBACK_PLAN, {"payment", "wallet", "ledger", "event"}, 50),
        (STRIPE_PLAN, {"payment", "wallet", "ledger", "event"}, 30),
        (STRIPE_PAYOUT_PLAN, {"payout", "wallet", "ledger"}, 50),
        (HOSTED_PAGE_PLAN, {"payment", "wallet", "ledger"}, 70),
        (PAGE_EXPIRY_PLAN, {"payment", "wallet"}, 50),
        (RECONCILIATION_PLAN, {"reconciliation"}, 20),
    ],
    ids=CRASH_PLANS,
)
def test_a_crash_at_each_point(
    simulation: Simulation,
    run_plan: Callable[[SimulationPlan], SimulationResult],
    plan: SimulationPlan,
    nodes: set[str],
    min_points: int,
    thorough: bool,
) -> None:
    """A process crashes before or after a port call of a payment, a payout or a webhook; it is paid
    once, whichever process finishes it. Thorough: before and after each call. Pairs:
    scripts/simulate --crash-points.
    """
    quiet = run_plan(plan)
    assert quiet.violations == []
    plans = single_crash_plans(quiet)
    assert len(plans) > min_points
    assert {call.split("-")[0] for plan in plans for call in plan.planned} == nodes
    failed = [
        result
        for plan in (plans if thorough else plans[::50])
        for result in run_with_crashes(simulation.run, plan, with_pairs=False).failed
    ]
    assert [(result.plan.planned, result.violations) for result in failed] == []


def test_a_deliberate_bug_is_found_and_minimized(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new key for each attempt of one operation buyers are charged twice. The auditor
    detects it, and the minimized run has at most two payments and two faults.
    """
    monkeypatch.setattr(
        charge,
        "to_request",
        lambda one: replace(_TO_REQUEST(one), key=f"{one.provider_key}-{one.lease_token}"),
    )
    # the first of them fails soon
    worlds = (simulation.run(SimulationPlan(seed, 8, fault_rate=0.06)) for seed in range(28, 44))
    # An operation that never completes, because each new key gets a new fault, would use up all the
    # time.
    failed = next(
        result
        for result in worlds
        if any(" was made " in violation for violation in result.violations)
        and result.seconds_until_idle < 100
    )
    short = shrink(simulation.run, failed, timeout_seconds=12)
    assert short.violations
    assert len(short.plan.without_payments) >= 4
    assert len(short.faults) < len(failed.faults)
    assert simulation.run(short.plan).trace == short.trace


_TO_REQUEST = charge.to_request


def test_idle_reads_are_named_as_in_the_code() -> None:
    """The reads and scans that are no crash points are named as in the code: with a stale name
    every idle scan would be a crash point.
    """
    text = "\n".join(
        path.read_text()
        for folder in ("server", "storage")
        for path in (ROOT / folder).rglob("*.py")
    )
    labels = {*world._POLLS, *world._LEASE_CHECKS}
    names = {
        name for label in labels for name in label.split(" ", 1)[1].split(".") if name != "<lambda>"
    }
    assert [name for name in sorted(names) if not re.search(rf"(class|def) {name}\b", text)] == []
    assert len(labels) > 10
