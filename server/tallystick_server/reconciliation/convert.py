"""Converts ReconciliationService messages to values and back. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from uuid import UUID

from tallystick.money.v1 import money_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.card_numbers import contains_card_number
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import (
    MAX_BALANCE,
    format_amount,
    parse_currency,
    parse_signed_amount,
)
from tallystick_core.reconciliation.accounts import (
    is_bank,
    line_types_of_account,
    parse_statement_account,
)
from tallystick_core.reconciliation.breaks import BreakRule
from tallystick_core.reconciliation.identity import line_identity
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    MAX_REFERENCE_LENGTH,
    MAX_TEXT_LENGTH,
    is_statement_date,
)
from tallystick_core.validation import parse_id, parse_text
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import postings as posting_store
from tallystick_storage.reconciliation import statement_files as file_store
from tallystick_storage.reconciliation import statement_lines as line_store
from tallystick_storage.reconciliation.ledger_items import ItemRow

LINE_TYPES = EnumNames(reconciliation_pb2.LineType.DESCRIPTOR)
FILE_STATES = EnumNames(reconciliation_pb2.StatementFileState.DESCRIPTOR)
OUTCOMES = EnumNames(reconciliation_pb2.LineOutcome.DESCRIPTOR)
CLASSES = EnumNames(reconciliation_pb2.BreakClass.DESCRIPTOR)
KINDS = EnumNames(reconciliation_pb2.BreakKind.DESCRIPTOR)
STATES = EnumNames(reconciliation_pb2.BreakState.DESCRIPTOR)
RESOLUTIONS = EnumNames(reconciliation_pb2.Resolution.DESCRIPTOR)

_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z", re.ASCII)
_DATE = re.compile(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_MAX_LINE_NUMBER = 10**12


def parse_file(request: pb.CreateStatementFileRequest, caller: str) -> file_store.NewFile:
    """A file to create. Raises FIELD_REQUIRED, FIELD_INVALID."""
    if _SHA256.match(request.content_sha256) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "content_sha256 must be 64 lower-case hexadecimal digits.",
            field="content_sha256",
        )
    name = parse_text(request.file_name, "file_name", 255)
    if not name.strip() or "/" in name or "\\" in name:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "file_name must be the name of the file, without a folder.",
            field="file_name",
        )
    return file_store.NewFile(
        parse_id(request.statement_file_id, "statement_file_id"),
        name,
        request.content_sha256,
        parse_id(request.format, "format"),
        parse_statement_account(request.account, "account"),
        parse_text(request.difference_reason, "difference_reason", 255),
        caller,
    )


def parse_start(
    message: reconciliation_pb2.StatementStart, statement_number: int
) -> file_store.StatementRow:
    """A statement that begins. Raises FIELD_INVALID, CURRENCY_UNKNOWN, AMOUNT_INVALID."""
    currency = parse_currency(message.currency)
    opening = message.opening_balance
    return file_store.StatementRow(
        statement_number,
        _parse_line_number(message.line_number),
        parse_text(message.masked_account, "masked_account", 64),
        currency,
        _parse_plain(message.statement_id, "statement_id", MAX_REFERENCE_LENGTH),
        parse_signed_amount(opening, currency, "opening_balance", MAX_BALANCE) if opening else None,
        parse_date(message.opening_date, "opening_date"),
    )


def parse_line(
    message: reconciliation_pb2.StatementLine,
    account: str,
    statement_currency: str,
    number: int,
    statement_number: int,
) -> file_store.NewLine:
    """A line of a statement. `number`: its position in the file. Raises FIELD_INVALID,
    CURRENCY_UNKNOWN, AMOUNT_INVALID.
    """
    currency = parse_currency(message.currency)
    if currency != statement_currency:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"currency must be {statement_currency}, that of its statement.",
            field="currency",
        )
    original_currency = (
        parse_currency(message.original_currency) if message.original_currency else ""
    )
    if bool(original_currency) != bool(message.original_amount):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "original_amount and original_currency must both be set, or neither.",
            field="original_amount",
        )
    line_type = LINE_TYPES.parse(message.line_type, "line_type")
    if line_type not in line_types_of_account(account):
        rule = "must be BANK_ENTRY" if is_bank(account) else "must not be BANK_ENTRY"
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"line_type {rule}: the file is about the account {account}.",
            field="line_type",
        )
    amount = parse_signed_amount(message.amount, currency)
    fee = parse_signed_amount(message.fee, currency, "fee") if message.fee else 0
    code = _parse_plain(message.code, "code", MAX_REFERENCE_LENGTH)
    line_text = _parse_line_text(message.text)
    identity = line_identity(
        account,
        line_type,
        currency,
        amount,
        fee,
        message.booking_date,
        message.reference,
        message.charge_reference,
        message.settlement_reference,
        message.value_date,
        code,
        line_text,
    )
    return file_store.NewLine(
        number,
        statement_number,
        _parse_line_number(message.line_number),
        line_type,
        code,
        amount,
        currency,
        fee,
        parse_date(message.booking_date, "booking_date"),
        parse_date(message.value_date, "value_date"),
        _parse_plain(message.reference, "reference", MAX_REFERENCE_LENGTH),
        _parse_plain(message.charge_reference, "charge_reference", MAX_REFERENCE_LENGTH),
        _parse_plain(message.client_reference, "client_reference", MAX_REFERENCE_LENGTH),
        _parse_plain(message.settlement_reference, "settlement_reference", MAX_REFERENCE_LENGTH),
        parse_signed_amount(message.original_amount, original_currency, "original_amount")
        if original_currency
        else None,
        original_currency,
        line_text,
        UUID(identity),
        1,
    )


def end_statement(
    row: file_store.StatementRow, message: reconciliation_pb2.StatementEnd, *, accepts: bool
) -> None:
    """Ends a statement whose lines were counted. `accepts`: a person accepted a difference. Raises
    FIELD_INVALID if counts or sums differ.
    """
    total = parse_signed_amount(message.total, row.currency, "total", MAX_BALANCE)
    closing = message.closing_balance
    row.closing_balance = (
        parse_signed_amount(closing, row.currency, "closing_balance", MAX_BALANCE)
        if closing
        else None
    )
    row.closing_date = parse_date(message.closing_date, "closing_date")
    if message.line_count != row.line_count:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"line_count must be {row.line_count}, the number of lines of the statement.",
            field="line_count",
        )
    if total != row.total:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"total must be {format_amount(row.total, row.currency)}, the sum of the lines of the "
            "statement.",
            field="total",
        )
    difference = difference_of(row)
    if difference and not accepts:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "closing_balance must be the opening balance and the lines; they differ by "
            f"{format_amount(difference, row.currency)} {row.currency}. Set difference_reason to "
            "accept that.",
            field="closing_balance",
        )
    row.is_ended = True


def difference_of(row: file_store.StatementRow) -> int:
    """What the closing balance of a statement has more than its opening balance and lines; 0: one
    of them is not known.
    """
    if row.opening_balance is None or row.closing_balance is None:
        return 0
    return row.closing_balance - row.opening_balance - row.total


def _parse_line_number(number: int) -> int:
    if not 1 <= number <= _MAX_LINE_NUMBER:
        raise ApiError(
            ErrorReason.FIELD_INVALID, "line_number must be 1 or more.", field="line_number"
        )
    return number


def _parse_plain(text: str, field: str, max_length: int) -> str:
    """A word or a reference of a file. It is the bank's, so digits are no card number."""
    if len(text) > max_length or "\0" in text:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must have at most {max_length} characters, and no U+0000.",
            field=field,
        )
    return text


