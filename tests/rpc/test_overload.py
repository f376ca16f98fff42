"""One client floods a real process: other callers' reads and operators' calls are still answered,
and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import grpc
import psycopg
import pytest

from tallystick import Client, TallystickError, new_order
from tallystick.event.v1 import event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2, payout_service_pb2_grpc
from tallystick_core.errors import ErrorReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.tasks import MAX_TEAM_DETACHED_TASKS
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tests.support.errors import from_rpc
from tests.support.payouts import create_destination, create_sale
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    free_address,
    payments_of,
    payout_worker_of,
    payouts_of,
    serve_platform,
    unique_id,
)
from tests.support.processes import environment_of, running_process

T = TypeVar("T")

EMPTY_ITEMS = b"\x0a\x00" * 2_000_000
BATCH_METHODS = (
    "ledger.v1.LedgerService/BatchPost",
    "event.v1.EventService/BatchPublish",
    "wallet.v1.WalletService/BatchCredit",
)
SEPARATE_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
_MAX_MEGABYTES = 600


class CountingDatabase(Database):
    """A database that counts its reads."""

    read_count = 0

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        self.read_count += 1
        return await super().read(work, changed=changed)


def open_counting_database(url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
    return CountingDatabase(url, connections=connections, new_id=new_id)


def test_watchers_of_payouts_share_their_reads(scratch_database: DatabaseUrls) -> None:
    """A hundred concurrent watchers of payouts are served by a few statements, not by one each."""
    with serve_platform(
        scratch_database,
        Settings().replace(
            worker__relay_interval=60, worker__scan_interval=60, worker__monitor_interval=60
        ),
        dependencies=Dependencies(open_database=open_counting_database),
    ) as platform:
        handlers: Any = platform.server.service("payout").servicer
        database: Any = database_of(platform, "payout")

        async def watch() -> int:
            before = database.read_count
            await asyncio.gather(
                *(handlers.read_batcher.submit(unique_id("p")) for _ in range(100))
            )
            return int(database.read_count - before)

        assert 0 < platform.run_in_loop(watch) <= 10


def test_idle_followers_of_entries_share_their_reads(scratch_database: DatabaseUrls) -> None:
    """A new transaction reaches each of a hundred StreamEntries calls that wait at the end of the
    ledger, and is read once for all.
    """
    rare = Settings().replace(
        worker__relay_interval=60, worker__scan_interval=60, worker__monitor_interval=60
    )
    directions = {"x/a": ledger_pb2.DIRECTION_DEBIT, "x/b": ledger_pb2.DIRECTION_CREDIT}
    entries = [
        ledger_pb2.Entry(account=account, amount="1.00", currency="EUR", direction=direction)
        for account, direction in directions.items()
    ]
    posting = ledger_service_pb2.Posting(
        kind=ledger_pb2.TRANSACTION_KIND_ADJUSTMENT, source_id="j", caller="test", entries=entries
    )
    with (
        serve_platform(
            scratch_database, rare, dependencies=Dependencies(open_database=open_counting_database)
        ) as platform,
        grpc.insecure_channel(platform.address) as channel,
    ):
        ledger: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        handlers: Any = platform.server.service("ledger").servicer
        database: Any = database_of(platform, "ledger")
        streams = [
            ledger.StreamEntries(ledger_service_pb2.StreamEntriesRequest(follow=True), timeout=120)
            for _ in range(100)
        ]
        assert eventually(lambda: handlers.tail.waiting_stream_count == 100, 60)
        before = database.read_count
        ledger.BatchPost(ledger_service_pb2.BatchPostRequest(postings=[posting]))
        assert [next(stream).transaction.source_id for stream in streams] == ["j"] * 100
        assert database.read_count - before < 100
        for stream in streams:
            stream.cancel()


def test_abandoned_calls_are_not_started(scratch_database: DatabaseUrls) -> None:
    """Calls whose callers gave up while the database was frozen are not started afterwards: they
    store and read nothing.
    """
    with (
        serve_platform(
            scratch_database,
            Settings().replace(worker__scan_interval=60, worker__monitor_interval=60),
        ) as platform,
        platform.client() as client,
        grpc.insecure_channel(platform.address) as channel,
    ):
        payment_stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        payout_stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
        seller = create_sale(client, "100.00")
        create_destination(client, seller)
        payments: Any = platform.server.service("payment").servicer
        payouts: Any = platform.server.service("payout").servicer

        def payment(name: str, seconds: float) -> Any:
            order = new_order(f"{name}-o", "b", seller, "1.00", "EUR")
            request = payment_service_pb2.CreatePaymentRequest(
                checkout_id=name, payment_orders=[order], credit_card_info="tok_visa"
            )
            return payment_stub.CreatePayment.future(request, timeout=seconds)

        def payout(name: str, seconds: float) -> Any:
            request = payout_service_pb2.CreatePayoutRequest(
                payout_id=name, seller_account=seller, amount="1.00", currency="EUR"
            )
            return payout_stub.CreatePayout.future(request, timeout=seconds)

        def read_payment(name: str, seconds: float) -> Any:
            return payment_stub.GetPayment.future(
                payment_service_pb2.GetPaymentRequest(checkout_id=name), timeout=seconds
            )

        def read_payout(name: str, seconds: float) -> Any:
            return payout_stub.GetPayout.future(
                payout_service_pb2.GetPayoutRequest(payout_id=name), timeout=seconds
            )

        assert (
            _items_after_timeouts(
                scratch_database,
                "payment.checkout",
                payments_of(platform).create_batcher,
                payment,
            )
            == []
        )
        assert (
            _items_after_timeouts(
                scratch_database,
                "payment.checkout",
                payments.read_batcher,
                read_payment,
            )
            == []
        )
        assert (
            _items_after_timeouts(
                scratch_database,
                "payout.payout",
                payouts_of(platform).create_batcher,
                payout,
            )
            == []
        )
        assert (
            _items_after_timeouts(
                scratch_database,
                "payout.payout",
                payouts.read_batcher,
                read_payout,
            )
            == []
        )


def _items_after_timeouts(
    databases: DatabaseUrls,
    table: str,
    batcher: Batcher[Any, Any],
    call: Callable[[str, float], Any],
) -> list[object]:
    """The items that a batcher starts, of fifty calls that ended while a table was locked, once the
    lock is released.
    """
    started_items: list[object] = []
    run = batcher.run

    async def record_items(items: Sequence[Any]) -> Sequence[Any]:
        started_items.extend(items)
        return await run(items)

    batcher.run = record_items
    with psycopg.connect(databases.admin) as admin:
        admin.execute(f"lock table {table} in access exclusive mode".encode())
        first = call(unique_id("first"), 60)
        assert eventually(lambda: started_items)
        timed_out = [call(unique_id("gone"), 1) for _ in range(50)]
        assert {timed_out_call.exception().code() for timed_out_call in timed_out} == {
            grpc.StatusCode.DEADLINE_EXCEEDED
        }
        count_before = len(started_items)
        assert count_before <= 25, "the calls came one by one, before the others were in a batch"
        admin.rollback()
    first.exception()
    call(unique_id("last"), 60).exception()  # its batch runs after all others
    batcher.run = run
    return started_items[count_before:-1]


@pytest.mark.parametrize("service", ["payment", "payout"])
def test_reads_after_a_commit_are_not_rejected(platform: ServedPlatform, service: str) -> None:
    """However many calls read their stored result, none ends with OVERLOADED, which would mean that
    nothing was stored.
    """
    handlers: Any = platform.server.service(service).servicer

    async def look() -> Counter[str]:
        reads = (
            handlers.read_batcher.submit(unique_id("c")) for _ in range(MAX_QUEUED_CALLS + 500)
        )
        return Counter(
            str(answer) for answer in await asyncio.gather(*reads, return_exceptions=True)
        )

    assert platform.run_in_loop(look) == {"None": MAX_QUEUED_CALLS + 500}


def test_a_flood_of_changes_rejects_no_work_of_the_platform(
    platform: ServedPlatform, client: Client
) -> None:
    """With the maximum number of teams' changes waiting for the database, a team's next one is
    OVERLOADED; a scan and an operator's change are not.
    """
    payout_worker = payout_worker_of(platform)
    seller = create_sale(client, "5.00")

    async def fill() -> tuple[asyncio.Event, list[asyncio.Task[Any]]]:
        gate = asyncio.Event()
        pending_handovers = [
            asyncio.ensure_future(payout_worker.run_detached(gate.wait, is_team_call=True))
            for _ in range(MAX_TEAM_DETACHED_TASKS)
        ]
        await asyncio.sleep(0)
        return gate, pending_handovers

    async def leave(gate: asyncio.Event, waiting: list[asyncio.Future[bool]]) -> None:
        gate.set()
        await asyncio.gather(*waiting)

    filled: Any = platform.run_in_loop(fill)
    new = payout_service_pb2.CreatePayoutDestinationRequest(
        payout_destination_id=unique_id("d"),
        seller_account=seller,
        currency="EUR",
        bank_account_token="tok_bank",
    )
    with (
        platform.client(tries=1) as team,
        pytest.raises(TallystickError) as error,
    ):
        team.payout.CreatePayoutDestination(new)
    assert (error.value.reason, error.value.retry_after) == ("OVERLOADED", 1.0)

    async def platform_call() -> str:
        return "done"

    platform.run_in_loop(payout_worker.claim_due)
    assert platform.run_in_loop(payout_worker.run_detached, platform_call) == "done"
    platform.run_in_loop(leave, *filled)
    create_destination(client, seller)


def memory_megabytes(pid: int, name: str) -> int:
    """A process's resident memory (VmRSS), or its peak (VmHWM)."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) // 1024


