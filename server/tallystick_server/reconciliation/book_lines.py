"""Stores what the matched lines of a file change: the postings, and the balance of the account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time

from tallystick_core.ledger.posting_rules import (
    JournalLine,
    PostingKind,
    settlement_lines,
    statement_fee_lines,
    statement_match_lines,
)
from tallystick_core.reconciliation.accounts import is_bank
from tallystick_server.reconciliation.new_posting import new_posting
from tallystick_storage.reconciliation import ledger_items, line_sums, postings
from tallystick_storage.reconciliation.statement_files import FileRow, StatementRow
from tallystick_storage.sql import Connection

_WITH_SETTLEMENT_REFERENCES = frozenset({"stripe_report"})
"""Formats whose lines name their settlement, which is no line of its own."""


def book_lines(
    connection: Connection,
    file: FileRow,
    statements: Sequence[StatementRow],
    sums: Mapping[int, line_sums.LineSums],
    *,
    caller: str,
) -> None:
    """Stores the postings of the matched lines of a file, and adds the lines to their account's
    balance. `sums`: of the lines of each statement, by its number. Raises AMOUNT_OUT_OF_RANGE.
    """
    settlements = _settlements(connection, file)
    booking = _Booking(connection, file, caller)
    postings.insert(
        connection,
        [
            *booking.fee_postings(statements, sums),
            *booking.match_postings(),
            *map(booking.settlement_posting, settlements),
        ],
    )
    amounts = Counter[str]()
    for statement in statements:
        found = sums.get(statement.statement_number)
        if found is not None and found.amount is not None:
            amounts[statement.currency] += int(found.amount)
    for settlement in settlements:
        if not settlement.is_line:
            amounts[settlement.currency] += int(settlement.amount)
    ledger_items.add_statement_sums(connection, file.account, amounts)


def _settlements(connection: Connection, file: FileRow) -> Sequence[line_sums.SettlementSum]:
    if is_bank(file.account):
        return []
    by_reference = file.format in _WITH_SETTLEMENT_REFERENCES
    return line_sums.settlements(connection, file, by_reference=by_reference)


class _Booking:
    """The postings of one file."""

    def __init__(self, connection: Connection, file: FileRow, caller: str) -> None:
        self._connection = connection
        self._file = file
        self._caller = caller

    def fee_postings(
        self, statements: Sequence[StatementRow], sums: Mapping[int, line_sums.LineSums]
    ) -> Iterator[postings.NewPosting]:
        """The fees of matched lines, one posting for each currency."""
        fees = Counter[str]()
        for statement in statements:
            found = sums.get(statement.statement_number)
            if found is not None:
                fees[statement.currency] += int(found.fee)
        for currency, fee in sorted(fees.items()):
            if fee:
                lines = statement_fee_lines(self._file.account, currency, fee)
                yield self._posting(
                    PostingKind.PROVIDER_FEE, f"fees-{currency}", lines, "fees of a statement"
                )

    def match_postings(self) -> Iterator[postings.NewPosting]:
        """The entries that lines match on other accounts than the file's."""
        account = self._file.account
        kind = PostingKind.BANK_STATEMENT_LINE if is_bank(account) else PostingKind.SETTLEMENT
        for index, row in enumerate(line_sums.other_account_sums(self._connection, self._file)):
            lines = statement_match_lines(account, row.account, row.currency, int(row.amount))
            yield self._posting(kind, f"matches-{index}", lines, "matched by a statement")

    def settlement_posting(self, settlement: line_sums.SettlementSum) -> postings.NewPosting:
        """What the provider paid to the bank."""
        posting = self._posting(
            PostingKind.SETTLEMENT,
            f"settlement-{settlement.number}",
            settlement_lines(self._file.account, settlement.currency, -int(settlement.amount)),
            "paid to the bank",
        )
        day = settlement.day or self._connection.begin_time.astimezone(UTC).date()
        posting.external_reference = settlement.reference
        posting.effective_time = datetime.combine(day, time(), UTC)
        return posting

    def _posting(
        self, kind: PostingKind, name: str, lines: Sequence[JournalLine], reason: str
    ) -> postings.NewPosting:
        return new_posting(
            kind,
            f"f{self._file.file_number}-{name}",
            self._file.account,
            lines,
            reason,
            self._caller,
            self._connection.begin_time,
            file_number=self._file.file_number,
        )
