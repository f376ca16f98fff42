"""The names of the operator commands, and their place in the help."""

from __future__ import annotations

import typer

from tallystick_server.cli.operator import (
    alerts,
    break_rules,
    breaks,
    clearing,
    dead_letters,
    explain,
    payouts,
    reconcile,
    routing,
    unapplied_charges,
    webhook_events,
)
from tallystick_server.cli.runner import example

_PANEL = "Operate a running platform (TALLYSTICK_TOKEN holds the bearer token)"
_RECONCILE_PANEL = "Reconcile"


def add_commands(app: typer.Typer) -> None:
    """Adds the commands for operators."""
    app.command(
        "reconcile",
        rich_help_panel=_RECONCILE_PANEL,
        epilog=example(
            "tallystick reconcile november.csv --provider stripe --preview",
            "tallystick reconcile *.sta --account banks/main",
        ),
    )(reconcile.reconcile)
    app.add_typer(breaks.group, name="breaks", rich_help_panel=_RECONCILE_PANEL)
    app.command(
        "clearing",
        rich_help_panel=_RECONCILE_PANEL,
        epilog=example("tallystick clearing --account psp/stripe/clearing"),
    )(clearing.show_clearing_report)
    app.add_typer(break_rules.group, name="break-rules", rich_help_panel=_RECONCILE_PANEL)
    app.command(
        "explain",
        rich_help_panel=_PANEL,
        epilog=example("tallystick explain checkout-1", "tallystick explain pi_3Q"),
    )(explain.explain)
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
