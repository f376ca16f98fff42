"""Checks and their report, and the streams that checks merge."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

_MOST_NAMED = 20

T = TypeVar("T")
Rows = Iterator[Any]
Read = Callable[..., Rows]
"""Opens a query of `tallystick_storage.verification`."""


@dataclass
class Check:
    """One check: which invariants it proves, how many rows it looked at, and what is wrong, the first first."""

    name: str
    invariants: str
    rows: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> None:
        self.rows += 1

    def fail(self, row: str, what: str) -> None:
        """Names a row that is wrong."""
        if len(self.wrong) < _MOST_NAMED:
            self.wrong.append(f"{row}: {what}")


@dataclass(frozen=True)
class Report:
    """All checks."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        return not any(check.wrong for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [{"name": c.name, "invariants": c.invariants.split(), "rows": c.rows, "wrong": c.wrong} for c in self.checks]
        return {"passed": self.passed, "checks": checks}

    def as_text(self) -> str:
        lines = [f"{'ok   ' if not c.wrong else 'WRONG'} {c.name:<46} {c.rows:>9} rows   {c.invariants}" for c in self.checks]
        lines += [f"  {wrong}" for c in self.checks for wrong in c.wrong]
        return "\n".join([*lines, "verify: every check passed" if self.passed else "verify: the database is NOT as it must be"])


def opened(rows: Iterator[T]) -> Iterator[T]:
    """The same rows, asked for now: what they show is as of this moment, though they are read later."""
    first = next(rows, None)
    return iter(()) if first is None else chain([first], rows)


def listed(groups: Iterable[tuple[Any, Iterable[Any]]]) -> Iterator[tuple[Any, list[Any]]]:
    return ((key, list(rows)) for key, rows in groups)


def merged(
    left: Iterable[Any], left_key: Callable[[Any], Any], right: Iterable[Any], right_key: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Full outer merge of two streams that are sorted by their keys: key, left item or None, right item or None."""
    lefts = ((left_key(item), 0, item) for item in left)
    rights = ((right_key(item), 1, item) for item in right)
    held: tuple[Any, int, Any] | None = None
    for key, side, item in heapq.merge(lefts, rights, key=lambda one: one[:2]):
        if held is not None and (held[0] != key or side == 0):
            yield held[0], held[2], None
            held = None
        if side == 0:
            held = (key, side, item)
        elif held is not None:
            yield key, held[2], item
            held = None
        else:
            yield key, None, item
    if held is not None:
        yield held[0], held[2], None
