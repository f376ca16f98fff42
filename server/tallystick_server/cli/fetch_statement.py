"""The command that fetches the statement of a provider, as a file to reconcile."""

from __future__ import annotations

import asyncio
import filecmp
import os
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tallystick_server.app.errors import StartupError
from tallystick_server.cli.output import print_status
from tallystick_server.cli.runner import example, load_settings

if TYPE_CHECKING:
    from tallystick_core.provider.statement_source import StatementSource
    from tallystick_server.app.configuration import Settings
    from tallystick_server.providers.provider_type import BuiltProvider


def add_fetch_statement_command(app: typer.Typer, panel: str) -> None:
    """Adds the command to a panel of the help."""
    epilog = example("tallystick fetch-statement --provider stripe --day 2026-11-29")
    app.command("fetch-statement", rich_help_panel=panel, epilog=epilog)(fetch_statement)


def fetch_statement(
    ctx: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="A configured provider.")
    ],
    day: Annotated[
        datetime | None,
        typer.Option(
            "--day",
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="The day on which the provider paid to the bank, in UTC; by default yesterday.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="By default PROVIDER-DAY.csv."),
    ] = None,
) -> None:
    """Fetch the statement of a provider about a day, as a file for 'tallystick reconcile'.

    Waits until the provider has written the file. A file that exists is not overwritten: if it has
    the same content, nothing is done, so the command can be repeated.
    """
    settings = load_settings(ctx.obj)
    paid_day = day.date() if day else datetime.now(UTC).date() - timedelta(days=1)
    if paid_day >= datetime.now(UTC).date():
        raise StartupError("--day must be a day that has ended, in UTC.")
    path = output or Path(f"{provider}-{paid_day.isoformat()}.csv")
    is_new = asyncio.run(_fetch(settings, provider, paid_day, path))
    size = path.stat().st_size
    print_status(
        f"Fetched {path} ({size:,} bytes)" if is_new else f"{path} has the statement already"
    )


async def _fetch(settings: Settings, provider: str, day: date, path: Path) -> bool:
    """Writes the file, as a whole or not at all. Returns False if it had this content before.
    Raises StartupError.
    """
    from tallystick_core.provider.statement_source import StatementUnavailable

    built = _build(settings, provider)
    try:
        return await _write(built.adapter.fetch(day, day), path)
    except StatementUnavailable as error:
        raise StartupError(
            f"The statement of {provider} cannot be fetched: {str(error).rstrip('.')}."
        ) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        for close_hook in built.close_hooks:
            await close_hook()


async def _write(parts: AsyncIterator[bytes], path: Path) -> bool:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            async for part in parts:
                file.write(part)
        return _keep(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(temporary: Path, path: Path) -> bool:
    """Renames a file, unless there is one with the same content."""
    if not path.exists():
        os.replace(temporary, path)
        return True
    if not filecmp.cmp(temporary, path, shallow=False):
        raise StartupError(
            f"{path} exists, and has another content than the statement; name another file with "
            "--output."
        )
    return False


def _build(settings: Settings, provider: str) -> BuiltProvider[StatementSource]:
    """The statements of a configured provider. Raises StartupError."""
    from tallystick_server.providers.registry import names_with_statements, type_of

    configured = settings.providers.configured
    names = names_with_statements(configured)
    if provider not in names:
        listed = ", ".join(names) or "none is configured"
        raise StartupError(
            f"--provider must be a configured provider that writes statements: {listed}."
        )
    build = type_of(provider, configured[provider]).build_statements
    if build is None:
        raise RuntimeError("names_with_statements lists a provider without statements")

    def open_database(schema: str) -> NoReturn:
        raise RuntimeError(f"statements need no database, and {schema} was asked for")

    return build(settings.providers.terms(provider), configured[provider], open_database)
