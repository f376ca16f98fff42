"""The keys of operations in SQL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tallystick_core.operations.kind import KindName


class OperationKey(NamedTuple):
    """The key of an operation. The ids of different kinds may be equal."""

    kind: KindName
    operation_id: str


KEYS = (
    "(select * from unnest(cast(:kinds as text[]), cast(:ids as text[])) as u (kind, operation_id) "
    'order by kind collate "C", operation_id collate "C") k'
)
"""Some keys as the relation k, in the order in which rows are locked. A lateral "limit 1" looks one
row of each up: statistics of the small queue are always outdated, so a join could read it whole.
"""


def key_parameters(keys: Iterable[OperationKey]) -> dict[str, list[str]]:
    """The parameters of a statement with `KEYS`."""
    parameters: dict[str, list[str]] = {"kinds": [], "ids": []}
    for kind, operation_id in keys:
        parameters["kinds"].append(kind)
        parameters["ids"].append(operation_id)
    return parameters
