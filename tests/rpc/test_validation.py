"""Invalid input over a real socket: rejected with a reason, nothing stored, the server unharmed."""

from __future__ import annotations

from typing import Any

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2, status_pb2

from tallystick import Client, InvalidArgumentError, NotFoundError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_server.app.database.migrate import SCHEMAS
from tests.support.errors import from_rpc
from tests.support.platform import ServedPlatform, unique_id

MESSAGES = {
    name: vars(operator_pb2) | vars(module)
    for name, module in (
        ("payment", payment_service_pb2),
        ("payout", payout_service_pb2),
        ("wallet", wallet_service_pb2),
        ("ledger", ledger_service_pb2),
        ("reconciliation", reconciliation_service_pb2),
    )
}
CARD = "4242424242424242"  # test numbers that providers publish

BAD_AMOUNTS = [
    *(
        (text, "EUR", "AMOUNT_INVALID")
        for text in (
            "",
            " 12",
            "12\n",
            "+5",
            "1e3",
            "NaN",
            "Infinity",
            "0x10",
            "1_000",
            "１２",
            "٣",
            "1,00",
            "1.",
            ".5",
            "00012",
        )
    ),
    *(
        (text, "EUR", "AMOUNT_OUT_OF_RANGE")
        for text in ("-1", "0", "-0", "1" + "0" * 30, "9" * 5000)
    ),
    ("1.5", "JPY", "AMOUNT_PRECISION"),
    ("1.005", "USD", "AMOUNT_PRECISION"),
    ("1.2345", "KWD", "AMOUNT_PRECISION"),
]


def new_test_order(**overrides: Any) -> payment_pb2.NewPaymentOrder:
    fields = {
        "payment_order_id": unique_id("o"),
        "buyer_account": "b",
        "seller_account": "s",
        "amount": "1.00",
        "currency": "EUR",
        **overrides,
    }
    return payment_pb2.NewPaymentOrder(**fields)


def expect_invalid_payment(client: Client, **overrides: Any) -> InvalidArgumentError:
    """The error for a payment that is valid except for the changes; nothing may be stored."""
    checkout_id = unique_id("c")
    fields = {
        "checkout_id": checkout_id,
        "credit_card_info": "tok_visa",
        "payment_orders": [new_test_order()],
        **overrides,
    }
    with pytest.raises(InvalidArgumentError) as error:
        client.payment.CreatePayment(payment_service_pb2.CreatePaymentRequest(**fields))
    with pytest.raises(NotFoundError):
        client.get_payment(checkout_id)
    return error.value


@pytest.mark.parametrize(("amount", "currency", "reason"), BAD_AMOUNTS)
def test_bad_amounts(client: Client, amount: str, currency: str, reason: str) -> None:
    """Each is rejected with its reason and the amount's path, which the message also names."""
    error = expect_invalid_payment(
        client, payment_orders=[new_test_order(), new_test_order(amount=amount, currency=currency)]
    )
    assert "payment_orders[1].amount " in error.message
    assert (error.reason, error.field_violations[0].field) == (reason, "payment_orders[1].amount")