def _parse_line_text(text: str) -> str:
    """What a line says to a person: withheld if it has a card number, which is never stored."""
    plain = _parse_plain(text, "text", MAX_TEXT_LENGTH)
    return "(withheld: it has a card number)" if contains_card_number(plain) else plain


def parse_date(text: str, field: str) -> date | None:
    """A date as YYYY-MM-DD; None: there is none. Raises FIELD_INVALID."""
    if not text:
        return None
    error = ApiError(
        ErrorReason.FIELD_INVALID,
        f"{field} must be a date as YYYY-MM-DD, {DATE_RANGE}.",
        field=field,
    )
    if _DATE.match(text) is None:
        raise error
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise error from None
    if not is_statement_date(day):
        raise error
    return day


def file(
    row: file_store.FileRow,
    counts: Sequence[break_store.KindCount] = (),
    sums: Sequence[posting_store.PostedSum] = (),
) -> reconciliation_pb2.StatementFile:
    """A statement file."""
    return reconciliation_pb2.StatementFile(
        statement_file_id=row.statement_file_id,
        file_name=row.file_name,
        content_sha256=row.content_sha256,
        format=row.format,
        account=row.account,
        state=FILE_STATES.number(row.state),
        line_count=row.line_count if row.reconcile_time else 0,
        matched_count=row.matched_count,
        repeated_count=row.repeated_count,
        break_counts=[
            reconciliation_pb2.BreakCount(
                kind=KINDS.number(item.kind),
                break_class=CLASSES.number(item.break_class),
                count=item.count,
            )
            for item in counts
        ],
        difference_reason=row.difference_reason,
        caller=row.caller,
        create_time=to_timestamp(row.create_time),
        reconcile_time=to_optional_timestamp(row.reconcile_time),
        posted_sums=[
            reconciliation_pb2.PostedSum(
                kind=item.kind,
                currency=item.currency,
                count=item.count,
                amount=format_amount(int(item.amount), item.currency),
            )
            for item in sums
        ],
    )


