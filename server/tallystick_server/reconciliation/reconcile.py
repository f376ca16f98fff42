"""Compares a statement file with the ledger, in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

from tallystick_core.approval import needs_approval
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.reconciliation.accounts import is_bank, matched_accounts
from tallystick_core.reconciliation.balances import (
    NewStatement,
    StatementBalances,
    compare_balances,
)
from tallystick_core.reconciliation.breaks import (
    KINDS_ENDED_BY_BOOKING,
    BreakClass,
    BreakKind,
    BreakState,
    Resolution,
    Rules,
)
from tallystick_core.reconciliation.classify import (
    FoundBreak,
    OpenItem,
    UnmatchedLine,
    classify_lines,
    find_agreeing,
    missing_in_file,
    our_id,
)
from tallystick_core.reconciliation.statement import LineType
from tallystick_server.observability import names
from tallystick_server.reconciliation.book_lines import book_lines
from tallystick_server.reconciliation.break_resolution import (
    PLATFORM,
    match_together,
    resolve_by_platform,
)
from tallystick_server.reconciliation.convert import difference_of
from tallystick_server.reconciliation.events import record_break_changes
from tallystick_server.reconciliation.rules import load_rules
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import (
    ledger_items,
    line_sums,
    matching,
    open_items,
    statement_balances,
    unmatched,
)
from tallystick_storage.reconciliation import statement_files as file_store
from tallystick_storage.sql import Connection

_LineSums = Mapping[int, line_sums.LineSums]
_GAP = "the opening balance is not the last closing balance"
_DRIFT = "the closing balance has changed by another amount than the new lines"
log = logging.getLogger(__name__)
MAX_BREAKS = 50_000
"""Lines that match nothing, or entries that no file has, beyond which a file is unusual."""
MAX_NAMING_LINES = 100_000
"""Of a file that differ from the entries that they name: as many as memory is for."""
_PAGE = 500
_REST_PAGE = 5_000


class Reconciliation:
    """One comparison of a locked file with the ledger, as far as the ledger was read."""

    def __init__(
        self,
        connection: Connection,
        file: file_store.FileRow,
        thresholds: Mapping[str, int],
        caller: str,
        traceparent: str,
    ) -> None:
        self._connection = connection
        self._file = file
        self._thresholds = thresholds
        self._caller = caller
        self._traceparent = traceparent
        self._is_bank = is_bank(file.account)
        self._accounts = matched_accounts(file.account)
        self._last_number = 0
        """Of the lines that are in breaks because they name no entry."""

    def run(self) -> None:
        """Matches all lines, opens the breaks of the others, and stores what is to be posted.
        Raises FIELD_INVALID if far too many lines match nothing.
        """
        connection, file = self._connection, self._file
        matching.allow_big_statements(connection)
        ledger_items.lock_items(connection, BOOK)
        rules = load_rules(connection)
        limits = matching.MatchLimits(
            rules[BreakKind.DATE_DIFFERS].limit, rules[BreakKind.FEE_DIFFERS].limit
        )
        rest_count = matching.match(connection, file, self._accounts, limits, is_bank=self._is_bank)
        if rest_count > MAX_BREAKS:
            self._require_matches()
        self._end_naming(rules)
        while rest := self._list_rest():
            self._open_breaks(classify_lines(rest, self._find_failed(rest), rules), rules)
        self._end_cancelled()
        statements = file_store.statements_of(connection, file)
        sums = line_sums.sum_lines(connection, file)
        if not self._is_bank:
            self._open_overdue(statements, sums, rules)
        self._open_balance_breaks(statements, sums, rules)
        book_lines(connection, file, statements, sums, caller=self._caller)
        file_store.store_result(
            connection,
            file,
            sum(row.matched_count for row in sums.values()),
            sum(row.repeated_count for row in sums.values()),
        )

    def _require_matches(self) -> None:
        """Raises FIELD_INVALID if it is the wrong file: most lines match nothing. Refunds, for
        example, never match, so they do not count.
        """
        counts = unmatched.count_lines(self._connection, self._file)
        if counts.unmatched_count > max(MAX_BREAKS, counts.line_count // 2):
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"statement_file_id must be a file of {self._file.account}: of its "
                f"{counts.line_count} charges, payouts, returns and bank entries "
                f"{counts.unmatched_count} match nothing, and at most half of them may.",
                field="statement_file_id",
            )

    def _end_naming(self, rules: Rules) -> None:
        """Deals with the lines that name entries which no pass has matched: both are in memory."""
        rows = unmatched.list_naming(
            self._connection,
            self._file,
            self._accounts,
            MAX_NAMING_LINES + 1,
            is_bank=self._is_bank,
        )
        if len(rows) > MAX_NAMING_LINES:
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"statement_file_id must be a file of {self._file.account}: more than "
                f"{MAX_NAMING_LINES} of its lines name entries of the ledger and differ from them.",
                field="statement_file_id",
            )
        lines = [_to_line(row) for row in rows]
        late = self._end_missing(lines, rules)
        lines = [line for line in lines if line.number not in late]
        items = self._find_items(lines)
        agreeing = find_agreeing(lines, items, rules)
        for start in range(0, len(agreeing), _PAGE):
            self._store_matches(agreeing[start : start + _PAGE])
        matched = {line.number for found, _ in agreeing for line in found}
        taken = {_key(item) for _, found in agreeing for item in found}
        self._open_breaks(
            classify_lines(
                [line for line in lines if line.number not in matched],
                [item for item in items if _key(item) not in taken],
                rules,
            ),
            rules,
        )

    def _store_matches(
        self, groups: Sequence[tuple[Sequence[UnmatchedLine], Sequence[OpenItem]]]
    ) -> None:
        """Stores lines and entries that agree, although each line names them by another key."""
        unmatched.store_matches(
            self._connection,
            self._file,
            [(line.number, lines[0].number) for lines, _ in groups for line in lines],
            [(_key(item), lines[0].number) for lines, items in groups for item in items],
        )

    def _list_rest(self) -> list[UnmatchedLine]:
        """The next lines that name no entry: each is a break."""
        rows = unmatched.list_rest(
            self._connection, self._file, self._accounts, self._last_number, _REST_PAGE
        )
        if rows:
            self._last_number = rows[-1].number
        return [_to_line(row) for row in rows]

    def _end_missing(self, rest: Sequence[UnmatchedLine], rules: Rules) -> set[int]:
        """Adds lines that come late to the breaks that their entries opened, which ends these.
        Returns the numbers of the lines.
        """
        if not rest:
            return set()
        rows = break_store.lock_missing(self._connection, self._file.account, *_names(rest))
        break_ids = {_key(row): row.break_id for row in rows}
        groups = [
            ([line.number for line in lines], sorted({break_ids[_key(item)] for item in items}))
            for lines, items in find_agreeing(rest, map(self._to_item, rows), rules)
        ]
        for start in range(0, len(groups), _PAGE):
            self._end_page(groups[start : start + _PAGE])
        return {number for numbers, _ in groups for number in numbers}

    def _end_page(self, groups: Sequence[tuple[Sequence[int], Sequence[str]]]) -> None:
        """Moves lines into the first of their breaks, and resolves those."""
        connection = self._connection
        unmatched.store_break_lines(
            connection,
            self._file,
            [(number, ids[0]) for numbers, ids in groups for number in numbers],
        )
        reason = "a later file has it"
        single = [ids[0] for _, ids in groups if len(ids) == 1]
        if single:
            resolve_by_platform(connection, single, Resolution.MATCH, reason, self._traceparent)
        for _, ids in groups:
            if len(ids) > 1:
                found = break_store.find(connection, ids)
                rows = [found[break_id] for break_id in ids]
                match_together(connection, rows, PLATFORM, reason, self._traceparent)

    def _end_cancelled(self) -> None:
        """Ends breaks of a charge or transfer that was taken back before the ledger had it: their
        lines cancel each other out.
        """
        connection, file = self._connection, self._file
        for ids in break_store.list_cancelled(
            connection, file.account, file.file_number, KINDS_ENDED_BY_BOOKING
        ):
            # an operator may be deciding on them
            rows = list(break_store.lock_unlocked(connection, ids).values())
            if len(rows) < len(ids) or any(row.state != BreakState.OPEN for row in rows):
                continue
            reason = "the lines cancel each other out"
            match_together(connection, rows, PLATFORM, reason, self._traceparent)

    def _find_items(self, lines: Sequence[UnmatchedLine]) -> list[OpenItem]:
        references, source_ids = _names(lines)
        rows = open_items.find_items(
            self._connection, self._accounts, references, source_ids, is_bank=self._is_bank
        )
        return [self._to_item(row) for row in rows]

    def _find_failed(self, rest: Sequence[UnmatchedLine]) -> list[OpenItem]:
        """The settlements that lines take back before a bank has them."""
        kind = LineType.SETTLEMENT_FAILURE
        references, _ = _names(line for line in rest if line.line_type is kind)
        rows = open_items.list_settlements(self._connection, self._file.account, references)
        return [replace(self._to_item(row), line_type=kind) for row in rows]

    def _open_overdue(
        self, statements: Sequence[file_store.StatementRow], sums: _LineSums, rules: Rules
    ) -> None:
        """Opens breaks of the entries that should have come with these statements of a provider.
        What a bank statement has is on accounts that other banks share. If they are very many, the
        oldest come first: the next file opens the others.
        """
        days = rules[BreakKind.MISSING_IN_FILE].limit
        last_days: dict[str, datetime] = {}
        today = self._connection.begin_time.astimezone(UTC).date()
        for statement in statements:
            line_sums = sums.get(statement.statement_number)
            day = statement.closing_date or (line_sums.last_day if line_sums else None)
            if day is not None:
                end = datetime.combine(min(day, today), time(), UTC) - timedelta(days=days - 1)
                last_days[statement.currency] = max(end, last_days.get(statement.currency, end))
        for currency, until in sorted(last_days.items()):
            rows = open_items.list_overdue(
                self._connection, self._file.account, currency, until, MAX_BREAKS + 1
            )
            if len(rows) > MAX_BREAKS:
                log.warning(
                    "more than %d entries of %s in %s are in no file; the next file opens more",
                    MAX_BREAKS,
                    self._file.account,
                    currency,
                    extra=names.ENTRIES_MISSING.extra,
                )
            found = [missing_in_file(self._to_item(row)) for row in rows[:MAX_BREAKS]]
            self._open_breaks(found, rules)

    def _to_item(self, row: ledger_items.ItemRow | break_store.BreakItemRow) -> OpenItem:
        line_type = LineType.BANK_ENTRY if self._is_bank else LineType(row.line_type)
        return OpenItem(
            row.sequence,
            row.entry_number,
            line_type,
            row.account,
            row.currency,
            row.amount,
            row.effective_time.astimezone(UTC).date(),
            row.external_reference,
            row.source_id,
            row.book,
        )

    def _open_breaks(self, found: Sequence[FoundBreak], rules: Rules) -> None:
        """Stores breaks, and resolves those at once whose cause and remedy are known."""
        for start in range(0, len(found), _PAGE):
            page = {_break_id(self._file, item): item for item in found[start : start + _PAGE]}
            self._insert(
                [self._new_break(break_id, item, rules) for break_id, item in page.items()]
            )
            unmatched.store_break_lines(
                self._connection,
                self._file,
                [(line.number, break_id) for break_id, item in page.items() for line in item.lines],
            )
            open_items.store_break_items(
                self._connection,
                [
                    (_key(entry), break_id)
                    for break_id, item in page.items()
                    for entry in item.items
                ],
            )
            self._adjust_roundings(page, rules)

    def _adjust_roundings(self, found: Mapping[str, FoundBreak], rules: Rules) -> None:
        """Adjusts roundings, unless a second person must approve them."""
        small_ids = [
            break_id
            for break_id, item in found.items()
            if item.kind is BreakKind.ROUNDING
            and not needs_approval(abs(item.difference), item.currency, self._thresholds)
        ]
        if not small_ids or rules[BreakKind.ROUNDING].break_class is not BreakClass.AUTOMATIC:
            return
        reason = f"rule {BreakKind.ROUNDING} {rules[BreakKind.ROUNDING].version}"
        resolve_by_platform(
            self._connection, small_ids, Resolution.ADJUST, reason, self._traceparent
        )

    def _open_balance_breaks(
        self, statements: Sequence[file_store.StatementRow], sums: _LineSums, rules: Rules
    ) -> None:
        """Breaks about balances: they have neither lines nor entries."""
        connection, file = self._connection, self._file
        balances = ledger_items.statement_balances(connection, file.account)
        new = [_new_statement(file, statement, sums, balances) for statement in statements]
        earlier = statement_balances.earlier_balances(connection, file.account, file.file_number)
        differences = compare_balances(earlier, new)
        statement_balances.store_statement_balances(
            connection,
            file.file_number,
            {
                item.balances.statement_number: item.balances.statement_balance
                for item in new
                if item.balances.statement_balance is not None
            },
        )
        accepted = f"balances and lines differ, accepted: {file.difference_reason}"
        self._insert(
            [
                self._new_break(
                    f"f{file.file_number}-{name}{item.balances.statement_number}",
                    FoundBreak(kind, item.balances.currency, value, detail),
                    rules,
                )
                for item in new
                for found in [differences[item.balances.statement_number]]
                for name, kind, value, detail in (
                    ("g", BreakKind.BALANCE_GAP, found.gap, _GAP),
                    ("d", BreakKind.BALANCE_DIFFERS, item.difference, accepted),
                    ("b", BreakKind.BALANCE_DIFFERS, found.drift, _DRIFT),
                )
                if value
            ]
        )

    def _new_break(self, break_id: str, found: FoundBreak, rules: Rules) -> break_store.NewBreak:
        rule = rules[found.kind]
        return break_store.NewBreak(
            break_id,
            found.kind,
            rule.version,
            rule.break_class,
            self._file.account,
            found.currency,
            str(found.difference),
            found.detail,
            self._file.file_number,
            self._file.statement_file_id,
        )

    def _insert(self, new: Sequence[break_store.NewBreak]) -> None:
        if new:
            rows = break_store.insert(
                self._connection, new, PLATFORM, self._traceparent, self._connection.begin_time
            )
            record_break_changes(self._connection, rows, PLATFORM, self._traceparent)


def _to_line(row: unmatched.RestLine) -> UnmatchedLine:
    return UnmatchedLine(
        row.number,
        LineType(row.line_type),
        row.currency,
        row.amount,
        row.fee,
        row.booking_date,
        row.reference,
        row.charge_reference,
        row.client_reference,
        row.is_correction,
        row.is_repeated,
        row.settlement_reference,
        row.is_charge_taken,
        row.is_order_taken,
    )


def _new_statement(
    file: file_store.FileRow,
    statement: file_store.StatementRow,
    sums: _LineSums,
    balances: dict[str, int],
) -> NewStatement:
    """A statement to compare. Adds its new lines to the balances of the account by currency."""
    found = sums.get(statement.statement_number)
    amount = int(found.amount) if found is not None and found.amount is not None else 0
    balance = balances[statement.currency] = balances.get(statement.currency, 0) + amount
    return NewStatement(
        StatementBalances(
            file.file_number,
            statement.statement_number,
            statement.currency,
            statement.opening_balance,
            statement.opening_date,
            statement.closing_balance,
            statement.closing_date,
            balance if statement.closing_balance is not None else None,
        ),
        amount,
        difference_of(statement),
    )


def _names(lines: Iterable[UnmatchedLine]) -> tuple[list[str], list[str]]:
    """The references that lines have, and the ids of ours."""
    references, source_ids = set(), set()
    for line in lines:
        references |= {line.reference, line.charge_reference, line.settlement_reference}
        source_ids.add(our_id(line.line_type, line.client_reference))
    return sorted(references - {""}), sorted(source_ids - {""})


def _key(item: OpenItem | break_store.BreakItemRow) -> ledger_items.ItemKey:
    return ledger_items.ItemKey(item.book, item.sequence, item.entry_number)


def _break_id(file: file_store.FileRow, found: FoundBreak) -> str:
    """The id of a break: of its first line, or of its entry."""
    if found.lines:
        return f"f{file.file_number}-{found.lines[0].number}"
    item = found.items[0]
    return break_store.id_of_entry(item.book, item.sequence, item.entry_number)