async def measure_calls(stub: Any, checkout_id: str, limit_seconds: float) -> dict[str, float]:
    """The duration of each call of other callers, in seconds. A cancellation waits for the
    provider, so its deadline is the limit.
    """
    calls = {
        "GetPayment": (
            stub.GetPayment,
            payment_service_pb2.GetPaymentRequest(checkout_id=checkout_id),
        ),
        "CancelPayment": (
            stub.CancelPayment,
            payment_service_pb2.CancelPaymentRequest(
                checkout_id=checkout_id, reason="changed mind"
            ),
        ),
        "ListAlerts": (stub.ListAlerts, operator_pb2.ListAlertsRequest()),
        "ListDeadLetters": (stub.ListDeadLetters, operator_pb2.ListDeadLettersRequest()),
    }
    durations = {}
    for name, (call, request) in calls.items():
        start_time = time.monotonic()
        await call(request, timeout=limit_seconds if name == "CancelPayment" else 60)
        durations[name] = time.monotonic() - start_time
    return durations


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a process's memory is read from /proc"
)
def test_a_flood_of_one_caller_does_not_block_others(
    scratch_database: DatabaseUrls, thorough: bool
) -> None:
    """28 messages of two million empty items each, idle streams, and waiting payments on a slow
    provider: other callers are answered, memory is bounded.
    """
    followers, waiting_count, limit = (1000, 4000, 1.0) if thorough else (100, 200, 5.0)
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "30",
        "TALLYSTICK_SERVER__MAX_WAITING_CALLS": str(waiting_count),
        "TALLYSTICK_SERVER__MAX_OWNER_SHARE": "0.5",
        "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "0",
    }
    payment_answers: Counter[str] = Counter()
    batch_answers: Counter[str] = Counter()
    slowest: dict[str, float] = {}

    async def pay(stub: Any, number: int, prefix: str) -> None:
        order = new_order(f"{prefix}-{number}-o", f"b-{number}", "s", "1.00", "EUR")
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id=f"{prefix}-{number}", payment_orders=[order], credit_card_info="tok_visa"
        )
        try:
            answer = await stub.CreatePayment(request, timeout=60)
            payment_answers[payment_pb2.PaymentState.Name(answer.payment.payment_state)] += 1
        except grpc.aio.AioRpcError as error:
            payment_answers[from_rpc(error).reason or str(error.details())] += 1

    async def send(channel: grpc.aio.Channel, method: str) -> None:
        try:
            call: Any = channel.unary_unary(f"/tallystick.{method}")
            await call(EMPTY_ITEMS, timeout=60)
        except grpc.aio.AioRpcError as error:
            batch_answers[from_rpc(error).reason] += 1

    async def flood() -> None:
        options = [*SEPARATE_CONNECTION, ("grpc.max_send_message_length", 8 * 1024 * 1024)]
        channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(8)]
        other_channel = grpc.aio.insecure_channel(address, options=SEPARATE_CONNECTION)
        events: Any = [event_service_pb2_grpc.EventServiceStub(channel) for channel in channels]
        payments: Any = [
            payment_service_pb2_grpc.PaymentServiceStub(channel) for channel in channels
        ]
        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(other_channel)
        prefix = unique_id("c")
        streams = [
            events[n % 8].StreamEvents(
                event_service_pb2.StreamEventsRequest(follow=True), timeout=120
            )
            for n in range(followers)
        ]
        paying = [
            asyncio.ensure_future(pay(payments[n % 8], n, prefix)) for n in range(waiting_count)
        ]
        # Above its caller's share a payment is accepted, and answered immediately; if too many
        # begin at the same moment, some are OVERLOADED.
        while sum(payment_answers.values()) < waiting_count // 2 - 10:
            await asyncio.wait(
                [task for task in paying if not task.done()],
                timeout=1,
                return_when=asyncio.FIRST_COMPLETED,
            )
        sending = [
            asyncio.ensure_future(send(channels[n % 8], BATCH_METHODS[n % 3])) for n in range(28)
        ]
        while True:
            for name, took in (await measure_calls(stub, f"{prefix}-0", limit)).items():
                slowest[name] = max(slowest.get(name, 0.0), took)
            if all(task.done() for task in sending):
                break
        for task in paying:
            task.cancel()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*paying, *sending, return_exceptions=True)
        for channel in (*channels, other_channel):
            await channel.close()

    with running_process(["serve", "all"], environment, address) as server:
        before = memory_megabytes(server.pid, "VmRSS")
        asyncio.run(flood())
        peak_megabytes = memory_megabytes(server.pid, "VmHWM")
    print(
        f"{followers} followers, {waiting_count} payments: {before} MB before, at most "
        f"{peak_megabytes} MB; slowest {slowest}; answers {dict(payment_answers)}, "
        f"{dict(batch_answers)}"
    )
    assert sum(batch_answers.values()) == 28
    assert set(batch_answers) <= {"TOO_MANY_ITEMS", "OVERLOADED"}, batch_answers
    assert batch_answers["TOO_MANY_ITEMS"] >= 3
    # Every error has a reason.
    assert set(payment_answers) <= {*payment_pb2.PaymentState.keys(), *ErrorReason}, payment_answers
    assert peak_megabytes < _MAX_MEGABYTES
    assert max(slowest.values()) < limit, slowest
