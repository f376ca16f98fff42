"""Lists, newest first: the part of a statement that says which rows come next."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def newest_first(filters: Mapping[str, str], wanted: object, key: str, before: tuple[datetime, str] | None) -> tuple[str, dict[str, Any]]:
    """A where-clause and its values. `filters`: the condition for each field of `wanted` that is not None; `before`: the last `key` of the page before."""
    values: dict[str, Any] = {name: value for name in filters if (value := getattr(wanted, name)) is not None}
    conditions = [filters[name] for name in values]
    if before is not None:
        conditions.append(f"{key} < (:before_time, :before_id)")
        values["before_time"], values["before_id"] = before
    return f"where {' and '.join(conditions)}" if conditions else "", values
