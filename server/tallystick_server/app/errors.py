"""What ends a command: one clear sentence that says what to do."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class StartupError(Exception):
    """Shown to the person at the terminal as it is, without a traceback; the command exits 1."""


def exit_on_broken_pipe() -> NoReturn:
    """Ends a command whose output nobody reads any more, as `head` does, in silence."""
    # what is still to be written at the exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)  # as a program that SIGPIPE has ended
