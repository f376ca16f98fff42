"""The command `tallystick`."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.app import configuration, serve
from tallystick_server.app.configuration import SERVICES, Settings
from tallystick_server.app.database.connections import open_databases, open_databases_read_only
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.schema import DatabaseUnavailable, check_schema
from tallystick_server.app.errors import StartupError, exit_on_broken_pipe
from tallystick_server.cli import operator
from tallystick_server.verify.run import verify
from tallystick_storage.database import Database


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what goes wrong is one sentence on standard error, and exit code 1."""
    # unwinds, so that no PostgreSQL stays behind; serve drains instead
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.WARNING, format=serve.LOG_FORMAT)
    options = _build_parser().parse_args(arguments)
    try:
        settings = configuration.load(path=options.config)
        exit_code = options.run(options, settings)
        sys.stdout.flush()
        sys.exit(exit_code)
    except BrokenPipeError:
        exit_on_broken_pipe()
    except StartupError as error:
        print(f"tallystick: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tallystick", description="Payment platform for marketplaces."
    )
    parser.add_argument(
        "--version", action="version", version=f"tallystick {version('tallystick-server')}"
    )
    parser.add_argument("--config", help="a TOML file; settings in the environment stand over it")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "serve", help="serve all services, or some by name, until SIGTERM"
    )
    command.add_argument("service", nargs="+", choices=("all", *SERVICES))
    command.set_defaults(run=_serve)
    command = commands.add_parser("migrate", help="bring schemas and roles up to date")
    command.add_argument(
        "--new-passwords",
        action="store_true",
        help="give roles new passwords whose old ones are lost",
    )
    command.set_defaults(run=_migrate)
    command = commands.add_parser(
        "verify",
        help=(
            "check every invariant over the whole database; exit 1 if rows are wrong, which it "
            "names"
        ),
    )
    command.add_argument("--json", action="store_true", help="the report as one JSON object")
    command.set_defaults(run=_verify)
    command = commands.add_parser("sandbox", help="serve the sandbox provider over HTTP")
    command.add_argument(
        "--port",
        type=_parse_port,
        default=7090,
        help="where it listens on 127.0.0.1; by default 7090",
    )
    command.set_defaults(run=_sandbox)
    operator.add_commands(commands)
    return parser


def _parse_port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 65535")
    return int(text)


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    names = SERVICES if "all" in options.service else tuple(dict.fromkeys(options.service))
    with open_databases(settings, _print_status) as database_urls:
        schemas = [*names]
        if not {"payment", "payout"}.isdisjoint(names) and not settings.providers.sandbox.url:
            schemas.append("sandbox")
        urls = {name: database_urls.service(name) for name in schemas}
        serve.run(serve.serve(names, settings, urls, _print_status, database_urls.has_ended))
    return 0


def _migrate(options: argparse.Namespace, settings: Settings) -> int:
    with open_databases(settings, _print_status) as database_urls:
        if not database_urls.admin:
            raise StartupError(
                "TALLYSTICK_DATABASE__URL must be the administrator's URL, which makes schemas and "
                "roles."
            )
        migrate(database_urls.admin, database_urls.passwords, new_passwords=options.new_passwords)
    _print_status("The database is up to date")
    return 0


def _verify(options: argparse.Namespace, settings: Settings) -> int:
    with open_databases_read_only(settings, _print_status) as database_urls:
        report = verify(database_urls)
    print(json.dumps(report.as_dict()) if options.json else report.as_text())
    return 0 if report.passed else 1


def _reject_unusable_database(url: str, service: str) -> None:
    try:
        check_schema(url, service)
    except DatabaseUnavailable as error:
        raise StartupError(
            f"The {service} service's database cannot be used: {str(error).rstrip('.')}."
        ) from error


def _sandbox(options: argparse.Namespace, settings: Settings) -> int:
    from aiohttp import web  # noqa: PLC0415 - slow to import, and no other command needs it

    from tallystick_sandbox.server import create_app  # noqa: PLC0415 - the same

    with open_databases(settings, _print_status) as database_urls:
        url = database_urls.service("sandbox")
        _reject_unusable_database(url, "sandbox")
        database = Database(url, connections=4)
        latency, window = settings.providers.sandbox.latency, settings.providers.key_window
        app = create_app(
            Sandbox(database, latency_seconds=latency, key_window_seconds=window),
            SandboxPayouts(database, latency_seconds=latency, key_window_seconds=window),
        )
        _print_status(f"Serving the sandbox on 127.0.0.1:{options.port}")
        try:
            web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None)
        except OSError as error:
            raise StartupError(
                f"Nothing can listen on port {options.port}: {error.strerror}. Choose another "
                "with --port."
            ) from None
        finally:
            database.close()
    return 0


if __name__ == "__main__":
    main()
