"""Sends the items of a statement file in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tallystick.reconciliation.v1 import reconciliation_service_pb2

MAX_ITEMS, _MAX_BYTES = 1_000, 2 * 1024 * 1024


def chunks(
    statement_file_id: str, items: Iterable[reconciliation_service_pb2.StatementItem]
) -> Iterator[reconciliation_service_pb2.BatchAddStatementItemsRequest]:
    """The requests that add the items. The same items always give the same requests, so that a
    client that stopped can send them again.
    """
    first_item, size = 0, 0
    chunk: list[reconciliation_service_pb2.StatementItem] = []
    for item in items:
        item_size = item.ByteSize()
        if chunk and (len(chunk) == MAX_ITEMS or size + item_size > _MAX_BYTES):
            yield _request(statement_file_id, first_item, chunk)
            first_item += count_items(chunk)
            chunk, size = [], 0
        chunk.append(item)
        size += item_size
    if chunk:
        yield _request(statement_file_id, first_item, chunk)


def count_items(items: Iterable[reconciliation_service_pb2.StatementItem]) -> int:
    """How many starts, lines and ends the items are."""
    return sum(
        item.lines.rows.count("\n") if item.WhichOneof("item") == "lines" else 1 for item in items
    )


def _request(
    statement_file_id: str,
    first_item: int,
    items: list[reconciliation_service_pb2.StatementItem],
) -> reconciliation_service_pb2.BatchAddStatementItemsRequest:
    return reconciliation_service_pb2.BatchAddStatementItemsRequest(
        statement_file_id=statement_file_id, first_item=first_item, items=items
    )
