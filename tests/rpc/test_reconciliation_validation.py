"""Invalid requests to ReconciliationService over a real socket: rejected with a reason, nothing
stored.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import Client, InvalidArgumentError, TallystickError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tests.support.platform import unique_id
from tests.support.reconciliation import Provider, charge, only_break, reconcile, statement

CARD = "4242424242424242"  # a test number that providers publish
FILE = {
    "statement_file_id": "f",
    "file_name": "november.csv",
    "content_sha256": "0" * 64,
    "format": "mt940",
    "account": "psp/p/clearing",
}
LINE = reconciliation_pb2.StatementLine(
    line_number=2,
    line_type=reconciliation_pb2.LINE_TYPE_CHARGE,
    code="charge",
    amount="1.00",
    currency="EUR",
)
START = reconciliation_pb2.StatementStart(line_number=1, currency="EUR")
END = reconciliation_pb2.StatementEnd(line_number=3, line_count=1, total="1.00")
ENTRY = {"account": "banks/main", "transaction_id": "main-1", "reason": "r"}
RULE = {
    "kind": reconciliation_pb2.BREAK_KIND_ROUNDING,
    "break_class": reconciliation_pb2.BREAK_CLASS_FINANCE,
    "limit": 2,
    "reason": "r",
}


def expect_error(client: Client, method: str, **values: Any) -> TallystickError:
    request = getattr(pb, f"{method}Request")(**values)
    with pytest.raises(InvalidArgumentError) as error:
        getattr(client.reconciliation, method)(request)
    return error.value


@pytest.mark.parametrize(
    ("method", "values", "reason", "field"),
    [
        (
            "CreateStatementFile",
            {**FILE, "statement_file_id": ""},
            "FIELD_REQUIRED",
            "statement_file_id",
        ),
        (
            "CreateStatementFile",
            {**FILE, "statement_file_id": "a b"},
            "FIELD_INVALID",
            "statement_file_id",
        ),
        (
            "CreateStatementFile",
            {**FILE, "statement_file_id": CARD},
            "CARD_NUMBER_REJECTED",
            "statement_file_id",
        ),
        ("CreateStatementFile", {**FILE, "file_name": " "}, "FIELD_INVALID", "file_name"),
        ("CreateStatementFile", {**FILE, "file_name": "a/b"}, "FIELD_INVALID", "file_name"),
        ("CreateStatementFile", {**FILE, "file_name": "a\\b"}, "FIELD_INVALID", "file_name"),
        ("CreateStatementFile", {**FILE, "file_name": "a" * 256}, "FIELD_INVALID", "file_name"),
        (
            "CreateStatementFile",
            {**FILE, "file_name": f"{CARD} .csv"},
            "CARD_NUMBER_REJECTED",
            "file_name",
        ),
        ("CreateStatementFile", {**FILE, "content_sha256": ""}, "FIELD_INVALID", "content_sha256"),
        (
            "CreateStatementFile",
            {**FILE, "content_sha256": "A" * 64},
            "FIELD_INVALID",
            "content_sha256",
        ),
        ("CreateStatementFile", {**FILE, "format": ""}, "FIELD_REQUIRED", "format"),
        ("CreateStatementFile", {**FILE, "account": ""}, "FIELD_REQUIRED", "account"),
        ("CreateStatementFile", {**FILE, "account": "sellers/s"}, "FIELD_INVALID", "account"),
        ("CreateStatementFile", {**FILE, "account": "banks/transit"}, "FIELD_INVALID", "account"),
        ("CreateStatementFile", {**FILE, "account": "banks/a/b"}, "FIELD_INVALID", "account"),
        (
            "CreateStatementFile",
            {**FILE, "account": f"banks/{CARD}"},
            "CARD_NUMBER_REJECTED",
            "account",
        ),
        ("CreateStatementFile", {**FILE, "account": "psp//clearing"}, "FIELD_INVALID", "account"),
        (
            "CreateStatementFile",
            {**FILE, "difference_reason": "x" * 256},
            "FIELD_INVALID",
            "difference_reason",
        ),
        (
            "CreateStatementFile",
            {**FILE, "difference_reason": f"see {CARD}"},
            "CARD_NUMBER_REJECTED",
            "difference_reason",
        ),
        ("BatchAddStatementItems", {"items": []}, "FIELD_REQUIRED", "statement_file_id"),
        (
            "BatchAddStatementItems",
            {"statement_file_id": "f", "items": []},
            "FIELD_REQUIRED",
            "items",
        ),
        (
            "BatchAddStatementItems",
            {"statement_file_id": "f", "items": [pb.StatementItem()] * 1001},
            "TOO_MANY_ITEMS",
            "items",
        ),
        ("ReconcileStatementFile", {}, "FIELD_REQUIRED", "statement_file_id"),
        ("GetStatementFile", {}, "FIELD_REQUIRED", "statement_file_id"),
        ("ListStatementFiles", {"page_size": -1}, "FIELD_INVALID", "page_size"),
        ("ListStatementFiles", {"page_token": "x"}, "PAGE_TOKEN_INVALID", "page_token"),
        ("ListStatementFiles", {"account": "a" * 256}, "FIELD_INVALID", "account"),
        ("ListStatementLines", {}, "FIELD_REQUIRED", "statement_file_id"),
        (
            "ListStatementLines",
            {"statement_file_id": "f", "page_token": "x"},
            "PAGE_TOKEN_INVALID",
            "page_token",
        ),
        ("ListBreaks", {"state": 99}, "FIELD_INVALID", "state"),
        ("ListBreaks", {"break_class": 99}, "FIELD_INVALID", "break_class"),
        ("ListBreaks", {"kind": 99}, "FIELD_INVALID", "kind"),
        ("ListBreaks", {"assignee": "a b"}, "FIELD_INVALID", "assignee"),
        ("ListBreaks", {"statement_file_id": "a b"}, "FIELD_INVALID", "statement_file_id"),
        ("ListBreaks", {"account": "a\0b"}, "FIELD_INVALID", "account"),
        ("ListBreaks", {"page_size": -1}, "FIELD_INVALID", "page_size"),
        ("ListBreaks", {"page_token": "x"}, "PAGE_TOKEN_INVALID", "page_token"),
        ("GetBreak", {}, "FIELD_REQUIRED", "break_id"),
        ("OpenBreak", {**ENTRY, "account": ""}, "FIELD_REQUIRED", "account"),
        ("OpenBreak", {**ENTRY, "account": "banks/transit"}, "FIELD_INVALID", "account"),
        ("OpenBreak", {**ENTRY, "transaction_id": ""}, "FIELD_REQUIRED", "transaction_id"),
        ("OpenBreak", {**ENTRY, "transaction_id": "main"}, "FIELD_INVALID", "transaction_id"),
        ("OpenBreak", {**ENTRY, "entry_number": -1}, "FIELD_INVALID", "entry_number"),
        ("OpenBreak", {**ENTRY, "reason": ""}, "FIELD_REQUIRED", "reason"),
        ("OpenBreak", {**ENTRY, "reason": f"card {CARD}"}, "CARD_NUMBER_REJECTED", "reason"),
        ("AssignBreak", {}, "FIELD_REQUIRED", "break_id"),
        ("AssignBreak", {"break_id": "b", "assignee": CARD}, "CARD_NUMBER_REJECTED", "assignee"),
        ("CommentOnBreak", {"break_id": "b"}, "FIELD_REQUIRED", "comment"),
        (
            "CommentOnBreak",
            {"break_id": "b", "comment": f"card {CARD}"},
            "CARD_NUMBER_REJECTED",
            "comment",
        ),
        ("CommentOnBreak", {"break_id": "b", "comment": "x" * 256}, "FIELD_INVALID", "comment"),
        ("ResolveBreak", {"break_id": "b", "reason": "r"}, "FIELD_REQUIRED", "resolution"),
        (
            "ResolveBreak",
            {"break_id": "b", "resolution": 99, "reason": "r"},
            "FIELD_INVALID",
            "resolution",
        ),
        (
            "ResolveBreak",
            {"break_id": "b", "resolution": "RESOLUTION_MATCH", "reason": "r"},
            "FIELD_INVALID",
            "resolution",
        ),
        (
            "ResolveBreak",
            {"break_id": "b", "resolution": "RESOLUTION_ADJUST"},
            "FIELD_REQUIRED",
            "reason",
        ),
        ("ApproveBreakResolution", {"break_id": "b"}, "FIELD_REQUIRED", "reason"),
        ("RejectBreakResolution", {"break_id": "b", "reason": " "}, "FIELD_REQUIRED", "reason"),
        ("ReopenBreak", {"break_id": "b", "reason": CARD}, "CARD_NUMBER_REJECTED", "reason"),
        ("MatchBreaks", {"reason": "r"}, "FIELD_REQUIRED", "break_ids"),
        ("MatchBreaks", {"break_ids": ["a"] * 201, "reason": "r"}, "TOO_MANY_ITEMS", "break_ids"),
        ("MatchBreaks", {"break_ids": ["a", "a"], "reason": "r"}, "DUPLICATE_ITEM", "break_ids[1]"),
        ("MatchBreaks", {"break_ids": ["a b"], "reason": "r"}, "FIELD_INVALID", "break_ids[0]"),
        ("MatchBreaks", {"break_ids": ["a"]}, "FIELD_REQUIRED", "reason"),
        ("GetClearingReport", {"account": "a" * 256}, "FIELD_INVALID", "account"),
        ("SetBreakRule", {**RULE, "kind": 0}, "FIELD_REQUIRED", "kind"),
        ("SetBreakRule", {**RULE, "break_class": 0}, "FIELD_REQUIRED", "break_class"),
        ("SetBreakRule", {**RULE, "break_class": 99}, "FIELD_INVALID", "break_class"),
        ("SetBreakRule", {**RULE, "reason": ""}, "FIELD_REQUIRED", "reason"),
        ("SetBreakRule", {**RULE, "limit": -1}, "FIELD_INVALID", "limit"),
        ("SetBreakRule", {**RULE, "kind": "BREAK_KIND_RESERVE"}, "FIELD_INVALID", "limit"),
    ],
)
def test_bad_values_of_reconciliation(
    client: Client, method: str, values: dict[str, Any], reason: str, field: str
) -> None:
    """Each is rejected with its reason and the field's name, and nothing is stored."""
    error = expect_error(client, method, **values)
    assert (error.reason, error.field_violations[0].field) == (reason, field)
    assert CARD not in str(error)


