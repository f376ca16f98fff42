"""A circuit breaker: who fails too often is left alone for a while, then asked by one probe at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens after so many failures in a row, for `rest` seconds at first and twice as long after each failed probe, up to `longest_rest`."""

    failures: int = 20
    rest: float = 5.0
    longest_rest: float = 60.0


class Breaker:
    """The breaker of one counterpart in this process. `now` is the loop's time, in seconds."""

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self._name = name
        self._settings = settings
        self._failures = 0
        self._rest = settings.rest
        self._opens_until = 0.0
        self._open = False
        self._probing = False

    def held_back(self, now: float) -> float | None:
        """Seconds for which a call is to be held back; None: it may be made, and its end must be reported. An open breaker lets one probe through."""
        if not self._open:
            return None
        if now < self._opens_until:
            return self._opens_until - now
        if self._probing:
            return self._rest
        self._probing = True
        return None

    def is_open(self) -> bool:
        return self._open

    def succeeded(self) -> None:
        """Reports that the counterpart answers."""
        if self._open:
            log.warning("%s answers again", self._name)
        self._open = self._probing = False
        self._failures = 0
        self._rest = self._settings.rest

    def failed(self, now: float, *, at_once: bool = False) -> None:
        """Reports that it does not, or, `at_once`, that there is no use in asking."""
        self._failures += 1
        if self._open and not self._probing:  # a call that was under way when it opened
            return
        if self._open:
            self._rest = min(self._rest * 2, self._settings.longest_rest)
        elif not at_once and self._failures < self._settings.failures:
            return
        else:
            log.warning("%s is left alone after %d failures in a row", self._name, self._failures)
        self._open, self._probing = True, False
        self._opens_until = now + self._rest
