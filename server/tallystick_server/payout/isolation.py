"""Isolates one item of many, such as a batch: its failure must not delay the other items."""

from __future__ import annotations

import logging
from types import TracebackType

from tallystick_core.errors import ApiError

log = logging.getLogger(__name__)


class Isolated:
    """Runs a block for one item. An exception ends the block only, and is kept as `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return self.error is not None


def log_failure(subject: str, error: Exception) -> None:
    """Logs why something waits; with a traceback unless the error is an expected rejection."""
    if isinstance(error, ApiError):
        log.warning("%s is rescheduled: %s", subject, error)
    else:
        log.error("%s failed; it is rescheduled", subject, exc_info=error)
