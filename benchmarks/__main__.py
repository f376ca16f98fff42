"""scripts/bench NAME [--json]."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import growth, ledger, pay_in, payouts
from tallystick_server.app.errors import StartupError

_BENCHMARKS = {"pay-in": pay_in.bench, "ledger": ledger.bench, "payouts": payouts.bench}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures, beside a ceiling taken in the same run."
    )
    parser.add_argument("name", choices=sorted([*_BENCHMARKS, "growth"]))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="how long each part is measured"
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=0,
        help="of pay-in and ledger: calls under way at a time; 0: the benchmark's own",
    )
    parser.add_argument(
        "--sellers", type=int, default=0, help="of payouts: how many are paid; 0: 100,000"
    )
    parser.add_argument(
        "--payments",
        type=int,
        default=0,
        help="of growth: how many the database holds; 0: 1,000,000",
    )
    parser.add_argument(
        "--waiting",
        type=float,
        default=0.3,
        help="of growth: the part of them that waits for its provider; 0.3",
    )
    options = parser.parse_args()
    is_payouts = options.name == "payouts"
    if options.in_flight if is_payouts else options.sellers:
        parser.error(f"{'--in-flight' if is_payouts else '--sellers'} is not of {options.name}")
    size = options.sellers if is_payouts else options.in_flight

    def print_status(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        result = (
            growth.bench(options.payments, options.waiting, print_status)
            if options.name == "growth"
            else _BENCHMARKS[options.name](options.seconds, size, print_status)
        )
    except StartupError as error:
        sys.exit(f"bench: {error}")
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:>12}: {value}")


main()
