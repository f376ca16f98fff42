"""Ledger transactions a second through BatchPost over gRPC: five entries each, as in a pay-in,
batches of 100, every commit durable.

The ceiling is plain multi-row INSERTs of the same rows by psycopg into bare tables of the same
columns, committed batch by batch.
"""

from __future__ import annotations

import random
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg

from benchmarks.measure import Call, LoadResult, figures, measure_interleaved, peak_mb, server
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.fingerprint import digest_text
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

_ADDRESS = "127.0.0.1:7281"
_SELLERS = 1000
_BATCH_SIZE = 100
_DEFAULT_IN_FLIGHT = 4
_FOLDER = Path(".data/bench")

_TABLES = """
create schema bare;
create table bare.tx (book text, sequence bigint, kind text, source_id text, caller text,
    fingerprint bytea, entry_count int, description text, reverses bigint,
    effective_time timestamptz, post_time timestamptz, previous_hash bytea, hash bytea,
        primary key (book, sequence));
create table bare.entry (book text, sequence bigint, line_number smallint, account_id bigint,
    currency text, amount bigint, balance_after numeric(38, 0),
    primary key (book, sequence, line_number));
"""


def bench(seconds: float, in_flight: int, print_status: Callable[[str], None]) -> dict[str, Any]:
    """The figures, as `--json` prints them."""
    shutil.rmtree(_FOLDER, ignore_errors=True)
    in_flight = in_flight or _DEFAULT_IN_FLIGHT
    with open_databases(Settings(), print_status, folder=_FOLDER) as database_urls:
        upper_bound = _measure_inserts(database_urls.admin, min(seconds, 5))
        print_status(f"INSERTs     {upper_bound:8.1f}/s")
        urls = ",".join(f"{name}={url}" for name, url in database_urls.all().items())
        environment = {
            "TALLYSTICK_DATABASE__SERVICE_URLS": urls,
            "TALLYSTICK_SERVER__LISTEN": _ADDRESS,
        }
        with server(
            ["-m", "tallystick_server.cli.main", "serve", "all"], environment, _ADDRESS
        ) as pid:
            loads = run(_measure(in_flight, seconds, print_status))
            memory = peak_mb(pid)
        upper_bound = (upper_bound + _measure_inserts(database_urls.admin, min(seconds, 5))) / 2
    baseline = ("plain multi-row INSERTs of the same rows", upper_bound)
    return figures(
        "ledger",
        loads["spread"],
        loads["hot"],
        baseline,
        _BATCH_SIZE,
        in_flight=in_flight,
        seconds=seconds,
        peak_mb=memory,
    )


def _measure_inserts(admin_url: str, seconds: float) -> float:
    """Transactions a second by one connection."""
    row = "(" + ", ".join(["%s"] * 13) + ")"
    entry = "(" + ", ".join(["%s"] * 7) + ")"
    transactions = f"insert into bare.tx values {', '.join([row] * _BATCH_SIZE)}"
    entries = f"insert into bare.entry values {', '.join([entry] * _BATCH_SIZE * 5)}"
    now, digest = "2026-01-01T00:00:00Z", bytes(32)
    with psycopg.connect(admin_url) as connection:
        connection.execute("drop schema if exists bare cascade")
        connection.execute(_TABLES)
        connection.commit()
        sequence, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + seconds:
            numbers = range(sequence + 1, sequence + _BATCH_SIZE + 1)
            rows = [
                v
                for n in numbers
                for v in (
                    "main",
                    n,
                    "PAY_IN",
                    f"source-{n}",
                    "bench",
                    digest,
                    5,
                    "",
                    None,
                    now,
                    now,
                    digest,
                    digest,
                )
            ]
            lines = [
                v
                for n in numbers
                for p in range(5)
                for v in ("main", n, p, n % 1000 * 5 + p, "EUR", 1000 + p, n)
            ]
            connection.execute(transactions, rows)
            connection.execute(entries, lines)
            connection.commit()
            sequence += _BATCH_SIZE
        return sequence / (time.perf_counter() - begin)


async def _measure(
    in_flight: int, seconds: float, print_status: Callable[[str], None]
) -> dict[str, LoadResult]:
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        return await measure_interleaved(
            {"spread": _post_batches(stub, _SELLERS), "hot": _post_batches(stub, 1)},
            in_flight,
            seconds,
            print_status,
        )


def _post_batches(stub: Any, sellers: int) -> Call:
    run_id = digest_text(secrets.token_hex(8))[:8]

    async def post(number: int) -> None:
        response = await stub.BatchPost(_request(number, run_id, sellers), timeout=30)
        if any(result.WhichOneof("result") == "error" for result in response.results):
            raise StartupError("a posting was refused, which makes the figures worthless")

    return post


def _request(number: int, run_id: str, sellers: int) -> ledger_service_pb2.BatchPostRequest:
    return ledger_service_pb2.BatchPostRequest(
        postings=[
            _posting(f"{run_id}-{number}-{n}", number * _BATCH_SIZE + n, sellers)
            for n in range(_BATCH_SIZE)
        ]
    )


def _posting(source_id: str, number: int, sellers: int) -> ledger_service_pb2.Posting:
    buyer = f"buyers/b-{number % 1000}"
    seller = f"sellers/s-{random.randrange(sellers)}"  # noqa: S311 - no secret
    lines = (
        ("psp/sandbox/clearing", "-10.00"),
        (buyer, "10.00"),
        (buyer, "-10.00"),
        (seller, "9.50"),
        ("platform/fees", "0.50"),
    )
    return ledger_service_pb2.Posting(
        kind=ledger_pb2.TRANSACTION_KIND_PAY_IN,
        source_id=source_id,
        caller="bench",
        entries=[
            ledger_pb2.Entry(
                account=account,
                amount=amount.lstrip("-"),
                currency="EUR",
                direction=ledger_pb2.DIRECTION_DEBIT
                if amount[0] == "-"
                else ledger_pb2.DIRECTION_CREDIT,
            )
            for account, amount in lines
        ],
    )