def _line(**values: Any) -> reconciliation_pb2.StatementLine:
    line = reconciliation_pb2.StatementLine()
    line.CopyFrom(LINE)
    line.MergeFrom(reconciliation_pb2.StatementLine(**values))
    return line


def _without(field: str) -> reconciliation_pb2.StatementLine:
    line = _line()
    line.ClearField(field)  # type: ignore[arg-type]
    return line


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        (_without("line_number"), "FIELD_INVALID", "line_number"),
        (_line(line_number=-1), "FIELD_INVALID", "line_number"),
        (_without("line_type"), "FIELD_REQUIRED", "line_type"),
        (_line(line_type=99), "FIELD_INVALID", "line_type"),
        (_without("amount"), "AMOUNT_INVALID", "amount"),
        (_line(amount="1e3"), "AMOUNT_INVALID", "amount"),
        (_line(amount="+5"), "AMOUNT_INVALID", "amount"),
        (_line(amount="1.005"), "AMOUNT_PRECISION", "amount"),
        (_line(amount="1" + "0" * 30), "AMOUNT_OUT_OF_RANGE", "amount"),
        (_line(fee="x"), "AMOUNT_INVALID", "fee"),
        (_without("currency"), "FIELD_REQUIRED", "currency"),
        (_line(currency="eur"), "CURRENCY_UNKNOWN", "currency"),
        (_line(currency="USD"), "FIELD_INVALID", "currency"),
        (_line(booking_date="2026-02-30"), "FIELD_INVALID", "booking_date"),
        (_line(booking_date="20260201"), "FIELD_INVALID", "booking_date"),
        (_line(value_date="tomorrow"), "FIELD_INVALID", "value_date"),
        (
            _line(line_type=reconciliation_pb2.LINE_TYPE_BANK_ENTRY),
            "FIELD_INVALID",
            "line_type",
        ),
        (_line(reference="x" * 256), "FIELD_INVALID", "reference"),
        (_line(charge_reference="a\0b"), "FIELD_INVALID", "charge_reference"),
        (_line(client_reference="x" * 256), "FIELD_INVALID", "client_reference"),
        (_line(settlement_reference="x" * 256), "FIELD_INVALID", "settlement_reference"),
        (_line(code="x" * 256), "FIELD_INVALID", "code"),
        (_line(text="x" * 501), "FIELD_INVALID", "text"),
        (_line(original_amount="1.00"), "FIELD_INVALID", "original_amount"),
        (_line(original_currency="USD"), "FIELD_INVALID", "original_amount"),
        (
            _line(original_amount="1.005", original_currency="USD"),
            "AMOUNT_PRECISION",
            "original_amount",
        ),
    ],
)
def test_bad_lines(
    client: Client, line: reconciliation_pb2.StatementLine, reason: str, field: str
) -> None:
    """Each is rejected with its reason and the path of the field, and no item of the chunk is
    stored.
    """
    file_id = _create_file(client)
    items = [pb.StatementItem(start=START), pb.StatementItem(line=line), pb.StatementItem(end=END)]
    error = expect_error(client, "BatchAddStatementItems", statement_file_id=file_id, items=items)
    assert (error.reason, error.field_violations[0].field) == (reason, f"items[1].line.{field}")
    assert f"items[1].line.{field} " in error.message
    _expect_item_count(client, file_id, 0)


