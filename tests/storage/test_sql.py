"""Queries return rows of their type, whatever the order of a table's columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.sql import Connection, Query, columns, connect


class _Amount(NamedTuple):
    currency: str
    amount: int


@dataclass(frozen=True, slots=True)
class _Item:
    item_id: str
    amount: int


@dataclass(frozen=True, slots=True)
class _ChangedItem(_Item):
    sequence: int


_ITEMS = "(values (7, 'a', 'EUR'), (8, 'b', 'USD')) as i (amount, item_id, currency)"


def test_columns_are_those_of_the_row_type(database: DatabaseUrls) -> None:
    """A NamedTuple, a dataclass and one that extends it get their fields by name."""
    amounts = Query(_Amount, f"select {{columns}} from {_ITEMS} where amount < :limit")
    items = Query(_Item, f"select {{columns}} from {_ITEMS} order by amount")
    changed = Query(
        _ChangedItem,
        f"select {columns(_Item, 'i')}, s.amount as sequence from {_ITEMS}, "
        "(values (42)) as s (amount) where i.amount = :amount",
    )
    connection: Connection
    with connect(database.reader("event")) as connection:
        assert amounts.all(connection, limit=8) == [_Amount("EUR", 7)]
        assert items.all(connection) == [_Item("a", 7), _Item("b", 8)]
        assert changed.one(connection, amount=8) == _ChangedItem("b", 8, 42)
        assert changed.one_or_none(connection, amount=9) is None
        with pytest.raises(ValueError, match="too many values"):
            items.one_or_none(connection)
