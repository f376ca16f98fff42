"""S1: card numbers anywhere in requests over HTTP, and in the metadata of calls over gRPC, are
stored, logged and returned nowhere.
"""

from __future__ import annotations

import hmac
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import orjson
import psycopg
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tallystick.payment.v1.payment_service_pb2 import CreatePaymentRequest
from tallystick.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, migration_folders, service_names
from tallystick_server.providers.stripe.settings import StripeSettings
from tests.support.platform import ServedPlatform, eventually, serve_platform, unique_id

_COUNT = 1000
_SECRET = "whsec_" + "c" * 32
_ISSUERS = ("4", "51", "2221", "6011", "3528")
_FORMS = ("{0}{1}{2}{3}", "{0} {1} {2} {3}", "{0}-{1}-{2}-{3}")
"""How a card number is written, by its groups of four digits."""
_TRACE = "0af7651916cd43dd8448eb211c80319c"
_JSON = {"Content-Type": "application/json"}
SendCard = Callable[[httpx.Client, str], httpx.Response]


@pytest.fixture(scope="module")
def http(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    stripe = StripeSettings(
        api_key="sk_test_of_the_tests", url="http://127.0.0.1:9", webhook_secrets=(_SECRET,)
    )
    settings = Settings().replace(
        providers__configured={**Settings().providers.configured, "stripe": stripe}
    )
    with serve_platform(database, settings, (*service_names(), HTTP_SERVER)) as platform:
        yield platform


def make_card_numbers(count: int) -> list[str]:
    """Different card numbers of 16 digits."""
    numbers = random.Random(20)
    cards: set[str] = set()
    while len(cards) < count:
        prefix = numbers.choice(_ISSUERS)
        digits = prefix + "".join(numbers.choices("0123456789", k=15 - len(prefix)))
        cards.add(digits + _check_digit(digits))
    return sorted(cards)


def _check_digit(digits: str) -> str:
    total = sum(
        sum(divmod(2 * int(digit), 10)) if index % 2 == 0 else int(digit)
        for index, digit in enumerate(reversed(digits))
    )
    return str(-total % 10)


def _payment(**values: object) -> dict[str, Any]:
    name = unique_id()
    order: dict[str, Any] = {
        "payment_order_id": f"o-{name}",
        "buyer_account": "b",
        "seller_account": f"s-{name}",
        "amount": "1.00",
        "currency": "EUR",
    }
    payment: dict[str, Any] = {
        "checkout_id": f"c-{name}",
        "credit_card_info": "tok_visa",
        "payment_orders": [order],
    }
    for field, value in values.items():
        (order if field in order else payment)[field] = value
    return payment


def _header(name: str, pattern: str = "{card}") -> SendCard:
    return lambda client, card: client.get(
        "/v1/payments/none", headers={name: pattern.format(card=card)}
    )


def _written_header(name: str) -> SendCard:
    return lambda client, card: client.post("/v1/payments", json=_payment(), headers={name: card})


def _query(query: str) -> SendCard:
    return lambda client, card: client.get(f"/v1/payments?{query.format(card=card)}")


def _path(path: str) -> SendCard:
    return lambda client, card: client.get(path.format(card=card))


def _field(name: str) -> SendCard:
    return lambda client, card: client.post("/v1/payments", json=_payment(**{name: card}))


def _body(body: str, path: str = "/v1/payments") -> SendCard:
    return lambda client, card: client.post(path, content=body.replace("CARD", card), headers=_JSON)


def _webhook(**values: Any) -> SendCard:
    """A signed webhook of Stripe, in which CARD is replaced."""

    def send(client: httpx.Client, card: str) -> httpx.Response:
        object_ = {"object": "payment_intent", "id": "pi_1", "metadata": {"charge_id": "o-none"}}
        event = {
            "object": "event",
            "id": unique_id("evt"),
            "type": "payment_intent.succeeded",
            "created": 1_700_000_000,
            "data": {"object": object_},
        }
        body = orjson.dumps(event | values).replace(b"CARD", card.encode())
        now = int(time.time())
        signature = hmac.digest(_SECRET.encode(), b"%d." % now + body, "sha256").hex()
        headers = {"Stripe-Signature": f"t={now},v1={signature}"}
        return client.post("/webhooks/stripe", content=body, headers=headers)

    return send


def _object(**values: Any) -> SendCard:
    """A signed webhook of Stripe about an object with these fields."""
    return _webhook(data={"object": {"object": "payment_intent", "id": "pi_1"} | values})


REQUESTS: list[SendCard] = [
    *(_webhook(**{name: "CARD"}) for name in ("id", "type", "account", "created", "request")),
    _object(id="CARD"),
    _object(metadata={"charge_id": "CARD"}),
    _object(metadata={"CARD": "CARD"}),
    _object(description="card CARD", shipping={"name": "CARD"}),
    _webhook(data="CARD"),
    lambda client, card: client.post("/webhooks/stripe", content=card),
    lambda client, card: client.post(
        "/webhooks/stripe", content="{}", headers={"Stripe-Signature": f"t={card},v1={card}"}
    ),
    *(_header(name) for name in ("Authorization", "User-Agent", "Cookie", "X-Card", "Referer")),
    _header("Authorization", "Bearer {card}"),
    _header("Request-Timeout"),
    _header("traceparent", "00-" + "{card}" * 2 + "-{card}-01"),
    _header("traceparent", f"00-{_TRACE}-{{card}}-01"),
    _written_header("Idempotency-Key"),
    _written_header("Content-Encoding"),
    _written_header("Content-Type"),
    _written_header("traceparent"),
    *(
        _query(query)
        for query in (
            "buyer_account={card}",
            "page_size={card}",
            "page_token={card}",
            "payment_state={card}",
            "create_time_from={card}",
            "{card}=1",
            "x={card}",
        )
    ),
    *(
        _path(path)
        for path in (
            "/{card}",
            "/v1/payments/{card}",
            "/v1/payments/x%3A{card}",
            "/v1/payments/{card}:watch",
            "/v1/payments/x:{card}",
            "/v1/holds/payouts%2F{card}",
            "/v1/wallets/{card}/EUR",
            "/v1/transactions/main-{card}",
            "/v1/accounts:balance?account=sellers%2F{card}&currency=EUR",
            "/docs/{card}",
            "/webhooks/{card}",
        )
    ),
    *(  # an amount of money may have the digits of a card number, so none is sent there
        _field(name)
        for name in (
            "checkout_id",
            "buyer_info",
            "seller_info",
            "buyer_country",
            "credit_card_info",
            "charge_mode",
            "wait_for",
            "expire_time",
            "payment_order_id",
            "buyer_account",
            "seller_account",
            "currency",
            "unknown",
        )
    ),
    *(
        _body(body)
        for body in (
            "CARD",
            '"CARD"',
            '{"CARD": 1}',
            '{"checkout_id": CARD}',
            '{"checkout_id": "CARD',
            '{"checkout_id": "c", "checkout_id": "CARD"}',
            '{"payment_orders": ["CARD"]}',
            '{"payment_orders": {"CARD": 1}}',
            '{"buyer_info": "\\u0034CARD"}',
        )
    ),
    _body('{"reason": "CARD"}', "/v1/payments/none:cancel"),
    _body('{"reason": "x", "request_id": "CARD"}', "/v1/payouts/none:retry"),
    _body('{"CARD": "CARD"}', "/webhooks/none"),
]


METADATA: list[tuple[str, str]] = [
    ("traceparent", "00-{card}{card}-b7ad6b7169203331-01"),
    ("traceparent", f"00-{_TRACE}-{{card}}-01"),
    ("traceparent", "{card}"),
    ("tracestate", "rojo={card}"),
    ("baggage", "card={card}"),
    ("idempotency-key", "{card}"),
    ("x-card", "{card}"),
]
"""Metadata of a call over gRPC, in which a card number is put."""

_SEPARATOR = re.compile(r"(?<=[0-9])(?: |-|%20|\+)(?=[0-9])")
_HEX_SEPARATOR = re.compile(r"(?<=3[0-9])2[0d](?=3[0-9])")
_DIGITS, _HEX_DIGITS = re.compile(r"[0-9]{16,}"), re.compile(r"(?:3[0-9]){16,}")


def find_card_numbers(text: str, cards: AbstractSet[str]) -> set[str]:
    """The card numbers in a text, also spaced or dashed, and in bytes that are written as hex."""
    runs = _DIGITS.findall(text) + _DIGITS.findall(_SEPARATOR.sub("", text))
    hex_runs = _HEX_DIGITS.findall(text) + _HEX_DIGITS.findall(_HEX_SEPARATOR.sub("", text))
    runs += [bytes.fromhex(run).decode() for run in hex_runs]
    return {run[start : start + 16] for run in runs for start in range(len(run) - 15)} & cards


@pytest.mark.parametrize("form", _FORMS)
def test_a_card_number_is_found_in_each_form(form: str) -> None:
    """The search finds a card number as text and as bytes, so that the tests below can fail."""
    (card,) = make_card_numbers(1)
    written = _write(card, form)
    for text in (f"id={written};", written.encode().hex()):
        assert find_card_numbers(text, {card}) == {card}, text
    assert not find_card_numbers("id=123", {card})


def _write(card: str, form: str) -> str:
    return form.format(*(card[start : start + 4] for start in range(0, 16, 4)))


@pytest.fixture
def require_unlogged(
    span_exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> Callable[[AbstractSet[str]], None]:
    """Records log lines and spans. The function fails if one has a card number, or if nothing was
    recorded.
    """
    for name in ("httpx", "httpcore"):  # the client's own loggers
        caplog.set_level(logging.WARNING, logger=name)
    caplog.set_level(logging.DEBUG)  # the last, as each sets the recorder's level too

    def require(cards: AbstractSet[str]) -> None:
        spans = span_exporter.get_finished_spans()
        assert caplog.records
        assert spans
        for record in caplog.records:
            text = f"{record.getMessage()} {record.exc_text} {record.__dict__}"
            assert not find_card_numbers(text, cards), text
        for span in spans:
            assert not find_card_numbers(span.to_json(), cards), span.name

    return require


def test_no_card_number_is_kept_or_returned(
    http: ServedPlatform, require_unlogged: Callable[[AbstractSet[str]], None]
) -> None:
    """1,000 card numbers, plain, spaced and dashed, in headers, queries, paths and bodies: none is
    in a table of any schema, which includes the events, in a log line, in a span, or in an answer.
    """
    cards = make_card_numbers(_COUNT)
    sent = frozenset(cards)
    traced = {"traceparent": f"00-{_TRACE}-b7ad6b7169203331-01"}
    with (
        httpx.Client(base_url=http.url, timeout=30, headers=traced) as client,
        ThreadPoolExecutor(8) as executor,
    ):

        def send(index: int) -> httpx.Response:
            form = _FORMS[index // len(REQUESTS) % len(_FORMS)]
            return REQUESTS[index % len(REQUESTS)](client, _write(cards[index], form))

        responses = list(executor.map(send, range(_COUNT)))
        kept = client.post("/v1/payments", json=_payment(buyer_info="kept"))
        stored = _webhook()(client, "")
    assert (kept.status_code, stored.status_code) == (200, 200)  # by a working client
    for index, response in enumerate(responses):
        answer = f"{response.text} {response.headers}"
        assert not find_card_numbers(answer, sent), f"request {index % len(REQUESTS)}: {answer}"
        # a signed webhook that is not stored is delivered again
        is_webhook = response.url.path.startswith("/webhooks/stripe")
        assert response.status_code < 500 or is_webhook, response.text
    require_unlogged(sent)
    _require_absence(http, sent, kept.json()["payment"]["checkout_id"])


def test_no_card_number_in_metadata_is_kept(
    http: ServedPlatform, require_unlogged: Callable[[AbstractSet[str]], None]
) -> None:
    """Payments over gRPC with a card number in each kind of metadata succeed, and none is in a
    table of any schema, in a log line, in a span, or in the trailing metadata.
    """
    cards = make_card_numbers(3 * len(METADATA))
    sent = frozenset(cards)
    with grpc.insecure_channel(http.address) as channel:
        create_payment = PaymentServiceStub(channel).CreatePayment
        for index, card in enumerate(cards):
            key, pattern = METADATA[index % len(METADATA)]
            written = _write(card, _FORMS[index // len(METADATA)])
            request = ParseDict(_payment(), CreatePaymentRequest())
            _, call = create_payment.with_call(
                request, metadata=((key, pattern.format(card=written)),)
            )
            assert not find_card_numbers(str(call.trailing_metadata()), sent), key
        # a sampled trace, so that there are spans
        marked = create_payment(
            ParseDict(_payment(), CreatePaymentRequest()),
            metadata=(("traceparent", f"00-{_TRACE}-b7ad6b7169203331-01"),),
        )
    require_unlogged(sent)
    _require_absence(http, sent, marked.payment.checkout_id)


def _require_absence(http: ServedPlatform, cards: AbstractSet[str], marker: str) -> None:
    """No row of any table has a card number. The marker is found in a payment and in an event, so
    the search works.
    """
    found: set[str] = set()

    def search() -> bool:
        for schema in migration_folders():
            for name, row in _rows(http, schema):
                assert not find_card_numbers(row, cards), f"{schema}.{name}"
                if marker in row or marker.encode().hex() in row:
                    found.add(schema)
        return {"payment", "event"} <= found

    assert eventually(search)


def _rows(http: ServedPlatform, schema: str) -> Iterator[tuple[str, str]]:
    """The table and the text of each row of a schema."""
    with psycopg.connect(http.databases.reader(schema)) as connection:
        tables = connection.execute(
            "select table_name from information_schema.tables where table_schema = %s", (schema,)
        ).fetchall()
        assert tables
        for (table,) in tables:
            for (row,) in connection.execute(f"select t::text from {schema}.{table} t"):
                yield table, row