def line(row: line_store.LineRow) -> reconciliation_pb2.ReconciledLine:
    """A line of a reconciled file."""
    return reconciliation_pb2.ReconciledLine(
        statement_file_id=row.statement_file_id,
        number=row.number,
        line=reconciliation_pb2.StatementLine(
            line_number=row.line_number,
            line_type=LINE_TYPES.number(row.line_type),
            code=row.code,
            amount=format_amount(row.amount, row.currency),
            currency=row.currency,
            fee=format_amount(row.fee, row.currency) if row.fee else "",
            booking_date=row.booking_date.isoformat() if row.booking_date else "",
            value_date=row.value_date.isoformat() if row.value_date else "",
            reference=row.reference,
            charge_reference=row.charge_reference,
            client_reference=row.client_reference,
            settlement_reference=row.settlement_reference,
            original_amount=format_amount(row.original_amount, row.original_currency)
            if row.original_amount is not None
            else "",
            original_currency=row.original_currency,
            text=row.text,
        ),
        outcome=OUTCOMES.number(row.outcome),
        match_rule=row.match_rule,
        break_id=row.break_id or "",
        first_statement_file_id=row.first_statement_file_id or "",
    )


def item(row: break_store.BreakItemRow | ItemRow) -> reconciliation_pb2.LedgerItem:
    """A ledger entry on a clearing account."""
    return reconciliation_pb2.LedgerItem(
        transaction_id=f"{row.book}-{row.sequence}",
        account=row.account,
        amount=format_amount(row.amount, row.currency),
        currency=row.currency,
        kind=row.kind,
        source_id=row.source_id,
        external_reference=row.external_reference,
        effective_time=to_timestamp(row.effective_time),
        entry_number=row.entry_number,
    )


def reconciliation_break(
    row: break_store.BreakRow, transaction_id: str = ""
) -> reconciliation_pb2.Break:
    """A break, without its lines, ledger entries and history."""
    return reconciliation_pb2.Break(
        break_id=row.break_id,
        kind=KINDS.number(row.kind),
        break_class=CLASSES.number(row.break_class),
        rule_version=row.rule_version,
        state=STATES.number(row.state),
        account=row.account,
        difference=format_amount(int(row.difference), row.currency),
        currency=row.currency,
        detail=row.detail,
        assignee=row.assignee,
        resolution=RESOLUTIONS.number(row.resolution),
        transaction_id=transaction_id,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
        statement_file_id=row.statement_file_id,
    )


def change(row: break_store.ChangeRow) -> reconciliation_pb2.BreakChange:
    """A change of a break."""
    return reconciliation_pb2.BreakChange(
        version=row.version,
        action=row.action,
        caller=row.caller,
        reason=row.reason,
        create_time=to_timestamp(row.create_time),
        resolution=RESOLUTIONS.number(row.resolution),
        assignee=row.assignee,
    )


def rule(row: BreakRule, stored: break_store.RuleRow | None) -> reconciliation_pb2.BreakRule:
    """A rule. `stored` None: it is built in."""
    return reconciliation_pb2.BreakRule(
        kind=KINDS.number(row.kind),
        version=row.version,
        break_class=CLASSES.number(row.break_class),
        limit=row.limit,
        caller=stored.caller if stored else "tallystick",
        reason=stored.reason if stored else "built in",
        create_time=to_timestamp(stored.create_time) if stored else None,
    )


def clearing_accounts(
    report: posting_store.ClearingReport,
) -> list[reconciliation_pb2.ClearingAccount]:
    """The clearing report: what explains the balance of each account."""
    accounts: dict[tuple[str, str], reconciliation_pb2.ClearingAccount] = {}
    explained: dict[tuple[str, str], int] = {}
    for row in report.balances:
        key = (row.account, row.currency)
        accounts[key] = reconciliation_pb2.ClearingAccount(
            account=row.account,
            currency=row.currency,
            ledger_balance=format_amount(int(row.ledger_balance), row.currency),
            statement_balance=format_amount(int(row.statement_balance), row.currency),
            unposted=format_amount(int(row.unposted), row.currency),
        )
        explained[key] = int(row.statement_balance) - int(row.unposted) - int(row.ledger_balance)
    for expected_row in report.expected:
        key = (expected_row.account, expected_row.currency)
        accounts[key].expected.add(
            min_age_days=expected_row.min_age_days,
            count=expected_row.count,
            amount=_money(int(expected_row.amount), expected_row.currency),
        )
        explained[key] += int(expected_row.amount)
    for sum_row in report.breaks:
        key = (sum_row.account, sum_row.currency)
        if key not in accounts:  # only lines, of an account that the ledger does not have
            accounts[key] = reconciliation_pb2.ClearingAccount(
                account=sum_row.account,
                currency=sum_row.currency,
                ledger_balance=format_amount(0, sum_row.currency),
                statement_balance=format_amount(0, sum_row.currency),
                unposted=format_amount(0, sum_row.currency),
            )
            explained[key] = 0
        accounts[key].breaks.add(
            break_class=CLASSES.number(sum_row.break_class),
            count=sum_row.count,
            amount=_money(int(sum_row.amount), sum_row.currency),
        )
        explained[key] += int(sum_row.amount)
    for key, account in accounts.items():
        account.unexplained = format_amount(-explained[key], key[1])
    return [accounts[key] for key in sorted(accounts)]


def _money(amount: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(amount=format_amount(amount, currency), currency=currency)