_ROW = "2\tCHARGE\tcharge\t1.00\tEUR" + "\t" * 10 + "\n"


@pytest.mark.parametrize(
    ("rows", "reason", "field"),
    [
        ("", "FIELD_REQUIRED", "rows"),
        (_ROW.strip("\n"), "FIELD_INVALID", "rows"),
        (_ROW.replace("\t", "", 1), "FIELD_INVALID", "rows"),
        (_ROW.replace("charge", "\\x"), "FIELD_INVALID", "rows"),
        (_ROW + _ROW.replace("2", "x", 1), "FIELD_INVALID", "rows[1].line_number"),
        (_ROW + _ROW.replace("CHARGE", ""), "FIELD_REQUIRED", "rows[1].line_type"),
        (_ROW + _ROW.replace("CHARGE", "charge"), "FIELD_INVALID", "rows[1].line_type"),
        (_ROW + _ROW.replace("CHARGE", "BANK_ENTRY"), "FIELD_INVALID", "rows[1].line_type"),
        (_ROW + _ROW.replace("1.00", "1.005"), "AMOUNT_PRECISION", "rows[1].amount"),
        (_ROW + _ROW.replace("EUR", "USD"), "FIELD_INVALID", "rows[1].currency"),
        (_ROW + _ROW.replace("charge", "x" * 256), "FIELD_INVALID", "rows[1].code"),
        (_ROW + _ROW.replace("charge", "a\0b"), "FIELD_INVALID", "rows[1].code"),
    ],
)
def test_bad_rows(client: Client, rows: str, reason: str, field: str) -> None:
    """Lines that are sent as text are rejected as lines that are sent one by one."""
    file_id = _create_file(client)
    lines = pb.StatementItem(lines=reconciliation_pb2.StatementLines(rows=rows))
    items = [pb.StatementItem(start=START), lines]
    error = expect_error(client, "BatchAddStatementItems", statement_file_id=file_id, items=items)
    assert (error.reason, error.field_violations[0].field) == (reason, f"items[1].lines.{field}")
    assert f"items[1].lines.{field} " in error.message
    _expect_item_count(client, file_id, 0)


