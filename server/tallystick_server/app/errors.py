"""Errors that end a command, as one sentence that says what to do."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class StartupError(Exception):
    """Shown on the terminal as it is, without a traceback. The command exits with 1."""


def exit_on_broken_pipe() -> NoReturn:
    """Ends a command silently when its output is closed, as `head` does."""
    # for output that is flushed at the exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)  # the exit code after SIGPIPE
