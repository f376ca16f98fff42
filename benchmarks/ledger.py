"""Ledger transactions a second through BatchPost over gRPC. A batch has 100 transactions with five
entries each. Every commit is durable.

The upper bound is plain multi-row INSERTs of the same rows by psycopg into tables without triggers
and indexes but the primary key, committed batch by batch.
"""

from __future__ import annotations

import random
import secrets
import shutil
import time
from typing import Any

import grpc
import psycopg

from benchmarks.measure import (
    Call,
    LoadResult,
    StatusPrinter,
    load_figures,
    measure_interleaved,
    rate_figures,
)
from benchmarks.processes import (
    DATABASE_FOLDER,
    database_environment,
    read_peak_mb,
    run_services,
)
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.fingerprint import digest_text
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run

DEFAULT_IN_FLIGHT = 4
_ADDRESS = "127.0.0.1:7281"
_SELLERS = 1000
_BATCH_SIZE = 100
_ENTRIES_PER_TRANSACTION = 5
_MAX_INSERT_SECONDS = 5.0
_CREATE_TABLES_SQL = """
create schema bare;
create table bare.tx (book text, sequence bigint, kind text, source_id text, caller text,
    fingerprint bytea, entry_count int, description text, reverses bigint,
    effective_time timestamptz, post_time timestamptz, previous_hash bytea, hash bytea,
    primary key (book, sequence));
create table bare.entry (book text, sequence bigint, line_number smallint, account_id bigint,
    currency text, amount bigint, balance_after numeric(38, 0),
    primary key (book, sequence, line_number));
"""


def bench(seconds: float, in_flight: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each part; `in_flight`: calls in
    flight.
    """
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    insert_seconds = min(seconds, _MAX_INSERT_SECONDS)
    with open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls:
        insert_rates = [_measure_inserts(database_urls.admin, insert_seconds)]
        print_status(f"INSERTs {insert_rates[0]:.1f}/s")
        with run_services(["all"], database_environment(database_urls), _ADDRESS) as pid:
            loads = run(_measure(in_flight, seconds, print_status))
            memory_mb = read_peak_mb(pid)
        insert_rates.append(_measure_inserts(database_urls.admin, insert_seconds))
        print_status(f"INSERTs {insert_rates[1]:.1f}/s")
    return {
        "bench": "ledger",
        **rate_figures(
            loads["spread"].calls_per_second * _BATCH_SIZE,
            "plain multi-row INSERTs of the same rows",
            sum(insert_rates) / 2,
        ),
        **load_figures(loads["spread"], loads["hot"], _BATCH_SIZE),
        "in_flight": in_flight,
        "seconds": seconds,
        "peak_mb": memory_mb,
    }


def _measure_inserts(admin_url: str, seconds: float) -> float:
    """Returns the transactions a second of one connection."""
    insert_tx = _insert_sql("bare.tx", 13, _BATCH_SIZE)
    insert_entry = _insert_sql("bare.entry", 7, _BATCH_SIZE * _ENTRIES_PER_TRANSACTION)
    with psycopg.connect(admin_url) as connection:
        connection.execute("drop schema if exists bare cascade")
        connection.execute(_CREATE_TABLES_SQL)
        connection.commit()
        sequence, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            sequences = range(sequence + 1, sequence + _BATCH_SIZE + 1)
            connection.execute(insert_tx, _tx_values(sequences))
            connection.execute(insert_entry, _entry_values(sequences))
            connection.commit()
            sequence += _BATCH_SIZE
        return sequence / (time.perf_counter() - start)


def _insert_sql(table: str, columns: int, rows: int) -> str:
    row = "(" + ", ".join(["%s"] * columns) + ")"
    return f"insert into {table} values {', '.join([row] * rows)}"


def _tx_values(sequences: range) -> list[object]:
    time_, digest = "2026-01-01T00:00:00Z", bytes(32)
    rows = (
        (
            "main",
            n,
            "PAY_IN",
            f"source-{n}",
            "bench",
            digest,
            _ENTRIES_PER_TRANSACTION,
            "",
            None,
            time_,
            time_,
            digest,
            digest,
        )
        for n in sequences
    )
    return [value for row in rows for value in row]


def _entry_values(sequences: range) -> list[object]:
    rows = (
        ("main", n, line, n % 1000 * _ENTRIES_PER_TRANSACTION + line, "EUR", 1000 + line, n)
        for n in sequences
        for line in range(_ENTRIES_PER_TRANSACTION)
    )
    return [value for row in rows for value in row]


async def _measure(
    in_flight: int, seconds: float, print_status: StatusPrinter
) -> dict[str, LoadResult]:
    async with grpc.aio.insecure_channel(_ADDRESS) as channel:
        stub: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        calls = {"spread": _batch_call(stub, _SELLERS), "hot": _batch_call(stub, 1)}
        return await measure_interleaved(calls, in_flight, seconds, print_status)


def _batch_call(stub: Any, sellers: int) -> Call:
    run_id = digest_text(secrets.token_hex(8))[:8]

    async def post_batch(number: int) -> None:
        response = await stub.BatchPost(_request(number, run_id, sellers), timeout=30)
        if any(result.WhichOneof("result") == "error" for result in response.results):
            raise StartupError("A posting was rejected, so the figures would be wrong.")

    return post_batch


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
