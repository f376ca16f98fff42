"""Capacity: how many charges may wait for a failing provider, counted for a batch of payments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_storage.sql import Connection


class Route(NamedTuple):
    """The provider of a charge, and its fallback; "": none."""

    provider: str
    fallback: str


@dataclass(frozen=True, slots=True)
class ChargeCapacity:
    """How many more charges may be queued while their provider fails.

    `allows_probe`: one more payment is accepted, to probe whether the provider answers again.
    """

    charges: int
    allows_probe: bool


RemainingCapacity: TypeAlias = Callable[
    [Connection, float, Collection[Route]], Mapping[Route, ChargeCapacity]
]
"""The capacity at a loop time of each of these routes that has a limit now. Routes of one provider
share it.
"""


class CapacityCounter:
    """Counts the charges of new payments against the capacity of their providers."""

    def __init__(self, capacities: Mapping[Route, ChargeCapacity]) -> None:
        self._limited = capacities.keys()
        self._remaining = {route.provider: item.charges for route, item in capacities.items()}
        self._probes = {route.provider for route, item in capacities.items() if item.allows_probe}

    def admit(self, routes: Sequence[Route]) -> bool:
        """Whether a payment whose charges have these routes may be stored. A provider without
        capacity for it has none for later ones either. A probe, if its provider allows one, is not
        counted.
        """
        needed = Counter(route.provider for route in routes if route in self._limited)
        counted = needed.keys() - self._probes
        self._probes -= needed.keys()
        for provider in counted:
            self._remaining[provider] -= needed[provider]
        return all(self._remaining[provider] >= 0 for provider in counted)


def provider_unavailable_error() -> ApiError:
    """The error for a new payment while its provider fails and the queue is full."""
    message = "The provider does not answer, and too many payments wait for it. Nothing was stored."
    return ApiError(ErrorReason.PROVIDER_UNAVAILABLE, message, retry_after=30.0)
