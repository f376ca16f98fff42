"""Webhooks a second: signed events of Stripe, a fifth of them delivered twice, each stored durably
and applied once by one process, which serves everything.

Four events name each payment, as Stripe sends several for one change. The upper bound is an empty
handler on the same HTTP server, with the same bodies.
"""

from __future__ import annotations

import asyncio
import hmac
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import grpc
import orjson
import psycopg

from benchmarks import empty_http
from benchmarks.measure import StatusPrinter, quantile_ms, rate_figures
from benchmarks.pay_in import new_run_id
from benchmarks.processes import DATABASE_FOLDER, database_environment, run_process, run_services
from tallystick import new_order
from tallystick.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

DEFAULT_IN_FLIGHT = 64
_ADDRESS, _HTTP_ADDRESS = "127.0.0.1:7281", "127.0.0.1:7282"
_STUB_ADDRESS, _EMPTY_ADDRESS = "127.0.0.1:7283", "127.0.0.1:7284"
_SECRET = "whsec_" + "b" * 32
_EVENTS_PER_PAYMENT = 4
_DUPLICATE_RATE = 0.2
_PAYMENTS_PER_SECOND = 60
"""How many payments are prepared for each second of the measurement."""
_MAX_SECONDS_UNTIL_APPLIED = 300.0
_ENVIRONMENT = {
    "TALLYSTICK_HTTP__LISTEN": _HTTP_ADDRESS,
    "TALLYSTICK_PROVIDERS__PAYMENT": "stripe",
    "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
    "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": "sk_test_of_the_benchmark",
    "TALLYSTICK_PROVIDERS__STRIPE__URL": f"http://{_STUB_ADDRESS}",
    "TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS": _SECRET,
    # only webhooks report the outcomes
    "TALLYSTICK_RETRY": "pending=fixed:86400:0",
}
_OPEN_EVENTS = "select count(*) from payment.webhook_event where state <> 'APPLIED'"
_PAID_ORDERS = (
    "select count(*) from payment.payment_order where status = 'SUCCESS' and ledger_updated"
)

Post = Callable[[bytes], Awaitable[None]]


