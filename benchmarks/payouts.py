"""Payouts a second, from a schedule's run over all sellers until each is PAID and settled, every commit durable; then a run that is killed half-way.

Two server processes, as one would run them on two cores: PayoutService with the provider, and the services it calls. The ceiling is an empty gRPC
echo of a payout's message.
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

from benchmarks.measure import Load, by_turns, peak_mb, server
from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.payout.v1 import payout_pb2, payout_service_pb2, payout_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.booking import Kind, Line
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases, databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.serve import run
from tallystick_server.process.verify import verify
from tallystick_server.runtime.postings import add_posting

_ADDRESS, _ECHO = "127.0.0.1:7291", "127.0.0.1:7292"
_INSIDE = "unix:.data/bench.sock"  # the two processes share a machine
_FOLDER = Path(".data/bench")
_SERVE = ["-m", "tallystick_server.process.cli", "serve"]
_SELLERS = 100_000
_PAGE = 1000
_SALE = 2_500  # minor units
_BOSS = (("authorization", "Bearer boss-boss-boss-boss"),)
_PLATFORM = (("authorization", "Bearer platform-platform-platform"),)
_RUN_SECONDS = 1_200


def bench(seconds: float, sellers: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures, as `--json` prints them; `seconds` for the echo, `sellers` 0: 100,000."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    sellers = sellers or _SELLERS
    with databases(Settings(), say, folder=_FOLDER) as known:
        environment = {
            "TALLYSTICK_SERVICE_DATABASE_URL": ",".join(f"{name}={url}" for name, url in known.all().items()),
            "TALLYSTICK_SANDBOX_LATENCY": "0.02",
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": "boss:operator:boss-boss-boss-boss,platform:service:platform-platform-platform",
            "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
        }
        reached = ",".join(f"{name}={_INSIDE}" for name in ("wallet", "ledger", "event"))
        payout = {**environment, "TALLYSTICK_LISTEN": _ADDRESS, "TALLYSTICK_ADDRESS": reached}
        with server([*_SERVE, "wallet", "ledger", "event"], {**environment, "TALLYSTICK_LISTEN": _INSIDE}, _INSIDE):
            _register(known, sellers)
            run(_sell(sellers, "first", say))
            with server(["-m", "benchmarks.echo", _ECHO], {}, _ECHO), server([*_SERVE, "payout"], payout, _ADDRESS) as pid:
                echoes = [run(_echo(seconds / 2, say))]
                took = run(_pay("first", sellers, say))
                memory = peak_mb(pid)
                echoes.append(run(_echo(seconds / 2, say)))
            run(_sell(sellers, "second", say))
            _killed_half_way(payout, sellers, say)
        _check(known, sellers, say)
    rate, echo = sellers / took, sum(echoes) / len(echoes)
    return {
        "bench": "payouts",
        "rate": round(rate, 1),
        "ceiling": {"name": "gRPC echo of a payout's message", "rate": round(echo, 1)},
        "ratio": round(rate / echo, 4),
        "sellers": sellers,
        "seconds": round(took, 1),
        "peak_mb": memory,
        "killed_and_restarted": "paid once each",
    }


def _register(known: Databases, sellers: int) -> None:
    """A destination for each seller, as if it had been verified long ago: a hundred thousand calls would take longer than what is measured."""
    with psycopg.connect(known.admin) as connection:
        connection.execute("set session_replication_role = replica")  # no triggers, since nothing is told
        connection.execute(
            """
            insert into payout.payout_destination (payout_destination_id, caller, owner, fingerprint, seller_account, currency, bank_account_token,
                description, provider, traceparent, state, usable_time, verified_time, decline_code, awaits_approval, approved_by,
                approve_reason, disabled_by, disable_reason, version, create_time, update_time)
            select 'bank-' || n, 'bench', 'bench', decode(repeat('00', 32), 'hex'), 'seller-' || n, 'EUR', 'ba_ok',
                '', 'sandbox', '', 'VERIFIED', t, t, '', false, '', '', '', '', 2, t, t
            from generate_series(0, %s) as n, (select timestamptz '2026-01-01' as t) x
            """,
            (sellers - 1,),
        )
        connection.execute(
            "insert into wallet.seller (seller_account, owner, version, update_time) "
            "select 'seller-' || n, 'bench', 1, now() from generate_series(0, %s) n",
            (sellers - 1,),
        )


async def _sell(sellers: int, name: str, say: Callable[[str], None]) -> None:
    """Something to be paid for each seller, in wallet and ledger."""
    async with grpc.aio.insecure_channel(_INSIDE) as channel:
        wallet: Any = wallet_service_pb2_grpc.WalletServiceStub(channel)
        ledger: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        for start in range(0, sellers, _PAGE):
            numbers = range(start, min(start + _PAGE, sellers))
            credits_ = [
                wallet_service_pb2.Credit(
                    cause=f"ADJUSTMENT/{name}-{n}", caller="bench", seller_account=f"seller-{n}", amount=f"{_SALE // 100}.00", currency="EUR"
                )
                for n in numbers
            ]
            postings = ledger_service_pb2.BatchPostRequest(outcome_only=True)
            for n in numbers:
                lines = (Line("platform/losses", "EUR", -_SALE), Line(f"sellers/seller-{n}", "EUR", _SALE))
                add_posting(postings, Kind.ADJUSTMENT, f"{name}-{n}", "bench", lines)
            await wallet.BatchCredit(wallet_service_pb2.BatchCreditRequest(credits=credits_, outcome_only=True), timeout=30, metadata=_PLATFORM)
            await ledger.BatchPost(postings, timeout=30, metadata=_PLATFORM)
    say(f"{sellers} sellers have something to be paid")


async def _echo(seconds: float, say: Callable[[str], None]) -> float:
    message = payout_service_pb2.CreatePayoutRequest(payout_id="p-1", seller_account="seller-1", amount="25.00", currency="EUR").SerializeToString()
    async with grpc.aio.insecure_channel(_ECHO) as channel:
        echo = channel.unary_unary("/bench.Echo/Echo")  # type: ignore[var-annotated]

        async def ask(_number: int) -> None:
            await echo(message)

        loads: dict[str, Load] = await by_turns({"echo": ask}, 256, seconds, say)
    return loads["echo"].rate


async def _pay(name: str, sellers: int, say: Callable[[str], None]) -> float:
    """Runs the default schedule now; seconds until the last payout is settled."""
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
        await _begin(stub, name)
        began = time.perf_counter()
        await _until_done(stub, name, sellers, say, began)
        return time.perf_counter() - began


async def _begin(stub: Any, name: str) -> None:
    run_ = payout_service_pb2.NewPayoutRun(currency="EUR")
    await stub.CreatePayoutBatch(payout_service_pb2.CreatePayoutBatchRequest(payout_batch_id=name, run=run_), timeout=30, metadata=_BOSS)


async def _until_done(stub: Any, name: str, sellers: int, say: Callable[[str], None], began: float, *, part: float = 1.0) -> None:
    """Shows how far the run is, until it is done or so much of it is collected."""
    shown = 0.0
    while time.perf_counter() < began + _RUN_SECONDS:
        batch = await _batch(stub, name)
        now = time.perf_counter() - began
        if now >= shown:
            paid = {payout_pb2.PayoutState.Name(total.payout_state).removeprefix("PAYOUT_STATE_"): total.payout_count for total in batch.totals}
            say(f"{now:5.0f} s: {batch.collected_count} of {sellers} sellers looked at, {paid}")
            shown = now + 10
        if batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE or (part < 1 and batch.collected_count >= sellers * part):
            return
        await asyncio.sleep(1)  # each look counts all payouts of the run
    raise Failure(f"the run {name} was not done within {_RUN_SECONDS} s")


async def _batch(stub: Any, name: str) -> payout_pb2.PayoutBatch:
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id=name, page_size=1)
    return (await stub.GetPayoutBatch(request, timeout=30, metadata=_BOSS)).payout_batch  # type: ignore[no-any-return]


def _killed_half_way(environment: dict[str, str], sellers: int, say: Callable[[str], None]) -> None:
    """A run whose PayoutService is killed at its half, and started again."""

    async def half() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _begin(stub, "second")
            await _until_done(stub, "second", sellers, say, time.perf_counter(), part=0.5)

    async def rest() -> None:
        async with grpc.aio.insecure_channel(_ADDRESS) as channel:
            stub: Any = payout_service_pb2_grpc.PayoutServiceStub(channel)
            await _until_done(stub, "second", sellers, say, time.perf_counter())

    with server([*_SERVE, "payout"], environment, _ADDRESS, kill=True):
        run(half())
    say("PayoutService was killed; it starts again")
    with server([*_SERVE, "payout"], environment, _ADDRESS):
        run(rest())


def _check(known: Databases, sellers: int, say: Callable[[str], None]) -> None:
    """Raises Failure unless every seller was paid twice, once by each run, and everything verifies."""
    with psycopg.connect(known.admin) as connection:
        row = connection.execute(
            "select count(*), count(distinct payout_id), sum(amount) filter (where state = 'PAID') from sandbox.transfer"
        ).fetchone()
    if row is None or tuple(map(int, row)) != (2 * sellers, 2 * sellers, 2 * sellers * _SALE):
        raise Failure(f"the provider paid {row}, and should have paid {2 * sellers} payouts once each")
    say("Verifying")
    report = verify(known)
    if not report.passed:
        raise Failure(report.as_text())
