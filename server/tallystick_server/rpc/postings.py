"""Builds posting requests for LedgerService."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.money import format_amount
from tallystick_server.rpc.enums import EnumNames

_KINDS = EnumNames(ledger_pb2.TransactionKind.DESCRIPTOR)


def add_posting(
    request: ledger_service_pb2.BatchPostRequest,
    kind: PostingKind,
    source_id: str,
    caller: str,
    lines: Iterable[JournalLine],
    external_reference: str = "",
    effective_time: Timestamp | None = None,
    buyer_account: str = "",
    description: str = "",
) -> None:
    """Adds a posting to the request. Reference and time must be stored values: a repeat with others
    is rejected.
    """
    posting = request.postings.add(
        kind=_KINDS.number(kind),
        source_id=source_id,
        caller=caller,
        external_reference=external_reference,
        effective_time=effective_time,
        buyer_account=buyer_account,
        description=description,
    )
    for line in lines:
        posting.entries.add(
            account=line.account,
            direction=ledger_pb2.DIRECTION_CREDIT
            if line.amount > 0
            else ledger_pb2.DIRECTION_DEBIT,
            amount=format_amount(abs(line.amount), line.currency),
            currency=line.currency,
        )
