"""The command that lists alerts."""

from __future__ import annotations

from typing import Annotated

import typer

from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, AlertService, JsonOption
from tallystick_server.cli.operator.printing import print_listing


def list_alerts(
    ctx: typer.Context,
    service: Annotated[
        AlertService, typer.Option("--service", help="The service that raised the alerts.")
    ] = "payment",
    include_ended: Annotated[
        bool, typer.Option("--all", help="Include alerts that have ended.")
    ] = False,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List active alerts, newest first."""
    columns = ["kind", "resource_name", "create_time", "detail"]
    if include_ended:
        columns[3:3] = ["end_time"]
    adjective = "" if include_ended else "active "
    with connect(ctx, address) as calls:
        found = calls.list_alerts(service, include_ended=include_ended)
        none = f"No {adjective}alerts in the {service} service."
        print_listing(found, columns, none, as_json=as_json)
