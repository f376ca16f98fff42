"""A circuit breaker: stops calls to a failing provider, then sends one probe at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tallystick_server.observability import names

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens after `failure_threshold` consecutive failures of different calls, for
    `reset_timeout_seconds`.

    The timeout doubles after each failed probe of a call that had not failed before, up to
    `max_reset_timeout_seconds`.
    """

    failure_threshold: int = 20
    reset_timeout_seconds: float = 5.0
    max_reset_timeout_seconds: float = 60.0


class Breaker:
    """The circuit breaker of one provider in this process. `now` is loop time, in seconds."""

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self._name = name
        self._settings = settings
        self._failed_call_ids: set[str] = set()
        self._reset_timeout_seconds = settings.reset_timeout_seconds
        self._open_until = 0.0
        self._open = False
        self._probing = False

    def admit_or_delay(self, now: float, call_id: str) -> float | None:
        """Returns None if the call may be made; its result must then be reported. Otherwise returns
        the delay in seconds. An open breaker admits one probe.

        A call that has failed before waits a little longer than others. So a call that always fails
        does not take every probe.
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
        """Whether the reset timeout has passed and no call has become the probe. If queued
        calls could be the probe, one more reset timeout passes first.
        """
        return (
            self._open
            and not self._probing
            and now >= self._open_until + (self._reset_timeout_seconds if others_waiting else 0)
        )

    def record_success(self) -> None:
        """Reports that the provider answers."""
        if self._open:
            log.warning(
                "%s: circuit closed, the provider answers again",
                self._name,
                extra=names.CIRCUIT_CLOSED.extra,
            )
        self._open = self._probing = False
        self._failed_call_ids.clear()
        self._reset_timeout_seconds = self._settings.reset_timeout_seconds

    def record_failure(self, now: float, call_id: str, *, trip: bool = False) -> None:
        """Reports that the provider did not answer a call. `trip`: opens the breaker at once,
        because further calls are useless.

        A call that fails repeatedly counts once.
        """
        is_repeat = call_id in self._failed_call_ids
        self._failed_call_ids.add(call_id)
        if self._open and not self._probing:  # the call started before the breaker opened
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
                "%s: circuit opened after %d consecutive failures",
                self._name,
                len(self._failed_call_ids),
                extra=names.CIRCUIT_OPENED.extra,
            )
        self._open, self._probing = True, False
        self._open_until = now + self._reset_timeout_seconds