def bench(seconds: float, in_flight: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: about how long each part lasts;
    `in_flight`: requests in flight.
    """
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with (
        open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls,
        run_process(["-m", "benchmarks.stripe_stub", _STUB_ADDRESS], {}, _STUB_ADDRESS),
        run_process(["-m", "benchmarks.empty_http", _EMPTY_ADDRESS], {}, _EMPTY_ADDRESS),
        run_services(["all"], {**database_environment(database_urls), **_ENVIRONMENT}, _ADDRESS),
    ):
        return run(_Benchmark(database_urls, seconds, in_flight, print_status).run())


class _Benchmark:
    def __init__(
        self,
        database_urls: DatabaseUrls,
        seconds: float,
        in_flight: int,
        print_status: StatusPrinter,
    ) -> None:
        self._admin_url = database_urls.admin
        self._seconds = seconds
        self._in_flight = in_flight
        self._print_status = print_status
        self._random = random.Random(1)  # noqa: S311 - no secret
        self._payment_count = 0

    async def run(self) -> dict[str, Any]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            empty = _poster(session, f"http://{_EMPTY_ADDRESS}{empty_http.PATH}")
            stripe = _poster(session, f"http://{_HTTP_ADDRESS}/webhooks/stripe")
            bodies = await self._prepare(session)
            empty_before = await self._rate(empty, bodies * 4)
            start = time.perf_counter()
            await self._send_all(stripe, bodies)
            answered_seconds = time.perf_counter() - start
            await self._wait_until_applied()
            rate = len(bodies) / (time.perf_counter() - start)
            self._print_status(
                f"{len(bodies)} webhooks answered in {answered_seconds:.1f} s, applied at "
                f"{rate:.0f}/s"
            )
            empty_rate = (empty_before + await self._rate(empty, bodies * 4)) / 2
            latencies = await self._send_paced(stripe, await self._prepare(session), rate / 2)
            await self._wait_until_applied()
        return {
            "bench": "webhooks",
            **rate_figures(rate, "an empty handler on the same HTTP server", empty_rate),
            "answered_rate": round(len(bodies) / answered_seconds, 1),
            "half_rate_p50_ms": round(quantile_ms(latencies, 0.5), 1),
            "half_rate_p99_ms": round(quantile_ms(latencies, 0.99), 1),
            "webhooks": len(bodies),
            "in_flight": self._in_flight,
        }

    async def _prepare(self, session: aiohttp.ClientSession) -> list[bytes]:
        """Payments in review that Stripe has ended meanwhile, and the bodies of their webhooks, in
        random order.
        """
        run_id = new_run_id()
        count = max(round(self._seconds * _PAYMENTS_PER_SECOND), 50)
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
            for first in range(0, count, 200):
                await asyncio.gather(
                    *(
                        stub.CreatePayment(_payment(run_id, number))
                        for number in range(first, min(first + 200, count))
                    )
                )
        async with session.post(f"http://{_STUB_ADDRESS}/pay") as response:
            await response.read()
        self._payment_count += count
        bodies = [
            _event_body(run_id, number, event)
            for number in range(count)
            for event in range(_EVENTS_PER_PAYMENT)
        ]
        bodies += self._random.sample(bodies, round(len(bodies) * _DUPLICATE_RATE))
        self._random.shuffle(bodies)
        return bodies

    async def _rate(self, post: Post, bodies: Sequence[bytes]) -> float:
        start = time.perf_counter()
        await self._send_all(post, bodies)
        return len(bodies) / (time.perf_counter() - start)

    async def _send_all(self, post: Post, bodies: Sequence[bytes]) -> None:
        """Sends bodies, `in_flight` at a time."""
        waiting = iter(bodies)

        async def worker() -> None:
            for body in waiting:
                await post(body)

        await asyncio.gather(*(worker() for _ in range(self._in_flight)))

    async def _send_paced(self, post: Post, bodies: Sequence[bytes], rate: float) -> list[float]:
        """Sends bodies at a constant rate. Returns the latency of each in seconds, from the moment
        at which it was to be sent.
        """
        start = time.perf_counter()

        async def send(number: int, body: bytes) -> float:
            due = start + number / rate
            await asyncio.sleep(due - time.perf_counter())
            await post(body)
            return time.perf_counter() - due

        return await asyncio.gather(*(send(*item) for item in enumerate(bodies)))

    async def _wait_until_applied(self) -> None:
        """Waits until every event is applied. Raises StartupError if a payment is not paid once."""
        deadline = time.perf_counter() + _MAX_SECONDS_UNTIL_APPLIED
        with psycopg.connect(self._admin_url, autocommit=True) as connection:

            def count(query: str) -> int:
                row = connection.execute(query).fetchone()
                return int(row[0]) if row else 0

            while count(_OPEN_EVENTS) or count(_PAID_ORDERS) < self._payment_count:
                if time.perf_counter() > deadline:
                    raise StartupError(
                        f"{count(_OPEN_EVENTS)} events are not applied, and "
                        f"{count(_PAID_ORDERS)} of {self._payment_count} orders are paid."
                    )
                await asyncio.sleep(0.1)


def _payment(run_id: str, number: int) -> payment_service_pb2.CreatePaymentRequest:
    order_id = f"{run_id}-{number}"
    return payment_service_pb2.CreatePaymentRequest(
        checkout_id=order_id,
        credit_card_info="pm_card_visa",
        payment_orders=[new_order(order_id, "buyer", f"seller-{number % 1000}", "5.00", "EUR")],
    )


def _event_body(run_id: str, number: int, event: int) -> bytes:
    charge_id = f"o-{run_id}-{number}"
    return orjson.dumps(
        {
            "object": "event",
            "id": f"evt_{run_id}_{number}_{event}",
            "type": "payment_intent.succeeded",
            "created": int(time.time()),
            "data": {
                "object": {
                    "object": "payment_intent",
                    "id": f"pi_{charge_id}",
                    "metadata": {"charge_id": charge_id},
                }
            },
        }
    )


def _poster(session: aiohttp.ClientSession, url: str) -> Post:
    """Posts a body as Stripe signs it."""

    async def post(body: bytes) -> None:
        now = int(time.time())
        signature = hmac.digest(_SECRET.encode(), b"%d." % now + body, "sha256").hex()
        headers = {"Stripe-Signature": f"t={now},v1={signature}"}
        async with session.post(url, data=body, headers=headers) as response:
            if response.status != 200:
                raise StartupError(f"{url} answered {response.status}: {await response.text()}")
            await response.read()

    return post
