"""The options that several operator commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tallystick_server.app.services import SERVICES

if TYPE_CHECKING:
    AlertService = str
    DeadLetterService = str
else:
    AlertService = Literal[*(spec.name for spec in SERVICES if spec.publishes_events)]
    DeadLetterService = Literal[*(spec.name for spec in SERVICES if spec.calls_providers)]

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Address of the platform; https://HOST:PORT for TLS. By default the setting "
        "TALLYSTICK_SERVER__LISTEN.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
ReasonOption = Annotated[
    str,
    typer.Option("--reason", help="The reason. It is stored with your name.", show_default=False),
]
