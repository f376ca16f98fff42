"""Payouts a second, from a schedule's run over all sellers until each is PAID and settled, every
commit durable; then a run that is killed half-way.

Two server processes, as one would run them on two cores: PayoutService with the provider, and the
services it calls. The ceiling is an empty gRPC echo of a payout's message.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.measure import LoadResult, measure_interleaved, peak_mb, server
from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.payout.v1 import payout_pb2, payout_service_pb2, payout_service_pb2_grpc
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run
from tallystick_server.outbox.events import add_event
from tallystick_server.payout.events import add_destination_changed
from tallystick_server.rpc.postings import add_posting
from tallystick_server.verify.run import verify

_ADDRESS, _ECHO_ADDRESS = "127.0.0.1:7291", "127.0.0.1:7292"
_DOWNSTREAM_ADDRESS = "unix:.data/bench.sock"  # the two processes share a machine
_FOLDER = Path(".data/bench")
_SERVE = ["-m", "tallystick_server.cli.main", "serve"]
_DEFAULT_SELLERS = 100_000
_PAGE_SIZE = 1000
_SALE_AMOUNT = 2_500  # minor units
_DESTINATION_TIME = Timestamp(seconds=1_767_225_600)  # 2026-01-01T00:00:00Z
_OPERATOR_METADATA = (("authorization", "Bearer boss-boss-boss-boss"),)
_SERVICE_METADATA = (("authorization", "Bearer platform-platform-platform"),)
_RUN_TIMEOUT_SECONDS = 1_200


def bench(seconds: float, sellers: int, print_status: Callable[[str], None]) -> dict[str, Any]:
    """The figures, as `--json` prints them; `seconds` for the echo, `sellers` 0: 100,000."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    sellers = sellers or _DEFAULT_SELLERS
    with open_databases(Settings(), print_status, folder=_FOLDER) as database_urls:
        environment = {
            "TALLYSTICK_DATABASE__SERVICE_URLS": ",".join(
                f"{name}={url}" for name, url in database_urls.all().items()
            ),
            "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "0.02",
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": (
                "boss:operator:boss-boss-boss-boss,platform:service:platform-platform-platform"
            ),
            "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
        }
        service_addresses = ",".join(
            f"{name}={_DOWNSTREAM_ADDRESS}" for name in ("wallet", "ledger", "event")
        )
        payout_environment = {
            **environment,
            "TALLYSTICK_SERVER__LISTEN": _ADDRESS,
            "TALLYSTICK_SERVICE_ADDRESSES": service_addresses,
        }
        with server(
            [*_SERVE, "wallet", "ledger", "event"],
            {**environment, "TALLYSTICK_SERVER__LISTEN": _DOWNSTREAM_ADDRESS},
            _DOWNSTREAM_ADDRESS,
        ):
            _insert_destinations(database_urls, sellers)
            run(_publish_destinations(sellers))
            run(_credit_sellers(sellers, "first", print_status))
            with (
                server(["-m", "benchmarks.echo", _ECHO_ADDRESS], {}, _ECHO_ADDRESS),
                server([*_SERVE, "payout"], payout_environment, _ADDRESS) as pid,
            ):
                echoes = [run(_measure_echo(seconds / 2, print_status))]
                elapsed_seconds = run(_run_batch("first", sellers, print_status))
                memory = peak_mb(pid)
                echoes.append(run(_measure_echo(seconds / 2, print_status)))
            run(_credit_sellers(sellers, "second", print_status))
            _kill_half_way(payout_environment, sellers, print_status)
        _check(database_urls, sellers, print_status)
    rate, baseline = sellers / elapsed_seconds, sum(echoes) / len(echoes)
    return {
        "bench": "payouts",
        "rate": round(rate, 1),
        "ceiling": {"name": "gRPC echo of a payout's message", "rate": round(baseline, 1)},
        "ratio": round(rate / baseline, 4),
        "sellers": sellers,
        "seconds": round(elapsed_seconds, 1),
        "peak_mb": memory,
        "killed_and_restarted": "paid once each",
    }


