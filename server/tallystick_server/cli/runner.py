"""Runs a command line: signals, logging, errors and exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tallystick_server.app.errors import StartupError, exit_on_broken_pipe
from tallystick_server.cli.output import can_format
from tallystick_server.observability import logs

if TYPE_CHECKING:
    from tallystick_server.app.configuration import Settings

_PYDANTIC_PREFIX = "Value error, "
_USAGE, _FAILURE, _INTERRUPTED, _TERMINATED = 2, 1, 130, 143


class UsageError(typer.TyperException):
    """Wrong usage, in one sentence that names the option and what would be right."""

    exit_code = _USAGE

    def __init__(self, ctx: typer.Context, message: str) -> None:
        super().__init__(message)
        self.ctx = ctx


class PanelGroup(TyperGroup):
    """A group that keeps the panels of its commands as sections where rich does not format the
    help.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = command.rich_help_panel
            heading = panel if isinstance(panel, str) else "Commands"
            short_help = command.get_short_help_str(formatter.width)
            panels.setdefault(heading, []).append((name.ljust(width), short_help))
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def run_app(
    app: typer.Typer,
    program: str,
    arguments: Sequence[str] | None = None,
    *,
    log_level: int = logging.WARNING,
) -> NoReturn:
    """Runs a command and exits. Errors are one sentence on standard error: exit code 2 for wrong
    usage, 1 for a failure. A command returns its exit code, or None for 0.
    """
    # unwinds, so that no embedded PostgreSQL keeps running; `serve` drains instead
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    logs.configure(log_level)
    app.rich_markup_mode = "rich" if can_format(sys.stdout) else None
    command = get_command(app)
    try:
        with command.make_context(
            program, list(sys.argv[1:] if arguments is None else arguments)
        ) as context:
            exit_code = command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as early_exit:
        _flush_and_exit(early_exit.exit_code)
    except BrokenPipeError:
        exit_on_broken_pipe()
    except StartupError as error:
        _exit_with_error(f"{program}: {error}", _FAILURE)
    except typer.TyperException as error:
        _exit_with_error(_format_usage_error(program, error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        _exit_with_error(f"{program}: {_format_internal_error(error)}", _FAILURE)
    sys.exit(exit_code)


def load_settings(config: Path | None) -> Settings:
    """The settings of the environment and of the configuration file, if one is given."""
    from tallystick_server.app import configuration

    return configuration.load(path=str(config) if config else None)


def example(*lines: str) -> str:
    """The examples of a command, for the end of its help."""
    return "\n".join(
        ["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)]
    )


def whole_number(minimum: int, maximum: int) -> Callable[[str | int], int]:
    """A parser of an option's value. Typer passes the default of the option too, a number."""

    def parse(value: str | int) -> int:
        text = str(value)
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            raise ValueError(f"{text!r} is not a whole number from {minimum} to {maximum}.")
        return int(text)

    return parse


def _flush_and_exit(exit_code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        exit_on_broken_pipe()
    sys.exit(exit_code)


def _exit_with_error(message: str, exit_code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _format_usage_error(program: str, error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().replace(_PYDANTIC_PREFIX, "").split())
    if not message.endswith((".", "?")):
        message += "."
    if context is None:
        return f"{program}: {message}"
    command = context.command_path
    if isinstance(context.command, TyperGroup) and message.endswith("."):
        is_about_command = message.startswith(("Missing command", "No such command"))
        if is_about_command:
            message += f" The commands are {', '.join(context.command.commands)}."
    return f"{command}: {message} Run '{command} --help' for usage."


def _format_internal_error(error: Exception) -> str:
    """Names the error and its place. Its text may hold secrets, so it is not shown."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if "/tallystick_" in Path(frame.filename).as_posix()]
    frame = (own_frames or frames)[-1]
    return (
        f"Internal error: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}. "
        "Set PYTHONDEVMODE=1 to see the traceback."
    )
