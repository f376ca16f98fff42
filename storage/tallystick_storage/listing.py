"""Lists, newest first: the part of a statement that says which rows come next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

_MAX_CANDIDATES = 2_000

Key = tuple[datetime, str]
"""What lists are in order of: a time, and an id."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The keys of what a page may show, as SQL in order, with its values. `low`: the last of them if there may be more below it."""

    select: str
    values: dict[str, Any]
    low: Key | None


def candidates(
    connection: Connection, table: str, id_: str, filters: Mapping[str, str], wanted: object, before: Key | None, *, sifted: bool
) -> Candidates:
    """The keys (create_time, id) of a table's rows `k`, as `newest_first` finds them by an index. `sifted`: other filters apply to what they name.

    What is sifted may hold little that fits, so a page looks at the newest 2,000 keys and no more: however rare it is, a page is quick.
    """
    key = f"k.create_time, k.{id_}"
    where, values = newest_first(filters, wanted, f"({key})", before)
    select = f"select distinct on ({key}) {key} from {table} k {where}"
    order = f"order by k.create_time desc, k.{id_} desc"
    if not sifted:
        return Candidates(f"{select} {order}", values, None)
    last = connection.execute(text(f"{select} {order} limit 1 offset {_MAX_CANDIDATES - 1}"), values).one_or_none()
    if last is None:
        return Candidates(f"{select} {order}", values, None)
    time, name = last
    bound = f"{'and' if where else 'where'} ({key}) >= (:low_time, :low_id)"
    return Candidates(f"{select} {bound} {order}", {**values, "low_time": time, "low_id": name}, (time, name))


def newest_first(filters: Mapping[str, str], wanted: object, key: str, before: Key | None) -> tuple[str, dict[str, Any]]:
    """A where-clause and its values. `filters`: the condition for each field of `wanted` that is not None; `before`: the last `key` of the page before."""
    values: dict[str, Any] = {name: value for name in filters if (value := getattr(wanted, name)) is not None}
    conditions = [filters[name] for name in values]
    if before is not None:
        conditions.append(f"{key} < (:before_time, :before_id)")
        values["before_time"], values["before_id"] = before
    return f"where {' and '.join(conditions)}" if conditions else "", values
