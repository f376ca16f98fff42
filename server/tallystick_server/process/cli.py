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
from tallystick_server.process import configuration, operate, serve
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.process.databases import databases, databases_to_read
from tallystick_server.process.failure import Failure, unread
from tallystick_server.process.migrate import migrate
from tallystick_server.process.schema import DatabaseAway, check_schema
from tallystick_server.process.verify import verify
from tallystick_storage.database import Database


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what goes wrong is one sentence on standard error, and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no PostgreSQL stays behind; serve drains instead
    logging.basicConfig(level=logging.WARNING, format=serve.LOG_FORMAT)
    options = _parser().parse_args(arguments)
    try:
        settings = configuration.load(path=options.config)
        code = options.run(options, settings)
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        unread()
    except Failure as failure:
        print(f"tallystick: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tallystick", description="Payment platform for marketplaces.")
    parser.add_argument("--version", action="version", version=f"tallystick {version('tallystick-server')}")
    parser.add_argument("--config", help="a TOML file; settings in the environment stand over it")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("serve", help="serve all services, or some by name, until SIGTERM")
    one.add_argument("service", nargs="+", choices=("all", *SERVED))
    one.set_defaults(run=_serve)
    one = commands.add_parser("migrate", help="bring schemas and roles up to date")
    one.add_argument("--new-passwords", action="store_true", help="give roles new passwords whose old ones are lost")
    one.set_defaults(run=_migrate)
    one = commands.add_parser("verify", help="check every invariant over the whole database; exit 1 if rows are wrong, which it names")
    one.add_argument("--json", action="store_true", help="the report as one JSON object")
    one.set_defaults(run=_verify)
    one = commands.add_parser("sandbox", help="serve the sandbox provider over HTTP")
    one.add_argument("--port", type=_port, default=7090, help="where it listens on 127.0.0.1; by default 7090")
    one.set_defaults(run=_sandbox)
    operate.add_commands(commands)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 65535")
    return int(text)


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    names = SERVED if "all" in options.service else tuple(dict.fromkeys(options.service))
    with databases(settings, _say) as known:
        schemas = [*names]
        if not {"payment", "payout"}.isdisjoint(names) and not settings.sandbox_url:
            schemas.append("sandbox")
        urls = {name: known.service(name) for name in schemas}
        serve.run(serve.serve(names, settings, urls, _say, known.has_ended))
    return 0


def _migrate(options: argparse.Namespace, settings: Settings) -> int:
    with databases(settings, _say) as known:
        if not known.admin:
            raise Failure("TALLYSTICK_DATABASE_URL must be the administrator's URL, which makes schemas and roles.")
        migrate(known.admin, known.passwords, new_passwords=options.new_passwords)
    _say("The database is up to date")
    return 0


def _verify(options: argparse.Namespace, settings: Settings) -> int:
    with databases_to_read(settings, _say) as known:
        report = verify(known)
    print(json.dumps(report.as_dict()) if options.json else report.as_text())
    return 0 if report.passed else 1


def _refuse_unfit(url: str, service: str) -> None:
    try:
        check_schema(url, service)
    except DatabaseAway as away:
        raise Failure(f"The {service} service's database cannot be used: {str(away).rstrip('.')}.") from away


def _sandbox(options: argparse.Namespace, settings: Settings) -> int:
    from aiohttp import web  # noqa: PLC0415 - slow to import, and no other command needs it

    from tallystick_sandbox.server import application  # noqa: PLC0415 - the same

    with databases(settings, _say) as known:
        url = known.service("sandbox")
        _refuse_unfit(url, "sandbox")
        database = Database(url, connections=4)
        latency, window = settings.sandbox_latency, settings.provider_key_window
        app = application(Sandbox(database, latency=latency, window=window), SandboxPayouts(database, latency=latency, window=window))
        _say(f"Serving the sandbox on 127.0.0.1:{options.port}")
        try:
            web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None)
        except OSError as error:
            raise Failure(f"Nothing can listen on port {options.port}: {error.strerror}. Choose another with --port.") from None
        finally:
            database.close()
    return 0


if __name__ == "__main__":
    main()
