"""The command that compares statement files with the ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_core.card_numbers import contains_card_number
from tallystick_core.errors import ApiError
from tallystick_core.reconciliation.accounts import is_bank, parse_statement_account
from tallystick_server.app.errors import StartupError
from tallystick_server.cli.operator.break_options import BreakSelection
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption
from tallystick_server.cli.operator.reconcile_report import (
    FileReport,
    ReconcileReport,
    ReportFormat,
    print_report,
    reconcile_day,
)
from tallystick_server.cli.output import escape, print_status, show_progress
from tallystick_server.cli.runner import UsageError, whole_number
from tallystick_server.cli.statement import readable

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2
    from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
    from tallystick_core.reconciliation.packed_lines import LineBlock
    from tallystick_core.reconciliation.statement import StatementItem
    from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls
    from tallystick_server.reconciliation.formats.registry import Format
    from tallystick_server.reconciliation.formats.text_file import TextFile

_MAX_ALLOWED = 1_000_000
_MAX_TEXT_LENGTH = 255


@dataclass(frozen=True, slots=True)
class _CheckedFile:
    """A file that was read as a whole without an error."""

    path: Path
    request: pb.CreateStatementFileRequest
    text_file: TextFile
    format: Format
    item_count: int
    stamp: tuple[int, int]


def reconcile(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Statement or settlement files of the account.",
            exists=True,
            dir_okay=False,
        ),
    ],
    provider: Annotated[
        str,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="The provider of the files: the account psp/NAME/clearing.",
            show_default=False,
        ),
    ] = "",
    account: Annotated[
        str,
        typer.Option(
            "--account",
            metavar="ACCOUNT",
            help="The ledger account of the files, such as banks/main.",
            show_default=False,
        ),
    ] = "",
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would be done, and store nothing.")
    ] = False,
    accept_difference: Annotated[
        str,
        typer.Option(
            "--accept-difference",
            metavar="REASON",
            help="Accept statements whose balances and lines differ. Each opens a break with this "
            "reason.",
            show_default=False,
        ),
    ] = "",
    report_format: Annotated[
        ReportFormat, typer.Option("--report", help="The form of the report.")
    ] = ReportFormat.TEXT,
    allowed: Annotated[
        int,
        typer.Option(
            "--allow",
            parser=whole_number(0, _MAX_ALLOWED),
            metavar="N",
            help="How many breaks a file may have that need a decision.",
        ),
    ] = 0,
    address: AddressOption = "",
) -> int:
    """Compare statements of a provider or a bank with the ledger, line by line.

    Lines that agree match; each other is in a break. All files are read before the first is sent,
    so a damaged one stores nothing. Each file is stored as a whole, and a repeat of it changes
    nothing. Exits with 1 if a file has more breaks that need a decision than --allow.
    """
    path = _parse_account(ctx, provider, account)
    _require_reason(ctx, accept_difference)
    for file in files:
        _require_sendable(file)
    reports: list[FileReport] = []
    with connect(ctx, address) as operator_calls:
        calls = operator_calls.reconciliation
        if not calls.has_account(path):
            raise UsageError(ctx, _missing_account(path, calls))
        checked_files = [_check(calls, file, path, accept_difference) for file in files]
        try:
            for checked_file in checked_files:
                file_report = _reconcile_file(calls, checked_file, preview=preview)
                reports.append(file_report)
        finally:  # a file that fails does not hide those before it
            report = ReconcileReport(path, reports, allowed=allowed, is_preview=preview)
            if reports:
                print_report(report, report_format)
    return 0 if report.passed else 1


def _parse_account(ctx: typer.Context, provider: str, account: str) -> str:
    if bool(provider) == bool(account):
        raise UsageError(ctx, "Give either --provider NAME or --account ACCOUNT.")
    try:
        if account:
            return parse_statement_account(account, "--account")
        return parse_statement_account(f"psp/{provider}/clearing", "the account of --provider")
    except ApiError as error:
        raise UsageError(ctx, error.message) from None


def _require_reason(ctx: typer.Context, reason: str) -> None:
    """Raises UsageError for a reason that the platform does not store."""
    if len(reason) > _MAX_TEXT_LENGTH or contains_card_number(reason):
        raise UsageError(
            ctx,
            f"--accept-difference must have at most {_MAX_TEXT_LENGTH} characters, and no card "
            "number.",
        )


def _missing_account(account: str, calls: ReconciliationCalls) -> str:
    """Why an account of a provider cannot be used, and which can."""
    accounts = [path for path in calls.statement_accounts() if not is_bank(path)]
    return (
        f"The ledger has no account {account}. Its providers' accounts are: "
        f"{', '.join(accounts) or 'none'}."
    )


def _require_sendable(path: Path) -> None:
    """Raises StartupError for a file whose name the platform does not store."""
    name = path.name
    if (
        len(name) > _MAX_TEXT_LENGTH
        or not name.isprintable()
        or "\\" in name
        or contains_card_number(name)
    ):
        raise StartupError(
            f"{escape(name)}: rename the file. Its name must have at most {_MAX_TEXT_LENGTH} "
            "printable characters of UTF-8, no backslash and no card number."
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in what the platform answers about it."""
    from tallystick import AbortedError, TallystickError

    try:
        yield
    except AbortedError as error:
        message = (
            f"{path.name}: Another file may be compared at the moment. Run the command again once "
            f"it has ended. {error.message}"
        )
        raise error.with_message(message) from None
    except TallystickError as error:
        if not error.reason:  # it is about the connection
            raise
        raise error.with_message(f"{path.name}: {error.message}") from None


