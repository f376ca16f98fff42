"""Seconds that a client needs to reconcile a file: from opening it to the reconciled answer. Every
commit is durable.

There are three processes: the client, ReconciliationService, and all other services. The upper
bound is a COPY of the same lines into a table like that of staged lines.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.measure import StatusPrinter
from benchmarks.processes import (
    DATABASE_FOLDER,
    DOWNSTREAM_ADDRESS,
    database_environment,
    read_peak_mb,
    run_services,
)
from benchmarks.reconcile.statement import ACCOUNT, BOOK, parts, statement_items
from tallystick import Client, ClientSettings
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.breaks import BUILT_IN_RULES
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.services import service_names
from tallystick_server.reconciliation.convert import CLASSES, KINDS
from tallystick_server.reconciliation.formats.canonical_csv import write_canonical
from tallystick_server.reconciliation.service import SPEC
from tallystick_storage.reconciliation.ledger_items import ITEM_COLUMNS, OPEN_COLUMNS
from tallystick_storage.reconciliation.statement_files import LINE_COLUMNS

DEFAULT_LINES = 1_000_000
_ADDRESS = "127.0.0.1:7301"
_TOKEN = "operator-operator-operator"
_ENVIRONMENT = {
    "TALLYSTICK_AUTHENTICATION": "tokens",
    "TALLYSTICK_CALLERS": f"operator:operator:{_TOKEN},platform:service:platform-platform-platform",
    "TALLYSTICK_SERVICE_TOKEN": "platform-platform-platform",
}
_OTHER_SERVICES = [name for name in service_names() if name != SPEC.name]
_ADDRESSES = ",".join(f"{name}={DOWNSTREAM_ADDRESS}" for name in _OTHER_SERVICES)
_CLASSES = {str(rule.kind): str(rule.break_class) for rule in BUILT_IN_RULES}
_PARTS = ("check_seconds", "send_seconds", "match_seconds")
_FILE = "statement.csv"
_ROWS_FILE = "lines.copy"
_BLOCK_BYTES = 1 << 18
_STAGED_COLUMNS = f"file_number, {LINE_COLUMNS}"


def bench(lines: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `lines`: of the file."""
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    with open_databases(Settings(), print_status, folder=DATABASE_FOLDER) as database_urls:
        path = DATABASE_FOLDER / _FILE
        write_statement(path, lines)
        seed_ledger(database_urls, lines)
        print_status(f"Wrote {lines} lines, and the ledger's entries")
        environment = {**_ENVIRONMENT, **database_environment(database_urls)}
        addresses = {"TALLYSTICK_SERVICE_ADDRESSES": _ADDRESSES}
        with (
            run_services(_OTHER_SERVICES, environment, DOWNSTREAM_ADDRESS),
            run_services([SPEC.name], {**environment, **addresses}, _ADDRESS) as pid,
        ):
            result = _run_client(path)
            service_mb = read_peak_mb(pid)
            print_status(f"Reconciled in {result['seconds']:.1f} s; reading the breaks")
            with Client(_ADDRESS, settings=ClientSettings(token=_TOKEN)) as client:
                figures = break_figures(client, result["statement_file_id"], lines)
        copy_seconds = _measure_copy(database_urls.admin)
    return {
        "bench": "reconcile",
        "lines": lines,
        "seconds": round(result["seconds"], 2),
        "copy_seconds": round(copy_seconds, 2),
        "ratio": round(copy_seconds / result["seconds"], 4),
        **{name: round(result[name], 2) for name in _PARTS},
        "peak_mb": {"client": result["peak_mb"], "service": service_mb},
        **figures,
    }


def write_statement(path: Path, lines: int) -> None:
    """Writes the file of the provider."""
    with path.open("w", newline="", encoding="utf-8") as file:
        write_canonical(statement_items(lines), file)


def seed_ledger(database_urls: DatabaseUrls, lines: int) -> None:
    """Stores the ledger's entries as if ReconciliationService had read them."""
    with psycopg.connect(database_urls.admin) as connection:
        with connection.cursor().copy(
            f"copy reconciliation.ledger_item ({ITEM_COLUMNS}) from stdin"
        ) as copy:
            for part in parts(lines):
                for item in part.items:
                    copy.write_row(item)
        connection.execute(
            f"insert into reconciliation.open_item ({OPEN_COLUMNS}) "
            f"select {OPEN_COLUMNS} from reconciliation.ledger_item where book = %s "
            "order by sequence, entry_number",
            [BOOK],
        )
        connection.execute(
            "insert into reconciliation.clearing_balance "
            "select account, currency, sum(amount), 0 from reconciliation.open_item "
            "where book = %s group by account, currency",
            [BOOK],
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("vacuum analyze reconciliation.ledger_item, reconciliation.open_item")


def break_figures(client: Client, statement_file_id: str, lines: int) -> dict[str, int]:
    """Compares the breaks of a file with the planted mismatches: how many were `planted`, of how
    many `kinds`, how many were `found`, and how many breaks are `false`, which are all others.
    """
    planted = {(part.key, str(part.kind)) for part in parts(lines) if part.kind is not None}
    request = pb.ListBreaksRequest(statement_file_id=statement_file_id, page_size=200)
    listed = client.pages(client.reconciliation.ListBreaks, request, "breaks")
    found = Counter(
        _identify(
            client.reconciliation.GetBreak(
                pb.GetBreakRequest(break_id=item.break_id)
            ).reconciliation_break
        )
        for item in listed
    )
    found_count = len(planted & found.keys())
    return {
        "planted": len(planted),
        "kinds": len({kind for _, kind in planted}),
        "found": found_count,
        "false": found.total() - found_count,
    }


def _identify(found: reconciliation_pb2.Break) -> tuple[str, str]:
    """The key and the kind of a break. The kind is empty if the break has another class than the
    rule of its kind.
    """
    key = found.lines[0].line.reference if found.lines else found.ledger_items[0].source_id
    kind = KINDS.parse(found.kind, "kind")
    return key, kind if CLASSES.parse(found.break_class, "break_class") == _CLASSES[kind] else ""


def _run_client(path: Path) -> dict[str, Any]:
    arguments = [_ADDRESS, _TOKEN, ACCOUNT, str(path)]
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.reconcile.client", *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def _measure_copy(admin_url: str) -> float:
    """Returns the seconds of a COPY of the lines, as rows of text, into a durable table like that
    of staged lines.
    """
    rows = DATABASE_FOLDER / _ROWS_FILE
    seconds = []
    with psycopg.connect(admin_url) as connection:
        _export_rows(connection, rows)
        for number in (1, 2):
            connection.execute(
                f"create table copied_line_{number} (like reconciliation.staged_line including all)"
            )
            connection.commit()
            start = time.perf_counter()
            with connection.cursor().copy(
                f"copy copied_line_{number} ({_STAGED_COLUMNS}) from stdin"
            ) as copy:
                for block in _blocks(rows):
                    copy.write(block)
            connection.commit()
            seconds.append(time.perf_counter() - start)
    return sum(seconds) / len(seconds)


def _export_rows(connection: psycopg.Connection[Any], path: Path) -> None:
    with (
        path.open("wb") as file,
        connection.cursor().copy(
            f"copy (select {_STAGED_COLUMNS} from reconciliation.statement_line "
            "order by file_number, number) to stdout"
        ) as copy,
    ):
        for block in copy:
            file.write(block)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
