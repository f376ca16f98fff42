"""The connection of an operator command to the platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from tallystick_server.cli.runner import load_settings

if TYPE_CHECKING:
    from tallystick_server.cli.operator.calls import OperatorCalls


@contextmanager
def connect(ctx: typer.Context, address: str) -> Iterator[OperatorCalls]:
    """The calls at an address; "": at the address of the settings, by TLS if its server has it."""
    from tallystick_server.app.configuration.network import TLS_SCHEME
    from tallystick_server.cli.operator import calls

    settings = load_settings(ctx.obj)
    listen = settings.server.listen
    if settings.server.certificate_file and not listen.startswith("unix:"):
        listen = f"{TLS_SCHEME}{listen}"
    with calls.connect(address or listen, settings.service_ca_file) as operator_calls:
        yield operator_calls
