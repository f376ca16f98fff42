"""Tampers with a database, one edit at a time, and asks `verify` after each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy.dialects import postgresql

from tallystick_server.process.checks.report import Report
from tallystick_server.process.verify import CHECKS, verify_by
from tallystick_storage.migrations import UNSEALED
from tallystick_storage.verification import statement

from .edits import ROW, Column, Edit, columns, every_edit, first_edit, make
from .exempt import EXEMPT

_DIALECT = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
_TRIES = 12
"""Times that an edit of a column is tried; constraints forbid many."""


@dataclass
class Result:
    """How many edits were made, and those that verify did not name, by table and column. `refused`: columns of which the database took no edit."""

    edits: int = 0
    missed: list[Edit] = field(default_factory=list)
    crashed: list[tuple[Edit, str]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    @property
    def found(self) -> int:
        return self.edits - len(self.missed) - len(self.crashed)

    def as_dict(self) -> dict[str, Any]:
        by: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for edit in [*self.missed, *(edit for edit, _ in self.crashed)]:
            by[edit.table][edit.column] += 1
        return {
            "edits": self.edits,
            "found": self.found,
            "missed": len(self.missed) + len(self.crashed),
            "crashed": len(self.crashed),
            "by": {table: dict(sorted(found.items())) for table, found in sorted(by.items())},
            "not_editable": sorted(self.refused),
            "exempt": len(EXEMPT),
        }


class Tampering:
    """Edits one database through one connection of its administrator; each edit is rolled back once verify has looked."""

    def __init__(self, admin: str) -> None:
        self._connection = psycopg.connect(admin)
        self._connection.execute("set session_replication_role = replica")
        self._connection.commit()
        every = columns(self._connection)
        self._columns = [column for column in every if not {f"{column.full_table}.{column.name}", column.full_table} & EXEMPT.keys()]
        self._of_table: dict[str, list[Column]] = defaultdict(list)
        for column in every:
            self._of_table[column.full_table].append(column)
        self._checks = [*CHECKS]
        self._connection.rollback()

    def run(self, edits: int, seed: int, say: Callable[[int, Result], None] = lambda _number, _result: None, *, quick: bool = False) -> Result:
        """Makes so many edits, of columns in turn, so that each has its share. `quick`: once a check names something, no other is run."""
        random, result = Random(seed), Result()
        turn: list[Column] = []
        barren = 0
        while result.edits < edits and barren < 2 * len(self._columns):
            turn = turn or random.sample(self._columns, len(self._columns))
            column = turn.pop()
            if self._edit(random, column, result, quick=quick):
                barren = 0
                say(result.edits, result)
            else:
                barren += 1
        return result

    def run_every(self, say: Callable[[int, Result], None] = lambda _number, _result: None) -> Result:
        """Makes each edit of `every_edit` to each cell of the tables without seals."""
        result = Result()
        for column in self._columns:
            if column.table in UNSEALED.get(column.schema, ()):
                for edit in every_edit(self._connection, column):
                    result.edits += 1
                    if not self._is_named():
                        result.missed.append(edit)
                    say(result.edits, result)
        return result

    def run_named(self, names: Iterable[str]) -> Result:
        """Edits one cell of each named column, given as schema.table.column."""
        result = Result()
        by_name = {f"{column.full_table}.{column.name}": column for column in self._columns}
        for name in names:
            try:
                edit = first_edit(self._connection, by_name[name])
                if edit is None:
                    result.refused.add(name)
                    continue
                result.edits += 1
                if not self._is_named():
                    result.missed.append(edit)
            finally:
                self._connection.rollback()
        return result

    def _edit(self, random: Random, column: Column, result: Result, *, quick: bool) -> bool:
        """Makes one edit that has to do with a column, and notes whether verify names something; whether one could be made."""
        try:
            for _ in range(_TRIES):
                edit = make(self._connection, random, column, self._of_table[column.full_table])
                if edit is None or (edit.column == ROW and f"{edit.table}.{ROW}" in EXEMPT):
                    continue
                result.edits += 1
                try:
                    if not self._is_named() if quick else self.passes():
                        result.missed.append(edit)
                except Exception as error:  # noqa: BLE001 - whatever verify raises, it has not named a row
                    result.crashed.append((edit, repr(error)))
                return True
            result.refused.add(f"{column.full_table}.{column.name}")
            return False
        finally:
            self._connection.rollback()

    def passes(self) -> bool:
        """Whether verify finds nothing wrong in what this connection sees."""
        return self.report().passed

    def _is_named(self) -> bool:
        """Whether a check finds something wrong; the one that found the last edit is asked first, the others only if it finds nothing."""
        for place, check in enumerate(self._checks):
            if not verify_by(self._read, checks=[check]).passed:
                self._checks.insert(0, self._checks.pop(place))
                return True
        return False

    def report(self) -> Report:
        """What verify says of what this connection sees."""
        return verify_by(self._read)

    def report_after(self, statements: str) -> Report:
        """What verify says once these statements have been run, which are then rolled back."""
        try:
            self._connection.execute(statements.encode())
            return self.report()
        finally:
            self._connection.rollback()

    def _read(self, name: str, **parameters: Any) -> Iterator[Any]:
        """Opens a query as verify does, but in the transaction of the edit."""
        self._connection.execute(f"set local search_path = {name.partition('.')[0]}, pg_temp")
        compiled = str(statement(name, parameters).compile(dialect=_DIALECT))
        with self._connection.transaction(), self._connection.cursor(row_factory=namedtuple_row) as cursor:
            return iter(cursor.execute(compiled, parameters).fetchall())

    def close(self) -> None:
        self._connection.close()
