"""The names of the operator commands, and their place in the help."""

from __future__ import annotations

import typer

from tallystick_server.cli.operator import (
    alerts,
    dead_letters,
    payouts,
    routing,
    unapplied_charges,
    webhook_events,
)
from tallystick_server.cli.runner import example

_PANEL = "Operate a running platform (TALLYSTICK_TOKEN holds the bearer token)"


def add_commands(app: typer.Typer) -> None:
    """Adds the commands for operators."""
    for name, group in (
        ("dead-letters", dead_letters.group),
        ("unapplied-charges", unapplied_charges.group),
        ("webhook-events", webhook_events.group),
        ("payouts", payouts.group),
        ("routing", routing.group),
    ):
        app.add_typer(group, name=name, rich_help_panel=_PANEL)
    app.command(
        "alerts", rich_help_panel=_PANEL, epilog=example("tallystick alerts --service payout")
    )(alerts.list_alerts)
    app.command(
        "payout-batch",
        rich_help_panel=_PANEL,
        epilog=example("tallystick payout-batch run-EUR-20261128T1500Z --follow"),
    )(payouts.show_batch)
