"""Shutdown: calls in flight, open streams and operations in progress."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tallystick import Client, TallystickError, new_order
from tallystick.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.support.errors import from_rpc
from tests.support.health import is_serving
from tests.support.platform import eventually, free_address
from tests.support.platform import serve_platform as platform_of
from tests.support.processes import environment_of, running_process


def test_sigterm_drains(scratch_database: DatabaseUrls) -> None:
    """SIGTERM: health becomes NOT_SERVING, the call in flight gets its answer, the payment is
    booked, the process exits 0.
    """
    address = free_address()
    environment = {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": address}
    with (
        running_process(["serve", "all"], environment, address) as server,
        Client(address) as client,
    ):
        responses = []
        order = new_order("o-1", "b", "s", "1.00", "EUR")
        caller = threading.Thread(
            target=lambda: responses.append(
                client.create_payment("c-1", [order], credit_card_info="tok_delay:1500")
            )
        )
        caller.start()
        assert eventually(
            lambda: client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
        )
        server.send_signal(signal.SIGTERM)
        caller.join(20)
        assert responses
        assert responses[0].is_payment_done
        assert server.wait(30) == 0
        assert not is_serving(address)
    assert verify(scratch_database).passed


def test_sigterm_answers_every_caller(scratch_database: DatabaseUrls) -> None:
    """SIGTERM with 120 callers in flight: each call gets its result or SHUTTING_DOWN with a retry
    delay; none is cancelled.
    """
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "3",
        "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "1",
    }
    response_counts: Counter[str] = Counter()

    async def caller(number: int, channel: grpc.aio.Channel, ended: asyncio.Event) -> None:
        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        for call_number in itertools.count():
            slow = "tok_delay:20000" if number % 10 == 0 else "tok_visa"
            order = new_order(f"o-{number}-{call_number}", "b", "s", "1.00", "EUR")
            request = payment_service_pb2.CreatePaymentRequest(
                checkout_id=f"c-{number}-{call_number}",
                payment_orders=[order],
                credit_card_info=slow,
            )
            if ended.is_set():
                return
            try:
                await stub.CreatePayment(request, timeout=30)
                response_counts["result"] += 1
            except grpc.aio.AioRpcError as error:
                api_error = from_rpc(error)
                is_connection_lost = (
                    error.code() is grpc.StatusCode.UNAVAILABLE and not api_error.reason
                )  # the process has gone: nobody can answer
                response_counts[
                    "lost"
                    if is_connection_lost
                    else f"{api_error.reason or error.code().name} {api_error.retry_after}"
                ] += 1
                if is_connection_lost:
                    return
                await asyncio.sleep(api_error.retry_after or 0)

    async def callers(server: subprocess.Popen[str]) -> None:
        caller_stop = asyncio.Event()
        channels = [
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(12)
        ]
        tasks = [
            asyncio.ensure_future(caller(number, channels[number % 12], caller_stop))
            for number in range(120)
        ]
        # each of them with a call in flight
        await asyncio.to_thread(eventually, lambda: response_counts["result"] >= 60)
        server.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 60) == 0
        caller_stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        for channel in channels:
            await channel.close()

    with running_process(["serve", "all"], environment, address) as server:
        asyncio.run(callers(server))
    assert response_counts["SHUTTING_DOWN 0.5"] >= 12
    assert set(response_counts) <= {"result", "SHUTTING_DOWN 0.5", "lost"}, response_counts
    assert verify(scratch_database).passed


def test_open_health_watches_do_not_delay_shutdown(scratch_database: DatabaseUrls) -> None:
    """SIGTERM does not wait for an open Health.Watch, as load balancers have, or for a call that
    never sent its message.
    """
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "60",
    }
    with (
        running_process(["serve", "all"], environment, address) as server,
        grpc.insecure_channel(address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = channel.stream_unary(
            "/tallystick.payment.v1.PaymentService/GetPayment", None, None
        )
        mute = stub.future(_pending_messages())
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
        assert mute.exception() is not None


def _pending_messages() -> Iterator[bytes]:
    """The messages of a call, none of which arrives in time."""
    threading.Event().wait(20)
    yield b""


def test_a_payout_in_flight_is_booked_during_shutdown(
    scratch_database: DatabaseUrls,
) -> None:
    """At shutdown, wallet and ledger serve until payouts in progress are booked; leases of
    unfinished operations are released.
    """
    from tests.support.payouts import create_destination, create_payout, create_sale  # noqa: PLC0415

    def look(statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(scratch_database.reader("payout")) as connection:
            return connection.execute(statement).fetchall()

    with platform_of(scratch_database) as platform, platform.client() as client:
        seller = create_sale(client, "50.00")
        create_destination(client, seller)
    with (
        platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=1.5)
        ) as platform,
        platform.client() as client,
    ):
        create_payout(client, seller, "20.00")
    assert look("select state, booked from payout") == [("PAID", True)]
    with (
        platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=60.0)
        ) as platform,
        platform.client() as client,
    ):
        create_payout(client, seller, "10.00")
    assert look("select next_try_time <= clock() and lease_until <= clock() from operation") == [
        (True,)
    ]


def test_work_in_progress_has_its_own_time_at_shutdown(
    scratch_database: DatabaseUrls,
) -> None:
    """When a call lasts as long as the drain, the charge in progress gets the same time again. It
    completes and is booked within that reserve.
    """
    with ThreadPoolExecutor(1) as callers, ExitStack() as stack:
        # which has 5 s to stop
        with platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=6.5)
        ) as platform:
            client = stack.enter_context(platform.client(tries=1))
            order = new_order("o-1", "b", "s", "1.00", "EUR")
            call = callers.submit(
                client.create_payment, "c-1", [order], credit_card_info="tok_visa"
            )
            assert eventually(
                lambda: (
                    client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
                )
            )
        with pytest.raises(TallystickError, match="SHUTTING_DOWN"):
            call.result(10)
    with psycopg.connect(scratch_database.reader("payment")) as connection:
        assert connection.execute("select status from payment_order").fetchall() == [("SUCCESS",)]
    assert verify(scratch_database).passed
