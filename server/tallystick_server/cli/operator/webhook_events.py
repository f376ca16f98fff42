"""The commands for the inbox of webhook events: list, show and replay."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import (
    AddressOption,
    DeadLetterService,
    JsonOption,
    ReasonOption,
)
from tallystick_server.cli.operator.printing import print_listing, print_message
from tallystick_server.cli.runner import PanelGroup, example

group = typer.Typer(
    cls=PanelGroup, help="List, show and replay what providers reported by webhook."
)

ServiceOption = Annotated[
    DeadLetterService,
    typer.Option("--service", help="The service that owns the events: payout for payouts."),
]
EventIdArgument = Annotated[
    str, typer.Argument(metavar="WEBHOOK_EVENT_ID", help="As 'webhook-events list' prints it.")
]
StateOption = Annotated[
    WebhookEventState | None,
    typer.Option("--state", help="Only events in this state.", show_default=False),
]
ProviderOption = Annotated[
    str, typer.Option("--provider", help="Only events of this provider.", show_default=False)
]
ReferenceOption = Annotated[
    str,
    typer.Option(
        "--reference",
        help="Only events about the object with this id at the provider.",
        show_default=False,
    ),
]


@group.command("list", epilog=example("tallystick webhook-events list --state RECEIVED"))
def list_webhook_events(
    ctx: typer.Context,
    service: ServiceOption = "payment",
    state: StateOption = None,
    provider: ProviderOption = "",
    reference: ReferenceOption = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List webhook events, newest first."""
    columns = ["webhook_event_id", "state", "event_type", "reference", "resource_name"]
    columns += ["receive_time"]
    with connect(ctx, address) as calls:
        found = calls.list_webhook_events(service, state, provider, reference)
        chosen = f" in the state {state}" if state else ""
        none = f"No webhook events{chosen} in the {service} service."
        print_listing(found, columns, none, as_json=as_json)


@group.command("show", epilog=example("tallystick webhook-events show WEBHOOK_EVENT_ID"))
def show_webhook_event(
    ctx: typer.Context,
    webhook_event_id: EventIdArgument,
    service: ServiceOption = "payment",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show a webhook event."""
    with connect(ctx, address) as calls:
        print_message(calls.show_webhook_event(service, webhook_event_id), as_json=as_json)


@group.command(
    "replay",
    epilog=example("tallystick webhook-events replay WEBHOOK_EVENT_ID --reason 'charge is known'"),
)
def replay_webhook_event(
    ctx: typer.Context,
    webhook_event_id: EventIdArgument,
    reason: ReasonOption,
    service: ServiceOption = "payment",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Apply a webhook event once more.

    What it is about is looked up at the provider again. Its open dead letter is retried.
    """
    with connect(ctx, address) as calls:
        print_message(
            calls.replay_webhook_event(service, webhook_event_id, reason), as_json=as_json
        )
