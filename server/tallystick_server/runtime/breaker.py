"""A circuit breaker: who fails too often is left alone for a while, then asked by one probe at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens when so many different calls have failed in a row, for `rest` seconds at first and twice as long after each call more that
    fails as its probe and had not failed before, up to `longest_rest`."""

    failures: int = 20
    rest: float = 5.0
    longest_rest: float = 60.0


class Breaker:
    """The breaker of one counterpart in this process. `now` is the loop's time, in seconds."""

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self._name = name
        self._settings = settings
        self._failed: set[str] = set()
        self._rest = settings.rest
        self._opens_until = 0.0
        self._open = False
        self._probing = False

    def held_back(self, now: float, call: str) -> float | None:
        """Seconds for which a call is to be held back; None: it may be made, and its end must be reported. An open breaker lets one probe through.

        A call that has failed waits a little longer than others, so that one that fails for ever is not the probe before them.
        """
        if not self._open:
            return None
        opens = self._opens_until + (self._settings.rest if call in self._failed else 0)
        if now < opens:
            return opens - now
        if self._probing:
            return self._rest
        self._probing = True
        return None

    def is_open(self) -> bool:
        return self._open

    def lacks_probe(self, now: float, *, others_wait: bool) -> bool:
        """Whether its rest is over, and no call has come to be the probe; while others wait, which may be it: for as long again."""
        return self._open and not self._probing and now >= self._opens_until + (self._rest if others_wait else 0)

    def succeeded(self) -> None:
        """Reports that the counterpart answers."""
        if self._open:
            log.warning("%s answers again", self._name)
        self._open = self._probing = False
        self._failed.clear()
        self._rest = self._settings.rest

    def failed(self, now: float, call: str, *, at_once: bool = False) -> None:
        """Reports that it does not answer a call, or, `at_once`, that there is no use in asking. A call that fails again and again counts once."""
        again = call in self._failed
        self._failed.add(call)
        if self._open and not self._probing:  # a call that was under way when it opened
            return
        if self._open:
            self._rest = self._rest if again else min(self._rest * 2, self._settings.longest_rest)
        elif not at_once and len(self._failed) < self._settings.failures:
            return
        else:
            log.warning("%s is left alone after %d calls failed in a row", self._name, len(self._failed))
        self._open, self._probing = True, False
        self._opens_until = now + self._rest