def _insert_destinations(database_urls: DatabaseUrls, sellers: int) -> None:
    """A destination for each seller, as if it had been verified long ago: a hundred thousand calls
    would take longer than what is measured.
    """
    with psycopg.connect(database_urls.admin) as connection:
        # no triggers, since no events are written
        connection.execute("set session_replication_role = replica")
        connection.execute(
            """
            insert into payout.payout_destination (payout_destination_id, caller, owner,
                fingerprint, seller_account, currency, bank_account_token,
                description, provider, traceparent, state, usable_time, verified_time, decline_code,
                    awaits_approval, approved_by,
                approve_reason, disabled_by, disable_reason, version, create_time, update_time)
            select 'bank-' || n, 'bench', 'bench', decode(repeat('00', 32), 'hex'), 'seller-' || n,
                'EUR', 'ba_ok',
                '', 'sandbox', '', 'VERIFIED', t, t, '', false, '', '', '', '', 1, t, t
            from generate_series(0, %s) as n, (select timestamptz '2026-01-01' as t) x
            """,
            (sellers - 1,),
        )
        connection.execute(
            "insert into wallet.seller (seller_account, owner, version, update_time) "
            "select 'seller-' || n, 'bench', 1, now() from generate_series(0, %s) n",
            (sellers - 1,),
        )
        for table in ("payout.payout_destination", "wallet.seller"):  # as the trigger does
            connection.execute(f"update {table} as new set seal = sha256(record_send(new))")


