"""Decisions about breaks in a spreadsheet: writes it, reads it, checks it and applies it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick_core.card_numbers import contains_card_number
from tallystick_core.reconciliation.breaks import (
    KINDS_OF_BALANCES,
    STATES_WITH_PROPOSAL,
    BreakAction,
    BreakState,
    Resolution,
)
from tallystick_server.app.errors import StartupError
from tallystick_server.cli.operator.break_texts import age_in_days, references_of
from tallystick_server.cli.spreadsheet import to_cell, write_rows
from tallystick_server.cli.statement import readable

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2
    from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls

_MAX_REASON_LENGTH = 255
_BREAK_FIELDS = (
    *("break_id", "version", "kind", "break_class", "state", "resolution", "account", "difference"),
    *("currency", "assignee", "detail"),
)
_HEADINGS = (*_BREAK_FIELDS, "references", "age_days", "decision", "reason")
_READ_COLUMNS = ("break_id", "decision", "reason")
_COMPARED_COLUMNS = ("kind", "account", "difference", "currency")
"""What never changes of a break: a row with other values has a decision about another one."""
_VERSION_COLUMN = "version"


class Decision(StrEnum):
    """What is to be done with a break."""

    ADJUST = "ADJUST"
    ACCEPT = "ACCEPT"
    WRITE_OFF = "WRITE_OFF"
    APPROVE = "APPROVE"
    REJECT = "REJECT"


_RESOLUTIONS: Mapping[Decision, Resolution] = {
    Decision.ADJUST: Resolution.ADJUST,
    Decision.ACCEPT: Resolution.ACCEPT,
    Decision.WRITE_OFF: Resolution.WRITE_OFF,
}
_ACTIONS: Mapping[Decision, frozenset[BreakAction]] = {
    Decision.APPROVE: frozenset({BreakAction.APPROVED}),
    Decision.REJECT: frozenset({BreakAction.REJECTED}),
    **dict.fromkeys(_RESOLUTIONS, frozenset({BreakAction.RESOLVED, BreakAction.PROPOSED})),
}
"""The changes of a break that show that a decision was applied."""


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A row with a decision. `line`: where it begins in the file, from 1; `compared`: its cells of
    _COMPARED_COLUMNS, as far as the file has these columns.
    """

    line: int
    break_id: str
    decision: Decision
    reason: str
    compared: Mapping[str, str]
    version: int | None
    """Of the break, as it was exported; None: the file does not have it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a cell, named by its line and the heading of its column."""

    line: int
    column: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.text}"


@dataclass(frozen=True, slots=True)
class CheckedDecision:
    """A decision that the state of its break allows. `is_applied`: it was applied before."""

    row: DecisionRow
    is_applied: bool


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """What became of a decision. `error`: why it was rejected, or ""."""

    row: DecisionRow
    result: str
    error: str = ""


def write_sheet(path: Path, breaks: Iterable[reconciliation_pb2.Break]) -> int:
    """Writes a row for each break, with empty columns for decision and reason, and returns their
    number. The file has a byte order mark, so that spreadsheets read it as UTF-8. Raises
    StartupError if it exists, because it may have decisions.
    """
    try:
        file = path.open("x", encoding="utf-8-sig", newline="")
    except FileExistsError:
        raise StartupError(f"{path} exists already; name another file.") from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with file:
            return write_rows(file, _to_rows(breaks)) - 1  # without the headings
    except BaseException:
        path.unlink()
        raise


def _to_rows(breaks: Iterable[reconciliation_pb2.Break]) -> Iterator[Sequence[str]]:
    from tallystick_server.cli.messages import to_row

    time = datetime.now(UTC)
    yield _HEADINGS
    for found in breaks:
        values = to_row(found, _BREAK_FIELDS)
        yield [*values, references_of(found), str(age_in_days(found, time)), "", ""]