@pytest.mark.parametrize(
    ("currency", "reason"),
    [
        ("usd", "CURRENCY_UNKNOWN"),
        ("US", "CURRENCY_UNKNOWN"),
        ("XXX", "CURRENCY_UNKNOWN"),
        ("", "FIELD_REQUIRED"),
    ],
)
def test_bad_currencies(client: Client, currency: str, reason: str) -> None:
    """Each is rejected with its reason and the currency's path."""
    error = expect_invalid_payment(client, payment_orders=[new_test_order(currency=currency)])
    assert (error.reason, error.field_violations[0].field) == (reason, "payment_orders[0].currency")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"checkout_id": ""}, "FIELD_REQUIRED", "checkout_id"),
        ({"checkout_id": "a" * 65}, "FIELD_INVALID", "checkout_id"),
        ({"checkout_id": "ключ"}, "FIELD_INVALID", "checkout_id"),
        ({"checkout_id": CARD}, "CARD_NUMBER_REJECTED", "checkout_id"),
        ({"payment_orders": []}, "FIELD_REQUIRED", "payment_orders"),
        (
            {"payment_orders": [new_test_order() for _ in range(201)]},
            "TOO_MANY_ITEMS",
            "payment_orders",
        ),
        (
            {
                "payment_orders": [
                    new_test_order(payment_order_id="same"),
                    new_test_order(payment_order_id="same"),
                ]
            },
            "DUPLICATE_ITEM",
            "payment_orders[1].payment_order_id",
        ),
        (
            {"payment_orders": [new_test_order(seller_account="b")]},
            "SAME_ACCOUNT",
            "payment_orders[0].seller_account",
        ),
        (
            {"payment_orders": [new_test_order(platform_fee="1.00")]},
            "AMOUNT_OUT_OF_RANGE",
            "payment_orders[0].platform_fee",
        ),
        (
            {"payment_orders": [new_test_order(platform_fee="-1")]},
            "AMOUNT_OUT_OF_RANGE",
            "payment_orders[0].platform_fee",
        ),
        (
            {"payment_orders": [new_test_order(buyer_account="'; drop table payment_order; --")]},
            "FIELD_INVALID",
            "payment_orders[0].buyer_account",
        ),
        (
            {"payment_orders": [new_test_order(seller_account="=cmd()")]},
            "FIELD_INVALID",
            "payment_orders[0].seller_account",
        ),
        ({"payment_method_type": 99}, "FIELD_INVALID", "payment_method_type"),
        ({"charge_mode": 99}, "FIELD_INVALID", "charge_mode"),
        ({"wait_for": 99}, "FIELD_INVALID", "wait_for"),
        (
            {
                "charge_mode": 2,
                "payment_orders": [new_test_order(), new_test_order(currency="USD")],
            },
            "FIELD_INVALID",
            "charge_mode",
        ),
        ({"partial_failure_policy": 2}, "FIELD_INVALID", "partial_failure_policy"),
        (
            {
                "charge_mode": 2,
                "payment_orders": [new_test_order(amount="9" * 16 + ".99"), new_test_order()],
            },
            "AMOUNT_OUT_OF_RANGE",
            "payment_orders",
        ),
        ({"credit_card_info": ""}, "FIELD_REQUIRED", "credit_card_info"),
        ({"credit_card_info": CARD}, "CARD_NUMBER_REJECTED", "credit_card_info"),
        (
            {"buyer_info": f"pay with {CARD[:4]} {CARD[4:8]} {CARD[8:12]} {CARD[12:]}"},
            "CARD_NUMBER_REJECTED",
            "buyer_info",
        ),
        ({"buyer_info": "a\0b"}, "FIELD_INVALID", "buyer_info"),
        ({"buyer_info": "x" * 1025}, "FIELD_INVALID", "buyer_info"),
        ({"buyer_country": "gb"}, "FIELD_INVALID", "buyer_country"),
    ],
)
def test_bad_fields(client: Client, changes: dict[str, Any], reason: str, field: str) -> None:
    """Each is rejected with its reason and its path."""
    checkout = changes.get("checkout_id")
    if checkout is not None:
        with pytest.raises(InvalidArgumentError) as raised_error:
            client.payment.CreatePayment(
                payment_service_pb2.CreatePaymentRequest(
                    credit_card_info="tok_visa", payment_orders=[new_test_order()], **changes
                )
            )
        error = raised_error.value
    else:
        error = expect_invalid_payment(client, **changes)
    assert (error.reason, error.field_violations[0].field) == (reason, field)
    assert CARD not in str(error)


def test_no_payment_method(client: Client) -> None:
    """A payment without a payment method is rejected."""
    with pytest.raises(InvalidArgumentError) as error:
        client.payment.CreatePayment(
            payment_service_pb2.CreatePaymentRequest(
                checkout_id=unique_id("c"), payment_orders=[new_test_order()]
            )
        )
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "FIELD_REQUIRED",
        "payment_method",
    )


@pytest.mark.parametrize(
    "text", ["مرحبا \u202e evil", "🙂" * 200, "=1+1", "{{7*7}}", "%s%n", "a\r\nSet-Cookie: x"]
)
def test_unusual_texts_are_stored_unchanged(client: Client, text: str) -> None:
    """Free text is data: right-to-left marks, emoji and injections are returned unchanged."""
    payment = client.create_payment(
        unique_id("c"), [new_test_order()], credit_card_info="tok_visa", buyer_info=text
    )
    assert client.get_payment(payment.checkout_id).buyer_info == text


