"""scripts/simulate --seeds N [--seed S] [--payments N] [--json]: worlds that follow from their seeds, each audited to the last cent.

With --crash-points: one payment, and one payout, whose processes die before and after each of their port calls, then at every two of them;
with --part K/N only a part of the first deaths, so that what takes hours can be done in several sittings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tests.interrupts import interruptible

from .crash_points import CRASHES, singles
from .kept import keep
from .run import Plan, Result
from .workers import play, play_crashes, watch, workers

_FOLDER = Path(".data/simulation")
_SHOWN = 300  # lines of a trace
_SHOWN_VIOLATIONS = 20


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _simulate(pool: ProcessPoolExecutor, options: argparse.Namespace, began: float) -> dict[str, Any]:
    faults: Counter[str] = Counter()
    payments = payouts = violations = 0
    rest = 0.0
    plans = [Plan(seed, options.payments, payouts=options.payments // 5) for seed in range(options.seed, options.seed + options.seeds)]
    running = [pool.submit(watch if options.stop else play, plan) for plan in plans]
    for done, ready in enumerate(as_completed(running), 1):
        result = ready.result()
        payments += options.payments
        payouts += result.plan.payouts
        faults.update(str(fault) for fault in result.faults.values())
        rest = max(rest, result.to_rest)
        if result.violations:
            violations += len(result.violations)
            if options.stop:
                say(f"seed {result.plan.seed}: {result.violations[0]}")
                pool.shutdown(cancel_futures=True)
                break
            _failed(result)
        if done % 20 == 0:
            say(f"{time.monotonic() - began:5.0f} s: {done} seeds, {payments} payments, {faults.total()} faults, {violations} violations")
    return {
        "seeds": len(plans),
        "payments": payments,
        "payouts": payouts,
        "faults": dict(sorted(faults.items())),
        "violations": violations,
        "longest_rest": round(rest),
    }


def _crash(pool: ProcessPoolExecutor, began: float, of: str, part: Part) -> dict[str, Any]:
    every = [one for name, plan in CRASHES.items() if of in (name, "all") for one in singles(pool.submit(watch, plan).result())]
    plans = every[part.number - 1 :: part.of]
    pairs = violations = 0
    for done, ready in enumerate(as_completed([pool.submit(play_crashes, plan) for plan in plans]), 1):
        crashes = ready.result()
        pairs += crashes.pairs
        for result in crashes.failed:
            violations += len(result.violations)
            _failed(result)
        if done % 4 == 0:
            say(f"{time.monotonic() - began:5.0f} s: {done} of {len(plans)} crash points, {pairs} pairs, {violations} violations")
    return {"singles": len(plans), "of": len(every), "pairs": pairs, "violations": violations}


class Part(NamedTuple):
    """One of so many parts; the first is 1."""

    number: int
    of: int


def _part(text: str) -> Part:
    found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be a part such as 2/6")
    return Part(int(found[1]), int(found[2]))


def at_least_one(text: str) -> int:
    """A number of things of which none would prove nothing."""
    if re.fullmatch(r"[1-9]\d{0,8}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _failed(result: Result) -> None:
    """Keeps a run that failed as a test, and shows what happened in it."""
    plan = result.plan
    keep(plan, result.violations[0])
    path = _FOLDER / f"seed-{plan.seed}.trace"
    path.write_text("\n".join(result.trace) + "\n")
    left = len(plan.wishes) + plan.payments - len(plan.without_payments)
    say(f"seed {plan.seed} fails with {left} payments and {len(result.faults)} faults; it is kept as a test, its whole trace is {path}:")
    for line in [line for line in result.trace if " read " not in line][-_SHOWN:]:
        say(f"  {line}")
    for violation, times in list(Counter(result.violations).items())[:_SHOWN_VIOLATIONS]:
        say(f"  violation{f', {times} times' if times > 1 else ''}: {violation}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="Simulates the platform in worlds where everything goes wrong, and audits them."
    )
    parser.add_argument("--seeds", type=at_least_one, help="how many worlds, each of some seconds; by default 200, or with --seed 1")
    parser.add_argument("--seed", type=at_least_one, help="the first one's seed; by default 1")
    parser.add_argument("--payments", type=at_least_one, default=50, help="how many in each world, with a fifth as many payouts; by default 50")
    parser.add_argument("--workers", type=at_least_one, default=2, help="how many worlds at a time; by default 2")
    parser.add_argument(
        "--crash-points",
        choices=(*CRASHES, "all"),
        nargs="?",
        const="all",
        help="instead of worlds by chance: every crash point of a payment and of a payout, singly and in pairs",
    )
    parser.add_argument("--part", type=_part, metavar="K/N", help="with --crash-points: the K-th of N parts of the first deaths")
    parser.add_argument("--stop", action="store_true", help="end with the first world that fails, and keep nothing of it")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    if options.part and not options.crash_points:
        parser.error("--part is a part of --crash-points; give both")
    options.seeds = options.seeds or (1 if options.seed else 200)
    options.seed = options.seed or 1
    with interruptible():
        found = _run(options)
    print(json.dumps(found) if options.json else "\n".join(f"{name:>10}: {value}" for name, value in found.items()))
    sys.exit(1 if found["violations"] else 0)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    say("Making a PostgreSQL in memory, and databases in it")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with workers(_FOLDER, options.workers) as pool:
        found = _crash(pool, began, options.crash_points, options.part or Part(1, 1)) if options.crash_points else _simulate(pool, options, began)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
