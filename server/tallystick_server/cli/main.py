"""The command `tallystick`. Each command imports what it needs, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import HTTP_SERVER, find_spec, process_name, service_names
from tallystick_server.cli.fetch_statement import add_fetch_statement_command
from tallystick_server.cli.operator.commands import add_commands
from tallystick_server.cli.output import (
    Column,
    escape,
    print_json,
    print_line,
    print_status,
    print_table,
    show_progress,
)
from tallystick_server.cli.runner import PanelGroup, example, load_settings, run_app
from tallystick_server.cli.sandbox import add_sandbox_commands
from tallystick_server.cli.statement import add_statement_command

if TYPE_CHECKING:
    from tallystick_server.verify.report import Report

    _Served = str
else:
    # a list of literals is no type that Typer knows
    _Served = StrEnum("_Served", ["all", *service_names(), HTTP_SERVER])

_PANEL = "Run the platform"

app = typer.Typer(
    cls=PanelGroup,
    help="Payment platform for marketplaces.",
    epilog=example("tallystick migrate", "tallystick serve all", "tallystick dead-letters list"),
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, which may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits."""
    run_app(app, "tallystick", arguments)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print_line(f"tallystick {version('tallystick-server')}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file with settings. Environment variables take precedence.",
            show_default=False,
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    ctx.obj = config


@app.command(
    rich_help_panel=_PANEL,
    epilog=example(
        "tallystick serve all", "tallystick serve wallet ledger", "tallystick serve http"
    ),
)
def serve(
    ctx: typer.Context,
    services: Annotated[
        list[_Served],
        typer.Argument(
            metavar="SERVICE...", help="all, the names of services, or http, the HTTP server."
        ),
    ],
) -> None:
    """Serve all services and the HTTP server, or some of them, until SIGTERM."""
    from tallystick_server.app import serve as server
    from tallystick_server.app.configuration.secrets import secrets_of
    from tallystick_server.app.database.connections import open_databases
    from tallystick_server.observability import logs
    from tallystick_server.providers.registry import schemas_of

    settings = load_settings(ctx.obj)
    names = (
        (*service_names(), HTTP_SERVER)
        if "all" in services
        else tuple(dict.fromkeys(map(str, services)))
    )
    logs.hide(secrets_of(settings))
    logs.configure_service(process_name(names), settings.logs.level, settings.logs.format)
    schemas = [name for name in names if name != HTTP_SERVER]
    if not schemas:
        server.run(server.serve(names, settings, {}, logs.report, lambda: False))
        return
    with open_databases(settings, logs.report) as database_urls:
        if any(find_spec(name).calls_providers for name in schemas):
            schemas += sorted(schemas_of(settings.providers.configured))
        urls = {name: database_urls.service(name) for name in schemas}
        logs.hide(secrets_of(settings, urls.values()))
        server.run(server.serve(names, settings, urls, logs.report, database_urls.has_ended))


@app.command(rich_help_panel=_PANEL, epilog=example("tallystick migrate"))
def migrate(
    ctx: typer.Context,
    new_passwords: Annotated[
        bool,
        typer.Option(
            "--new-passwords", help="Replace the passwords of roles whose passwords are lost."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring the schemas and roles of the database up to date."""
    from tallystick_server.app.database.connections import open_databases
    from tallystick_server.app.database.migrate import SCHEMAS
    from tallystick_server.app.database.migrate import migrate as migrate_database

    settings = load_settings(ctx.obj)
    with open_databases(settings, print_status) as database_urls:
        if not database_urls.admin:
            raise StartupError(
                "TALLYSTICK_DATABASE__URL must be the administrator's URL, because migrate creates "
                "schemas and roles."
            )
        with show_progress("Migrating schemas", len(SCHEMAS)) as update:
            numbers = count(1)
            migrate_database(
                database_urls.admin,
                database_urls.passwords,
                new_passwords=new_passwords,
                on_schema=lambda name: update(next(numbers), name),
            )
    if as_json:
        print_json({"schemas": [*SCHEMAS], "new_passwords": new_passwords})
    else:
        print_status("The database is up to date.")


@app.command(
    rich_help_panel=_PANEL, epilog=example("tallystick verify", "tallystick verify --json")
)
def verify(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check every invariant of the whole database.

    Names the rows that violate one, and exits with 1 if there are any. It may run while the
    platform serves.
    """
    from tallystick_server.app.database.connections import open_databases_read_only
    from tallystick_server.verify.run import CHECKS
    from tallystick_server.verify.run import verify as verify_database

    settings = load_settings(ctx.obj)
    with (
        open_databases_read_only(settings, print_status) as database_urls,
        show_progress("Verifying", len(CHECKS), lines=False) as update,
    ):
        numbers = count(1)
        report = verify_database(
            database_urls, on_check=lambda check: update(next(numbers), check.name)
        )
    if as_json:
        print_json(report.as_dict())
    else:
        print_report(report)
    return 0 if report.passed else 1


def print_report(report: Report) -> None:
    """Prints a row for each check, then the violations and the summary."""
    columns = [
        Column("CHECK"),
        Column("RESULT"),
        Column("ROWS", align_right=True),
        Column("INVARIANTS"),
    ]
    rows = [
        [
            check.name,
            "FAILED" if check.failures else "ok",
            str(check.row_count),
            check.invariants,
        ]
        for check in report.checks
    ]
    print_table(columns, rows)
    for violation in report.violations:
        print_line(f"  {escape(violation)}")
    print_line(report.summary)


add_sandbox_commands(app, _PANEL)
add_statement_command(app, "Reconcile")
add_fetch_statement_command(app, "Reconcile")
add_commands(app)

if __name__ == "__main__":
    main()
