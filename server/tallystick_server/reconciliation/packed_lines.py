"""Parses lines of a statement that come as text, a column at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.card_numbers import contains_card_number
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.accounts import line_types_of_account
from tallystick_core.reconciliation.identity import line_identities
from tallystick_core.reconciliation.packed_lines import FIELDS, parse_amounts, unpack
from tallystick_core.reconciliation.statement import (
    MAX_REFERENCE_LENGTH,
    MAX_TEXT_LENGTH,
    LineType,
)
from tallystick_server.reconciliation import convert
from tallystick_storage.reconciliation.statement_files import (
    LineColumns,
    NewLine,
    to_columns,
)

_LINE_TYPES = frozenset(LineType)
_UNKNOWN_TYPE: Any = -1
_MAX_LINE_NUMBER_DIGITS = 12


class ParsedLines(NamedTuple):
    """Lines to stage, and the sum of their amounts in minor units."""

    columns: LineColumns
    total: int


class Position(NamedTuple):
    """Where lines come in their file. `number`: of the first line in the file."""

    account: str
    currency: str
    number: int
    statement_number: int


class _Fields(NamedTuple):
    """The columns of packed lines."""

    line_number: list[str]
    line_type: list[str]
    code: list[str]
    amount: list[str]
    currency: list[str]
    fee: list[str]
    booking_date: list[str]
    value_date: list[str]
    reference: list[str]
    charge_reference: list[str]
    client_reference: list[str]
    settlement_reference: list[str]
    original_amount: list[str]
    original_currency: list[str]
    text: list[str]


def parse_lines(rows: str, position: Position) -> ParsedLines:
    """The lines of `rows`. Raises FIELD_REQUIRED, FIELD_INVALID, CURRENCY_UNKNOWN, and the errors
    of an amount.
    """
    if not rows:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "rows is required.", field="rows")
    try:
        fields = _Fields(*unpack(rows))
    except ValueError as error:
        raise ApiError(ErrorReason.FIELD_INVALID, f"rows {error}.", field="rows") from None
    return _parse_columns(fields, position) or _parse_each(fields, position)


def _parse_columns(fields: _Fields, position: Position) -> ParsedLines | None:
    """The lines if all are usual; None: at least one must be looked at for itself."""
    amounts = parse_amounts(fields.amount, position.currency)
    no_fee = format_amount(0, position.currency)
    fees = parse_amounts([fee or no_fee for fee in fields.fee], position.currency)
    if amounts is None or fees is None or not _are_usual(fields, position):
        return None
    amount_texts, fee_texts = list(map(str, amounts)), list(map(str, fees))
    rest = [
        "" if reference else f"{value_date} {code} {text}"
        for reference, value_date, code, text in zip(
            fields.reference, fields.value_date, fields.code, fields.text, strict=True
        )
    ]
    identities = line_identities(
        position.account,
        (
            fields.line_type,
            fields.currency,
            amount_texts,
            fee_texts,
            fields.booking_date,
            fields.reference,
            fields.charge_reference,
            fields.settlement_reference,
            rest,
        ),
    )
    count = len(amounts)
    columns = (
        list(map(str, range(position.number, position.number + count))),
        [str(position.statement_number)] * count,
        fields.line_number,
        fields.line_type,
        fields.code,
        amount_texts,
        fields.currency,
        fee_texts,
        *fields[FIELDS.index("booking_date") :],
        identities,
        ["1"] * count,
    )
    return ParsedLines(columns, sum(amounts))


def _are_usual(fields: _Fields, position: Position) -> bool:
    """Whether no field but the amounts needs a second look."""
    references = fields[FIELDS.index("reference") : FIELDS.index("original_amount")]
    return (
        set(fields.currency) == {position.currency}
        and line_types_of_account(position.account).issuperset(fields.line_type)
        and _are_line_numbers(fields.line_number)
        and not any(fields.original_amount)
        and not any(fields.original_currency)
        and all(map(_is_date, {*fields.booking_date, *fields.value_date}))
        and all(_fit(column, MAX_REFERENCE_LENGTH) for column in chain([fields.code], references))
        and _fit(fields.text, MAX_TEXT_LENGTH)
        and not any(map(contains_card_number, set(fields.text)))
    )


def _fit(column: Sequence[str], max_length: int) -> bool:
    return max(map(len, column)) <= max_length and "\0" not in "".join(column)


def _are_line_numbers(column: Sequence[str]) -> bool:
    digits = "".join(column)
    return (
        digits.isascii()
        and digits.isdigit()
        and all(column)
        and max(map(len, column)) <= _MAX_LINE_NUMBER_DIGITS
        and not any(number.startswith("0") for number in column)
    )


def _is_date(text: str) -> bool:
    """Whether it is no date, or a date."""
    try:
        convert.parse_date(text, "")
    except ApiError:
        return False
    return True


def _parse_each(fields: _Fields, position: Position) -> ParsedLines:
    """Looks at each line for itself, as if it came as a message."""
    lines = list(_each_line(fields, position))
    return ParsedLines(to_columns(lines), sum(line.amount for line in lines))


def _each_line(fields: _Fields, position: Position) -> Iterator[NewLine]:
    for index, line in enumerate(zip(*fields, strict=True)):
        try:
            yield convert.parse_line(
                _to_message(*line),
                position.account,
                position.currency,
                position.number + index,
                position.statement_number,
            )
        except ApiError as error:
            raise error.with_field_prefix(f"rows[{index}]") from None


def _to_message(line_number: str, line_type: str, *others: str) -> reconciliation_pb2.StatementLine:
    """The message of a line. A number or a type that is none becomes one that is rejected."""
    is_number = line_number.isascii() and line_number.isdigit() and len(line_number) <= 18
    is_type = not line_type or line_type in _LINE_TYPES
    return reconciliation_pb2.StatementLine(
        line_number=int(line_number) if is_number else 0,
        line_type=convert.LINE_TYPES.number(line_type) if is_type else _UNKNOWN_TYPE,
        **dict(zip(FIELDS[2:], others, strict=True)),
    )
