"""Retry policies: when a failed operation is retried, and how often."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from tenacity import RetryCallState, wait_exponential, wait_fixed, wait_incrementing, wait_none
from tenacity.wait import wait_base

from tallystick_core.provider.outcome import RetryReason


class RetryStrategy(StrEnum):
    """How the waits between tries grow."""

    IMMEDIATE = "immediate"
    FIXED = "fixed"
    INCREMENTAL = "incremental"
    EXPONENTIAL = "exponential"
    """Doubling; jitter shortens each wait by up to a half."""
    CANCEL = "cancel"
    """No retry."""


class wait_seeded(wait_base):  # noqa: N801 - as tenacity names its waits
    """Shortens another wait by up to a half. The same seed and try give the same wait. tenacity's
    own jitter uses the process's random numbers.
    """

    def __init__(self, wait: wait_base, seed: str) -> None:
        self._wait = wait
        self._seed = seed

    def __call__(self, retry_state: RetryCallState) -> float:
        seed = f"{self._seed}/{retry_state.attempt_number}"
        fraction = random.Random(seed).random()  # noqa: S311 - a wait is no secret
        return self._wait(retry_state) * (1 - fraction / 2)


def jitter(seconds: float, seed: str) -> float:
    """A pseudo-random part of `seconds`, the same for the same seed. It spreads retries of
    operations that waited together.
    """
    return seconds * random.Random(seed).random()  # noqa: S311 - a wait is no secret


_DEFAULT_INTERVAL_SECONDS = 60.0  # for a policy without its own waits


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A strategy with its waits in seconds and its limit of tries.

    `initial_interval_seconds`: the first wait, or each one; `max_interval_seconds`: the longest
    wait; `max_tries`: the limit of tries, None: unlimited.

    `backoff_coefficient`: the factor between exponential waits; `increment_seconds`: the difference
    between incremental waits, None: the first wait.
    """

    strategy: RetryStrategy
    initial_interval_seconds: float = 0.0
    max_interval_seconds: float = 0.0
    max_tries: int | None = 1
    backoff_coefficient: float = 2.0
    increment_seconds: float | None = None

    def delay_seconds(self, tries: int, seed: str) -> float | None:
        """The wait before the next try after `tries` tries. None: no further try."""
        if self.strategy is RetryStrategy.CANCEL or (
            self.max_tries is not None and tries >= self.max_tries
        ):
            return None
        state = RetryCallState(
            retry_object=None,  # type: ignore[arg-type]
            fn=None,
            args=(),
            kwargs={},
        )
        state.attempt_number = tries
        return float(self._wait_strategy(seed)(state))

    @property
    def exhausted_interval_seconds(self) -> float:
        """Seconds between tries that continue after the policy is exhausted."""
        return (
            max(self.initial_interval_seconds, self.max_interval_seconds)
            or _DEFAULT_INTERVAL_SECONDS
        )

    def _wait_strategy(self, seed: str) -> wait_base:
        match self.strategy:
            case RetryStrategy.FIXED:
                return wait_fixed(self.initial_interval_seconds)
            case RetryStrategy.INCREMENTAL:
                return wait_incrementing(
                    self.initial_interval_seconds,
                    self.initial_interval_seconds
                    if self.increment_seconds is None
                    else self.increment_seconds,
                    self.max_interval_seconds,
                )
            case RetryStrategy.EXPONENTIAL:
                return wait_seeded(
                    wait_exponential(
                        self.initial_interval_seconds,
                        self.max_interval_seconds,
                        self.backoff_coefficient,
                    ),
                    seed,
                )
            case _:
                return wait_none()