def read_decisions(path: Path) -> tuple[list[DecisionRow], list[Problem]]:
    """The rows with a decision, and all that is wrong in the file. Columns are found by their
    headings, in any order, separated by commas, semicolons or tabs. Raises StartupError for a file
    that is no text.
    """
    rows: list[DecisionRow] = []
    problems: list[Problem] = []
    places: Mapping[str, int] | None = None
    cell_count = 0
    first_lines: dict[str, int] = {}
    with readable(path):
        for line, cells in _read_cells(path):
            if isinstance(cells, Problem):
                problems.append(cells)
            elif places is None:
                places, cell_count = _index(cells), len(cells)
                problems += _problems_of_headings(line, cells, places)
                if problems:
                    return [], problems
            elif any(cells[cell_count:]):
                problems.append(
                    Problem(line, str(cell_count + 1), "the row has more cells than the first row")
                )
            else:
                break_id, decision, reason = (_cell(cells, places[name]) for name in _READ_COLUMNS)
                if not decision and not reason:
                    continue
                version = _cell(cells, places.get(_VERSION_COLUMN, len(cells)))
                found = list(_problems_of(line, break_id, decision.upper(), reason, first_lines))
                if version and not version.isdecimal():
                    found.append(Problem(line, _VERSION_COLUMN, "it must be a number, or empty"))
                first_lines.setdefault(break_id, line)
                problems += found
                if not found:
                    compared = {
                        name: _cell(cells, places[name])
                        for name in _COMPARED_COLUMNS
                        if name in places
                    }
                    rows.append(
                        DecisionRow(
                            line,
                            break_id,
                            Decision(decision.upper()),
                            reason,
                            compared,
                            int(version) if version else None,
                        )
                    )
    if places is None and not problems:
        problems = [Problem(1, "break_id", "the first row must name the columns")]
    return rows, problems


def _index(headings: Sequence[str]) -> Mapping[str, int]:
    """The first place of each heading. Columns without a heading are ignored."""
    names = [name.strip().lower() for name in headings]
    return {name: names.index(name) for name in names if name}


def _problems_of_headings(
    line: int, headings: Sequence[str], places: Mapping[str, int]
) -> Iterator[Problem]:
    """What is wrong in the first row: a column that is read is missing or duplicate."""
    for name in _READ_COLUMNS:
        if name not in places:
            yield Problem(line, name, "the column is missing")
    names = [name.strip().lower() for name in headings]
    for name in (*_READ_COLUMNS, *_COMPARED_COLUMNS):
        if names.count(name) > 1:
            yield Problem(line, name, "the column must be unique")


def _read_cells(path: Path) -> Iterator[tuple[int, list[str] | Problem]]:
    """Each row that is not empty, with the line where it begins."""
    from tallystick_server.reconciliation.formats.text_file import TextFile

    lines = [f"{line.text}\n" for line in TextFile(path).lines()]
    heading = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=heading.count), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield line, Problem(line, "1", "a text must end with the quote that begins it")
            return
        if any(cells):
            yield line, cells


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place].strip() if place < len(cells) else ""


def _problems_of(
    line: int, break_id: str, decision: str, reason: str, first_lines: Mapping[str, int]
) -> Iterator[Problem]:
    """What is wrong in a row. `first_lines`: of the breaks of the rows before."""
    if not break_id:
        yield Problem(line, "break_id", "it is required")
    elif break_id in first_lines:
        text = f"line {first_lines[break_id]} has a decision about the same break"
        yield Problem(line, "break_id", text)
    if decision not in Decision.__members__:
        yield Problem(line, "decision", f"it must be one of {', '.join(Decision)}, or empty")
    if not reason:
        yield Problem(line, "reason", "it is required with a decision")
    elif len(reason) > _MAX_REASON_LENGTH:
        yield Problem(line, "reason", f"it must have at most {_MAX_REASON_LENGTH} characters")
    elif contains_card_number(reason):
        yield Problem(line, "reason", "it must not contain a card number")