def _status_of(error: grpc.RpcError) -> tuple[str, str]:
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]  # type: ignore[arg-type, index, var-annotated]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(raw).details[0].Unpack(info)
    return error.code().name, info.reason


def send_raw(platform: ServedPlatform, method: str, body: bytes, **options: Any) -> Any:
    with grpc.insecure_channel(platform.address) as channel:
        return channel.unary_unary(f"/tallystick.payment.v1.PaymentService/{method}")(
            body,  # type: ignore[arg-type]
            **{"timeout": 10, **options},
        )


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        ("CreatePayment", b"\xff\xff\xff\xff", ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")),
        ("CreatePayment", b"\x0a\x02\xff\xfe", ("INVALID_ARGUMENT", "MESSAGE_MALFORMED")),
        (
            "CreatePayment",
            b"\x0a\x80\x80\x04" + b"a" * 65536,
            ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE"),
        ),
        ("NoSuchMethod", b"", ("UNIMPLEMENTED", "METHOD_UNKNOWN")),
    ],
)
def test_bad_messages(
    platform: ServedPlatform, method: str, body: bytes, expected: tuple[str, str]
) -> None:
    """X1: malformed bytes, invalid UTF-8, too large messages and unknown methods each have a reason
    of the closed list, never UNKNOWN.
    """
    with pytest.raises(grpc.RpcError) as error:
        send_raw(platform, method, body)
    assert _status_of(error.value) == expected


def test_a_million_characters(platform: ServedPlatform) -> None:
    """A huge text is rejected before it is parsed."""
    request = payment_service_pb2.CreatePaymentRequest(checkout_id="c", buyer_info="x" * 1_000_000)
    with pytest.raises(grpc.RpcError) as error:
        send_raw(platform, "CreatePayment", request.SerializeToString())
    assert _status_of(error.value) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")


def test_a_batch_of_five_million_bytes(platform: ServedPlatform) -> None:
    """X1: a batch above its limit is rejected with a reason of the closed list too."""
    with pytest.raises(grpc.RpcError) as error, grpc.insecure_channel(platform.address) as channel:
        channel.unary_unary("/tallystick.payout.v1.PayoutService/CreatePayoutBatch")(
            b"x" * 5_000_000,  # type: ignore[arg-type]
            timeout=10,
        )
    assert _status_of(error.value) == ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")


EMPTY = b"\x0a\x00"  # an empty item of field 1


def nested_item(item: bytes) -> bytes:
    """One item of field 1."""
    size, length = len(item), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return b"\x0a" + length + bytes([size]) + item


