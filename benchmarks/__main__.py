"""scripts/bench NAME [options]."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import (
    json_pay_in,
    latency,
    ledger,
    pages,
    pay_in,
    payouts,
    telemetry,
    webhooks,
)
from benchmarks.console import run as console
from benchmarks.growth import run as growth
from benchmarks.measure import StatusPrinter
from benchmarks.options import (
    parse_count,
    parse_fraction,
    parse_lines,
    parse_payments,
    parse_seconds,
)
from benchmarks.reconcile import run as reconcile
from benchmarks.seed.kept import DEFAULT_PENDING_FRACTION
from tallystick_server.app.errors import StartupError
from tests.support.cancellation import exit_on_interrupt


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures rates and an upper bound of the same run, or the cost of calls. "
        "`scripts/bench NAME --help` lists the options of a benchmark.",
    )
    benchmarks = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, help_, default in (
        ("pay-in", "payments a second", pay_in.DEFAULT_IN_FLIGHT),
        ("json", "payments a second by JSON over HTTP", json_pay_in.DEFAULT_IN_FLIGHT),
        ("webhooks", "webhooks a second", webhooks.DEFAULT_IN_FLIGHT),
        ("ledger", "ledger transactions a second", ledger.DEFAULT_IN_FLIGHT),
        ("telemetry", "what metrics and traces cost a payment", telemetry.DEFAULT_IN_FLIGHT),
    ):
        benchmark = benchmarks.add_parser(name, help=help_)
        _add_seconds(benchmark)
        benchmark.add_argument(
            "--in-flight",
            type=parse_count,
            default=default,
            help="calls in flight; default: %(default)s",
        )
    _add_seconds(benchmarks.add_parser("latency", help="cost of a payment under light load"))
    _add_seconds(benchmarks.add_parser("pages", help="how long the pages of a buyer take"))
    _add_payouts(benchmarks.add_parser("payouts", help="payouts a second"))
    _add_reconcile(benchmarks.add_parser("reconcile", help="seconds to reconcile a file"))
    _add_growth(benchmarks.add_parser("growth", help="cost of calls in a large database"))
    _add_console(benchmarks.add_parser("console", help="how long the pages of the console take"))
    for benchmark in benchmarks.choices.values():
        benchmark.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


def _add_seconds(benchmark: argparse.ArgumentParser) -> None:
    benchmark.add_argument(
        "--seconds",
        type=parse_seconds,
        default=15.0,
        help="how long each part is measured; default: %(default)s",
    )


def _add_payouts(benchmark: argparse.ArgumentParser) -> None:
    _add_seconds(benchmark)
    benchmark.add_argument(
        "--sellers",
        type=parse_count,
        default=payouts.DEFAULT_SELLERS,
        help="payouts in one run; default: %(default)s",
    )


def _add_reconcile(benchmark: argparse.ArgumentParser) -> None:
    benchmark.add_argument(
        "--lines",
        type=parse_lines,
        default=reconcile.DEFAULT_LINES,
        help="lines of the file; default: %(default)s",
    )


def _add_payments(benchmark: argparse.ArgumentParser, default: int) -> None:
    benchmark.add_argument(
        "--payments",
        type=parse_payments,
        default=default,
        help="payments in the database; default: %(default)s",
    )


def _add_console(benchmark: argparse.ArgumentParser) -> None:
    _add_payments(benchmark, console.DEFAULT_PAYMENTS)
    benchmark.add_argument(
        "--repetitions",
        type=parse_count,
        default=console.DEFAULT_REPETITIONS,
        help="how often each page is timed; default: %(default)s",
    )


def _add_growth(benchmark: argparse.ArgumentParser) -> None:
    _add_payments(benchmark, growth.DEFAULT_PAYMENTS)
    benchmark.add_argument(
        "--pending-fraction",
        type=parse_fraction,
        default=DEFAULT_PENDING_FRACTION,
        help="part of the payments that waits for the provider, 0 to 1; default: %(default)s",
    )


def _run(options: argparse.Namespace, print_status: StatusPrinter) -> dict[str, Any]:
    benchmarks: dict[str, Callable[[], dict[str, Any]]] = {
        "console": lambda: console.bench(options.payments, options.repetitions, print_status),
        "growth": lambda: growth.bench(options.payments, options.pending_fraction, print_status),
        "reconcile": lambda: reconcile.bench(options.lines, print_status),
        "payouts": lambda: payouts.bench(options.seconds, options.sellers, print_status),
        "latency": lambda: latency.bench(options.seconds, print_status),
        "pages": lambda: pages.bench(options.seconds, print_status),
        "pay-in": lambda: pay_in.bench(options.seconds, options.in_flight, print_status),
        "json": lambda: json_pay_in.bench(options.seconds, options.in_flight, print_status),
        "webhooks": lambda: webhooks.bench(options.seconds, options.in_flight, print_status),
        "ledger": lambda: ledger.bench(options.seconds, options.in_flight, print_status),
        "telemetry": lambda: telemetry.bench(options.seconds, options.in_flight, print_status),
    }
    return benchmarks[options.name]()


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    options = _parse_options()
    try:
        result = _run(options, _print_status)
    except StartupError as error:
        sys.exit(f"bench: {error}")
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:>20}: {value}")
    if not result.get("passed", True):
        sys.exit(1)


if __name__ == "__main__":
    with exit_on_interrupt():
        main()
