"""The pages of lists: their keys, what they read, and the SQL that selects the next rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from tallystick_storage.sql import Connection, Query

R = TypeVar("R")
K = TypeVar("K")

_MAX_CANDIDATES = 2_000

PageKey = tuple[datetime, str]
"""The sort key of lists: a time and an id."""


@dataclass(frozen=True, slots=True)
class Scan(Generic[R, K]):
    """What a page found that examines a limited number of rows. `last_key`: the key up to which it
    examined all; None: to the end.
    """

    rows: Sequence[R]
    last_key: K | None


def before_parameters(before: PageKey | None) -> dict[str, Any]:
    """The parameters `before_time` and `before_id` of a statement. None: the first page."""
    before_time, before_id = before or (None, "")
    return {"before_time": before_time, "before_id": before_id}


@dataclass(frozen=True, slots=True)
class Candidates:
    """The keys of the candidates for a page, as ordered SQL with its values. `last_key` is the last
    of them if there may be more after it.
    """

    select: str
    values: dict[str, Any]
    last_key: PageKey | None


class _CandidateKey(NamedTuple):
    create_time: datetime
    id: str


def find_candidates(
    connection: Connection,
    table: str,
    id_column: str,
    filters: Mapping[str, str],
    criteria: object,
    before: PageKey | None,
    *,
    has_other_filters: bool,
) -> Candidates:
    """The keys (create_time, id) of a table's rows `k`, as `newest_first` finds them by an index.
    `has_other_filters`: further filters apply to the rows that the keys name.

    Such filters may match few rows, so a page reads the newest 2,000 keys and no more. A page is
    therefore fast even if matches are rare.
    """
    key = f"k.create_time, k.{id_column}"
    where, values = newest_first(filters, criteria, f"({key})", before)
    select = f"select distinct on ({key}) {key} from {table} k {where}"
    order = f"order by k.create_time desc, k.{id_column} desc"
    if not has_other_filters:
        return Candidates(f"{select} {order}", values, None)
    last = Query(_CandidateKey, f"{select} {order} limit 1 offset {_MAX_CANDIDATES - 1}")
    last_key = last.one_or_none(connection, **values)
    if last_key is None:
        return Candidates(f"{select} {order}", values, None)
    lower_bound = f"{'and' if where else 'where'} ({key}) >= (:low_time, :low_id)"
    return Candidates(
        f"{select} {lower_bound} {order}",
        {**values, "low_time": last_key.create_time, "low_id": last_key.id},
        last_key,
    )


def conditions_of(filters: Mapping[str, str], criteria: object) -> tuple[list[str], dict[str, Any]]:
    """The conditions for the fields of `criteria` that are not None, and their values. Without the
    other conditions the planner can use indexes.
    """
    values: dict[str, Any] = {
        name: value for name in filters if (value := getattr(criteria, name)) is not None
    }
    return [filters[name] for name in values], values


def newest_first(
    filters: Mapping[str, str], criteria: object, key: str, before: PageKey | None
) -> tuple[str, dict[str, Any]]:
    """Returns a where-clause and its values. `filters` is the condition for each field of
    `criteria` that is not None; `before` is the last `key` of the previous page.
    """
    conditions, values = conditions_of(filters, criteria)
    if before is not None:
        conditions.append(f"{key} < (:before_time, :before_id)")
        values |= before_parameters(before)
    return f"where {' and '.join(conditions)}" if conditions else "", values
