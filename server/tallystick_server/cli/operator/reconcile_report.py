"""The report of reconciled files: as text, as JSON, or as CSV with a row for each break."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tallystick_server.cli.operator.break_texts import references_of
from tallystick_server.cli.output import (
    Column,
    escape,
    print_heading,
    print_json,
    print_line,
    print_status,
    print_table,
)
from tallystick_server.cli.spreadsheet import write_rows

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2

_FILE = Column("FILE")
_FILE_COLUMNS = (
    _FILE,
    Column("FORMAT"),
    Column("LINES", align_right=True),
    Column("MATCHED", align_right=True),
    Column("REPEATED", align_right=True),
    Column("BREAKS", align_right=True),
    Column("UNDECIDED", align_right=True),
)
_COUNT_COLUMNS = (
    _FILE,
    Column("CLASS"),
    Column("KIND"),
    Column("COUNT", align_right=True),
)
_POSTED_COLUMNS = (
    _FILE,
    Column("KIND"),
    Column("COUNT", align_right=True),
    Column("AMOUNT", align_right=True),
    Column("CURRENCY"),
)
_BREAK_COLUMNS = (
    _FILE,
    Column("CLASS"),
    Column("KIND"),
    Column("DIFFERENCE", align_right=True),
    Column("REFERENCES", can_wrap=True),
)
_CSV_FIELDS = (
    *("kind", "break_class", "state", "break_id", "account", "difference", "currency"),
    *("assignee", "detail"),
)


class ReportFormat(StrEnum):
    """The forms of the report."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of a file, or with a preview what would. `name`: as it was given; a file with the
    same content may have been reconciled under another.
    """

    name: str
    file: reconciliation_pb2.StatementFile
    breaks: Sequence[reconciliation_pb2.Break]
    """All that it opened; of a preview the first."""
    is_preview: bool = False
    is_repeat: bool = False
    """Whether it was reconciled before."""

    @property
    def break_count(self) -> int:
        """The breaks that it opened."""
        return sum(item.count for item in self.file.break_counts)

    @property
    def undecided_count(self) -> int:
        """Its breaks that need a decision: those that are not resolved, and not by the platform."""
        from tallystick.reconciliation.v1 import reconciliation_pb2

        automatic = reconciliation_pb2.BREAK_CLASS_AUTOMATIC
        if self.is_preview:
            counts = self.file.break_counts
            return sum(item.count for item in counts if item.break_class != automatic)
        return sum(
            found.break_class != automatic
            and found.state != reconciliation_pb2.BREAK_STATE_RESOLVED
            for found in self.breaks
        )


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What became of all files."""

    account: str
    files: Sequence[FileReport]
    allowed: int
    """How many undecided breaks a file may have."""
    is_preview: bool

    @property
    def passed(self) -> bool:
        return all(file.undecided_count <= self.allowed for file in self.files)


def print_report(report: ReconcileReport, report_format: ReportFormat) -> None:
    """Prints the report. A preview, and a repeat, are named on standard error if the report is for
    programs.
    """
    match report_format:
        case ReportFormat.TEXT:
            _print_text(report)
        case ReportFormat.JSON:
            print_json(_to_json(report))
        case ReportFormat.CSV:
            write_rows(sys.stdout, _to_csv(report))
    print_note = print_line if report_format is ReportFormat.TEXT else print_status
    for note in _notes(report):
        print_note(note)


def reconcile_day(file: reconciliation_pb2.StatementFile) -> str:
    """The day on which a file was reconciled, in UTC."""
    return f"{file.reconcile_time.ToDatetime():%Y-%m-%d}"


