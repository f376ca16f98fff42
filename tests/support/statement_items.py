"""Statement files that are sent item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tallystick import Client, InvalidArgumentError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.packed_lines import FIELDS, pack
from tests.support.errors import error_reason
from tests.support.platform import unique_id
from tests.support.reconciliation import charge, file_request


def start(currency: str = "EUR", **values: Any) -> pb.StatementItem:
    return pb.StatementItem(
        start=reconciliation_pb2.StatementStart(line_number=1, currency=currency, **values)
    )


def line(amount: int = 10_00, reference: str = "ch-1", **values: Any) -> pb.StatementItem:
    return pb.StatementItem(line=charge(amount, reference, line_number=2, **values))


def end(line_count: int, total: str, **values: Any) -> pb.StatementItem:
    return pb.StatementItem(
        end=reconciliation_pb2.StatementEnd(
            line_number=9, line_count=line_count, total=total, **values
        )
    )


def as_text(
    lines: Iterable[reconciliation_pb2.StatementLine],
) -> reconciliation_pb2.StatementLines:
    """Lines as they are sent when they are many."""
    rows = [
        [
            str(line.line_number),
            reconciliation_pb2.LineType.Name(line.line_type).removeprefix("LINE_TYPE_"),
            *(getattr(line, field) for field in FIELDS[2:]),
        ]
        for line in lines
    ]
    return reconciliation_pb2.StatementLines(rows=pack(list(zip(*rows, strict=True))))


GOOD = [start(), line(), end(1, "10.00")]
"""A file with one line: a charge of 10.00."""


def create(client: Client, account: str, items: list[pb.StatementItem], **values: Any) -> str:
    """Creates the file of these items; returns its id."""
    request = file_request(account, items, **{"file_name": unique_id("f"), **values})
    client.reconciliation.CreateStatementFile(request)
    return request.statement_file_id


def add(client: Client, file_id: str, items: list[pb.StatementItem], first_item: int = 0) -> int:
    """Sends items; returns how many the file has then."""
    request = pb.BatchAddStatementItemsRequest(
        statement_file_id=file_id, first_item=first_item, items=items
    )
    return int(client.reconciliation.BatchAddStatementItems(request).item_count)


def finish(
    client: Client, file_id: str, item_count: int, *, preview: bool = False
) -> pb.ReconcileStatementFileResponse:
    return client.reconciliation.ReconcileStatementFile(
        pb.ReconcileStatementFileRequest(
            statement_file_id=file_id, item_count=item_count, preview=preview
        )
    )


def rejected_field(call: Callable[..., object], *arguments: object) -> str:
    """The field that a call names when it is rejected with FIELD_INVALID."""
    with pytest.raises(InvalidArgumentError) as error:
        call(*arguments)
    assert error_reason(error) == "FIELD_INVALID"
    return error.value.field_violations[0].field