@pytest.mark.parametrize(
    ("items", "reason", "field"),
    [
        ([pb.StatementItem()], "FIELD_REQUIRED", "items[0].item"),
        ([pb.StatementItem(line=LINE)], "FIELD_INVALID", "items[0].line"),
        (
            [pb.StatementItem(lines=reconciliation_pb2.StatementLines(rows=_ROW))],
            "FIELD_INVALID",
            "items[0].lines",
        ),
        ([pb.StatementItem(end=END)], "FIELD_INVALID", "items[0].end"),
        (
            [pb.StatementItem(start=START), pb.StatementItem(start=START)],
            "FIELD_INVALID",
            "items[1].start",
        ),
        (
            [pb.StatementItem(start=reconciliation_pb2.StatementStart(line_number=1))],
            "FIELD_REQUIRED",
            "items[0].start.currency",
        ),
        (
            [
                pb.StatementItem(
                    start=reconciliation_pb2.StatementStart(
                        line_number=1, currency="EUR", opening_balance="1,00"
                    )
                )
            ],
            "AMOUNT_INVALID",
            "items[0].start.opening_balance",
        ),
        (
            [
                pb.StatementItem(
                    start=reconciliation_pb2.StatementStart(
                        line_number=1, currency="EUR", masked_account="x" * 65
                    )
                )
            ],
            "FIELD_INVALID",
            "items[0].start.masked_account",
        ),
        (
            [pb.StatementItem(start=START), pb.StatementItem(end=END)],
            "FIELD_INVALID",
            "items[1].end.line_count",
        ),
        (
            [
                pb.StatementItem(start=START),
                pb.StatementItem(line=LINE),
                pb.StatementItem(
                    end=reconciliation_pb2.StatementEnd(line_number=3, line_count=1, total="2.00")
                ),
            ],
            "FIELD_INVALID",
            "items[2].end.total",
        ),
        (
            statement([LINE], opening_balance="1.00", closing_balance="3.00"),
            "FIELD_INVALID",
            "items[2].end.closing_balance",
        ),
        (
            statement([LINE], closing_date="2026-13-01"),
            "FIELD_INVALID",
            "items[2].end.closing_date",
        ),
    ],
)
def test_bad_statements(
    client: Client, items: list[pb.StatementItem], reason: str, field: str
) -> None:
    """Items out of order, and sums that are not those of the lines, are rejected with their path,
    and no item of the chunk is stored.
    """
    file_id = _create_file(client)
    error = expect_error(client, "BatchAddStatementItems", statement_file_id=file_id, items=items)
    assert (error.reason, error.field_violations[0].field) == (reason, field)
    assert field in error.message
    _expect_item_count(client, file_id, 0)


def test_a_card_number_in_the_text_of_a_line_is_not_stored(client: Client) -> None:
    """S1: the file cannot be changed, so the line is reconciled without its text."""
    provider = Provider(client)
    line = charge(1_00, "ch-1")
    line.text = f"Card {CARD[:4]} {CARD[4:8]} {CARD[8:12]} {CARD[12:]}"
    reconcile(client, provider.account, [line])
    (stored_line,) = only_break(client, provider.account).lines
    assert stored_line.line.text == "(withheld: it has a card number)"


def _create_file(client: Client) -> str:
    file_id = unique_id("f")
    request = pb.CreateStatementFileRequest(
        **{**FILE, "statement_file_id": file_id, "file_name": file_id}
    )
    client.reconciliation.CreateStatementFile(request)
    return file_id


def _expect_item_count(client: Client, file_id: str, count: int) -> None:
    """The number of items of a file, which the error for another number names."""
    error = expect_error(
        client, "ReconcileStatementFile", statement_file_id=file_id, item_count=count + 1
    )
    assert error.message == f"item_count must be {count}, the number of items that were sent."
