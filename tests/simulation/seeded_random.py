"""Reproducible random numbers: each key has its own numbers, independent of other keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class SeededRandom:
    """Numbers that follow only from a seed and a key, so that a named call keeps its numbers when
    others are left out of a run.
    """

    def __init__(self, seed: object) -> None:
        self._seed = str(seed).encode()

    def numbers(self, key: str) -> tuple[float, float, float, float]:
        """Four numbers from 0 to 1."""
        digest = blake2b(key.encode(), key=self._seed[:64], digest_size=32).digest()
        return tuple(
            int.from_bytes(digest[offset : offset + 7], "big") / 2**56 for offset in (0, 8, 16, 24)
        )  # type: ignore[return-value]

    def number(self, key: str) -> float:
        return self.numbers(key)[0]

    def choice(self, key: str, choices: Sequence[T]) -> T:
        return choices[int(self.number(key) * len(choices))]

    def weighted_choice(self, key: str, weights: Mapping[T, float]) -> T:
        """One of the choices, at random by weight."""
        remaining_weight = self.number(key) * sum(weights.values())
        for choice, weight in weights.items():
            remaining_weight -= weight
            if remaining_weight < 0:
                return choice
        return list(weights)[-1]

    def uniform(self, key: str, low: float, high: float) -> float:
        return low + self.number(key) * (high - low)

    def uuid(self, key: str) -> UUID:
        digest = blake2b(key.encode(), key=self._seed[:64], digest_size=16).digest()
        return UUID(bytes=digest, version=4)
