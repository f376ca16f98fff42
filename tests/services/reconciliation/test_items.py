"""The items of statement files, and the chunks in which they are sent."""

from __future__ import annotations

import pytest

from tallystick import Client
from tallystick._statements import MAX_ITEMS, chunks
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.reconciliation import statement_files
from tests.support.errors import expect_error_reason
from tests.support.platform import (
    ServedPlatform,
)
from tests.support.reconciliation import (
    Provider,
    charge,
    clearing,
    lines_of,
    posted_clearing,
    reconcile,
    statement,
    stored_rows,
)
from tests.support.statement_items import (
    GOOD,
    add,
    as_text,
    create,
    end,
    finish,
    line,
    rejected_field,
    start,
)

RECONCILED = reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
LOADING = reconciliation_pb2.STATEMENT_FILE_STATE_LOADING


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([line()], "items[0].line"),
        ([end(0, "0.00")], "items[0].end"),
        ([start(), start()], "items[1].start"),
        ([*GOOD, line()], "items[3].line"),
        ([start(), line(), end(2, "10.00")], "items[2].end.line_count"),
        ([start(), line(), end(0, "10.00")], "items[2].end.line_count"),
        ([start(), line(), end(1, "10.01")], "items[2].end.total"),
        ([start("USD"), line(), end(1, "10.00")], "items[1].line.currency"),
        (
            [
                start(opening_balance="5.00"),
                line(),
                end(1, "10.00", closing_balance="15.01"),
            ],
            "items[2].end.closing_balance",
        ),
        ([start(opening_date="2026-02-30")], "items[0].start.opening_date"),
        ([start(), line(booking_date="10.03.2026")], "items[1].line.booking_date"),
        ([start(), line(text="x" * 501)], "items[1].line.text"),
    ],
)
def test_items_that_make_no_statement_are_rejected(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    items: list[pb.StatementItem],
    field: str,
) -> None:
    """The field is named, and nothing of the chunk is stored."""
    file_id = create(client, provider.account, items)
    stored = stored_rows(platform.databases)
    assert rejected_field(add, client, file_id, items) == field
    assert stored_rows(platform.databases) == stored


def test_an_empty_item_is_rejected(client: Client, provider: Provider) -> None:
    """An item is a start, a line or an end."""
    file_id = create(client, provider.account, GOOD)
    assert (
        expect_error_reason(add, client, file_id, [start(), pb.StatementItem()]) == "FIELD_REQUIRED"
    )
    assert expect_error_reason(add, client, file_id, []) == "FIELD_REQUIRED"


