"""Checks and their report, and the streams that checks merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tallystick_core.booking import Line

_MOST_NAMED = 20

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

    def fail_each(self, rows: Rows) -> None:
        """Names the first of the rows that a query finds: its columns are `name` and `what`."""
        for row in islice(rows, _MOST_NAMED):
            self.fail(row.name, row.what)


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


def counted(rows: Rows) -> int:
    """What a query counts."""
    return sum(row.rows for row in rows)


def text_of(lines: Iterable[Line]) -> str:
    """The entries of a transaction as queries give them, in one text."""
    return ", ".join(f"{line.account} {line.currency} {line.amount}" for line in lines)


def listed(groups: Iterable[tuple[Any, Iterable[Any]]]) -> Iterator[tuple[Any, list[Any]]]:
    return ((key, list(rows)) for key, rows in groups)


def merged(
    left: Iterable[Any], left_key: Callable[[Any], Any], right: Iterable[Any], right_key: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Full outer merge of two streams that are sorted by their keys: key, left item or None, right item or None."""
    lefts, rights = iter(left), iter(right)
    ours, theirs = next(lefts, None), next(rights, None)
    while ours is not None or theirs is not None:
        left_at: Any = left_key(ours) if ours is not None else None
        right_at: Any = right_key(theirs) if theirs is not None else None
        if theirs is None or (ours is not None and left_at < right_at):
            yield left_at, ours, None
            ours = next(lefts, None)
        elif ours is None or right_at < left_at:
            yield right_at, None, theirs
            theirs = next(rights, None)
        else:
            yield left_at, ours, theirs
            ours, theirs = next(lefts, None), next(rights, None)
