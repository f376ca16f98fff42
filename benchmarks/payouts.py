"""Payouts a second, from the creation of a payout run until each is PAID and booked. Then a second
run, in which PayoutService is killed half-way. Every commit is durable.

There are two server processes: PayoutService with the provider, and the services that it calls. The
upper bound is a gRPC echo of a payout's message.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Any

import grpc
import psycopg

from benchmarks.baseline import echo_call
from benchmarks.measure import StatusPrinter, measure_interleaved, rate_figures
from benchmarks.processes import (
    DATABASE_FOLDER,
    DOWNSTREAM_ADDRESS,
    DOWNSTREAM_ENVIRONMENT,
    database_environment,
    read_peak_mb,
    run_baseline,
    run_downstream_services,
    run_services,
)
from benchmarks.seed.destinations import seed_destinations
from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.payout.v1 import payout_pb2, payout_service_pb2, payout_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run
from tallystick_server.rpc.postings import add_posting
from tallystick_server.verify.run import verify

DEFAULT_SELLERS = 100_000
_ADDRESS, _BASELINE_ADDRESS = "127.0.0.1:7291", "127.0.0.1:7292"
_SELLERS_PER_CALL = 1000
_PAYOUT_AMOUNT = 2_500  # minor units
_BASELINE_IN_FLIGHT = 256
_RUN_TIMEOUT_SECONDS = 1_200
_REPORT_SECONDS = 10
_OPERATOR_METADATA = (("authorization", "Bearer operator-operator-operator"),)
_SERVICE_METADATA = (("authorization", "Bearer platform-platform-platform"),)
_ENVIRONMENT = {
    "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "0.02",
    "TALLYSTICK_AUTHENTICATION": "tokens",
    "TALLYSTICK_CALLERS": (
        "operator:operator:operator-operator-operator,platform:service:platform-platform-platform"
    ),
    "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
}


def bench(seconds: float, sellers: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of the baseline; `sellers`: sellers that
    each run pays.
    """
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls:
        environment = {**_ENVIRONMENT, **database_environment(database_urls)}
        payout_environment = {**environment, **DOWNSTREAM_ENVIRONMENT}
        seed_destinations(database_urls, sellers)
        with run_downstream_services(environment):
            run(_credit_sellers("first", sellers, print_status))
            with (
                run_baseline(_BASELINE_ADDRESS),
                run_services(["payout"], payout_environment, _ADDRESS) as pid,
            ):
                baseline_rates = [run(_measure_baseline(seconds / 2, print_status))]
                run_seconds = run(_measure_run("first", sellers, print_status))
                memory_mb = read_peak_mb(pid)
                baseline_rates.append(run(_measure_baseline(seconds / 2, print_status)))
            run(_credit_sellers("second", sellers, print_status))
            _kill_half_way("second", payout_environment, sellers, print_status)
        _require_paid_once(database_urls, sellers)
        print_status("Verifying")
        report = verify(database_urls)
        if not report.passed:
            raise StartupError(report.as_text())
    return {
        "bench": "payouts",
        **rate_figures(
            sellers / run_seconds, "gRPC echo of a payout's message", sum(baseline_rates) / 2
        ),
        "sellers": sellers,
        "seconds": round(run_seconds, 1),
        "peak_mb": memory_mb,
        "killed_and_restarted": "paid once each",
    }


async def _credit_sellers(name: str, sellers: int, print_status: StatusPrinter) -> None:
    """Credits one payout to each seller, in wallet and ledger, by an adjustment."""
    async with grpc.aio.insecure_channel(DOWNSTREAM_ADDRESS) as channel:
        wallet: Any = wallet_service_pb2_grpc.WalletServiceStub(channel)
        ledger: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        for start in range(0, sellers, _SELLERS_PER_CALL):
            numbers = range(start, min(start + _SELLERS_PER_CALL, sellers))
            await wallet.BatchCredit(
                _credit_request(name, numbers), timeout=30, metadata=_SERVICE_METADATA
            )
            await ledger.BatchPost(
                _post_request(name, numbers), timeout=30, metadata=_SERVICE_METADATA
            )
    print_status(f"Credited {sellers} sellers")


def _credit_request(name: str, numbers: range) -> wallet_service_pb2.BatchCreditRequest:
    return wallet_service_pb2.BatchCreditRequest(
        credits=[
            wallet_service_pb2.Credit(
                source_id=f"ADJUSTMENT/{name}-{n}",
                caller="bench",
                seller_account=f"seller-{n}",
                amount=f"{_PAYOUT_AMOUNT // 100}.00",
                currency="EUR",
            )
            for n in numbers
        ],
        outcome_only=True,
    )


