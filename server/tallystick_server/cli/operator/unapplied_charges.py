"""The commands for unapplied charges: list and acknowledge."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption, ReasonOption
from tallystick_server.cli.operator.printing import print_listing, print_message
from tallystick_server.cli.runner import PanelGroup, example

group = typer.Typer(cls=PanelGroup, help="List and acknowledge charges that match no order.")


@group.command("list", epilog=example("tallystick unapplied-charges list --all --json"))
def list_unapplied_charges(
    ctx: typer.Context,
    include_acknowledged: Annotated[
        bool, typer.Option("--all", help="Include acknowledged ones.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List unapplied charges that nobody has acknowledged, newest first."""
    columns = ["unapplied_charge_id", "cause", "charge_id", "amount", "currency", "create_time"]
    if include_acknowledged:
        columns += ["acknowledged_by", "acknowledge_reason"]
    none = (
        "No unapplied charges." if include_acknowledged else "No unapplied charges to acknowledge."
    )
    with connect(ctx, address) as calls:
        found = calls.list_unapplied_charges(include_acknowledged=include_acknowledged)
        print_listing(found, columns, none, as_json=as_json)


@group.command(
    "acknowledge",
    epilog=example(
        "tallystick unapplied-charges acknowledge UNAPPLIED_CHARGE_ID --reason refunded"
    ),
)
def acknowledge_unapplied_charge(
    ctx: typer.Context,
    unapplied_charge_id: Annotated[
        str,
        typer.Argument(
            metavar="UNAPPLIED_CHARGE_ID", help="As 'unapplied-charges list' prints it."
        ),
    ],
    reason: ReasonOption,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Acknowledge an unapplied charge.

    Ends its alert. The charge stays booked.
    """
    with connect(ctx, address) as calls:
        print_message(
            calls.acknowledge_unapplied_charge(unapplied_charge_id, reason), as_json=as_json
        )
