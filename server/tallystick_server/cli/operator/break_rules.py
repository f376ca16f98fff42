"""The commands for the rules that classify breaks: list and set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_core.reconciliation.breaks import (
    KINDS_WITH_LIMIT,
    MAX_LIMITS,
    BreakClass,
    BreakKind,
)
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption, ReasonOption
from tallystick_server.cli.operator.printing import print_message
from tallystick_server.cli.output import Column, print_json, print_table
from tallystick_server.cli.runner import PanelGroup, UsageError, example, whole_number

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2

group = typer.Typer(cls=PanelGroup, help="List and set the class and limit of each kind of break.")

_UNITS = {
    BreakKind.ROUNDING: "minor units",
    BreakKind.DATE_DIFFERS: "days",
    BreakKind.FEE_DIFFERS: "percent",
    BreakKind.MISSING_IN_FILE: "days",
}
"""What the limit of a kind counts."""
_COLUMNS = (
    Column("KIND"),
    Column("CLASS"),
    Column("LIMIT"),
    Column("SET_BY", can_wrap=True),
)


@group.command("list", epilog=example("tallystick break-rules list"))
def list_rules(
    ctx: typer.Context, address: AddressOption = "", as_json: JsonOption = False
) -> None:
    """List the rules, one for each kind of break."""
    from tallystick_server.cli.messages import to_json

    with connect(ctx, address) as calls:
        rules = calls.reconciliation.list_rules()
    if as_json:
        for rule in rules:
            print_json(to_json(rule))
    else:
        print_table(_COLUMNS, map(_to_row, rules))


def _to_row(rule: reconciliation_pb2.BreakRule) -> list[str]:
    from tallystick_server.cli.messages import to_row

    kind, break_class = to_row(rule, ["kind", "break_class"])
    unit = _UNITS.get(BreakKind(kind))
    author = "built in"
    if rule.version > 1:
        author = f"{rule.caller}, version {rule.version}: {rule.reason}"
    return [kind, break_class, f"{rule.limit:,} {unit}" if unit else "", author]


@group.command(
    "set",
    epilog=example(
        'tallystick break-rules set ROUNDING --limit 2 --reason "invoices round per line"',
        'tallystick break-rules set RESERVE --class INVESTIGATION --reason "new contract"',
    ),
)
def set_rule(
    ctx: typer.Context,
    kind: Annotated[BreakKind, typer.Argument(metavar="KIND", help="As 'break-rules list'.")],
    reason: ReasonOption,
    break_class: Annotated[
        BreakClass | None,
        typer.Option("--class", help="Who deals with such breaks.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            parser=whole_number(0, max(MAX_LIMITS.values())),
            metavar="N",
            help="The limit of ROUNDING (minor units), DATE_DIFFERS or MISSING_IN_FILE (days), or "
            "FEE_DIFFERS (percent of the charge).",
            show_default=False,
        ),
    ] = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Set the class or the limit of a kind, for breaks that are found from now on.

    What is not given stays as it is.
    """
    if break_class is None and limit is None:
        raise UsageError(ctx, "Give --class, --limit or both.")
    if limit is not None and kind not in KINDS_WITH_LIMIT:
        raise UsageError(ctx, f"{kind} has no limit; those with one are {', '.join(_UNITS)}.")
    if limit is not None and limit > MAX_LIMITS[kind]:
        largest = f"{MAX_LIMITS[kind]} {_UNITS[kind]}"
        raise UsageError(ctx, f"The limit of {kind} must be at most {largest}.")
    with connect(ctx, address) as calls:
        rule = calls.reconciliation.set_rule(kind, break_class, limit, reason)
        print_message(rule, as_json=as_json)