def _post_request(name: str, numbers: range) -> ledger_service_pb2.BatchPostRequest:
    request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
    for n in numbers:
        lines = (
            JournalLine("platform/losses", "EUR", -_PAYOUT_AMOUNT),
            JournalLine(f"sellers/seller-{n}", "EUR", _PAYOUT_AMOUNT),
        )
        add_posting(request, PostingKind.ADJUSTMENT, f"{name}-{n}", "bench", lines)
    return request


async def _measure_baseline(seconds: float, print_status: StatusPrinter) -> float:
    """Returns calls a second."""
    message = payout_service_pb2.CreatePayoutRequest(
        payout_id="p-1", seller_account="seller-1", amount="25.00", currency="EUR"
    ).SerializeToString()
    async with grpc.aio.insecure_channel(_BASELINE_ADDRESS) as channel:
        loads = await measure_interleaved(
            {"baseline": echo_call(channel, message)}, _BASELINE_IN_FLIGHT, seconds, print_status
        )
    return loads["baseline"].calls_per_second


async def _measure_run(name: str, sellers: int, print_status: StatusPrinter) -> float:
    """Starts a payout run over all sellers. Returns the seconds until its last payout is booked."""
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
        await _create_run(stub, name)
        start = time.perf_counter()
        await _wait_until_done(stub, name, sellers, print_status)
        return time.perf_counter() - start


async def _create_run(stub: Any, name: str) -> None:
    await stub.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(
            payout_batch_id=name, run=payout_service_pb2.NewPayoutRun(currency="EUR")
        ),
        timeout=30,
        metadata=_OPERATOR_METADATA,
        wait_for_ready=True,  # gRPC may still remember the process that was stopped
    )


async def _wait_until_done(
    stub: Any, name: str, sellers: int, print_status: StatusPrinter, *, fraction: float = 1.0
) -> None:
    """Waits until the run is done, or until payouts are generated for a fraction of the sellers.
    Prints the progress. Raises StartupError after the time limit.
    """
    start = time.perf_counter()
    next_report_seconds = 0.0
    while (seconds := time.perf_counter() - start) < _RUN_TIMEOUT_SECONDS:
        batch = await _load_batch(stub, name)
        if seconds >= next_report_seconds:
            print_status(_format_progress(seconds, sellers, batch))
            next_report_seconds = seconds + _REPORT_SECONDS
        if batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE or (
            fraction < 1 and batch.generated_count >= sellers * fraction
        ):
            return
        await asyncio.sleep(1)  # each poll counts all payouts of the run
    raise StartupError(f"The run {name} was not done within {_RUN_TIMEOUT_SECONDS} s.")


def _format_progress(seconds: float, sellers: int, batch: payout_pb2.PayoutBatch) -> str:
    counts = ", ".join(
        f"{payout_pb2.PayoutState.Name(total.payout_state).removeprefix('PAYOUT_STATE_')} "
        f"{total.payout_count}"
        for total in batch.totals
    )
    return (
        f"{seconds:5.0f} s: sellers {batch.generated_count} of {sellers}; "
        f"payouts: {counts or 'none'}"
    )


async def _load_batch(stub: Any, name: str) -> payout_pb2.PayoutBatch:
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=name, page_size=1)
    return (  # type: ignore[no-any-return]
        await stub.GetPayoutBatch(
            request, timeout=30, metadata=_OPERATOR_METADATA, wait_for_ready=True
        )
    ).payout_batch


def _kill_half_way(
    name: str, environment: dict[str, str], sellers: int, print_status: StatusPrinter
) -> None:
    """Starts a payout run, kills PayoutService half-way, and starts it again."""

    async def run_first_half() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _create_run(stub, name)
            await _wait_until_done(stub, name, sellers, print_status, fraction=0.5)

    async def run_second_half() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _wait_until_done(stub, name, sellers, print_status)

    with run_services(["payout"], environment, _ADDRESS, kill=True):
        run(run_first_half())
    print_status("Killed PayoutService; starting it again")
    with run_services(["payout"], environment, _ADDRESS):
        run(run_second_half())


def _require_paid_once(database_urls: DatabaseUrls, sellers: int) -> None:
    """Raises StartupError unless the provider paid each seller once for each of the two runs."""
    with psycopg.connect(database_urls.admin) as connection:
        row = connection.execute(
            "select count(*), count(distinct payout_id), "
            "coalesce(sum(amount) filter (where state = 'PAID'), 0) from sandbox.transfer"
        ).fetchone()
    transfers, payouts, amount = map(int, row or (0, 0, 0))
    expected = 2 * sellers
    if (transfers, payouts, amount) != (expected, expected, expected * _PAYOUT_AMOUNT):
        raise StartupError(
            f"The provider made {transfers} transfers for {payouts} payouts, {amount} minor units "
            f"in all. Expected: {expected} transfers, {expected * _PAYOUT_AMOUNT} minor units."
        )
