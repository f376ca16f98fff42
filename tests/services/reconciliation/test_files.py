"""Statement files are loaded item by item, and compared all or nothing, once."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tallystick import Client, InvalidArgumentError, TallystickError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.reconciliation.statement_files import StatementFiles
from tests.support.errors import error_reason, expect_error_reason
from tests.support.platform import (
    ServedPlatform,
    database_of,
    is_replayed,
    serve_platform,
    unique_id,
)
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    file_request,
    kinds_of,
    lines_of,
    only_break,
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
    start,
)

RECONCILED = reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
LOADING = reconciliation_pb2.STATEMENT_FILE_STATE_LOADING


def test_a_repeated_file_changes_nothing(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """Each call of it is replayed, and no row changes."""
    provider.pay_in(10_00, "ch-1")
    items = statement([charge(10_00, "ch-1", fee=30), charge(20_00, "ch-2")])
    request = file_request(provider.account, items)
    first = client.reconcile_statement_file(request, items)
    posted_clearing(client, provider.account)
    stored = stored_rows(platform.databases)
    assert is_replayed(client.reconciliation.CreateStatementFile, request)
    assert add(client, request.statement_file_id, items) == len(items)
    reconcile_request = pb.ReconcileStatementFileRequest(
        statement_file_id=request.statement_file_id, item_count=len(items)
    )
    assert is_replayed(client.reconciliation.ReconcileStatementFile, reconcile_request)
    assert client.reconcile_statement_file(request, items) == first
    found = client.reconciliation.GetStatementFile(
        pb.GetStatementFileRequest(statement_file_id=request.statement_file_id)
    )
    assert found.statement_file == first.statement_file
    assert stored_rows(platform.databases) == stored


def test_a_name_has_one_content(client: Client, provider: Provider) -> None:
    """The name of a reconciled file cannot be used for other content of the account; another
    account may use it.
    """
    name = f"{unique_id('day')}.csv"
    reconcile(client, provider.account, [charge(10_00, "ch-1")], file_name=name)
    with pytest.raises(TallystickError) as error:
        reconcile(client, provider.account, [charge(20_00, "ch-1")], file_name=name)
    assert error_reason(error) == "IDEMPOTENCY_KEY_REUSED"
    assert error.value.metadata["field"] == "content_sha256"
    other = Provider(client)
    file = reconcile(client, other.account, [charge(20_00, "ch-1")], file_name=name).statement_file
    assert file.state == RECONCILED


def test_a_name_with_the_same_content_names_what_differs(
    client: Client, provider: Provider
) -> None:
    """The same content under another id is the same file: its values must be the same."""
    items = statement([charge(10_00, "ch-1")])
    request = file_request(provider.account, items)
    client.reconcile_statement_file(request, items)
    request.statement_file_id = unique_id("f")
    request.difference_reason = "because"
    with pytest.raises(TallystickError) as error:
        client.reconciliation.CreateStatementFile(request)
    assert error_reason(error) == "IDEMPOTENCY_KEY_REUSED"
    assert error.value.metadata["field"] == "difference_reason"


@pytest.mark.parametrize(
    "changes",
    [
        {"file_name": "other.csv"},
        {"content_sha256": "0" * 64},
        {"format": "other"},
        {"account": "psp/other/clearing"},
        {"difference_reason": "other"},
    ],
)
def test_the_id_of_a_reconciled_file_has_one_file(
    client: Client, provider: Provider, changes: dict[str, str]
) -> None:
    """The same id with another value is rejected, and the field is named."""
    items = statement([charge(10_00, "ch-1")])
    request = file_request(provider.account, items)
    client.reconcile_statement_file(request, items)
    (field,) = changes
    setattr(request, field, changes[field])
    with pytest.raises(TallystickError) as error:
        client.reconciliation.CreateStatementFile(request)
    assert error_reason(error) == "IDEMPOTENCY_KEY_REUSED"
    assert error.value.metadata["field"] == field


def test_a_preview_does_not_disturb_a_file_with_the_same_name(
    client: Client, provider: Provider
) -> None:
    """It has an id of its own, and the other file is sent meanwhile."""
    provider.pay_in(10_00, "ch-1")
    request = file_request(provider.account, GOOD)
    client.reconciliation.CreateStatementFile(request)
    add(client, request.statement_file_id, GOOD[:2])
    preview = file_request(provider.account, GOOD)
    preview.statement_file_id = unique_id("p")
    client.reconcile_statement_file(preview, GOOD, preview=True)
    assert add(client, request.statement_file_id, GOOD[2:], 2) == 3
    assert finish(client, request.statement_file_id, 3).statement_file.matched_count == 1


@pytest.mark.parametrize("preview", [False, True])
def test_of_two_files_with_one_name_the_first_is_reconciled(
    client: Client, provider: Provider, preview: bool
) -> None:
    """Both may load at once. The other is rejected, as it would be from then on."""
    provider.pay_in(10_00, "ch-1")
    name = unique_id("day")
    first = create(client, provider.account, GOOD, file_name=name)
    items = [start(), line(9_00), end(1, "9.00")]
    second = create(client, provider.account, items, file_name=name)
    add(client, first, GOOD)
    add(client, second, items)
    assert finish(client, first, 3).statement_file.state == RECONCILED
    call = lambda: finish(client, second, 3, preview=preview)  # noqa: E731
    assert expect_error_reason(call) == "IDEMPOTENCY_KEY_REUSED"
    again = lambda: create(client, provider.account, items[:1], file_name=name)  # noqa: E731
    assert expect_error_reason(again) == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize("keeps_id", [True, False])
def test_a_file_that_is_not_reconciled_is_replaced(
    client: Client, provider: Provider, keeps_id: bool
) -> None:
    """A file that was rejected, or whose client stopped, does not reserve its name or its id: the
    next file with the name, or with the id, takes its place.
    """
    provider.pay_in(10_00, "ch-1")
    name = f"{unique_id('day')}.csv"
    damaged = file_request(provider.account, GOOD[:2], file_name=name)
    client.reconciliation.CreateStatementFile(damaged)
    add(client, damaged.statement_file_id, GOOD[:2])
    request = file_request(provider.account, GOOD, file_name=name)
    if keeps_id:
        request.statement_file_id = damaged.statement_file_id
    file = client.reconcile_statement_file(request, GOOD).statement_file
    assert (file.content_sha256, file.matched_count) == (request.content_sha256, 1)


@pytest.mark.parametrize("preview", [False, True])
def test_a_file_that_does_not_exist_is_not_found(client: Client, preview: bool) -> None:
    """Each call about a file says so."""
    assert expect_error_reason(lambda: finish(client, "none", 1, preview=preview)) == "NOT_FOUND"
    assert expect_error_reason(add, client, "none", GOOD) == "NOT_FOUND"


def test_an_empty_file_is_a_file(client: Client, provider: Provider) -> None:
    """Without lines, and also without statements: a day on which nothing was booked."""
    file = reconcile(client, provider.account, []).statement_file
    assert (file.state, file.line_count, kinds_of(file)) == (RECONCILED, 0, {})
    file_id = create(client, provider.account, [])
    assert finish(client, file_id, 0).statement_file.state == RECONCILED
    assert lines_of(client, file_id) == []


def test_a_file_has_no_lines_while_it_loads(client: Client, provider: Provider) -> None:
    """It becomes visible as a whole."""
    file_id = create(client, provider.account, GOOD)
    add(client, file_id, GOOD)
    file = client.reconciliation.GetStatementFile(
        pb.GetStatementFileRequest(statement_file_id=file_id)
    ).statement_file
    assert (file.state, file.line_count, file.HasField("reconcile_time")) == (LOADING, 0, False)
    assert lines_of(client, file_id) == []


def test_a_difference_of_balances_needs_a_reason(client: Client, provider: Provider) -> None:
    """Without one the file is rejected, with the difference; with one it is a break for finance.
    The rejected file is in nobody's way.
    """
    provider.pay_in(10_00, "ch-1")
    balances: dict[str, Any] = {"opening_balance": "5.00", "closing_balance": "14.00"}
    lines = [charge(10_00, "ch-1")]
    with pytest.raises(InvalidArgumentError) as error:
        reconcile(client, provider.account, lines, file_name="a.csv", **balances)
    assert error_reason(error) == "FIELD_INVALID"
    assert "-1.00 EUR" in str(error.value)
    reason = "the bank corrects it next month"
    file = reconcile(
        client, provider.account, lines, file_name="a.csv", difference_reason=reason, **balances
    ).statement_file
    assert (file.difference_reason, kinds_of(file)) == (reason, {"BALANCE_DIFFERS": 1})
    found = only_break(client, provider.account)
    assert (found.difference, found.statement_file_id) == ("-1.00", file.statement_file_id)
    assert reason in found.detail
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_preview_stores_nothing(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """It says what would be stored: then the file is gone, and can be reconciled as if it had never
    been sent.
    """
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    provider.pay_in(30_00, "ch-3")
    lines = [
        charge(10_00, "ch-1", fee=30),
        charge(20_01, "ch-2"),
        charge(31_00, "ch-3"),
        charge(-5_00, line_type="FEE", reference="fee-1"),
        charge(-7_00, line_type="SETTLEMENT", reference="set-1"),
    ]
    clearing(client, provider.account)
    stored = stored_rows(platform.databases)
    response = reconcile(client, provider.account, lines, preview=True)
    assert stored_rows(platform.databases) == stored
    file = reconcile(client, provider.account, lines).statement_file
    previewed = response.statement_file
    assert kinds_of(previewed) == kinds_of(file) == {"AMOUNT_DIFFERS": 1, "ROUNDING": 1}
    for name in ("line_count", "matched_count", "repeated_count", "posted_sums"):
        assert getattr(previewed, name) == getattr(file, name)
    for item in response.preview_breaks:
        assert (len(item.lines), len(item.ledger_items)) == (1, 1)
    assert {item.kind: item.difference for item in response.preview_breaks} == {
        item.kind: item.difference for item in breaks_of(client, account=provider.account)
    }


def test_a_preview_leaves_a_reconciled_file_alone(client: Client, provider: Provider) -> None:
    """It is rejected, because there is nothing left to decide."""
    request = file_request(provider.account, GOOD)
    client.reconcile_statement_file(request, GOOD)
    call = lambda: finish(client, request.statement_file_id, 3, preview=True)  # noqa: E731
    assert expect_error_reason(call) == "INVALID_STATE"
    assert finish(client, request.statement_file_id, 3).statement_file.state == RECONCILED


def test_an_abandoned_file_is_deleted_after_a_day(scratch_database: DatabaseUrls) -> None:
    """With all that was sent of it; a reconciled file stays, and so does a file of today."""
    account = "psp/p/clearing"
    with (
        serve_platform(scratch_database, Settings()) as platform,
        platform.client() as client,
    ):
        files = StatementFiles(database_of(platform, "reconciliation"))
        client.reconcile_statement_file(file_request(account, GOOD), GOOD)
        reconciled = stored_rows(scratch_database)
        for _ in range(11):
            add(client, create(client, account, GOOD), GOOD)
        loading = stored_rows(scratch_database)
        set_clock(scratch_database, "23 hours 59 minutes")
        platform.run_in_loop(files.delete_abandoned)
        assert stored_rows(scratch_database) == loading
        set_clock(scratch_database, "24 hours 1 minute")
        new = create(client, account, GOOD)
        platform.run_in_loop(files.delete_abandoned)
        assert finish(client, new, 0, preview=True).statement_file.line_count == 0
        assert stored_rows(scratch_database) == reconciled


def test_lines_that_are_sent_as_text_are_the_same_lines(client: Client, provider: Provider) -> None:
    """Each counts as an item, and is stored with the values that it has one by one."""
    provider.pay_in(10_00, "ch-1")
    lines = [
        charge(10_00, "ch-1", line_number=2),
        charge(-1_00, line_type="REFUND", reference="re-1", line_number=3, text="a\tb\\c\nd"),
        charge(5_00, "ch-2", line_number=4, original_amount="5.50", original_currency="USD"),
    ]
    items = [start(), pb.StatementItem(lines=as_text(lines)), end(3, "14.00")]
    file_id = create(client, provider.account, items)
    assert add(client, file_id, items[:2]) == 4
    assert add(client, file_id, items[:2]) == 4, "a repeat has no effect"
    assert add(client, file_id, items[2:], first_item=4) == 5
    file = finish(client, file_id, 5).statement_file
    assert (file.line_count, file.matched_count) == (3, 1)
    assert kinds_of(file) == {"CHARGE_UNKNOWN": 1, "REFUND_NOT_BOOKED": 1}
    assert [stored.line for stored in lines_of(client, file_id)] == lines


def test_lines_as_text_repeat_lines_one_by_one(client: Client, provider: Provider) -> None:
    """A line has the same identity however it was sent."""
    provider.pay_in(10_00, "ch-1")
    lines = [charge(10_00, "ch-1", line_number=2), charge(5_00, line_number=3, text="x")]
    reconcile(client, provider.account, lines)
    items = [start(), pb.StatementItem(lines=as_text(lines)), end(2, "15.00")]
    file_id = create(client, provider.account, items)
    add(client, file_id, items)
    assert finish(client, file_id, 4).statement_file.repeated_count == 2


def test_lines_that_a_crash_has_lost_are_sent_again(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """Lines that load are not kept by a crash of the database: the file is not compared without
    them, but must be sent again.
    """
    provider.pay_in(10_00, "ch-1")
    request = file_request(provider.account, GOOD)
    client.reconciliation.CreateStatementFile(request)
    add(client, request.statement_file_id, GOOD)
    with psycopg.connect(platform.databases.admin) as connection:
        connection.execute("truncate reconciliation.staged_line")
    assert expect_error_reason(lambda: finish(client, request.statement_file_id, 3)) == "NOT_FOUND"
    file = client.reconcile_statement_file(request, GOOD).statement_file
    assert (file.line_count, file.matched_count) == (1, 1)


def set_clock(databases: DatabaseUrls, interval: str) -> None:
    """Sets the clock of ReconciliationService to `interval` after the real time."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function reconciliation.clock() returns timestamptz language sql "
            f"volatile as $$select clock_timestamp() + interval '{interval}'$$"
        )
