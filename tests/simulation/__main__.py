"""scripts/simulate --seeds N [--seed S] [--payments N] [--json]: runs simulations that follow from
their seeds, and audits each of them to the last cent. With --crash-points: runs one payment and one
payout whose processes crash before and after each port call, then at every pair of port calls. With
--part K/N: runs a part of the first crashes, so that a run of hours can be split.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.simulation.crash_points import CRASH_PLANS, single_crash_plans
from tests.simulation.kept import add_regression
from tests.simulation.run import SimulationPlan, SimulationResult
from tests.simulation.workers import run_crash_plans, run_plan, run_traced, worker_pool
from tests.support.cancellation import exit_on_interrupt
from tests.support.options import RunPart, parse_part, positive_int, print_progress

_FOLDER = Path(".data/simulation")
_MAX_TRACE_LINES = 300  # lines of a trace
_MAX_VIOLATIONS = 20


def _run_seeds(
    pool: ProcessPoolExecutor, options: argparse.Namespace, start_time: float
) -> dict[str, Any]:
    faults: Counter[str] = Counter()
    payments = payouts = violations = 0
    max_seconds_until_idle = 0.0
    plans = [
        SimulationPlan(seed, options.payments, payouts=options.payments // 5)
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    futures = [pool.submit(run_traced if options.stop else run_plan, plan) for plan in plans]
    for completed, future in enumerate(as_completed(futures), 1):
        result = future.result()
        payments += options.payments
        payouts += result.plan.payouts
        faults.update(str(fault) for fault in result.faults.values())
        max_seconds_until_idle = max(max_seconds_until_idle, result.seconds_until_idle)
        if result.violations:
            violations += len(result.violations)
            if options.stop:
                print_progress(f"seed {result.plan.seed}: {result.violations[0]}")
                pool.shutdown(cancel_futures=True)
                break
            _report_failure(result)
        if completed % 20 == 0:
            print_progress(
                f"{time.monotonic() - start_time:5.0f} s: {completed} seeds, {payments} payments, "
                f"{faults.total()} faults, {violations} violations"
            )
    return {
        "seeds": len(plans),
        "payments": payments,
        "payouts": payouts,
        "faults": dict(sorted(faults.items())),
        "violations": violations,
        "max_seconds_until_idle": round(max_seconds_until_idle),
    }


def _run_crash_points(
    pool: ProcessPoolExecutor, start_time: float, subject: str, part: RunPart
) -> dict[str, Any]:
    all_plans = [
        single_plan
        for name, plan in CRASH_PLANS.items()
        if subject in (name, "all")
        for single_plan in single_crash_plans(pool.submit(run_traced, plan).result())
    ]
    plans = all_plans[part.number - 1 :: part.total]
    pairs = violations = 0
    for completed, future in enumerate(
        as_completed([pool.submit(run_crash_plans, plan) for plan in plans]), 1
    ):
        crashes = future.result()
        pairs += crashes.pair_count
        for result in crashes.failed:
            violations += len(result.violations)
            _report_failure(result)
        if completed % 4 == 0:
            print_progress(
                f"{time.monotonic() - start_time:5.0f} s: {completed} of {len(plans)} crash "
                f"points, {pairs} pairs, {violations} violations"
            )
    return {"singles": len(plans), "of": len(all_plans), "pairs": pairs, "violations": violations}


def _report_failure(result: SimulationResult) -> None:
    """Keeps a failed run as a test and prints its trace."""
    plan = result.plan
    add_regression(plan, result.violations[0])
    path = _FOLDER / f"seed-{plan.seed}.trace"
    path.write_text("\n".join(result.trace) + "\n")
    remaining_payments = len(plan.payment_requests) + plan.payments - len(plan.without_payments)
    print_progress(
        f"seed {plan.seed} fails with {remaining_payments} payments and {len(result.faults)} "
        f"faults; it is kept as a test, its whole trace is {path}:"
    )
    for line in [line for line in result.trace if " read " not in line][-_MAX_TRACE_LINES:]:
        print_progress(f"  {line}")
    for violation, count in list(Counter(result.violations).items())[:_MAX_VIOLATIONS]:
        print_progress(f"  violation{f', {count} times' if count > 1 else ''}: {violation}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description=("Simulates the platform under injected faults, and audits the result."),
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        help="number of simulations; default 200, or 1 with --seed",
    )
    parser.add_argument("--seed", type=positive_int, help="seed of the first simulation; default 1")
    parser.add_argument(
        "--payments",
        type=positive_int,
        default=50,
        help="payments of each simulation, with a fifth as many payouts; default 50",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=2,
        help="number of concurrent simulations; default 2",
    )
    parser.add_argument(
        "--crash-points",
        choices=(*CRASH_PLANS, "all"),
        nargs="?",
        const="all",
        help=(
            "instead of random faults: every crash point of a payment and of a payout, singly "
            "and in pairs"
        ),
    )
    parser.add_argument(
        "--part",
        type=parse_part,
        metavar="K/N",
        help="with --crash-points: the K-th of N parts of the first deaths",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="stop after the first failing simulation; do not store it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    if options.part and not options.crash_points:
        parser.error("--part is a part of --crash-points; give both")
    options.seeds = options.seeds or (1 if options.seed else 200)
    options.seed = options.seed or 1
    with exit_on_interrupt():
        summary = _run(options)
    print(
        json.dumps(summary)
        if options.json
        else "\n".join(f"{name:>10}: {value}" for name, value in summary.items())
    )
    sys.exit(1 if summary["violations"] else 0)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    start_time = time.monotonic()
    print_progress("Creating a PostgreSQL in memory, with its databases")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with worker_pool(_FOLDER, options.workers) as pool:
        summary = (
            _run_crash_points(pool, start_time, options.crash_points, options.part or RunPart(1, 1))
            if options.crash_points
            else _run_seeds(pool, options, start_time)
        )
    return {**summary, "seconds": round(time.monotonic() - start_time, 1)}


if __name__ == "__main__":
    main()
