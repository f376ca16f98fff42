"""Retry policies: when something that failed is tried again, and when no more."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from tenacity import RetryCallState, wait_exponential, wait_fixed, wait_incrementing, wait_none
from tenacity.wait import wait_base

from tallystick_core.provider import Trouble


class Strategy(StrEnum):
    """How the waits between tries go."""

    IMMEDIATE = "immediate"
    FIXED = "fixed"
    INCREMENTAL = "incremental"
    EXPONENTIAL = "exponential"
    """Doubling, each wait shortened by chance by up to a half."""
    CANCEL = "cancel"
    """No second try."""


class wait_seeded(wait_base):  # noqa: N801 - as tenacity names its waits
    """Another wait, shortened by up to a half; the same for the same seed and try. tenacity's own jitter draws from the process's random numbers."""

    def __init__(self, wait: wait_base, seed: str) -> None:
        self._wait = wait
        self._seed = seed

    def __call__(self, retry_state: RetryCallState) -> float:
        chance = random.Random(f"{self._seed}/{retry_state.attempt_number}").random()  # noqa: S311 - no secret
        return self._wait(retry_state) * (1 - chance / 2)


def spread(seconds: float, seed: str) -> float:
    """A part of so many seconds, by chance, the same for the same seed: what waits together does not come back together."""
    return seconds * random.Random(seed).random()  # noqa: S311 - no secret


_REST = 60.0  # seconds, of a policy without waits of its own


@dataclass(frozen=True, slots=True)
class Policy:
    """A strategy with its seconds: `first` the first wait, or each, `longest` the longest one; at most `tries` tries, None: no bound."""

    strategy: Strategy
    first: float = 0.0
    longest: float = 0.0
    tries: int | None = 1

    def delay(self, tries: int, seed: str) -> float | None:
        """Seconds until the next try after so many; None: there is none."""
        if self.strategy is Strategy.CANCEL or (self.tries is not None and tries >= self.tries):
            return None
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = tries
        return float(self._wait(seed)(state))

    @property
    def rest(self) -> float:
        """Seconds between tries where there have to be more of them than the policy has."""
        return max(self.first, self.longest) or _REST

    def _wait(self, seed: str) -> wait_base:
        match self.strategy:
            case Strategy.FIXED:
                return wait_fixed(self.first)
            case Strategy.INCREMENTAL:
                return wait_incrementing(self.first, self.first, self.longest)
            case Strategy.EXPONENTIAL:
                return wait_seeded(wait_exponential(self.first, max=self.longest), seed)
            case _:
                return wait_none()


DEFAULTS: Mapping[Trouble, Policy] = {
    Trouble.NOT_SENT: Policy(Strategy.EXPONENTIAL, 1, 60, 120),  # an hour without the provider fails nobody
    Trouble.NO_ANSWER: Policy(Strategy.EXPONENTIAL, 2, 300, 5),  # then it is looked up, and sent again if that tells nothing
    Trouble.SERVER_ERROR: Policy(Strategy.EXPONENTIAL, 1, 10, 4),
    Trouble.BUSY: Policy(Strategy.EXPONENTIAL, 1, 60, 60),
    Trouble.FORBIDDEN: Policy(Strategy.EXPONENTIAL, 30, 600, 100),
    Trouble.REJECTED: Policy(Strategy.CANCEL),
    Trouble.WAITING: Policy(Strategy.INCREMENTAL, 30, 3600, None),
    Trouble.WATCHED: Policy(Strategy.FIXED, 86_400, 86_400, 30),  # a day each, for as long as banks send money back
    Trouble.NOT_FOUND: Policy(Strategy.EXPONENTIAL, 1, 300, None),
    Trouble.UNANSWERED: Policy(Strategy.EXPONENTIAL, 5, 600, None),
    Trouble.MISDIRECTED: Policy(Strategy.CANCEL),
    Trouble.UNRESOLVED: Policy(Strategy.EXPONENTIAL, 60, 3600, 12),
    Trouble.APPLYING_FAILED: Policy(Strategy.EXPONENTIAL, 1, 600, 30),  # as SETTLING_FAILED
    Trouble.UNSETTLED: Policy(Strategy.EXPONENTIAL, 1, 60, None),  # ORDER_STUCK and PAYOUT_STUCK tell that it waits
    Trouble.CALLER_REJECTED: Policy(Strategy.EXPONENTIAL, 1, 60, None),
    Trouble.SETTLING_FAILED: Policy(Strategy.EXPONENTIAL, 1, 600, 30),  # two to three hours
    Trouble.SETTLING_REFUSED: Policy(Strategy.CANCEL),
}

OWED = frozenset({Trouble.UNSETTLED, Trouble.CALLER_REJECTED})
"""What the platform owes to itself: it is tried until it is done, whatever a policy says of tries."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of each kind of trouble, and those of single providers over it."""

    own: Mapping[tuple[str, Trouble], Policy] = field(default_factory=dict)
    """(provider, trouble); the provider is "" for what holds for all."""

    def of(self, provider: str, trouble: Trouble) -> Policy:
        policy = self.own.get((provider, trouble)) or self.own.get(("", trouble)) or DEFAULTS[trouble]
        return replace(policy, tries=None) if trouble in OWED else policy


_FORMS: dict[str, tuple[Any, ...]] = {
    Strategy.IMMEDIATE: (int,),
    Strategy.FIXED: (float, int),
    Strategy.INCREMENTAL: (float, float, int),
    Strategy.EXPONENTIAL: (float, float, int),
    Strategy.CANCEL: (),
}
FORM = "cancel, immediate:TRIES, fixed:SECONDS:TRIES, incremental:SECONDS:LONGEST:TRIES or exponential:SECONDS:LONGEST:TRIES"


def parse_policy(text: str) -> Policy:
    """A policy as the configuration writes it (FORM); 0 tries: no bound. Raises ValueError."""
    name, *values = text.split(":")
    kinds = _FORMS[Strategy(name)]
    if len(values) != len(kinds):
        raise ValueError(text)
    numbers = [kind(value) for kind, value in zip(kinds, values, strict=True)]
    if not all(0 <= number <= 604_800 for number in numbers):  # a week
        raise ValueError(text)
    *seconds, tries = numbers or [1]
    first, longest = (*seconds, *seconds[-1:], 0.0, 0.0)[:2]
    return Policy(Strategy(name), first, longest, tries or None)
