"""Payments a second: two orders for two of 1,000 sellers, from the call until wallet and ledger are
updated. Every commit is durable.

There are two server processes: PaymentService with the provider, and the services that it calls.
The upper bound is a gRPC echo of the same message: what one call costs on this machine.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from benchmarks.baseline import echo_call
from benchmarks.measure import (
    Call,
    LoadResult,
    StatusPrinter,
    load_figures,
    measure_interleaved,
    rate_figures,
)
from benchmarks.processes import (
    DATABASE_FOLDER,
    DOWNSTREAM_ENVIRONMENT,
    database_environment,
    read_peak_mb,
    run_baseline,
    run_downstream_services,
    run_services,
)
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.fingerprint import digest_text
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

DEFAULT_IN_FLIGHT = 768
ADDRESS, _BASELINE_ADDRESS = "127.0.0.1:7271", "127.0.0.1:7272"
SELLERS = 1000
TEAM_METADATA = (("authorization", "Bearer bench-bench-bench-bench"),)
ENVIRONMENT = {
    "TALLYSTICK_AUTHENTICATION": "tokens",
    "TALLYSTICK_CALLERS": (
        "bench:team:bench-bench-bench-bench,platform:service:platform-platform-platform"
    ),
    "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
    "TALLYSTICK_RISK__AMOUNT_LIMITS": "EUR=10000",
    "TALLYSTICK_RISK__VELOCITY_LIMIT": "1000000",
}
PROVIDER_LATENCY_SECONDS = 0.02


def bench(seconds: float, in_flight: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each part; `in_flight`: calls in
    flight.
    """
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with (
        open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls,
        run_platform(database_urls, PROVIDER_LATENCY_SECONDS) as pids,
    ):
        loads = run(_measure(in_flight, seconds, print_status))
        memory_mb = sum(map(read_peak_mb, pids))
    rate, baseline_rate = loads["spread"].calls_per_second, loads["baseline"].calls_per_second
    return {
        "bench": "pay-in",
        **rate_figures(rate, "gRPC echo of the same message", baseline_rate),
        **load_figures(loads["spread"], loads["hot"], 1),
        "in_flight": in_flight,
        "seconds": seconds,
        "peak_mb": memory_mb,
    }


@contextmanager
def run_platform(
    database_urls: DatabaseUrls, provider_latency_seconds: float
) -> Iterator[tuple[int, int]]:
    """Serves the baseline, PaymentService, and the services that it calls. Yields the pids of the
    last two.
    """
    environment = {
        **ENVIRONMENT,
        **database_environment(database_urls),
        "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": str(provider_latency_seconds),
    }
    with (
        run_baseline(_BASELINE_ADDRESS),
        run_downstream_services(environment) as downstream_pid,
        run_services(
            ["payment"], {**environment, **DOWNSTREAM_ENVIRONMENT}, ADDRESS
        ) as payment_pid,
    ):
        yield payment_pid, downstream_pid


async def _measure(
    in_flight: int, seconds: float, print_status: StatusPrinter
) -> dict[str, LoadResult]:
    async with open_calls() as calls:
        return await measure_interleaved(calls, in_flight, seconds, print_status)


@asynccontextmanager
async def open_calls() -> AsyncIterator[dict[str, Call]]:
    """The calls to measure while the block runs: payments of 1,000 sellers (`spread`) and of one
    (`hot`), and an echo of the same message (`baseline`).
    """
    async with (
        grpc.aio.insecure_channel(_BASELINE_ADDRESS) as baseline_channel,
        grpc.aio.insecure_channel(ADDRESS) as channel,
    ):
        yield {
            "baseline": echo_call(
                baseline_channel, make_request(0, "echo", SELLERS).SerializeToString()
            ),
            "spread": payment_call(channel, SELLERS),
            "hot": payment_call(channel, 1),
        }


def new_run_id() -> str:
    """The prefix of the ids of a run."""
    return digest_text(secrets.token_hex(8))[:8]


def payment_call(channel: grpc.aio.Channel, sellers: int) -> Call:
    """A call that pays an order of each of two sellers, and returns once both are booked.

    `sellers`: the number of sellers of which they are two.
    """
    stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
    run_id = new_run_id()

    async def create_payment(number: int) -> None:
        response = await stub.CreatePayment(
            make_request(number, run_id, sellers), timeout=30, metadata=TEAM_METADATA
        )
        state = response.payment.payment_state
        if state != payment_pb2.PAYMENT_STATE_PAID:
            name = payment_pb2.PaymentState.Name(state)
            raise StartupError(f"A payment ended in {name}, so the figures would be wrong.")

    return create_payment


def make_request(
    number: int, run_id: str, sellers: int
) -> payment_service_pb2.CreatePaymentRequest:
    """A payment of two orders for two of the sellers."""
    first = random.randrange(sellers)  # noqa: S311 - no secret
    second = (first + 1) % sellers
    return payment_service_pb2.CreatePaymentRequest(
        checkout_id=f"{run_id}-{number}",
        buyer_info="Ada Lovelace, 12 St James's Square, London",
        seller_info="two sellers",
        buyer_country="GB",
        credit_card_info="tok_visa",
        payment_orders=[
            payment_pb2.NewPaymentOrder(
                payment_order_id=f"{run_id}-{number}-{index}",
                buyer_account=f"buyer-{number % 50_000}",
                seller_account=f"seller-{seller}",
                amount=f"{10 + number % 90}.{index}0",
                currency="EUR",
                platform_fee="0.50",
            )
            for index, seller in enumerate((first, second))
        ],
    )