@pytest.mark.parametrize(
    ("method", "body", "field"),
    [
        ("ledger.v1.LedgerService/BatchPost", EMPTY * 1001, "postings"),
        # a tag in more bytes than it needs
        ("ledger.v1.LedgerService/BatchPost", b"\x8a\x00\x00" * 1001, "postings"),
        ("ledger.v1.LedgerService/BatchPost", EMPTY * 2_000_000, "postings"),
        (
            "ledger.v1.LedgerService/BatchPost",
            nested_item(b"\x22\x00" * 1001),
            "postings[0].entries",
        ),
        ("ledger.v1.LedgerService/BatchPost", nested_item(b"\x22\x00" * 900) * 900, ""),
        ("event.v1.EventService/BatchPublish", EMPTY * 2_000_000, "events"),
        ("event.v1.EventService/BatchPublish", b"\x10\x00" * 2_000_000, ""),
        ("wallet.v1.WalletService/BatchCredit", EMPTY * 2_000_000, "credits"),
        ("wallet.v1.WalletService/BatchReleaseHold", EMPTY * 2_000_000, "hold_ids"),
        (
            "payout.v1.PayoutService/CreatePayoutBatch",
            nested_item(EMPTY * 1_500_000).replace(b"\x0a", b"\x12", 1),
            "list.payouts",
        ),
        ("payment.v1.PaymentService/CreatePayment", b"\x4a\x00" * 30_000, "payment_orders"),
        ("event.v1.EventService/StreamEvents", b"\x10\x00" * 30_000, "types"),
        (
            "event.v1.EventService/StreamEvents",
            nested_item(b"\x01" * 65_000).replace(b"\x0a", b"\x12", 1),
            "types",
        ),
        (
            "event.v1.EventService/StreamEvents",
            nested_item(b"\x80\x01" * 1001).replace(b"\x0a", b"\x12", 1),
            "types",
        ),
        (
            "event.v1.EventService/StreamEvents",
            nested_item(b"\x01" * 600).replace(b"\x0a", b"\x12", 1) * 2,
            "types",
        ),
    ],
)
def test_items_are_counted_before_the_message_is_parsed(
    platform: ServedPlatform, method: str, body: bytes, field: str
) -> None:
    """X1: more items than allowed, at any depth, are rejected on the bytes of the message, before
    any object is built.
    """
    with pytest.raises(grpc.RpcError) as error, grpc.insecure_channel(platform.address) as channel:
        list(channel.unary_stream(f"/tallystick.{method}")(body, timeout=30))  # type: ignore[arg-type]
    assert _status_of(error.value) == ("INVALID_ARGUMENT", "TOO_MANY_ITEMS")
    api_error = from_rpc(error.value)
    assert [violation.field for violation in api_error.field_violations] == (
        [field] if field else []
    )


def expect_invalid_payout_call(client: Client, method: str, **values: Any) -> InvalidArgumentError:
    request = getattr(payout_service_pb2, f"{method}Request")(**values)
    with pytest.raises(InvalidArgumentError) as error:
        getattr(client.payout, method)(request)
    return error.value


PAYOUT = {"payout_id": "p", "seller_account": "s", "amount": "1.00", "currency": "EUR"}
DESTINATION = {
    "payout_destination_id": "d",
    "seller_account": "s",
    "currency": "EUR",
    "bank_account_token": "ba_ok",
}
SCHEDULE = {
    "seller_account": "s",
    "currency": "EUR",
    "interval": payout_pb2.PAYOUT_INTERVAL_DAILY,
    "cut_off": "16:00",
    "time_zone": "UTC",
}


@pytest.mark.parametrize(
    ("amount", "currency", "reason"), [case for case in BAD_AMOUNTS if case[0]]
)
def test_bad_amounts_of_payouts(client: Client, amount: str, currency: str, reason: str) -> None:
    """Each is rejected with its reason; only the empty token has a meaning."""
    error = expect_invalid_payout_call(
        client, "CreatePayout", **{**PAYOUT, "amount": amount, "currency": currency}
    )
    assert (error.reason, error.field_violations[0].field) == (reason, "amount")


