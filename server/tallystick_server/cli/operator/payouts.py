"""The commands for payouts, and the command that shows a payout batch."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick_core.payout.state import PayoutState
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption, ReasonOption
from tallystick_server.cli.operator.printing import print_listing, print_message
from tallystick_server.cli.output import show_progress
from tallystick_server.cli.runner import PanelGroup, UsageError, example, whole_number

group = typer.Typer(
    cls=PanelGroup, help="List, show, approve, reject, cancel and acknowledge payouts."
)

PayoutIdArgument = Annotated[
    str, typer.Argument(metavar="PAYOUT_ID", help="As 'payouts list' prints it.")
]


@group.command("list", epilog=example("tallystick payouts list --state AWAITING_APPROVAL"))
def list_payouts(
    ctx: typer.Context,
    state: Annotated[
        PayoutState | None,
        typer.Option("--state", help="Only payouts in this state.", show_default=False),
    ] = None,
    seller_account: Annotated[
        str,
        typer.Option(
            "--seller",
            metavar="ACCOUNT",
            help="Only payouts to this seller account.",
            show_default=False,
        ),
    ] = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List payouts, newest first."""
    columns = ["payout_id", "payout_state", "seller_account", "amount", "currency", "create_time"]
    none = "No payouts"
    if state:
        none += f" in the state {state}"
    if seller_account:
        none += f" for the seller {seller_account}"
    with connect(ctx, address) as calls:
        found = calls.list_payouts(str(state or ""), seller_account)
        print_listing(found, columns, f"{none}.", as_json=as_json)


@group.command("show", epilog=example("tallystick payouts show payout-1"))
def show_payout(
    ctx: typer.Context,
    payout_id: PayoutIdArgument,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a payout with its history, attempts and transfers."""
    with connect(ctx, address) as calls:
        print_message(calls.show_payout(payout_id), as_json=as_json)


def _add_decision(name: str, method: str, help_text: str, example_reason: str) -> None:
    """Adds the command of a call that decides on one payout."""

    def decide(
        ctx: typer.Context,
        payout_id: PayoutIdArgument,
        reason: ReasonOption,
        address: AddressOption = "",
        as_json: JsonOption = False,
    ) -> None:
        with connect(ctx, address) as calls:
            print_message(calls.decide_payout(method, payout_id, reason), as_json=as_json)

    epilog = example(f'tallystick payouts {name} payout-1 --reason "{example_reason}"')
    group.command(name, help=help_text, epilog=epilog)(decide)


_add_decision(
    "approve",
    "ApprovePayout",
    "Approve a payout that awaits approval, as the second person.",
    "seller verified",
)
_add_decision("reject", "RejectPayout", "Reject a payout that awaits approval.", "seller suspended")
_add_decision("cancel", "CancelPayout", "Cancel a payout that has not been sent.", "wrong amount")


@group.command(
    "acknowledge",
    epilog=example(
        "tallystick payouts acknowledge payout-1 --transfer tr_123 --reason returned",
        "tallystick payouts acknowledge payout-1 --report 1 --reason checked",
    ),
)
def acknowledge_payout(
    ctx: typer.Context,
    payout_id: PayoutIdArgument,
    reason: ReasonOption,
    transfer: Annotated[
        str,
        typer.Option(
            "--transfer",
            metavar="REFERENCE",
            help="The provider_reference of an unmatched transfer.",
            show_default=False,
        ),
    ] = "",
    report: Annotated[
        int | None,
        typer.Option(
            "--report",
            parser=whole_number(1, 2**31 - 1),
            metavar="NUMBER",
            help="The number of a conflicting provider report.",
            show_default=False,
        ),
    ] = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Acknowledge an unmatched transfer or a conflicting report.

    Ends its alert. The money stays booked.
    """
    if bool(transfer) == (report is not None):
        raise UsageError(ctx, "Give either --transfer REFERENCE or --report NUMBER.")
    with connect(ctx, address) as calls:
        acknowledged = calls.acknowledge_payout(payout_id, reason, transfer=transfer, report=report)
        print_message(acknowledged, as_json=as_json)


def show_batch(
    ctx: typer.Context,
    payout_batch_id: Annotated[
        str, typer.Argument(metavar="PAYOUT_BATCH_ID", help="The id of a batch or a payout run.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Refresh each second until the batch is DONE.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a payout batch and its totals."""
    with connect(ctx, address) as calls:
        batches = calls.watch_batch(payout_batch_id, follow=follow)
        if as_json:
            print_listing(batches, [], "", as_json=True)
            return
        batch = next(batches)
        if follow:
            with show_progress("Generating payouts", batch.item_count) as update:
                update(batch.generated_count, f"{batch.rejected_count} rejected")
                for batch in batches:
                    update(batch.generated_count, f"{batch.rejected_count} rejected")
        print_message(batch, as_json=False)