async def _publish_destinations(sellers: int) -> None:
    """The events of the destinations and their sellers, which `verify` compares with the rows."""
    async with grpc.aio.insecure_channel(_DOWNSTREAM_ADDRESS) as channel:
        stub: Any = event_service_pb2_grpc.EventServiceStub(channel)
        for start in range(0, sellers, _PAGE_SIZE // 2):
            numbers = range(start, min(start + _PAGE_SIZE // 2, sellers))
            events = event_service_pb2.BatchPublishRequest()
            for number in numbers:
                _add_first_events(events, number)
            await stub.BatchPublish(events, timeout=30, metadata=_SERVICE_METADATA)


def _add_first_events(events: event_service_pb2.BatchPublishRequest, number: int) -> None:
    seller = f"seller-{number}"
    add_event(
        events,
        event_pb2.EVENT_TYPE_SELLER_CHANGED,
        f"sellers/{seller}",
        1,
        _DESTINATION_TIME,
        "bench",
        "",
        "bench",
        seller=wallet_pb2.Seller(seller_account=seller, owner="bench", version=1),
    )
    destination = payout_pb2.PayoutDestination(
        payout_destination_id=f"bank-{number}",
        caller="bench",
        owner="bench",
        version=1,
        update_time=_DESTINATION_TIME,
    )
    add_destination_changed(events, destination, "")


async def _credit_sellers(sellers: int, name: str, print_status: Callable[[str], None]) -> None:
    """Something to be paid for each seller, in wallet and ledger."""
    async with grpc.aio.insecure_channel(_DOWNSTREAM_ADDRESS) as channel:
        wallet: Any = wallet_service_pb2_grpc.WalletServiceStub(channel)
        ledger: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        for start in range(0, sellers, _PAGE_SIZE):
            numbers = range(start, min(start + _PAGE_SIZE, sellers))
            credits_ = [
                wallet_service_pb2.Credit(
                    source_id=f"ADJUSTMENT/{name}-{n}",
                    caller="bench",
                    seller_account=f"seller-{n}",
                    amount=f"{_SALE_AMOUNT // 100}.00",
                    currency="EUR",
                )
                for n in numbers
            ]
            postings = ledger_service_pb2.BatchPostRequest(outcome_only=True)
            for n in numbers:
                lines = (
                    JournalLine("platform/losses", "EUR", -_SALE_AMOUNT),
                    JournalLine(f"sellers/seller-{n}", "EUR", _SALE_AMOUNT),
                )
                add_posting(postings, PostingKind.ADJUSTMENT, f"{name}-{n}", "bench", lines)
            await wallet.BatchCredit(
                wallet_service_pb2.BatchCreditRequest(credits=credits_, outcome_only=True),
                timeout=30,
                metadata=_SERVICE_METADATA,
            )
            await ledger.BatchPost(postings, timeout=30, metadata=_SERVICE_METADATA)
    print_status(f"{sellers} sellers have something to be paid")


async def _measure_echo(seconds: float, print_status: Callable[[str], None]) -> float:
    message = payout_service_pb2.CreatePayoutRequest(
        payout_id="p-1", seller_account="seller-1", amount="25.00", currency="EUR"
    ).SerializeToString()
    async with grpc.aio.insecure_channel(_ECHO_ADDRESS) as channel:
        echo = channel.unary_unary("/bench.Echo/Echo")  # type: ignore[var-annotated]

        async def call_echo(_number: int) -> None:
            await echo(message)

        loads: dict[str, LoadResult] = await measure_interleaved(
            {"echo": call_echo}, 256, seconds, print_status
        )
    return loads["echo"].rate


async def _run_batch(name: str, sellers: int, print_status: Callable[[str], None]) -> float:
    """Runs the default schedule now; seconds until the last payout is settled."""
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
        await _create_batch(stub, name)
        start = time.perf_counter()
        await _wait_until_done(stub, name, sellers, print_status, start)
        return time.perf_counter() - start


async def _create_batch(stub: Any, name: str) -> None:
    new_run = payout_service_pb2.NewPayoutRun(currency="EUR")
    await stub.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(payout_batch_id=name, run=new_run),
        timeout=30,
        metadata=_OPERATOR_METADATA,
    )


async def _wait_until_done(
    stub: Any,
    name: str,
    sellers: int,
    print_status: Callable[[str], None],
    start: float,
    *,
    fraction: float = 1.0,
) -> None:
    """Shows how far the run is, until it is done or so much of it is collected."""
    next_report_time = 0.0
    while time.perf_counter() < start + _RUN_TIMEOUT_SECONDS:
        batch = await _get_batch(stub, name)
        now = time.perf_counter() - start
        if now >= next_report_time:
            counts_by_state = {
                payout_pb2.PayoutState.Name(total.payout_state).removeprefix(
                    "PAYOUT_STATE_"
                ): total.payout_count
                for total in batch.totals
            }
            print_status(
                f"{now:5.0f} s: {batch.collected_count} of {sellers} sellers looked at, "
                f"{counts_by_state}"
            )
            next_report_time = now + 10
        if batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE or (
            fraction < 1 and batch.collected_count >= sellers * fraction
        ):
            return
        await asyncio.sleep(1)  # each look counts all payouts of the run
    raise StartupError(f"the run {name} was not done within {_RUN_TIMEOUT_SECONDS} s")


async def _get_batch(stub: Any, name: str) -> payout_pb2.PayoutBatch:
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=name, page_size=1)
    return (  # type: ignore[no-any-return]
        await stub.GetPayoutBatch(request, timeout=30, metadata=_OPERATOR_METADATA)
    ).payout_batch


def _kill_half_way(
    environment: dict[str, str], sellers: int, print_status: Callable[[str], None]
) -> None:
    """A run whose PayoutService is killed at its half, and started again."""

    async def run_first_half() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _create_batch(stub, "second")
            await _wait_until_done(
                stub, "second", sellers, print_status, time.perf_counter(), fraction=0.5
            )

    async def run_remainder() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _wait_until_done(stub, "second", sellers, print_status, time.perf_counter())

    with server([*_SERVE, "payout"], environment, _ADDRESS, kill=True):
        run(run_first_half())
    print_status("PayoutService was killed; it starts again")
    with server([*_SERVE, "payout"], environment, _ADDRESS):
        run(run_remainder())


def _check(database_urls: DatabaseUrls, sellers: int, print_status: Callable[[str], None]) -> None:
    """Raises Failure unless every seller was paid twice, once by each run, and everything
    verifies.
    """
    with psycopg.connect(database_urls.admin) as connection:
        row = connection.execute(
            "select count(*), count(distinct payout_id), sum(amount) filter (where state = "
            "'PAID') from sandbox.transfer"
        ).fetchone()
    if row is None or tuple(map(int, row)) != (
        2 * sellers,
        2 * sellers,
        2 * sellers * _SALE_AMOUNT,
    ):
        raise StartupError(
            f"the provider paid {row}, and should have paid {2 * sellers} payouts once each"
        )
    print_status("Verifying")
    report = verify(database_urls)
    if not report.passed:
        raise StartupError(report.as_text())
