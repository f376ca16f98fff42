"""The commands for routing rules: preview."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick_core.payment.checkout import MethodType
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption
from tallystick_server.cli.operator.printing import print_message
from tallystick_server.cli.runner import PanelGroup, example

group = typer.Typer(cls=PanelGroup, help="Show which provider a charge would get.")


@group.callback()
def routing() -> None:
    """A callback, so that a group of one command keeps its command's name."""


@group.command(
    "preview",
    epilog=example("tallystick routing preview --currency EUR --amount 25.00 --country DE"),
)
def preview_routing(
    ctx: typer.Context,
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="ISO 4217 code.")],
    amount: Annotated[
        str, typer.Option("--amount", metavar="AMOUNT", help="In major units, such as 25.00.")
    ],
    country: Annotated[
        str,
        typer.Option("--country", metavar="CODE", help="The buyer's country.", show_default=False),
    ] = "",
    method: Annotated[
        MethodType, typer.Option("--method", help="What the buyer pays with.")
    ] = MethodType.CARD,
    sellers: Annotated[
        list[str] | None,
        typer.Option(
            "--seller",
            metavar="ACCOUNT",
            help="A seller of the charge; may be repeated.",
            show_default=False,
        ),
    ] = None,
    checkout_id: Annotated[
        str,
        typer.Option(
            "--checkout",
            metavar="CHECKOUT_ID",
            help="The checkout, for rules with a share.",
            show_default=False,
        ),
    ] = "",
    caller: Annotated[
        str,
        typer.Option(
            "--caller",
            metavar="NAME",
            help="The caller that creates the payment.",
            show_default=False,
        ),
    ] = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show which provider a charge would get, and why.

    Nothing is stored or sent.
    """
    with connect(ctx, address) as calls:
        decision = calls.preview_routing(
            currency, amount, country, method, sellers or [], checkout_id, caller
        )
        print_message(decision, as_json=as_json)
