"""The commands for breaks: what statements and ledger do not agree on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_core.reconciliation.breaks import Resolution
from tallystick_server.cli.operator.break_options import (
    AccountOption,
    AllOption,
    AssigneeOption,
    BreakIdArgument,
    ClassOption,
    FileOption,
    KindOption,
    StateOption,
    VersionOption,
    select_breaks,
)
from tallystick_server.cli.operator.break_printing import print_break, print_break_table
from tallystick_server.cli.operator.break_sheet import export_breaks, import_breaks
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption, ReasonOption
from tallystick_server.cli.operator.printing import print_listing, print_message
from tallystick_server.cli.output import print_json, print_status
from tallystick_server.cli.runner import PanelGroup, UsageError, example, whole_number

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tallystick.reconciliation.v1 import reconciliation_pb2

_ENTRY_COLUMNS = (
    *("transaction_id", "entry_number", "kind", "amount", "currency", "effective_time"),
    *("external_reference", "source_id"),
)
group = typer.Typer(
    cls=PanelGroup,
    help="List, show, open, assign, resolve, match, export and import breaks.",
)


@group.command(
    "list",
    epilog=example(
        "tallystick breaks list --class FINANCE",
        "tallystick breaks list --account psp/stripe/clearing --state AWAITING_APPROVAL",
    ),
)
def list_breaks(
    ctx: typer.Context,
    state: StateOption = None,
    include_resolved: AllOption = False,
    break_class: ClassOption = None,
    kind: KindOption = None,
    account: AccountOption = "",
    assignee: AssigneeOption = "",
    statement_file_id: FileOption = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List breaks that are not resolved, newest first."""
    selection = select_breaks(
        ctx, state, include_resolved, break_class, kind, account, assignee, statement_file_id
    )
    with connect(ctx, address) as calls:
        found = calls.reconciliation.list_breaks(selection)
        if as_json:
            _print_json_lines(found)
        elif not print_break_table(found):
            print_status(f"No {selection}.")


def _print_json_lines(found: Iterable[Message]) -> None:
    from tallystick_server.cli.messages import to_json

    for message in found:
        print_json(to_json(message))


@group.command("show", epilog=example("tallystick breaks show f12-345"))
def show_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a break with its lines, ledger entries and history."""
    with connect(ctx, address) as calls:
        found = calls.reconciliation.show_break(break_id)
        if as_json:
            print_message(found, as_json=True)
            return
        file_names = {
            id_: file.file_name
            for id_ in _file_ids(found)
            if (file := calls.reconciliation.find_file(id_)) is not None
        }
    print_break(found, file_names)


def _file_ids(found: reconciliation_pb2.Break) -> set[str]:
    ids = {found.statement_file_id, *(line.statement_file_id for line in found.lines)}
    return ids - {""}


@group.command(
    "entries",
    epilog=example(
        "tallystick breaks entries --account psp/stripe/clearing --currency EUR --min-age 10"
    ),
)
def list_expected_entries(
    ctx: typer.Context,
    account: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT", help="As 'clearing' prints it.")
    ],
    currency: Annotated[
        str, typer.Option("--currency", metavar="CURRENCY", help="ISO 4217 code, BTC or USDC.")
    ],
    min_age_days: Annotated[
        int,
        typer.Option(
            "--min-age",
            parser=whole_number(0, 36_500),
            metavar="DAYS",
            help="Only entries that are at least this many days old.",
        ),
    ] = 0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the ledger entries that no statement and no break has yet, oldest first."""
    with connect(ctx, address) as calls:
        found = calls.reconciliation.list_expected_entries(account, currency, min_age_days)
        none = f"{account} has no such entry in {currency}."
        print_listing(found, _ENTRY_COLUMNS, none, as_json=as_json)