def _check(
    calls: ReconciliationCalls, path: Path, account: str, accept_difference: str
) -> _CheckedFile | FileReport:
    """Reads a file as a whole, so that nothing of a damaged one is sent; or the report of a file
    that was reconciled before. Raises StartupError.
    """
    from tallystick_server.reconciliation.formats.messages import (
        content_digest,
        create_request,
        file_id,
    )
    from tallystick_server.reconciliation.formats.registry import account_problem, find_format
    from tallystick_server.reconciliation.formats.text_file import TextFile

    text_file = TextFile(path)
    with readable(path):
        stamp = _stamp(path)
        digest = content_digest(path)
    report = _find_report(calls, path, file_id(account, digest))
    if report is not None:
        return report
    _warn_of_other_accounts(calls, path, account, digest)
    with readable(path):
        format_ = find_format(text_file)
        if problem := account_problem(format_, account):
            raise StartupError(f"{path.name} {problem}: use --provider NAME.")
        item_count, has_difference = _read_all(text_file, format_, bool(accept_difference))
    reason = accept_difference if has_difference else ""
    request = create_request(path.name, digest, format_.name, account, reason)
    return _CheckedFile(path, request, text_file, format_, item_count, stamp)


def _read_all(text_file: TextFile, format_: Format, accepts_difference: bool) -> tuple[int, bool]:
    """How many items a file has, and whether balances and lines of a statement differ."""
    from tallystick_core.reconciliation.packed_lines import LineBlock
    from tallystick_core.reconciliation.statement import StatementEnd, UnbalancedStatement
    from tallystick_server.reconciliation.formats.registry import read_blocks

    item_count, has_difference = 0, False
    with show_progress(f"Reading {text_file.name}", None, lines=False) as update:
        try:
            for item in read_blocks(text_file, format_, accepts_difference=accepts_difference):
                item_count += len(item) if isinstance(item, LineBlock) else 1
                if isinstance(item, StatementEnd):
                    has_difference |= bool(item.difference)
                update(item_count, "")
        except UnbalancedStatement as error:
            raise StartupError(f"{error}. --accept-difference REASON accepts that.") from None
    return item_count, has_difference


def _find_report(
    calls: ReconciliationCalls, path: Path, statement_file_id: str
) -> FileReport | None:
    """The report of a file that was reconciled before."""
    stored = calls.find_file(statement_file_id)
    if stored is None:
        return None
    return FileReport(path.name, stored, _breaks_of(calls, stored), is_repeat=True)


def _breaks_of(
    calls: ReconciliationCalls, file: reconciliation_pb2.StatementFile
) -> list[reconciliation_pb2.Break]:
    return list(calls.list_breaks(BreakSelection(statement_file_id=file.statement_file_id)))


def _warn_of_other_accounts(
    calls: ReconciliationCalls, path: Path, account: str, digest: str
) -> None:
    """Says on standard error if the lines of a file were reconciled with another account."""
    from tallystick_server.reconciliation.formats.messages import file_id

    for other in calls.statement_accounts():
        stored = None if other == account else calls.find_file(file_id(other, digest))
        if stored is not None and stored.line_count:
            print_status(
                f"Warning: {path.name} was reconciled with {other}, on {reconcile_day(stored)}. "
                f"Check whether it is about {account}."
            )


def _reconcile_file(
    calls: ReconciliationCalls, file: _CheckedFile | FileReport, *, preview: bool
) -> FileReport:
    """Sends a file, unless it was reconciled before, and returns what became of it."""
    if isinstance(file, FileReport):
        return file
    with _naming(file.path):
        return _reconcile_checked(calls, file, preview=preview)


def _reconcile_checked(
    calls: ReconciliationCalls, file: _CheckedFile, *, preview: bool
) -> FileReport:
    name, request = file.path.name, file.request
    report = _find_report(calls, file.path, request.statement_file_id)
    if report is not None:  # the command has another file with the same content
        return report
    if preview:
        request.statement_file_id = token_hex(16)  # the file itself may be sent at the same time
    response = _send(calls, file, preview=preview)
    if preview:
        return FileReport(name, response.statement_file, response.preview_breaks, is_preview=True)
    return FileReport(name, response.statement_file, _breaks_of(calls, response.statement_file))


def _send(
    calls: ReconciliationCalls, file: _CheckedFile, *, preview: bool
) -> pb.ReconcileStatementFileResponse:
    """Sends a file. What an earlier run has sent of another content is deleted by the platform, and
    the file is sent from its beginning.
    """
    from tallystick import NotFoundError

    try:
        return _send_once(calls, file, preview=preview)
    except NotFoundError:
        return _send_once(calls, file, preview=preview)


def _send_once(
    calls: ReconciliationCalls, file: _CheckedFile, *, preview: bool
) -> pb.ReconcileStatementFileResponse:
    from tallystick_server.reconciliation.formats.messages import to_messages

    with show_progress(f"Sending {file.path.name}", file.item_count, lines=False) as update:

        def report_progress(count: int) -> None:
            is_last = count == file.item_count
            update(count, "comparing it with the ledger" if is_last else "")

        items = to_messages(_read_again(file))
        return calls.reconcile_file(
            file.request, items, preview=preview, on_progress=report_progress
        )


def _read_again(file: _CheckedFile) -> Iterator[StatementItem | LineBlock]:
    """The items of a file. Raises StartupError if it has changed since it was checked."""
    from tallystick_server.reconciliation.formats.registry import read_blocks

    with readable(file.path):
        yield from read_blocks(
            file.text_file, file.format, accepts_difference=bool(file.request.difference_reason)
        )
        is_changed = _stamp(file.path) != file.stamp
    if is_changed:
        raise StartupError(
            f"{file.path.name} was changed while it was sent. It is not reconciled; run the "
            "command again."
        )


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with the content of a file: its size, and when it was written."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
