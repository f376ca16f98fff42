"""A circuit breaker: who fails too often is left alone for a while, then asked by one probe at a
time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens when so many different calls have failed in a row, for `reset_timeout_seconds`
    seconds at first and twice as long after each call more that fails as its probe and had not
    failed before, up to `max_reset_timeout_seconds`.
    """

    failure_threshold: int = 20
    reset_timeout_seconds: float = 5.0
    max_reset_timeout_seconds: float = 60.0


class Breaker:
    """The breaker of one counterpart in this process. `now` is the loop's time, in seconds."""

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self._name = name
        self._settings = settings
        self._failed_call_ids: set[str] = set()
        self._reset_timeout_seconds = settings.reset_timeout_seconds
        self._open_until = 0.0
        self._open = False
        self._probing = False

    def admit_or_delay(self, now: float, call_id: str) -> float | None:
        """Seconds for which a call is to be held back; None: it may be made, and its end must be
        reported. An open breaker lets one probe through.

        A call that has failed waits a little longer than others, so that one that fails for ever is
        not the probe before them.
        """
        if not self._open:
            return None
        probe_time = self._open_until + (
            self._settings.reset_timeout_seconds if call_id in self._failed_call_ids else 0
        )
        if now < probe_time:
            return probe_time - now
        if self._probing:
            return self._reset_timeout_seconds
        self._probing = True
        return None

    def is_open(self) -> bool:
        return self._open

    def needs_probe(self, now: float, *, others_waiting: bool) -> bool:
        """Whether its rest is over, and no call has come to be the probe; while others wait, which
        may be it: for as long again.
        """
        return (
            self._open
            and not self._probing
            and now >= self._open_until + (self._reset_timeout_seconds if others_waiting else 0)
        )

    def record_success(self) -> None:
        """Reports that the counterpart answers."""
        if self._open:
            log.warning("%s answers again", self._name)
        self._open = self._probing = False
        self._failed_call_ids.clear()
        self._reset_timeout_seconds = self._settings.reset_timeout_seconds

    def record_failure(self, now: float, call_id: str, *, trip: bool = False) -> None:
        """Reports that it does not answer a call, or, `trip`, that there is no use in asking. A
        call that fails again and again counts once.
        """
        is_repeat = call_id in self._failed_call_ids
        self._failed_call_ids.add(call_id)
        if self._open and not self._probing:  # a call that was under way when it opened
            return
        if self._open:
            self._reset_timeout_seconds = (
                self._reset_timeout_seconds
                if is_repeat
                else min(self._reset_timeout_seconds * 2, self._settings.max_reset_timeout_seconds)
            )
        elif not trip and len(self._failed_call_ids) < self._settings.failure_threshold:
            return
        else:
            log.warning(
                "%s is left alone after %d calls failed in a row",
                self._name,
                len(self._failed_call_ids),
            )
        self._open, self._probing = True, False
        self._open_until = now + self._reset_timeout_seconds
