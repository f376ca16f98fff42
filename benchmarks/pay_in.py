"""Complete pay-ins a second: two orders for two sellers of 1,000, from the call until wallet and
ledger are updated, every commit durable.

Two server processes, as one would run them on two cores: PaymentService with the provider, and the
services it calls. The ceiling is an empty gRPC echo of the same message: what one call costs on
this machine at this moment.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from benchmarks.measure import Call, LoadResult, figures, measure_interleaved, peak_mb, server
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.fingerprint import digest_text
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

_ADDRESS, _ECHO_ADDRESS = "127.0.0.1:7271", "127.0.0.1:7272"
_DOWNSTREAM_ADDRESS = "unix:.data/bench.sock"  # the two processes share a machine
_SELLERS = 1000
_DEFAULT_IN_FLIGHT = 768
_FOLDER = Path(".data/bench")
_SERVE = ["-m", "tallystick_server.cli.main", "serve"]


def bench(seconds: float, in_flight: int, print_status: Callable[[str], None]) -> dict[str, Any]:
    """The figures, as `--json` prints them."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    in_flight = in_flight or _DEFAULT_IN_FLIGHT
    settings = Settings()
    with open_databases(settings, print_status, folder=_FOLDER) as database_urls:
        urls = ",".join(f"{name}={url}" for name, url in database_urls.all().items())
        environment = {
            "TALLYSTICK_DATABASE__SERVICE_URLS": urls,
            "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "0.02",
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": (
                "bench:team:bench-bench-bench-bench,platform:service:platform-platform-platform"
            ),
            "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
            "TALLYSTICK_RISK__AMOUNT_LIMITS": "EUR=10000",
            "TALLYSTICK_RISK__VELOCITY_LIMIT": "1000000",
        }
        service_addresses = ",".join(
            f"{name}={_DOWNSTREAM_ADDRESS}" for name in ("wallet", "ledger", "event")
        )
        downstream_environment = {**environment, "TALLYSTICK_SERVER__LISTEN": _DOWNSTREAM_ADDRESS}
        payment_environment = {
            **environment,
            "TALLYSTICK_SERVER__LISTEN": _ADDRESS,
            "TALLYSTICK_SERVICE_ADDRESSES": service_addresses,
        }
        with (
            server(["-m", "benchmarks.echo", _ECHO_ADDRESS], {}, _ECHO_ADDRESS),
            server(
                [*_SERVE, "wallet", "ledger", "event"], downstream_environment, _DOWNSTREAM_ADDRESS
            ) as downstream_pid,
            server([*_SERVE, "payment"], payment_environment, _ADDRESS) as payment_pid,
        ):
            loads = run(_measure(in_flight, seconds, print_status))
            memory = peak_mb(downstream_pid) + peak_mb(payment_pid)
    baseline = ("gRPC echo of the same message", loads["echo"].rate)
    return figures(
        "pay-in",
        loads["spread"],
        loads["hot"],
        baseline,
        1,
        in_flight=in_flight,
        seconds=seconds,
        peak_mb=memory,
    )


async def _measure(
    in_flight: int, seconds: float, print_status: Callable[[str], None]
) -> dict[str, LoadResult]:
    async with (
        grpc.aio.insecure_channel(_ECHO_ADDRESS) as echo_channel,
        grpc.aio.insecure_channel(_ADDRESS) as channel,
    ):
        echo = echo_channel.unary_unary("/bench.Echo/Echo")  # type: ignore[var-annotated]
        raw = _request(0, "echo", _SELLERS).SerializeToString()

        async def call_echo(_number: int) -> None:
            await echo(raw)

        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        return await measure_interleaved(
            {"echo": call_echo, "spread": _pay_in(stub, _SELLERS), "hot": _pay_in(stub, 1)},
            in_flight,
            seconds,
            print_status,
        )


def _pay_in(stub: Any, sellers: int) -> Call:
    run_id = digest_text(secrets.token_hex(8))[:8]
    metadata = (("authorization", "Bearer bench-bench-bench-bench"),)

    async def pay(number: int) -> None:
        response = await stub.CreatePayment(
            _request(number, run_id, sellers), timeout=30, metadata=metadata
        )
        if response.payment.payment_state != payment_pb2.PAYMENT_STATE_PAID:
            raise StartupError(
                f"a payment ended in state {response.payment.payment_state}, which makes the "
                "figures worthless"
            )

    return pay


def _request(number: int, run_id: str, sellers: int) -> payment_service_pb2.CreatePaymentRequest:
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
