"""Pages of a list: together they have each row once, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.errors import ApiError
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.rpc.pagination import (
    MAX_PAGE_BYTES,
    NEWEST_FIRST,
    Listing,
    list_page,
)
from tallystick_storage.database import Database
from tallystick_storage.pagination import PageKey, Scan, before_parameters
from tallystick_storage.sql import Connection, Query

KIBIBYTE = 1024
MAX_SCANNED = 3


class ListedRow(NamedTuple):
    create_time: datetime
    id: str
    size: int
    is_match: bool


_NEXT_ROWS = Query(
    ListedRow,
    """
    select {columns} from jsonb_to_recordset(cast(:rows as jsonb)) as row (
        create_time timestamptz, id text, size int, is_match bool)
    where (create_time, id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
    order by create_time desc, id desc limit :limit
    """,
)


class Filters(NamedTuple):
    name: str


class RowList:
    """Rows in PostgreSQL's order of time and id, and the list calls that return those that match:
    with a bounded scan, or one that examines as many rows as it takes.
    """

    def __init__(self, rows: Sequence[ListedRow]) -> None:
        self.rows = list(rows)

    def listing(self, *, bounded: bool) -> Listing[Filters, PageKey, ListedRow, StringValue]:
        return Listing(
            "ListRows",
            self._scan if bounded else self._read,
            NEWEST_FIRST,
            lambda row: (row.create_time, row.id),
            lambda row: StringValue(value=row.id.ljust(row.size)),
        )

    def _read(
        self, connection: Connection, _filters: Filters, before: PageKey | None, limit: int
    ) -> list[ListedRow]:
        rows = self._next_rows(connection, before, len(self.rows) or 1)
        return [row for row in rows if row.is_match][:limit]

    def _scan(
        self, connection: Connection, _filters: Filters, before: PageKey | None, limit: int
    ) -> Scan[ListedRow, PageKey]:
        rows = self._next_rows(connection, before, MAX_SCANNED)
        last_key = (rows[-1].create_time, rows[-1].id) if len(rows) == MAX_SCANNED else None
        return Scan([row for row in rows if row.is_match][:limit], last_key)

    def _next_rows(
        self, connection: Connection, before: PageKey | None, limit: int
    ) -> list[ListedRow]:
        encoded = json.dumps([row._asdict() for row in self.rows], default=datetime.isoformat)
        return _NEXT_ROWS.all(connection, rows=encoded, limit=limit, **before_parameters(before))


def new_row(number: int, second: int, size: int = 0, *, is_match: bool = True) -> ListedRow:
    """Rows of the same second have the same time."""
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    return ListedRow(time, f"row-{number}", size, is_match)


def rows_from(first_number: int) -> st.SearchStrategy[list[ListedRow]]:
    """Rows with numbers from the given one, at any of a few times."""
    sizes = st.one_of(st.just(0), st.integers(0, 600 * KIBIBYTE))
    values = st.tuples(st.integers(0, 4), sizes, st.booleans())
    return st.lists(values, max_size=12).map(
        lambda items: [
            new_row(number, second, size, is_match=is_match)
            for number, (second, size, is_match) in enumerate(items, first_number)
        ]
    )


@settings(max_examples=60, deadline=None)
@given(rows_from(0), rows_from(100), st.lists(st.integers(1, 5), min_size=1), st.booleans())
def test_pages_of_any_size_have_each_row_once_in_order(
    database: DatabaseUrls,
    rows: list[ListedRow],
    added_rows: list[ListedRow],
    page_sizes: list[int],
    bounded: bool,
) -> None:
    """Whatever the sizes of pages and messages, and however few rows match, the pages have each
    matching row once, newest first; a row that is added while they are read is in them at most
    once. Only the last page has no token, and no page exceeds 1 MiB or its size.
    """

    async def read_pages() -> list[str]:
        db = Database(database.service("event"), connections=1)
        row_list, token, listed_ids, added = RowList(rows), "", [], list(added_rows)
        listing = row_list.listing(bounded=bounded)
        for page_number in range(len(rows) + len(added_rows) + 1):
            size = page_sizes[page_number % len(page_sizes)]
            request = pb.ListPaymentsRequest(page_size=size, page_token=token)
            messages, token = await list_page(db, listing, request, Filters("x"))
            assert len(messages) <= size
            assert sum(message.ByteSize() for message in messages) <= MAX_PAGE_BYTES
            listed_ids += [message.value.strip() for message in messages]
            if not token:
                break
            row_list.rows += added[:2]
            del added[:2]
        await asyncio.to_thread(db.close)
        assert not token, "each page has a row, or examines some"
        return listed_ids

    listed_ids = asyncio.run(read_pages())
    newest_first = sorted(rows + added_rows, reverse=True)
    all_ids = [row.id for row in newest_first if row.is_match]
    assert listed_ids == [row_id for row_id in all_ids if row_id in set(listed_ids)]
    assert {row.id for row in rows if row.is_match} <= set(listed_ids)


def test_one_message_always_fits(database: DatabaseUrls) -> None:
    """A message above the size limit of a page is a page of its own."""

    async def read_pages() -> tuple[list[int], str]:
        db = Database(database.service("event"), connections=1)
        rows = [new_row(1, 1, 2 * MAX_PAGE_BYTES), new_row(0, 0, 2 * MAX_PAGE_BYTES)]
        listing = RowList(rows).listing(bounded=False)
        lengths, token = [], ""
        for _ in rows:
            request = pb.ListPaymentsRequest(page_token=token)
            messages, token = await list_page(db, listing, request, Filters("x"))
            lengths.append(len(messages))
        await asyncio.to_thread(db.close)
        return lengths, token

    assert asyncio.run(read_pages()) == ([1, 1], "")


@pytest.mark.parametrize(
    ("name", "filters"), [("ListOthers", Filters("x")), ("ListRows", Filters("y"))]
)
def test_a_page_token_is_bound_to_its_list_and_filters(
    database: DatabaseUrls, name: str, filters: Filters
) -> None:
    """The token of a page is rejected by another list call, and with other filters."""

    async def read_pages() -> str:
        db = Database(database.service("event"), connections=1)
        listing = RowList([new_row(0, 0), new_row(1, 1)]).listing(bounded=False)
        first_request = pb.ListPaymentsRequest(page_size=1)
        _, token = await list_page(db, listing, first_request, Filters("x"))
        request = pb.ListPaymentsRequest(page_size=1, page_token=token)
        try:
            await list_page(db, replace(listing, name=name), request, filters)
        except ApiError as error:
            return error.reason
        finally:
            await asyncio.to_thread(db.close)
        return ""

    assert asyncio.run(read_pages()) == "PAGE_TOKEN_INVALID"
