"""Checks, their report, and the merge of streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tallystick_core.ledger.posting_rules import JournalLine

_MAX_FAILURES = 20

Rows = Iterator[Any]
QueryRunner = Callable[..., Rows]
"""Opens a query of `tallystick_storage.verify`."""


@dataclass
class Check:
    """One check: the invariants it proves, the number of rows it read, and the violations in the
    order found.
    """

    name: str
    invariants: str
    row_count: int = 0
    failures: list[str] = field(default_factory=list)

    def count_row(self) -> None:
        self.row_count += 1

    def fail(self, row: str, message: str) -> None:
        """Adds a violation for a row."""
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append(f"{row}: {message}")

    def fail_each(self, rows: Rows) -> None:
        """Adds violations for the rows of a query, whose columns are `name` and `what`, up to the
        limit.
        """
        for row in islice(rows, _MAX_FAILURES):
            self.fail(row.name, row.what)


@dataclass(frozen=True)
class Report:
    """All checks."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        return not any(check.failures for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [
            {
                "name": c.name,
                "invariants": c.invariants.split(),
                "rows": c.row_count,
                "failures": c.failures,
            }
            for c in self.checks
        ]
        return {"passed": self.passed, "checks": checks}

    @property
    def violations(self) -> list[str]:
        return [failure for check in self.checks for failure in check.failures]

    @property
    def summary(self) -> str:
        """The result in one line."""
        if self.passed:
            row_count = sum(check.row_count for check in self.checks)
            return f"verify: passed ({len(self.checks)} checks, {row_count:,} rows)"
        violation_count = len(self.violations)
        noun = "violation" if violation_count == 1 else "violations"
        return f"verify: FAILED ({violation_count} {noun})"

    def as_text(self) -> str:
        """The violations and the summary."""
        return "\n".join([*self.violations, self.summary])


def sum_counts(rows: Rows) -> int:
    """The count of a query."""
    return sum(row.rows for row in rows)


def format_posting(
    lines: Iterable[JournalLine], external_reference: str, buyer_account: str = ""
) -> str:
    """A transaction's reference, buyer and entries as one text, in the format of the queries."""
    entries = ", ".join(f"{line.account} {line.currency} {line.amount}" for line in lines)
    return f"{external_reference} {buyer_account}: {entries}"


def to_lists(groups: Iterable[tuple[Any, Iterable[Any]]]) -> Iterator[tuple[Any, list[Any]]]:
    return ((key, list(rows)) for key, rows in groups)


def merge_join(
    left: Iterable[Any],
    left_key: Callable[[Any], Any],
    right: Iterable[Any],
    right_key: Callable[[Any], Any],
) -> Iterator[tuple[Any, Any, Any]]:
    """Full outer merge of two streams that are sorted by key. Yields the key, the left item or
    None, and the right item or None.
    """
    left_items, right_items = iter(left), iter(right)
    left_item, right_item = next(left_items, None), next(right_items, None)
    while left_item is not None or right_item is not None:
        left_at: Any = left_key(left_item) if left_item is not None else None
        right_at: Any = right_key(right_item) if right_item is not None else None
        if right_item is None or (left_item is not None and left_at < right_at):
            yield left_at, left_item, None
            left_item = next(left_items, None)
        elif left_item is None or right_at < left_at:
            yield right_at, None, right_item
            right_item = next(right_items, None)
        else:
            yield left_at, left_item, right_item
            left_item, right_item = next(left_items, None), next(right_items, None)
