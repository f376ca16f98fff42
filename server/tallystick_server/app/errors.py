"""Errors that end a command, each as one sentence that says what to do."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class StartupError(Exception):
    """Shown on the terminal as it is, without a traceback. The command exits with 1."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, of the driver's if there is one. That line names host and
    database, and no password.
    """
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def exit_on_broken_pipe() -> NoReturn:
    """Ends a command silently when its output is closed, as `head` does."""
    # for output that is flushed at the exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)  # the exit code after SIGPIPE
