"""Complete pay-ins a second: two orders for two sellers of 1,000, from the call until wallet and ledger are updated, every commit durable.

Two server processes, as one would run them on two cores: PaymentService with the provider, and the services it calls. The ceiling is an empty gRPC
echo of the same message: what one call costs on this machine at this moment.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from benchmarks.measure import Call, Load, by_turns, figures, peak_mb, server
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.canonical import letters
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.serve import run

_ADDRESS, _ECHO = "127.0.0.1:7271", "127.0.0.1:7272"
_INSIDE = "unix:.data/bench.sock"  # the two processes share a machine
_SELLERS = 1000
_IN_FLIGHT = 768
_FOLDER = Path(".data/bench")
_SERVE = ["-m", "tallystick_server.process.cli", "serve"]


def bench(seconds: float, in_flight: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures, as `--json` prints them."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    in_flight = in_flight or _IN_FLIGHT
    settings = Settings()
    with databases(settings, say, folder=_FOLDER) as known:
        urls = ",".join(f"{name}={url}" for name, url in known.all().items())
        environment = {
            "TALLYSTICK_SERVICE_DATABASE_URL": urls,
            "TALLYSTICK_SANDBOX_LATENCY": "0.02",
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": "bench:team:bench-bench-bench-bench,platform:service:platform-platform-platform",
            "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
            "TALLYSTICK_RISK_AMOUNT_LIMITS": "EUR=10000",
            "TALLYSTICK_RISK_VELOCITY_LIMIT": "1000000",
        }
        reached = ",".join(f"{name}={_INSIDE}" for name in ("wallet", "ledger", "event"))
        others = {**environment, "TALLYSTICK_LISTEN": _INSIDE}
        payment = {**environment, "TALLYSTICK_LISTEN": _ADDRESS, "TALLYSTICK_ADDRESS": reached}
        with (
            server(["-m", "benchmarks.echo", _ECHO], {}, _ECHO),
            server([*_SERVE, "wallet", "ledger", "event"], others, _INSIDE) as called,
            server([*_SERVE, "payment"], payment, _ADDRESS) as calling,
        ):
            parts = run(_measure(in_flight, seconds, say))
            memory = peak_mb(called) + peak_mb(calling)
    echo = ("gRPC echo of the same message", parts["echo"].rate)
    return figures("pay-in", parts["spread"], parts["hot"], echo, 1, in_flight=in_flight, seconds=seconds, peak_mb=memory)


async def _measure(in_flight: int, seconds: float, say: Callable[[str], None]) -> dict[str, Load]:
    async with grpc.aio.insecure_channel(_ECHO) as echo_channel, grpc.aio.insecure_channel(_ADDRESS) as channel:
        echo = echo_channel.unary_unary("/bench.Echo/Echo")  # type: ignore[var-annotated]
        raw = _request(0, "echo", _SELLERS).SerializeToString()

        async def ask(_number: int) -> None:
            await echo(raw)

        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        return await by_turns({"echo": ask, "spread": _pay(stub, _SELLERS), "hot": _pay(stub, 1)}, in_flight, seconds, say)


def _pay(stub: Any, sellers: int) -> Call:
    run_id = letters(secrets.token_hex(8))[:8]
    metadata = (("authorization", "Bearer bench-bench-bench-bench"),)

    async def pay(number: int) -> None:
        answer = await stub.CreatePayment(_request(number, run_id, sellers), timeout=30, metadata=metadata)
        if answer.payment.payment_state != payment_pb2.PAYMENT_STATE_PAID:
            raise Failure(f"a payment ended in state {answer.payment.payment_state}, which makes the figures worthless")

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
                payment_order_id=f"{run_id}-{number}-{place}",
                buyer_account=f"buyer-{number % 50_000}",
                seller_account=f"seller-{seller}",
                amount=f"{10 + number % 90}.{place}0",
                currency="EUR",
                platform_fee="0.50",
            )
            for place, seller in enumerate((first, second))
        ],
    )