DEFAULT_POLICIES: Mapping[RetryReason, RetryPolicy] = {
    # an hour without the provider fails no operation
    RetryReason.NOT_SENT: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 60, 120),
    # then it is looked up, and sent again if the lookup is inconclusive
    RetryReason.NO_ANSWER: RetryPolicy(RetryStrategy.EXPONENTIAL, 2, 300, 5),
    RetryReason.SERVER_ERROR: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 10, 4),
    RetryReason.THROTTLED: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 60, 60),
    RetryReason.UNAUTHORIZED: RetryPolicy(RetryStrategy.EXPONENTIAL, 30, 600, 100),
    RetryReason.REJECTED: RetryPolicy(RetryStrategy.CANCEL),
    RetryReason.PENDING: RetryPolicy(RetryStrategy.INCREMENTAL, 30, 3600, None),
    # daily, for as long as banks return transfers
    RetryReason.POST_COMPLETION_POLL: RetryPolicy(RetryStrategy.FIXED, 86_400, 86_400, 30),
    RetryReason.NOT_FOUND: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 300, None),
    RetryReason.LOOKUP_INCONCLUSIVE: RetryPolicy(RetryStrategy.EXPONENTIAL, 5, 600, None),
    RetryReason.MISMATCHED_OPERATION: RetryPolicy(RetryStrategy.CANCEL),
    RetryReason.OUTCOME_UNKNOWN: RetryPolicy(RetryStrategy.EXPONENTIAL, 60, 3600, 12),
    # two to three hours, as BOOKING_FAILED
    RetryReason.APPLYING_FAILED: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 600, 30),
    # the ORDER_STUCK and PAYOUT_STUCK alerts report the wait
    RetryReason.BOOKING_UNAVAILABLE: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 60, None),
    RetryReason.CALLER_REJECTED: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 60, None),
    # two to three hours
    RetryReason.BOOKING_FAILED: RetryPolicy(RetryStrategy.EXPONENTIAL, 1, 600, 30),
    RetryReason.BOOKING_REJECTED: RetryPolicy(RetryStrategy.CANCEL),
}

UNLIMITED_REASONS = frozenset({RetryReason.BOOKING_UNAVAILABLE, RetryReason.CALLER_REJECTED})
"""Reasons within the platform. These are retried until they succeed, whatever the policy's limit
is.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicies:
    """The policy of each retry reason, and its overrides for single providers."""

    overrides: Mapping[tuple[str, RetryReason], RetryPolicy] = field(default_factory=dict)
    """By (provider, reason); the provider is "" for all providers."""

    def policy_for(self, provider: str, retry_reason: RetryReason) -> RetryPolicy:
        policy = (
            self.overrides.get((provider, retry_reason))
            or self.overrides.get(("", retry_reason))
            or DEFAULT_POLICIES[retry_reason]
        )
        return replace(policy, max_tries=None) if retry_reason in UNLIMITED_REASONS else policy


_ARGUMENT_TYPES: dict[str, tuple[Any, ...]] = {
    RetryStrategy.IMMEDIATE: (int,),
    RetryStrategy.FIXED: (float, int),
    RetryStrategy.INCREMENTAL: (float, float, int),
    RetryStrategy.EXPONENTIAL: (float, float, int),
    RetryStrategy.CANCEL: (),
}
POLICY_FORMAT = (
    "cancel, immediate:MAX_TRIES, fixed:INTERVAL:MAX_TRIES, "
    "incremental:INITIAL_INTERVAL:MAX_INTERVAL:MAX_TRIES or "
    "exponential:INITIAL_INTERVAL:MAX_INTERVAL:MAX_TRIES"
)
MAX_INTERVAL_SECONDS = 604_800
MAX_TRIES = 604_800


def parse_policy(text: str) -> RetryPolicy:
    """A policy in its compact form (POLICY_FORMAT); 0 tries: unlimited. Raises ValueError."""
    name, *values = text.split(":")
    types = _ARGUMENT_TYPES[RetryStrategy(name)]
    if len(values) != len(types):
        raise ValueError(text)
    numbers = [parse(value) for parse, value in zip(types, values, strict=True)]
    if not all(0 <= number <= MAX_INTERVAL_SECONDS for number in numbers):
        raise ValueError(text)
    *seconds, max_tries = numbers or [1]
    initial_interval, max_interval = (*seconds, *seconds[-1:], 0.0, 0.0)[:2]
    return RetryPolicy(RetryStrategy(name), initial_interval, max_interval, max_tries or None)
