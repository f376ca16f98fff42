"""Helpers for tests of the commands of reconciliation: files, and who runs a command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.statement import (
    LineType,
    OpenStatement,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats.canonical_csv import write_canonical
from tests.support.reconciliation import DAY

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs a command with these arguments; `name`: as this operator."""


def file_line(
    amount: int, charge_reference: str = "", line_type: LineType = LineType.CHARGE, **values: Any
) -> StatementLine:
    """A line in EUR of the usual day. `values`: its other fields."""
    return StatementLine(
        line_number=2,
        line_type=line_type,
        code=line_type.lower(),
        amount=amount,
        currency="EUR",
        booking_date=DAY.date(),
        charge_reference=charge_reference,
        **values,
    )


def write_statement(
    folder: Path,
    lines: Sequence[StatementLine],
    name: str = "november.csv",
    difference: int | None = None,
) -> str:
    """The path of a file with one statement. `difference`: what its closing balance has more than
    its lines; None: it has no balances.
    """
    day = None if difference is None else DAY.date()
    account = sha256(str(folder).encode()).hexdigest()  # no other test has the same content
    opening = None if difference is None else 0
    start = StatementStart(1, account, "EUR", opening_balance=opening, opening_date=day)
    statement = OpenStatement(start)
    for line in lines:
        statement.add(line)
    closing = None if difference is None else sum(line.amount for line in lines) + difference
    folder.mkdir(exist_ok=True)
    path = folder / name
    with path.open("w", encoding="utf-8") as file:
        write_canonical([start, *lines, statement.end(len(lines) + 2, closing, day)], file)
    return str(path)


def files_of(client: Client, account: str) -> list[reconciliation_pb2.StatementFile]:
    """The files of an account as a whole, newest first."""
    request = pb.ListStatementFilesRequest(account=account)
    files = client.pages(client.reconciliation.ListStatementFiles, request, "statement_files")
    return [
        client.reconciliation.GetStatementFile(
            pb.GetStatementFileRequest(statement_file_id=file.statement_file_id)
        ).statement_file
        for file in files
    ]