def _notes(report: ReconcileReport) -> Iterator[str]:
    """Sentences below the tables."""
    for file_report in report.files:
        file, name = file_report.file, escape(file_report.name)
        if file_report.is_repeat and file_report.name != file.file_name:
            yield (
                f"{name} has the content of {escape(file.file_name)}, which was reconciled on "
                f"{reconcile_day(file)}. Nothing was changed."
            )
        elif file_report.is_repeat:
            yield f"{name} was reconciled before, on {reconcile_day(file)}. Nothing was changed."
        if file_report.undecided_count and not file_report.is_preview:
            count = file_report.undecided_count
            yield (
                f"{count:,} {'break' if count == 1 else 'breaks'} of {name} "
                f"{'needs' if count == 1 else 'need'} a decision: "
                f"tallystick breaks list --file {file.statement_file_id}"
            )
    if report.is_preview:
        yield "This is a preview. Nothing is stored."


def _print_text(report: ReconcileReport) -> None:
    print_heading(report.account)
    print_table(_FILE_COLUMNS, map(_file_row, report.files))
    sections = {
        False: (
            ("Breaks", _COUNT_COLUMNS, _count_rows),
            ("Posted to the ledger", _POSTED_COLUMNS, _posted_rows),
        ),
        True: (
            ("Breaks that would be opened", _COUNT_COLUMNS, _count_rows),
            ("The first breaks", _BREAK_COLUMNS, _break_rows),
            ("Would be posted to the ledger", _POSTED_COLUMNS, _posted_rows),
        ),
    }
    for is_preview, parts in sections.items():
        files = [file for file in report.files if file.is_preview == is_preview]
        for title, columns, rows_of in parts:
            rows = [[file.name, *row] for file in files for row in rows_of(file)]
            _print_section(title, columns, rows, names_files=len(report.files) > 1)
    print_line()


def _print_section(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], *, names_files: bool
) -> None:
    """Prints a table, with the name of the file in each row if there are several."""
    skipped = 0 if names_files else 1
    if rows:
        print_line()
        print_heading(title)
        print_table(columns[skipped:], [row[skipped:] for row in rows])


def _file_row(report: FileReport) -> list[str]:
    file = report.file
    numbers = (
        *(file.line_count, file.matched_count, file.repeated_count),
        *(report.break_count, report.undecided_count),
    )
    return [report.name, file.format, *(f"{number:,}" for number in numbers)]


def _count_rows(report: FileReport) -> Iterator[list[str]]:
    from tallystick_server.cli.messages import to_row

    counts = sorted(report.file.break_counts, key=lambda item: (item.break_class, item.kind))
    for item in counts:
        yield [*to_row(item, ["break_class", "kind"]), f"{item.count:,}"]


def _posted_rows(report: FileReport) -> Iterator[list[str]]:
    for item in report.file.posted_sums:
        yield [item.kind, f"{item.count:,}", item.amount, item.currency]


def _break_rows(report: FileReport) -> Iterator[list[str]]:
    from tallystick_server.cli.messages import to_row

    for found in report.breaks:
        yield [
            *to_row(found, ["break_class", "kind"]),
            f"{found.difference} {found.currency}",
            references_of(found),
        ]


def _to_json(report: ReconcileReport) -> dict[str, Any]:
    """The report for programs: each file and break with the keys of its message."""
    from tallystick_server.cli.messages import to_json

    return {
        "account": report.account,
        "preview": report.is_preview,
        "allowed": report.allowed,
        "passed": report.passed,
        "files": [
            {
                **to_json(file.file),
                "file_name": file.name,
                "first_file_name": file.file.file_name,
                "is_repeat": file.is_repeat,
                "undecided_count": file.undecided_count,
                "breaks": [to_json(found) for found in file.breaks],
            }
            for file in report.files
        ],
    }


def _to_csv(report: ReconcileReport) -> Iterator[list[str]]:
    """A row for each break, below the names of the columns."""
    from tallystick_server.cli.messages import to_row

    yield ["file_name", *_CSV_FIELDS]
    for file in report.files:
        for found in file.breaks:
            yield [file.name, *to_row(found, _CSV_FIELDS)]
