"""Chance that can be repeated: a number for each key, whatever else was asked before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class Chance:
    """Numbers that follow from a seed and a key alone: what is named after its place keeps its numbers when something else is left out of a run."""

    def __init__(self, seed: object) -> None:
        self._seed = str(seed).encode()

    def numbers(self, key: str) -> tuple[float, float, float, float]:
        """Four numbers from 0 to 1."""
        digest = blake2b(key.encode(), key=self._seed[:64], digest_size=32).digest()
        return tuple(int.from_bytes(digest[place : place + 7], "big") / 2**56 for place in (0, 8, 16, 24))  # type: ignore[return-value]

    def number(self, key: str) -> float:
        return self.numbers(key)[0]

    def one_of(self, key: str, choices: Sequence[T]) -> T:
        return choices[int(self.number(key) * len(choices))]

    def weighed(self, key: str, weights: Mapping[T, float]) -> T:
        """One of the choices, as often as it weighs."""
        point = self.number(key) * sum(weights.values())
        for choice, weight in weights.items():
            point -= weight
            if point < 0:
                return choice
        return list(weights)[-1]

    def between(self, key: str, low: float, high: float) -> float:
        return low + self.number(key) * (high - low)

    def id(self, key: str) -> UUID:
        digest = blake2b(key.encode(), key=self._seed[:64], digest_size=16).digest()
        return UUID(bytes=digest, version=4)
