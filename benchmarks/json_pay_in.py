"""Payments a second by JSON over HTTP, compared with the same payments by gRPC in the same run.

As in `pay_in`, PaymentService and the services that it calls are two processes; the HTTP server is
a third.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import orjson

from benchmarks.measure import (
    Call,
    LoadResult,
    StatusPrinter,
    measure_interleaved,
    rate_figures,
)
from benchmarks.pay_in import (
    ADDRESS,
    ENVIRONMENT,
    PROVIDER_LATENCY_SECONDS,
    SELLERS,
    TEAM_METADATA,
    make_request,
    new_run_id,
    payment_call,
    run_platform,
)
from benchmarks.processes import (
    DATABASE_FOLDER,
    read_cpu_seconds,
    read_peak_mb,
    run_http_server,
)
from tallystick.payment.v1 import payment_service_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run
from tallystick_server.http.message_encoder import encoder

DEFAULT_IN_FLIGHT = 256
_HTTP_ADDRESS = "127.0.0.1:7273"


def bench(seconds: float, in_flight: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each part; `in_flight`: calls in
    flight.
    """
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with (
        open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls,
        run_platform(database_urls, PROVIDER_LATENCY_SECONDS),
        run_http_server(ENVIRONMENT, ADDRESS, _HTTP_ADDRESS) as http_pid,
    ):
        loads = run(
            _measure(in_flight, seconds, print_status, lambda _: read_cpu_seconds([http_pid]))
        )
        memory_mb = read_peak_mb(http_pid)
    return {
        "bench": "json",
        **rate_figures(
            loads["json"].calls_per_second,
            "the same payments by gRPC",
            loads["grpc"].calls_per_second,
        ),
        **{
            f"{name}_p{part}_ms": round(load.quantile_ms(part / 100), 1)
            for name, load in loads.items()
            for part in (50, 99)
        },
        "http_cpu_ms": round(loads["json"].cpu_ms_per_call, 3),
        "in_flight": in_flight,
        "seconds": seconds,
        "peak_mb": memory_mb,
    }


async def _measure(
    in_flight: int,
    seconds: float,
    print_status: StatusPrinter,
    read_cpu: Callable[[str], float],
) -> dict[str, LoadResult]:
    async with _open_calls(in_flight) as calls:
        return await measure_interleaved(calls, in_flight, seconds, print_status, read_cpu)


@asynccontextmanager
async def _open_calls(in_flight: int) -> AsyncIterator[dict[str, Call]]:
    async with (
        grpc.aio.insecure_channel(ADDRESS) as channel,
        aiohttp.ClientSession(
            f"http://{_HTTP_ADDRESS}",
            connector=aiohttp.TCPConnector(limit=in_flight),
            headers={"Content-Type": "application/json", **_authorization()},
        ) as session,
    ):
        yield {"grpc": payment_call(channel, SELLERS), "json": _json_call(session)}


def _authorization() -> dict[str, str]:
    return {"Authorization": dict(TEAM_METADATA)["authorization"]}


def _json_call(session: aiohttp.ClientSession) -> Call:
    """A call that pays an order of each of two sellers, and returns once both are booked."""
    run_id = new_run_id()
    encode = encoder(payment_service_pb2.CreatePaymentRequest.DESCRIPTOR)

    async def create_payment(number: int) -> None:
        body = orjson.dumps(encode(make_request(number, run_id, SELLERS)))
        async with session.post("/v1/payments", data=body) as response:
            payment = orjson.loads(await response.read())
        if response.status != 200 or payment["payment"]["payment_state"] != "PAYMENT_STATE_PAID":
            raise StartupError(f"A payment ended wrong, so the figures would be wrong: {payment}.")

    return create_payment
