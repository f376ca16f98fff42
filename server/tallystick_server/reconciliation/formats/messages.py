"""The items of a statement as messages of the API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import file_digest, sha256
from pathlib import Path

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.packed_lines import LineBlock, pack
from tallystick_core.reconciliation.statement import (
    StatementEnd,
    StatementItem,
    StatementStart,
    masked_account,
)
from tallystick_server.reconciliation.formats.line_blocks import (
    format_date,
    format_optional_amount,
    in_blocks,
)


def content_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()


def file_id(account: str, digest: str) -> str:
    """The id of the file of an account with this content, so a repeat has the same."""
    return sha256(f"{account} {digest}".encode()).hexdigest()[:32]


def create_request(
    file_name: str, digest: str, format_name: str, account: str, difference_reason: str = ""
) -> pb.CreateStatementFileRequest:
    """The request that creates a file."""
    return pb.CreateStatementFileRequest(
        statement_file_id=file_id(account, digest),
        file_name=file_name,
        content_sha256=digest,
        format=format_name,
        account=account,
        difference_reason=difference_reason,
    )


def to_messages(items: Iterable[StatementItem | LineBlock]) -> Iterator[pb.StatementItem]:
    """The items as messages, one at a time. Consecutive lines are one item."""
    currency = ""
    for item in in_blocks(items):
        match item:
            case LineBlock():
                rows = pack(item.columns)
                yield pb.StatementItem(lines=reconciliation_pb2.StatementLines(rows=rows))
            case StatementStart():
                currency = item.currency
                yield pb.StatementItem(start=_start(item))
            case StatementEnd():
                yield pb.StatementItem(end=_end(item, currency))


def _start(start: StatementStart) -> reconciliation_pb2.StatementStart:
    return reconciliation_pb2.StatementStart(
        line_number=start.line_number,
        masked_account=masked_account(start.account),
        currency=start.currency,
        statement_id=start.statement_id,
        opening_balance=format_optional_amount(start.opening_balance, start.currency),
        opening_date=format_date(start.opening_date),
    )


def _end(end: StatementEnd, currency: str) -> reconciliation_pb2.StatementEnd:
    return reconciliation_pb2.StatementEnd(
        line_number=end.line_number,
        line_count=end.line_count,
        total=format_amount(end.total, currency),
        closing_balance=format_optional_amount(end.closing_balance, currency),
        closing_date=format_date(end.closing_date),
    )
