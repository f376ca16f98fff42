"""Keeps secrets out of the log lines of OpenTelemetry."""

from __future__ import annotations

import logging


def redact_errors(record: logging.LogRecord) -> bool:
    """Keeps only the type of a logged exception. Its text may show a URL with a password or a
    token.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(
            type(argument).__name__ if isinstance(argument, Exception) else argument
            for argument in record.args
        )
    return True
