"""What the console needs of a reader of statement files, which knows the formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb


class UnreadableStatement(Exception):
    """A file that cannot be used. The text is for people: what was expected, and where."""


@dataclass(frozen=True, slots=True)
class ReadStatement:
    """A file that was read without an error, as the requests that store it."""

    create: pb.CreateStatementFileRequest
    chunks: Sequence[pb.BatchAddStatementItemsRequest]
    item_count: int


StatementReader = Callable[[str, bytes, str, str], ReadStatement]
"""Reads a file: its name, its content, the ledger account that it is about, and why its balances
and lines may differ ("": they must not). Raises UnreadableStatement. It takes its time: call it
in a thread.
"""