@pytest.mark.parametrize(
    ("method", "values", "reason", "field"),
    [
        ("CreatePayout", {**PAYOUT, "payout_id": ""}, "FIELD_REQUIRED", "payout_id"),
        ("CreatePayout", {**PAYOUT, "payout_id": "r-1"}, "FIELD_INVALID", "payout_id"),
        ("CreatePayout", {**PAYOUT, "payout_id": "a b"}, "FIELD_INVALID", "payout_id"),
        ("CreatePayout", {**PAYOUT, "payout_id": CARD}, "CARD_NUMBER_REJECTED", "payout_id"),
        ("CreatePayout", {**PAYOUT, "seller_account": ""}, "FIELD_REQUIRED", "seller_account"),
        ("CreatePayout", {**PAYOUT, "seller_account": "a" * 65}, "FIELD_INVALID", "seller_account"),
        ("CreatePayout", {**PAYOUT, "currency": "usd"}, "CURRENCY_UNKNOWN", "currency"),
        (
            "CreatePayout",
            {**PAYOUT, "payout_destination_id": "'; drop"},
            "FIELD_INVALID",
            "payout_destination_id",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "payout_destination_id": ""},
            "FIELD_REQUIRED",
            "payout_destination_id",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "bank_account_token": ""},
            "FIELD_REQUIRED",
            "bank_account_token",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "bank_account_token": CARD},
            "CARD_NUMBER_REJECTED",
            "bank_account_token",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "bank_account_token": "tök"},
            "FIELD_INVALID",
            "bank_account_token",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "bank_account_token": "DE89370400440532013000"},
            "FIELD_INVALID",
            "bank_account_token",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "description": "a\0b"},
            "FIELD_INVALID",
            "description",
        ),
        (
            "CreatePayoutDestination",
            {**DESTINATION, "description": "x" * 256},
            "FIELD_INVALID",
            "description",
        ),
        ("ListPayoutDestinations", {"state": 99}, "FIELD_INVALID", "state"),
        ("ListPayouts", {"payout_state": 99}, "FIELD_INVALID", "payout_state"),
        ("ListPayouts", {"page_size": -1}, "FIELD_INVALID", "page_size"),
        ("ListPayouts", {"page_token": "x"}, "PAGE_TOKEN_INVALID", "page_token"),
        ("CancelPayout", {"payout_id": "p"}, "FIELD_REQUIRED", "reason"),
        ("ApprovePayout", {"payout_id": "p", "reason": " "}, "FIELD_REQUIRED", "reason"),
        ("RejectPayout", {"payout_id": "p", "reason": CARD}, "CARD_NUMBER_REJECTED", "reason"),
        (
            "RetryPayout",
            {"payout_id": "p", "reason": "x", "request_id": "ä"},
            "FIELD_INVALID",
            "request_id",
        ),
        ("DisablePayoutDestination", {"payout_destination_id": "d"}, "FIELD_REQUIRED", "reason"),
        ("PreviewPayout", {"seller_account": "s"}, "FIELD_REQUIRED", "currency"),
        ("SetPayoutSchedule", {**SCHEDULE, "interval": 99}, "FIELD_INVALID", "interval"),
        ("SetPayoutSchedule", {**SCHEDULE, "interval": 0}, "FIELD_REQUIRED", "interval"),
        ("SetPayoutSchedule", {**SCHEDULE, "cut_off": "24:00"}, "FIELD_INVALID", "cut_off"),
        (
            "SetPayoutSchedule",
            {**SCHEDULE, "time_zone": "Mars/Olympus"},
            "FIELD_INVALID",
            "time_zone",
        ),
        ("SetPayoutSchedule", {**SCHEDULE, "fee": "-1"}, "AMOUNT_OUT_OF_RANGE", "fee"),
        ("SetPayoutSchedule", {**SCHEDULE, "reserve": "1.005"}, "AMOUNT_PRECISION", "reserve"),
        ("SetPayoutSchedule", {**SCHEDULE, "weekday": 1}, "FIELD_INVALID", "weekday"),
        ("GetPayoutBatch", {"payout_batch_id": ""}, "FIELD_REQUIRED", "payout_batch_id"),
    ],
)
def test_bad_values_of_payouts(
    client: Client, method: str, values: dict[str, Any], reason: str, field: str
) -> None:
    """Each is rejected with its reason and the field's name, and nothing is stored."""
    error = expect_invalid_payout_call(client, method, **values)
    assert (error.reason, error.field_violations[0].field) == (reason, field)