def check_decisions(
    calls: ReconciliationCalls, rows: Sequence[DecisionRow], on_progress: Callable[[int], None]
) -> tuple[list[CheckedDecision], list[Problem]]:
    """The decisions that the states of their breaks allow or that were applied before, and what is
    wrong with the others. `on_progress` gets the number of rows before each check.
    """
    from tallystick import InvalidArgumentError, NotFoundError

    checked: list[CheckedDecision] = []
    problems: list[Problem] = []
    for count, row in enumerate(rows):
        on_progress(count)
        try:
            found = calls.show_break(row.break_id)
        except (NotFoundError, InvalidArgumentError):
            problems.append(Problem(row.line, "break_id", f"there is no break {row.break_id}"))
            continue
        others = list(_other_values(row, found))
        if others:
            problems += others
            continue
        is_applied = any(
            change.action in _ACTIONS[row.decision] and change.reason == row.reason
            for change in found.changes
        )
        expected = "" if is_applied else _expected(row.decision, found)
        if expected:
            problems.append(Problem(row.line, "decision", expected))
        else:
            checked.append(CheckedDecision(row, is_applied))
    return checked, problems


def _other_values(row: DecisionRow, found: reconciliation_pb2.Break) -> Iterator[Problem]:
    """The cells of a row that are not those of its break, such as after some columns were sorted
    alone. Numbers may have another form: spreadsheets drop zeros.
    """
    from tallystick_server.cli.messages import to_row

    values = dict(zip(row.compared, to_row(found, list(row.compared)), strict=True))
    for name, value in values.items():
        if not _is_same_cell(row.compared[name], value):
            yield Problem(row.line, name, f"it must be {value}, as it is of {row.break_id}")


def _is_same_cell(cell: str, value: str) -> bool:
    if cell in (value, to_cell(value)):
        return True
    try:
        return Decimal(cell.replace(",", ".")) == Decimal(value)
    except InvalidOperation:
        return False


def _expected(decision: Decision, found: reconciliation_pb2.Break) -> str:
    """Why a decision cannot be applied to a break; "": it can."""
    from tallystick_server.cli.messages import to_row

    kind, state = to_row(found, ["kind", "state"])
    is_resolution = decision in _RESOLUTIONS
    required_states = {BreakState.OPEN} if is_resolution else STATES_WITH_PROPOSAL
    if state not in required_states:
        expected = " or ".join(sorted(required_states))
        return f"the break is {state}, and must be {expected} for {decision}"
    if is_resolution and decision is not Decision.ACCEPT and kind in KINDS_OF_BALANCES:
        return f"it must be ACCEPT for {kind}, because nothing can be posted for it"
    return ""


def _state_of(found: reconciliation_pb2.Break) -> str:
    from tallystick_server.cli.messages import to_row

    return to_row(found, ["state"])[0]


def apply_decisions(
    calls: ReconciliationCalls, decisions: Iterable[CheckedDecision], *, dry_run: bool
) -> Iterator[DecisionResult]:
    """Applies each decision that was not applied before. One that the platform rejects does not
    stop the others.
    """
    from tallystick import (
        AbortedError,
        FailedPreconditionError,
        InvalidArgumentError,
        PermissionDeniedError,
    )

    for checked in decisions:
        row = checked.row
        if checked.is_applied:
            yield DecisionResult(row, "applied before")
        elif dry_run:
            yield DecisionResult(row, "can be applied")
        else:
            try:
                yield DecisionResult(row, _state_of(_apply(calls, row)))
            except (
                AbortedError,
                FailedPreconditionError,
                InvalidArgumentError,
                PermissionDeniedError,
            ) as error:
                yield DecisionResult(row, "rejected", str(error))


def _apply(calls: ReconciliationCalls, row: DecisionRow) -> reconciliation_pb2.Break:
    match row.decision:
        case Decision.APPROVE:
            return calls.approve_break(row.break_id, row.version, row.reason)
        case Decision.REJECT:
            return calls.reject_break(row.break_id, row.version, row.reason)
    return calls.resolve_break(row.break_id, _RESOLUTIONS[row.decision], row.reason)
