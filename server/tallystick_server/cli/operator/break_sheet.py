"""The commands that write breaks to a spreadsheet, and read the decisions about them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_server.app.errors import StartupError
from tallystick_server.cli.operator.break_options import (
    AccountOption,
    AllOption,
    AssigneeOption,
    BreakSelection,
    ClassOption,
    FileOption,
    KindOption,
    StateOption,
    select_breaks,
)
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.decisions import (
    DecisionResult,
    Problem,
    apply_decisions,
    check_decisions,
    read_decisions,
    write_sheet,
)
from tallystick_server.cli.operator.options import AddressOption, JsonOption
from tallystick_server.cli.output import (
    Column,
    ProgressUpdate,
    escape,
    print_json,
    print_status,
    print_table,
    show_progress,
)

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2
    from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls

_MAX_PRINTED_PROBLEMS = 20
_RESULT_COLUMNS = (
    Column("LINE", align_right=True),
    Column("BREAK_ID"),
    Column("DECISION"),
    Column("RESULT"),
    Column("ERROR", can_wrap=True),
)


def export_breaks(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE.csv", help="A file that does not exist.")],
    state: StateOption = None,
    include_resolved: AllOption = False,
    break_class: ClassOption = None,
    kind: KindOption = None,
    account: AccountOption = "",
    assignee: AssigneeOption = "",
    statement_file_id: FileOption = "",
    address: AddressOption = "",
) -> None:
    """Write breaks that are not resolved to a spreadsheet.

    'breaks import' reads the columns decision and reason back.
    """
    selection = select_breaks(
        ctx, state, include_resolved, break_class, kind, account, assignee, statement_file_id
    )
    with (
        connect(ctx, address) as calls,
        show_progress("Exporting breaks", None, lines=False) as update,
    ):
        count = write_sheet(path, _whole_breaks(calls.reconciliation, selection, update))
    print_status(f"{count:,} {selection} are in {path}.")


def _whole_breaks(
    calls: ReconciliationCalls, selection: BreakSelection, update: ProgressUpdate
) -> Iterator[reconciliation_pb2.Break]:
    """Breaks with their lines and ledger entries."""
    for count, found in enumerate(calls.list_breaks(selection), 1):
        yield calls.show_break(found.break_id)
        update(count, "")


def import_breaks(
    ctx: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv", help="As 'breaks export' writes it.", exists=True, dir_okay=False
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file, and change nothing.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> int:
    """Apply the decisions of a spreadsheet: ADJUST, ACCEPT, WRITE_OFF, APPROVE or REJECT.

    Reads the columns break_id, decision and reason; rows without a decision are left out. Nothing
    is applied unless all of the file is right. A repeat applies nothing again. Exits with 1 if a
    decision is rejected.
    """
    rows, problems = read_decisions(path)
    _require_none(path, problems)
    results: list[DecisionResult] = []
    with connect(ctx, address) as calls:
        with show_progress("Checking decisions", len(rows), lines=False) as update:
            decisions, problems = check_decisions(
                calls.reconciliation, rows, lambda count: update(count, "")
            )
        _require_none(path, problems)
        try:
            with show_progress("Applying decisions", len(rows), lines=False) as update:
                for result in apply_decisions(calls.reconciliation, decisions, dry_run=dry_run):
                    results.append(result)
                    update(len(results), "")
        finally:  # what was done before an error is printed too
            _print_results(results, as_json=as_json)
    if not rows:
        print_status(f"{path.name} has no decisions.")
    elif dry_run:
        print_status("This is a dry run. Nothing was changed.")
    return 1 if any(result.error for result in results) else 0


def _require_none(path: Path, problems: Sequence[Problem]) -> None:
    """Prints the problems of a file, in the order of its lines. Raises StartupError if there are
    any.
    """
    if not problems:
        return
    for problem in problems[:_MAX_PRINTED_PROBLEMS]:
        print_status(f"{path.name}, {escape(str(problem))}.")
    errors = "1 error" if len(problems) == 1 else f"{len(problems):,} errors"
    raise StartupError(f"{path.name} has {errors}. Nothing was changed.")


def _print_results(results: Iterable[DecisionResult], *, as_json: bool) -> None:
    if as_json:
        for result in results:
            print_json(
                {
                    "line": result.row.line,
                    "break_id": result.row.break_id,
                    "decision": result.row.decision,
                    "result": result.result,
                    "error": result.error,
                }
            )
        return
    print_table(
        _RESULT_COLUMNS,
        [
            [
                str(result.row.line),
                result.row.break_id,
                result.row.decision,
                result.result,
                result.error,
            ]
            for result in results
        ],
    )