@pytest.mark.parametrize(
    ("service", "method", "values", "names"),
    [
        ("payment", "GetPayment", {"checkout_id": "no-such"}, "payment no-such"),
        ("payment", "GetPaymentOrder", {"payment_order_id": "no-such"}, "payment order no-such"),
        ("payment", "GetDeadLetter", {"dead_letter_id": "no-such"}, "dead letter no-such"),
        ("payment", "GetDeadLetter", {"dead_letter_id": CARD}, "dead letter with this id"),
        (
            "payment",
            "AcknowledgeUnappliedCharge",
            {"unapplied_charge_id": "no-such", "reason": "r"},
            "unapplied charge no-such",
        ),
        (
            "payment",
            "AcknowledgeCharge",
            {"charge_id": "o-no-such", "report_number": 3, "reason": "r"},
            "conflicting report 3 of charge o-no-such",
        ),
        ("payout", "GetPayout", {"payout_id": "no-such"}, "payout no-such"),
        ("payout", "GetPayoutBatch", {"payout_batch_id": "no-such"}, "payout batch no-such"),
        (
            "payout",
            "GetPayoutDestination",
            {"payout_destination_id": "no-such"},
            "payout destination no-such",
        ),
        (
            "payout",
            "PreviewPayout",
            {"seller_account": "no-such", "currency": "EUR"},
            "seller no-such",
        ),
        (
            "payout",
            "AcknowledgePayout",
            {"payout_id": "no-such", "report_number": 1, "reason": "r"},
            "payout no-such",
        ),
        (
            "wallet",
            "GetWallet",
            {"seller_account": "no-such", "currency": "EUR"},
            "wallet of seller no-such in EUR",
        ),
        ("wallet", "GetHold", {"hold_id": "no-such"}, "hold no-such"),
        (
            "wallet",
            "ApproveSellerAssignment",
            {"seller_assignment_id": "no-such", "reason": "r"},
            "seller assignment no-such",
        ),
        (
            "ledger",
            "GetAccount",
            {"account": "sellers/no-such", "currency": "EUR"},
            "account sellers/no-such in EUR",
        ),
        (
            "ledger",
            "GetTransaction",
            {"transaction_id": "main-987654321"},
            "transaction main-987654321",
        ),
        (
            "ledger",
            "GetTransaction",
            {"transaction_id": f"main-{CARD}"},
            "transaction with this id",
        ),
        (
            "reconciliation",
            "GetStatementFile",
            {"statement_file_id": "no-such"},
            "statement file no-such",
        ),
        (
            "reconciliation",
            "BatchAddStatementItems",
            {
                "statement_file_id": "no-such",
                "items": [reconciliation_service_pb2.StatementItem()],
            },
            "statement file no-such",
        ),
        (
            "reconciliation",
            "ReconcileStatementFile",
            {"statement_file_id": "no-such"},
            "statement file no-such",
        ),
        (
            "reconciliation",
            "ReconcileStatementFile",
            {"statement_file_id": "no-such", "preview": True},
            "statement file no-such",
        ),
        ("reconciliation", "GetBreak", {"break_id": "no-such"}, "break no-such"),
        ("reconciliation", "AssignBreak", {"break_id": "no-such"}, "break no-such"),
        (
            "reconciliation",
            "CommentOnBreak",
            {"break_id": "no-such", "comment": "c"},
            "break no-such",
        ),
        (
            "reconciliation",
            "ResolveBreak",
            {"break_id": "no-such", "resolution": "RESOLUTION_ACCEPT", "reason": "r"},
            "break no-such",
        ),
        (
            "reconciliation",
            "ApproveBreakResolution",
            {"break_id": "no-such", "reason": "r"},
            "break no-such",
        ),
        (
            "reconciliation",
            "RejectBreakResolution",
            {"break_id": "no-such", "reason": "r"},
            "break no-such",
        ),
        (
            "reconciliation",
            "ReopenBreak",
            {"break_id": "no-such", "reason": "r"},
            "break no-such",
        ),
        (
            "reconciliation",
            "MatchBreaks",
            {"break_ids": ["no-such"], "reason": "r"},
            "break no-such",
        ),
    ],
)
def test_a_not_found_error_names_the_resource(
    client: Client, service: str, method: str, values: dict[str, Any], names: str
) -> None:
    """A NOT_FOUND error names the resource and the requested id, unless the id looks like a card
    number.
    """
    request = MESSAGES[service][f"{method}Request"](**values)
    with pytest.raises(NotFoundError) as error:
        getattr(getattr(client, service), method)(request)
    assert error.value.message == f"There is no {names}."


def test_no_table_holds_a_card_number(client: Client, platform: ServedPlatform) -> None:
    """S1: after all of these calls, no table of any service holds a card number."""
    expect_invalid_payment(client, buyer_info=CARD)
    for service in SCHEMAS:
        with psycopg.connect(platform.databases.reader(service)) as connection:
            tables = connection.execute(
                "select table_name from information_schema.tables where table_schema = %s",
                (service,),
            ).fetchall()
            assert tables
            for (table,) in tables:
                row = connection.execute(
                    f"select count(*) from {service}.{table} t where t::text ~ %s",
                    (f"{CARD}|{CARD.encode().hex()}",),
                ).fetchone()
                assert row == (0,), f"{service}.{table}"
