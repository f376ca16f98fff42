"""scripts/bench NAME [--json]."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import ledger, pay_in, payouts
from tallystick_server.process.failure import Failure

_BENCHES = {"pay-in": pay_in.bench, "ledger": ledger.bench, "payouts": payouts.bench}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures, beside a ceiling taken in the same run.")
    parser.add_argument("name", choices=sorted(_BENCHES))
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each part is measured")
    parser.add_argument("--in-flight", type=int, default=0, help="calls under way at a time, or how many sellers are paid; 0: the benchmark's own")
    options = parser.parse_args()
    try:
        result = _BENCHES[options.name](options.seconds, options.in_flight, lambda line: print(line, file=sys.stderr, flush=True))
    except Failure as failure:
        sys.exit(f"bench: {failure}")
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:>12}: {value}")


main()