def test_an_item_has_a_limited_number_of_lines(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are in memory at once. The error says how many may be sent."""
    lines = [charge(1, f"ch-{number}", line_number=2) for number in range(4)]
    items = [start(), pb.StatementItem(lines=as_text(lines))]
    file_id = create(client, provider.account, items)
    monkeypatch.setattr(statement_files, "MAX_ROWS", 3)
    assert rejected_field(add, client, file_id, items) == "items[1].lines.rows"
    monkeypatch.setattr(statement_files, "MAX_ROWS", 4)
    assert add(client, file_id, items) == 5


@pytest.mark.parametrize("first_item", [1, -1, -3])
def test_a_chunk_must_follow_what_was_sent(
    client: Client, provider: Provider, first_item: int
) -> None:
    """A chunk that leaves a gap, or begins before the file, is rejected."""
    file_id = create(client, provider.account, GOOD)
    assert rejected_field(add, client, file_id, GOOD, first_item) == "first_item"
    assert add(client, file_id, GOOD) == 3


def test_a_repeated_chunk_has_no_effect(client: Client, provider: Provider) -> None:
    """Whichever it is, also after the file was reconciled."""
    provider.pay_in(10_00, "ch-1")
    file_id = create(client, provider.account, GOOD)
    assert add(client, file_id, GOOD[:2]) == 2
    assert add(client, file_id, GOOD[:2]) == 2
    assert add(client, file_id, GOOD[2:], 2) == 3
    assert add(client, file_id, GOOD[:2]) == 3
    assert add(client, file_id, GOOD[2:], 2) == 3
    file = finish(client, file_id, 3).statement_file
    assert (file.line_count, file.matched_count) == (1, 1)
    assert add(client, file_id, GOOD[:2]) == 3, "the answer may have been lost"
    assert expect_error_reason(add, client, file_id, GOOD, 3) == "INVALID_STATE"


@pytest.mark.parametrize(
    ("items", "first_item"),
    [
        ([start(), line(9_00)], 0),
        ([start("USD"), line()], 0),
        (GOOD, 0),
        (GOOD[:1], 0),
        (GOOD[1:2], 1),
        ([start(), pb.StatementItem(lines=as_text([charge(10_00, "ch-1", line_number=2)]))], 0),
    ],
    ids=["other amount", "other currency", "longer", "shorter", "a part", "another form"],
)
def test_other_items_in_the_place_of_those_that_were_sent_are_rejected(
    client: Client, provider: Provider, items: list[pb.StatementItem], first_item: int
) -> None:
    """Else the lines of another content would be stored under the digest of the file. The file is
    deleted, so that it can be sent from its first item.
    """
    provider.pay_in(10_00, "ch-1")
    file_id = create(client, provider.account, GOOD, file_name="x.csv")
    add(client, file_id, GOOD[:2])
    assert expect_error_reason(add, client, file_id, items, first_item) == "NOT_FOUND"
    assert expect_error_reason(finish, client, file_id, 2) == "NOT_FOUND"
    assert create(client, provider.account, GOOD, file_name="x.csv") == file_id
    assert add(client, file_id, GOOD) == 3
    assert finish(client, file_id, 3).statement_file.matched_count == 1


def test_chunks_may_end_anywhere(client: Client, provider: Provider) -> None:
    """A file of two statements in chunks of one item is the same file as in one chunk."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2", currency="USD")
    items = [
        start(opening_balance="5.00", opening_date="2026-03-09"),
        line(),
        end(1, "10.00", closing_balance="15.00", closing_date="2026-03-10"),
        start("USD"),
        line(20_00, "ch-2", currency="USD"),
        end(1, "20.00"),
    ]
    file_id = create(client, provider.account, items)
    for number, item in enumerate(items):
        assert add(client, file_id, [item], number) == number + 1
    file = finish(client, file_id, len(items)).statement_file
    assert (file.line_count, file.matched_count) == (2, 2)
    assert [item.line.currency for item in lines_of(client, file_id)] == ["EUR", "USD"]


def test_the_sdk_sends_a_file_in_chunks(client: Client, provider: Provider) -> None:
    """A file of more items than a chunk has arrives as a whole."""
    lines = [
        charge(-1, line_type="FEE", reference=f"fee-{number}") for number in range(MAX_ITEMS + 1)
    ]
    items = statement(lines)
    assert [len(request.items) for request in chunks("f", items)] == [MAX_ITEMS, 3]
    file = reconcile(client, provider.account, lines).statement_file
    assert file.line_count == file.matched_count == MAX_ITEMS + 1
    assert posted_clearing(client, provider.account).ledger_balance == "-10.01"


@pytest.mark.parametrize(("sent", "claimed"), [(3, 2), (3, 4), (2, 2), (0, 1)])
def test_a_file_that_is_not_complete_is_not_compared(
    platform: ServedPlatform, client: Client, provider: Provider, sent: int, claimed: int
) -> None:
    """Neither with another number of items than were sent, nor without the end of its last
    statement.
    """
    provider.pay_in(10_00, "ch-1")
    file_id = create(client, provider.account, GOOD)
    if sent:
        add(client, file_id, GOOD[:sent])
    clearing(client, provider.account)
    stored = stored_rows(platform.databases)
    for preview in (False, True):
        call = lambda: finish(client, file_id, claimed, preview=preview)  # noqa: B023, E731
        assert rejected_field(call) == "item_count"
    assert stored_rows(platform.databases) == stored
