"""Tampers with a database, one edit at a time, and runs `verify` after each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from tallystick_server.verify.report import Report
from tallystick_server.verify.run import CHECKS, load_queries, run_checks
from tallystick_storage.verify import statement
from tests.tampering.edits import (
    ROW,
    Edit,
    EditableColumn,
    each_edit,
    editable_columns,
    first_edit,
    make_random_edit,
)
from tests.tampering.exempt import EXEMPTIONS

_MAX_TRIES = 12
"""How many times an edit of a column is tried; constraints reject many."""


@dataclass
class TamperingResult:
    """The number of edits, and those that verify did not report, by table and column.
    `not_editable`: columns of which the database accepted no edit.
    """

    edit_count: int = 0
    missed: list[Edit] = field(default_factory=list)
    crashed: list[tuple[Edit, str]] = field(default_factory=list)
    not_editable: set[str] = field(default_factory=set)

    @property
    def found_count(self) -> int:
        return self.edit_count - len(self.missed) - len(self.crashed)

    def as_dict(self) -> dict[str, Any]:
        missed_by_table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for edit in [*self.missed, *(edit for edit, _ in self.crashed)]:
            missed_by_table[edit.table][edit.column] += 1
        return {
            "edits": self.edit_count,
            "found": self.found_count,
            "missed": len(self.missed) + len(self.crashed),
            "crashed": len(self.crashed),
            "by": {
                table: dict(sorted(counts.items()))
                for table, counts in sorted(missed_by_table.items())
            },
            "not_editable": sorted(self.not_editable),
            "exempt": len(EXEMPTIONS),
        }


class Tampering:
    """Edits one database through one administrator connection; each edit is rolled back after
    verify has run.
    """

    def __init__(self, admin: str) -> None:
        self._connection = psycopg.connect(admin)
        self._connection.execute("set session_replication_role = replica")
        self._connection.commit()
        all_columns = editable_columns(self._connection)
        self._columns = [
            column
            for column in all_columns
            if not {f"{column.qualified_table}.{column.name}", column.qualified_table}
            & EXEMPTIONS.keys()
        ]
        self._columns_by_table: dict[str, list[EditableColumn]] = defaultdict(list)
        for column in all_columns:
            self._columns_by_table[column.qualified_table].append(column)
        self._sealed_tables = {
            column.qualified_table for column in all_columns if column.name == "seal"
        }
        self._checks, self._queries = [*CHECKS], load_queries()
        self._connection.rollback()

    def run(
        self,
        edit_count: int,
        seed: int,
        report_progress: Callable[[int, TamperingResult], None] = lambda _number, _result: None,
        *,
        stop_at_first: bool = False,
    ) -> TamperingResult:
        """Makes the given number of edits, evenly over all columns. `stop_at_first`: once a check
        reports something, no other is run.
        """
        random, result = Random(seed), TamperingResult()
        pending_columns: list[EditableColumn] = []
        failed_tries = 0
        while result.edit_count < edit_count and failed_tries < 2 * len(self._columns):
            pending_columns = pending_columns or random.sample(self._columns, len(self._columns))
            column = pending_columns.pop()
            if self._try_edit(random, column, result, quick=stop_at_first):
                failed_tries = 0
                report_progress(result.edit_count, result)
            else:
                failed_tries += 1
        return result

    def run_every_cell(
        self,
        report_progress: Callable[[int, TamperingResult], None] = lambda _number, _result: None,
    ) -> TamperingResult:
        """Makes each edit of `each_edit` to each cell of the tables without seals."""
        result = TamperingResult()
        for column in self._columns:
            if column.qualified_table not in self._sealed_tables:
                for edit in each_edit(self._connection, column):
                    result.edit_count += 1
                    if not self._is_detected():
                        result.missed.append(edit)
                    report_progress(result.edit_count, result)
        return result

    def run_named(self, names: Iterable[str]) -> TamperingResult:
        """Edits one cell of each named column, given as schema.table.column."""
        result = TamperingResult()
        by_name = {f"{column.qualified_table}.{column.name}": column for column in self._columns}
        for name in names:
            try:
                edit = first_edit(self._connection, by_name[name])
                if edit is None:
                    result.not_editable.add(name)
                    continue
                result.edit_count += 1
                if not self._is_detected():
                    result.missed.append(edit)
            finally:
                self._connection.rollback()
        return result

    def _try_edit(
        self, random: Random, column: EditableColumn, result: TamperingResult, *, quick: bool
    ) -> bool:
        """Makes one edit of a column and records whether verify reports it; returns whether an edit
        was possible.
        """
        try:
            for _ in range(_MAX_TRIES):
                edit = make_random_edit(
                    self._connection, random, column, self._columns_by_table[column.qualified_table]
                )
                if edit is None or (edit.column == ROW and f"{edit.table}.{ROW}" in EXEMPTIONS):
                    continue
                result.edit_count += 1
                try:
                    if not self._is_detected() if quick else self.passes():
                        result.missed.append(edit)
                # whatever verify raises, it has not named a row
                except Exception as error:  # noqa: BLE001
                    result.crashed.append((edit, repr(error)))
                return True
            result.not_editable.add(f"{column.qualified_table}.{column.name}")
            return False
        finally:
            self._connection.rollback()

    def passes(self) -> bool:
        """Whether verify finds no violation in the data that this connection sees."""
        return self.report().passed

    def _is_detected(self) -> bool:
        """Whether a check finds a violation. The check that found the last edit runs first, the
        others only if it finds nothing.
        """
        self._connection.execute("savepoint edited")
        for index, check in enumerate(self._checks):
            if not run_checks(self._read, checks=[check]).passed:
                self._checks.insert(0, self._checks.pop(index))
                return True
        return False

    def report(self) -> Report:
        """The findings of verify for the data that this connection sees."""
        self._connection.execute("savepoint edited")
        return run_checks(self._read)

    def report_after(self, statements: str) -> Report:
        """The findings of verify after these statements have been run, which are then rolled
        back.
        """
        try:
            self._connection.execute(statements.encode())
            return self.report()
        finally:
            self._connection.rollback()

    def _read(self, name: str, **parameters: Any) -> Iterator[Any]:
        """Opens a query as verify does, but in the transaction of the edit. An error is undone to
        the savepoint of the edit, so that other queries can be read.
        """
        schema = name.partition(".")[0]
        self._connection.execute(f"set local search_path = {schema}, pg_temp")
        query = statement(self._queries[schema][name], parameters)
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            try:
                return iter(cursor.execute(query, parameters or None).fetchall())
            except psycopg.Error:
                self._connection.execute("rollback to savepoint edited")
                raise

    def close(self) -> None:
        self._connection.close()
