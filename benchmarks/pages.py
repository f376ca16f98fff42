"""How long the pages of a buyer take, for one caller and for 16: the status page as it refreshes
itself, the status page as the redirect of the provider asks for it, and the page of the Stripe
look-alike.

One process serves everything, another is the look-alike. The upper bound is an empty handler on the
platform's HTTP server.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc

from benchmarks import empty_http
from benchmarks.measure import Call, LoadResult, StatusPrinter, measure_interleaved, rate_figures
from benchmarks.pay_in import new_run_id
from benchmarks.processes import DATABASE_FOLDER, database_environment, run_process, run_services
from tallystick import new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

_CALLERS = {"alone": 1, "sixteen": 16}
_MAX_P99_MS = 100.0
"""What every page must keep."""
_PAYMENTS = 1_000
"""Enough that no payment is looked up again within the second that it waits then."""
_ADDRESS, _HTTP_ADDRESS = "127.0.0.1:7285", "127.0.0.1:7286"
_EMPTY_ADDRESS, _STRIPE_PORT = "127.0.0.1:7287", "7288"
_SHOP = "https://shop.example"
_ENVIRONMENT = {
    "TALLYSTICK_HTTP__LISTEN": _HTTP_ADDRESS,
    "TALLYSTICK_PROVIDERS__PAYMENT": "stripe",
    "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
    "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": "sk_test_of_the_benchmark",
    "TALLYSTICK_PROVIDERS__STRIPE__URL": f"http://127.0.0.1:{_STRIPE_PORT}",
    "TALLYSTICK_PAYMENT__RETURN_ORIGINS": f"dev={_SHOP}",
    # only a buyer who returns has the provider asked
    "TALLYSTICK_RETRY": "pending=fixed:86400:0",
}


def bench(seconds: float, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each part."""
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls:
        environment = {**database_environment(database_urls), **_ENVIRONMENT}
        with (
            run_process(
                ["-m", "tallystick_server.cli.main", "stripe-sandbox", "--port", _STRIPE_PORT],
                environment,
                f"127.0.0.1:{_STRIPE_PORT}",
            ),
            run_process(["-m", "benchmarks.empty_http", _EMPTY_ADDRESS], {}, _EMPTY_ADDRESS),
            run_services(["all"], environment, _ADDRESS),
        ):
            return run(_measure(seconds, print_status))


async def _measure(seconds: float, print_status: StatusPrinter) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    loads: dict[str, LoadResult] = {}
    payments = await _create_payments()
    async with _open_calls(payments) as calls:
        for name, callers in _CALLERS.items():
            loads = await measure_interleaved(calls, callers, seconds, print_status)
            for page, load in loads.items():
                rows[f"{page}_{name}"] = {
                    "rate": round(load.calls_per_second, 1),
                    "p50_ms": round(load.quantile_ms(0.5), 1),
                    "p99_ms": round(load.quantile_ms(0.99), 1),
                }
    slowest = max(row["p99_ms"] for row in rows.values())
    return {
        "bench": "pages",
        **rate_figures(
            loads["status"].calls_per_second,
            "an empty handler on the same HTTP server",
            loads["empty"].calls_per_second,
        ),
        "slowest_p99_ms": slowest,
        "max_p99_ms": _MAX_P99_MS,
        "passed": slowest <= _MAX_P99_MS,
        "seconds": seconds,
        "rows": rows,
    }


async def _create_payments() -> Sequence[payment_pb2.Payment]:
    """Payments whose pages are open."""
    run_id = new_run_id()
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        responses = await asyncio.gather(
            *(stub.CreatePayment(_request(run_id, number)) for number in range(_PAYMENTS))
        )
    payments = [response.payment for response in responses]
    unregistered = sum(not payment.hosted_page.url for payment in payments)
    if unregistered:
        raise StartupError(f"{unregistered} of {_PAYMENTS} pages are not registered.")
    return payments


def _request(run_id: str, number: int) -> payment_service_pb2.CreatePaymentRequest:
    order_id = f"{run_id}-{number}"
    return payment_service_pb2.CreatePaymentRequest(
        checkout_id=order_id,
        hosted_page=payment_pb2.NewHostedPage(
            success_url=f"{_SHOP}/thanks", cancel_url=f"{_SHOP}/basket"
        ),
        payment_orders=[new_order(order_id, "buyer", f"seller-{number}", "5.00", "EUR")],
    )


@asynccontextmanager
async def _open_calls(payments: Sequence[payment_pb2.Payment]) -> AsyncIterator[dict[str, Call]]:
    async with aiohttp.ClientSession() as session:

        def read(urls: Sequence[str]) -> Call:
            async def read_page(number: int) -> None:
                async with session.get(urls[number % len(urls)]) as response:
                    if response.status != 200:
                        raise StartupError(f"a page answered {response.status}")
                    await response.read()

            return read_page

        async def read_empty(_number: int) -> None:
            url = f"http://{_EMPTY_ADDRESS}{empty_http.PATH}"
            async with session.post(url) as response:
                await response.read()

        yield {
            "empty": read_empty,
            "status": read([payment.status_url for payment in payments]),
            "returned": read([f"{payment.status_url}?returned" for payment in payments]),
            "provider": read([payment.hosted_page.url for payment in payments]),
        }
