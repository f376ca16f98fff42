"""Converts LedgerService messages to values and back. Parsing validates: a parsed posting can be
booked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tallystick.ledger.v1 import ledger_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.hash_chain import ChainedTransaction
from tallystick_core.ledger.identifiers import TransactionId, parse_account, parse_book
from tallystick_core.ledger.posting import MAX_ENTRIES, Posting, check_balanced
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.money import format_amount, parse_amount, parse_currency
from tallystick_core.validation import parse_id, parse_optional_id, parse_text
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import invalid_page_token
from tallystick_server.rpc.timestamps import parse_time, to_timestamp
from tallystick_storage.ledger.queries import AccountRow, StoredTransaction

KINDS = EnumNames(ledger_pb2.TransactionKind.DESCRIPTOR)
_DIRECTIONS = EnumNames(ledger_pb2.Direction.DESCRIPTOR)
_MAX_DESCRIPTION_LENGTH = 255
_MAX_REFERENCE_LENGTH = 255
_SUM = re.compile(r"\A([A-Z]{3,8})(-?[0-9]{1,38})\Z", re.ASCII)


def stored_posting(transaction: StoredTransaction) -> Posting:
    """The posting of a stored transaction."""
    row = transaction.row
    lines = tuple(
        JournalLine(entry.account, entry.currency, entry.amount) for entry in transaction.entries
    )
    return Posting(
        PostingKind(row.kind),
        row.source_id,
        row.caller,
        lines,
        row.description,
        external_reference=row.external_reference,
        buyer_account=row.buyer_account,
        book=row.book,
    )


def parse_posting(message: pb.Posting) -> Posting:
    """Parses a posting. Raises ApiError with the path of the first invalid field."""
    kind = PostingKind(KINDS.parse(message.kind, "kind"))
    if kind is PostingKind.REVERSAL:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "kind must not be REVERSAL; use ReverseTransaction.",
            field="kind",
        )
    source_id = parse_id(message.source_id, "source_id")
    caller = parse_id(message.caller, "caller")
    if not message.entries:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED, "entries must have at least 2 items.", field="entries"
        )
    if len(message.entries) == 1:
        raise ApiError(
            ErrorReason.ENTRIES_UNBALANCED, "entries must have at least 2 items.", field="entries"
        )
    if len(message.entries) > MAX_ENTRIES:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS,
            f"entries must have at most {MAX_ENTRIES} items.",
            field="entries",
        )
    lines = tuple(_parse_line(entry, index) for index, entry in enumerate(message.entries))
    check_balanced(lines)
    description = parse_text(message.description, "description", _MAX_DESCRIPTION_LENGTH)
    return Posting(
        kind,
        source_id,
        caller,
        lines,
        description,
        parse_time(message, "effective_time"),
        parse_external_reference(message.external_reference),
        parse_optional_id(message.buyer_account, "buyer_account"),
        book=parse_book(message.book),
    )


def parse_external_reference(text: str) -> str:
    """Parses a reference of a provider or bank, or "". It may be all digits, as a card number is:
    the money has moved, so its posting must not fail. Raises FIELD_INVALID.
    """
    if len(text) > _MAX_REFERENCE_LENGTH or "\0" in text:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"external_reference must have at most {_MAX_REFERENCE_LENGTH} characters, and no "
            "U+0000.",
            field="external_reference",
        )
    return text


def _parse_line(entry: ledger_pb2.Entry, index: int) -> JournalLine:
    try:
        account = parse_account(entry.account)
        currency = parse_currency(entry.currency)
        amount = parse_amount(entry.amount, currency)
        credit = _DIRECTIONS.parse(entry.direction, "direction") == "CREDIT"
    except ApiError as error:
        raise error.with_field_prefix(f"entries[{index}]") from None
    return JournalLine(account, currency, amount if credit else -amount)


def new_transaction(item: ChainedTransaction) -> ledger_pb2.Transaction:
    """A transaction that was just posted."""
    posting = item.posting
    message = ledger_pb2.Transaction(
        transaction_id=_transaction_id(posting.book, item.sequence),
        sequence=item.sequence,
        kind=KINDS.number(posting.kind),
        source_id=posting.source_id,
        description=posting.description,
        reverses_transaction_id=_transaction_id(posting.book, posting.reverses),
        effective_time=to_timestamp(item.effective_time),
        post_time=to_timestamp(item.post_time),
        previous_hash=item.previous_hash,
        hash=item.hash,
        caller=posting.caller,
        external_reference=posting.external_reference,
        buyer_account=posting.buyer_account,
    )
    for line, balance in zip(posting.lines, item.balances_after, strict=True):
        _add_entry(message, line.account, line.currency, line.amount, balance)
    return message


def transaction(stored: StoredTransaction) -> ledger_pb2.Transaction:
    """A stored transaction."""
    row = stored.row
    message = ledger_pb2.Transaction(
        transaction_id=_transaction_id(row.book, row.sequence),
        sequence=row.sequence,
        kind=KINDS.number(row.kind),
        source_id=row.source_id,
        description=row.description,
        reverses_transaction_id=_transaction_id(row.book, row.reverses),
        reversed_by_transaction_id=_transaction_id(row.book, row.reversed_by),
        effective_time=to_timestamp(row.effective_time),
        post_time=to_timestamp(row.post_time),
        previous_hash=bytes(row.previous_hash),
        hash=bytes(row.hash),
        caller=row.caller,
        external_reference=row.external_reference,
        buyer_account=row.buyer_account,
    )
    for entry in stored.entries:
        _add_entry(message, entry.account, entry.currency, entry.amount, int(entry.balance_after))
    return message


def _transaction_id(book: str, sequence: int | None) -> str:
    """The id of a transaction; "" if there is none."""
    return str(TransactionId(book, sequence)) if sequence else ""


def _add_entry(
    message: ledger_pb2.Transaction, account: str, currency: str, amount: int, balance: int
) -> None:
    message.entries.add(
        account=account,
        direction=ledger_pb2.DIRECTION_CREDIT if amount > 0 else ledger_pb2.DIRECTION_DEBIT,
        amount=format_amount(abs(amount), currency),
        currency=currency,
        balance_after=format_amount(balance, currency),
    )


def account(row: AccountRow) -> ledger_pb2.Account:
    return ledger_pb2.Account(
        book=row.book,
        account=row.account,
        currency=row.currency,
        balance=format_amount(int(row.balance), row.currency),
        entry_count=row.entry_count,
        create_time=to_timestamp(row.create_time),
    )


def format_sums(sums: Mapping[str, int]) -> str:
    """Encodes sums by currency, in minor units, for a page token."""
    return " ".join(f"{currency}{total}" for currency, total in sorted(sums.items()))


def parse_sums(text: str) -> dict[str, int]:
    """Decodes the text of `format_sums`. Raises PAGE_TOKEN_INVALID."""
    matches = [_SUM.match(part) for part in text.split()]
    if not all(matches):
        raise invalid_page_token()
    return {parse_currency(match[1]): int(match[2]) for match in matches if match}