@group.command(
    "open",
    epilog=example(
        'tallystick breaks open main-77 --account banks/main --reason "paid in two transfers"'
    ),
)
def open_break(
    ctx: typer.Context,
    transaction_id: Annotated[
        str, typer.Argument(metavar="TRANSACTION_ID", help="A transaction of the ledger.")
    ],
    account: Annotated[
        str,
        typer.Option(
            "--account", metavar="ACCOUNT", help="Of the statements that should have the entry."
        ),
    ],
    reason: ReasonOption,
    entry_number: Annotated[
        int,
        typer.Option(
            "--entry",
            parser=whole_number(0, 10_000),
            metavar="N",
            help="The position of the entry in its transaction, if several fit the account.",
            show_default=False,
        ),
    ] = 0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Open a break for a ledger entry that no statement has.

    It can then be matched with other breaks of the account, or resolved.
    """
    with connect(ctx, address) as calls:
        opened = calls.reconciliation.open_break(account, transaction_id, entry_number, reason)
        print_message(opened, as_json=as_json)


@group.command(
    "assign",
    epilog=example(
        "tallystick breaks assign f12-345 --to alice", "tallystick breaks assign f12-345 --nobody"
    ),
)
def assign_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    assignee: Annotated[
        str,
        typer.Option("--to", metavar="NAME", help="The operator.", show_default=False),
    ] = "",
    nobody: Annotated[bool, typer.Option("--nobody", help="End its assignment.")] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Assign a break to an operator."""
    if bool(assignee) == nobody:
        raise UsageError(ctx, "Give either --to NAME or --nobody.")
    with connect(ctx, address) as calls:
        print_message(calls.reconciliation.assign_break(break_id, assignee), as_json=as_json)


@group.command(
    "comment", epilog=example('tallystick breaks comment f12-345 "asked the bank, ticket 4711"')
)
def comment_on_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    comment: Annotated[
        str, typer.Argument(metavar="TEXT", help="The comment. It is stored with your name.")
    ],
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add a comment to a break."""
    with connect(ctx, address) as calls:
        print_message(calls.reconciliation.comment_on_break(break_id, comment), as_json=as_json)


@group.command(
    "resolve",
    epilog=example('tallystick breaks resolve f12-345 --adjust --reason "fee of the bank"'),
)
def resolve_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    reason: ReasonOption,
    adjust: Annotated[
        bool,
        typer.Option(
            "--adjust",
            help="Adjust the ledger to the statement; the difference goes to platform/adjustments.",
        ),
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Keep the difference. Nothing is posted.")
    ] = False,
    write_off: Annotated[
        bool,
        typer.Option(
            "--write-off",
            help="Adjust the ledger to the statement; the difference goes to platform/losses.",
        ),
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Resolve a break.

    Above the setting reconciliation.approval_threshold, it awaits the approval of another operator.
    """
    options = {
        Resolution.ADJUST: adjust,
        Resolution.ACCEPT: accept,
        Resolution.WRITE_OFF: write_off,
    }
    chosen = [resolution for resolution, is_set in options.items() if is_set]
    if len(chosen) != 1:
        raise UsageError(ctx, "Give one of --adjust, --accept and --write-off.")
    with connect(ctx, address) as calls:
        resolved = calls.reconciliation.resolve_break(break_id, chosen[0], reason)
        print_message(resolved, as_json=as_json)


@group.command(
    "approve", epilog=example('tallystick breaks approve f12-345 --reason "seen the letter"')
)
def approve_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    reason: ReasonOption,
    version: VersionOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Approve a resolution, or that a break is opened again, as the second person."""
    with connect(ctx, address) as calls:
        approved = calls.reconciliation.approve_break(break_id, version, reason)
        print_message(approved, as_json=as_json)


@group.command(
    "reject", epilog=example('tallystick breaks reject f12-345 --reason "ask the bank first"')
)
def reject_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    reason: ReasonOption,
    version: VersionOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Reject what awaits approval.

    A break whose resolution is rejected is open again.
    """
    with connect(ctx, address) as calls:
        rejected = calls.reconciliation.reject_break(break_id, version, reason)
        print_message(rejected, as_json=as_json)


@group.command(
    "reopen", epilog=example('tallystick breaks reopen f12-345 --reason "the bank corrected it"')
)
def reopen_break(
    ctx: typer.Context,
    break_id: BreakIdArgument,
    reason: ReasonOption,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Open a resolved break again.

    What was posted for it is reversed; above the setting reconciliation.approval_threshold, once
    another operator approves it.
    """
    with connect(ctx, address) as calls:
        print_message(calls.reconciliation.reopen_break(break_id, reason), as_json=as_json)


@group.command(
    "match", epilog=example('tallystick breaks match f12-345 i-main-77-1 --reason "same payment"')
)
def match_breaks(
    ctx: typer.Context,
    break_ids: Annotated[
        list[str], typer.Argument(metavar="BREAK_ID", help="As 'breaks list' prints them.")
    ],
    reason: ReasonOption,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Resolve breaks whose lines and ledger entries agree together."""
    with connect(ctx, address) as calls:
        matched = calls.reconciliation.match_breaks(break_ids, reason)
        if as_json:
            _print_json_lines(matched)
        else:
            print_break_table(matched)


group.command(
    "export",
    epilog=example(
        "tallystick breaks export breaks.csv", "tallystick breaks export mine.csv --assignee alice"
    ),
)(export_breaks)
group.command(
    "import",
    epilog=example(
        "tallystick breaks import breaks.csv --dry-run", "tallystick breaks import breaks.csv"
    ),
)(import_breaks)
