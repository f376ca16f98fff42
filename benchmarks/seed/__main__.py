"""scripts/seed --payments N [--pending-fraction FRACTION] [--json]."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.options import parse_fraction, parse_payments
from benchmarks.seed.run import DEFAULT_PENDING_FRACTION, MIN_PAYMENTS, seed
from tallystick_server.app.configuration import load
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/seed",
        description="Fills a fresh database with payments and all that belongs to them.",
    )
    parser.add_argument(
        "--payments",
        type=parse_payments,
        required=True,
        help=f"number of payments, at least {MIN_PAYMENTS}",
    )
    parser.add_argument(
        "--pending-fraction",
        type=parse_fraction,
        default=DEFAULT_PENDING_FRACTION,
        help="part of the payments that waits for the provider, 0 to 1; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    options = _parse_options()
    try:
        with open_databases(load(), _print_status) as database_urls:
            result = seed(
                database_urls,
                options.payments,
                _print_status,
                pending_fraction=options.pending_fraction,
            )
    except StartupError as error:
        sys.exit(f"seed: {error}")
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:>22}: {value}")


if __name__ == "__main__":
    main()
