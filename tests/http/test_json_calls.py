"""Calls by JSON over HTTP: fields, errors, idempotency, tokens and hosts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tallystick_core.access import Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.support.callers import settings_with_callers, token_of
from tests.support.json_calls import create, field_of, new_payment, reason_of
from tests.support.platform import FAST_RETRY, ServedPlatform, serve_platform

NAMES = (*service_names(), HTTP_SERVER)
CALLERS = {"shop": ("", {Role.TEAM}), "other": ("", {Role.TEAM}), "ops": ("", {Role.OPERATOR})}


@pytest.fixture(scope="module")
def http(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    settings = Settings().replace(retry=FAST_RETRY, worker__scan_interval=0.1)
    with serve_platform(database, settings, NAMES) as platform:
        yield platform


@pytest.fixture(scope="module")
def guarded(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform with tokens."""
    with serve_platform(database, settings_with_callers(CALLERS), NAMES) as platform:
        yield platform


def test_a_payment(http: ServedPlatform) -> None:
    """The answer of a payment is that of gRPC; a repeat is marked; the other reads find it."""
    payment = new_payment()
    response = create(http, payment)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert len(response.headers["Trace-Id"]) == 32
    assert "Idempotent-Replayed" not in response.headers
    answer = response.json()["payment"]
    assert answer["is_payment_done"] is True
    assert isinstance(answer["version"], str)  # an int64 is text
    assert answer["buyer_info"] == ""  # fields without presence are there
    assert "expire_time" not in answer
    again = create(http, payment)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["payment"] == answer
    url = f"{http.url}/v1/payments"
    assert httpx.get(f"{url}/{payment['checkout_id']}").json()["payment"] == answer
    found = httpx.get(url, params={"seller_account": answer["payment_orders"][0]["seller_account"]})
    assert [item["checkout_id"] for item in found.json()["payments"]] == [payment["checkout_id"]]
    camel = httpx.get(url, params={"sellerAccount": "nobody", "pageSize": "1"})
    assert camel.json() == {"payments": [], "next_page_token": ""}
    order = payment["payment_orders"][0]["payment_order_id"]
    delivery = httpx.post(f"{http.url}/v1/paymentOrders/{order}:confirmDelivery")
    assert delivery.status_code == 200, delivery.text


def test_page_sizes_are_reduced(http: ServedPlatform) -> None:
    """A page size above the maximum, also above an int32, is reduced; a negative one is wrong."""
    for size in ("1", "1000", str(2**31), "9" * 40):
        response = httpx.get(f"{http.url}/v1/payments", params={"page_size": size})
        assert response.status_code == 200
    response = httpx.get(f"{http.url}/v1/payments", params={"page_size": "-1"})
    assert (response.status_code, field_of(response)) == (400, "page_size")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nope=1", "nope"),
        ("page_size=1&page_size=2", "page_size"),
        ("payment_state=NOPE", "payment_state"),
        ("create_time_from=yesterday", "create_time_from"),
        ("buyer_account=4111111111111111", "buyer_account"),
        ("4111111111111111=1", ""),
    ],
)
def test_wrong_query_fields_are_named(http: ServedPlatform, query: str, field: str) -> None:
    """A wrong query is 400 with the field, and shows no value."""
    response = httpx.get(f"{http.url}/v1/payments?{query}")
    assert response.status_code == 400
    details = response.json()["details"]
    assert (field_of(response) if len(details) > 1 else "") == field
    assert "4111" not in response.text


def test_nested_and_repeated_query_fields(http: ServedPlatform) -> None:
    """A field of a message has a path in the query, and a list is a repeated field."""
    url = f"{http.url}/v1/paymentDeadLetters"
    assert httpx.get(f"{url}?filter.cause=DEAD_LETTER_CAUSE_PENDING").json()["dead_letters"] == []
    assert field_of(httpx.get(f"{url}?filter.cause=NOPE")) == "filter.cause"
    response = httpx.get(
        f"{http.url}/v1/events:stream?types=EVENT_TYPE_PAYMENT_CLOSED&types=NOPE&after_cursor=0"
    )
    assert field_of(response) == "types[1]"


@pytest.mark.parametrize(
    ("content", "headers", "status", "reason"),
    [
        (b"{", {}, 400, "MESSAGE_MALFORMED"),
        (b'{"nope": 1}', {}, 400, "FIELD_INVALID"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "MESSAGE_MALFORMED"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "MESSAGE_MALFORMED"),
        (b" " * 2**20 + b"{}", {}, 413, "MESSAGE_TOO_LARGE"),
        (b'{"buyer_info": "%s"}' % (b"x" * 70_000), {}, 413, "MESSAGE_TOO_LARGE"),
        (b"{}", {"Request-Timeout": "soon"}, 400, "FIELD_INVALID"),
        (b"{}", {"Request-Timeout": "0"}, 400, "FIELD_INVALID"),
        (b"{}", {"Authorization": "Bearer \x80"}, 401, "CREDENTIALS_INVALID"),
    ],
)
def test_wrong_requests(
    http: ServedPlatform, content: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    """Each kind of wrong request has its HTTP status and its reason."""
    raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
    if "Content-Type" not in headers:
        raw.append((b"Content-Type", b"application/json; charset=utf-8"))
    response = httpx.post(f"{http.url}/v1/payments", content=content, headers=raw)
    assert (response.status_code, reason_of(response)) == (status, reason)


def test_a_read_has_no_body_and_a_write_no_query(http: ServedPlatform) -> None:
    """Fields in the wrong place are rejected."""
    response = httpx.request("GET", f"{http.url}/v1/payments", json={"page_size": 1})
    assert (response.status_code, reason_of(response)) == (400, "MESSAGE_MALFORMED")
    response = httpx.post(f"{http.url}/v1/payments?checkout_id=x", json={})
    assert (response.status_code, reason_of(response)) == (400, "FIELD_INVALID")
    response = httpx.post(f"{http.url}/v1/payments/x:cancel", json={"checkout_id": "y"})
    assert (response.status_code, field_of(response)) == (400, "checkout_id")


def test_a_read_of_several_has_a_body_and_a_result_for_each(http: ServedPlatform) -> None:
    """A query has no place for a list of requests. An error names its item."""
    url = f"{http.url}/v1/metrics:batchGetHistories"
    queries = [{"metric": "process.cpu.time", "step": "60s"}, {"metric": "up"}]
    response = httpx.post(url, json={"queries": queries})
    assert response.status_code == 200, response.text
    first, second = response.json()["results"]
    assert (first["history"]["unit"], first["history"]["step"]) == ("s", "60s")
    assert second["error"]["message"].startswith("queries[1].metric must be one of")
    assert second["error"]["details"][0]["reason"] == "FIELD_INVALID"
    none = httpx.post(url, json={})
    assert (none.status_code, field_of(none)) == (400, "queries")
    assert httpx.get(url).status_code == 405


def test_the_idempotency_key(http: ServedPlatform) -> None:
    """It must equal the id of the call, or it fills request_id; else the field is named."""
    payment = new_payment()
    wrong = create(http, payment, **{"Idempotency-Key": "another"})
    assert (wrong.status_code, field_of(wrong)) == (400, "checkout_id")
    right = create(http, payment, **{"Idempotency-Key": payment["checkout_id"]})
    assert right.status_code == 200
    reused = create(http, {**payment, "buyer_info": "another"})
    assert (reused.status_code, reason_of(reused)) == (409, "IDEMPOTENCY_KEY_REUSED")
    url, key = f"{http.url}/v1/payouts/none:retry", {"Idempotency-Key": "r-1"}
    body = {"reason": "x"}
    assert reason_of(httpx.post(url, json=body, headers=key)) == "NOT_FOUND"  # it was filled
    assert field_of(httpx.post(url, json=body)) == "request_id"
    different = httpx.post(url, json={**body, "request_id": "r-2"}, headers=key)
    assert (different.status_code, field_of(different)) == (400, "request_id")
    none = httpx.post(f"{http.url}/v1/wallets/s/EUR:setPolicy", json={}, headers=key)
    assert (none.status_code, field_of(none)) == (400, "Idempotency-Key")
    assert httpx.get(f"{http.url}/v1/payments", headers=key).status_code == 200  # reads ignore it


def test_concurrent_calls_with_one_id_have_one_result(http: ServedPlatform) -> None:
    """The payment is made once: the other calls wait for it, and their answers are marked."""
    payment = new_payment("tok_delay:300")
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: create(http, payment), range(12)))
    assert {response.status_code for response in responses} == {200}
    assert {response.json()["payment"]["is_payment_done"] for response in responses} == {True}
    replayed = [response.headers.get("Idempotent-Replayed") for response in responses]
    assert sorted(filter(None, replayed)) == ["true"] * 11


def test_tokens_and_owners(guarded: ServedPlatform) -> None:
    """A call has the access of its own token: 401 without one, 403 without the role, 404 for what
    belongs to another owner.
    """
    payment = new_payment()
    missing = create(guarded, payment)
    assert (missing.status_code, reason_of(missing)) == (401, "CREDENTIALS_MISSING")
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    wrong = create(guarded, payment, Authorization="Bearer wrong-wrong-wrong")
    assert (wrong.status_code, reason_of(wrong)) == (401, "CREDENTIALS_INVALID")
    denied = create(guarded, payment, Authorization=f"Bearer {token_of('ops')}")
    assert (denied.status_code, reason_of(denied)) == (403, "PERMISSION_DENIED")
    created = create(guarded, payment, Authorization=f"Bearer {token_of('shop')}")
    assert created.json()["payment"]["caller"] == "shop"
    url = f"{guarded.url}/v1/payments/{payment['checkout_id']}"
    for name, status in (("shop", 200), ("ops", 200), ("other", 404)):
        response = httpx.get(url, headers={"Authorization": f"Bearer {token_of(name)}"})
        assert response.status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7080", 404),
        ("127.0.0.1", 404),
        ("[::1]:7080", 404),
        ("evil.example:7080", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_without_authentication_only_loopback_hosts_are_served(
    http: ServedPlatform, host: str, status: int
) -> None:
    """A web page whose host name leads to this machine cannot call it: its Host is rejected."""
    response = httpx.get(f"{http.url}/v1/payments/none", headers={"Host": host})
    assert response.status_code == status
    assert reason_of(response) == ("NOT_FOUND" if status == 404 else "PERMISSION_DENIED")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 404),
        ("http://127.0.0.1", 404),
        ("http://[::1]:8080", 404),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://[", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_without_authentication_no_web_page_of_another_host_is_served(
    http: ServedPlatform, origin: str, status: int
) -> None:
    """A browser sends a call without a body for any page; its Origin names the page's host."""
    response = httpx.post(
        f"{http.url}/v1/paymentOrders/none:confirmDelivery", headers={"Origin": origin}
    )
    assert response.status_code == status
    assert reason_of(response) == ("NOT_FOUND" if status == 404 else "PERMISSION_DENIED")


def test_with_tokens_any_host_is_served(guarded: ServedPlatform) -> None:
    """Behind a proxy the Host is that of the proxy; the token decides."""
    headers = {
        "Host": "api.example",
        "Origin": "https://api.example",
        "Authorization": f"Bearer {token_of('shop')}",
    }
    assert httpx.get(f"{guarded.url}/v1/payments/none", headers=headers).status_code == 404


def test_the_trace_of_the_caller_continues(http: ServedPlatform) -> None:
    """traceparent is passed on: the answer has its trace id."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    response = httpx.get(f"{http.url}/v1/payments/none", headers=headers)
    assert (response.status_code, response.headers["Trace-Id"]) == (404, trace)


def test_a_service_that_is_away_is_503(scratch_database: DatabaseUrls) -> None:
    """Without the service a call is 503 with Retry-After, and its address is not shown."""
    settings = Settings().replace(
        service_addresses=dict.fromkeys(set(service_names()) - {"event"}, "127.0.0.1:1")
    )
    with serve_platform(scratch_database, settings, ("event", HTTP_SERVER)) as platform:
        response = create(platform, new_payment())
        assert (response.status_code, reason_of(response)) == (503, "DEPENDENCY_UNAVAILABLE")
        assert response.headers["Retry-After"] == "1"
        assert "127.0.0.1" not in response.text
        assert httpx.get(f"{platform.url}/healthz").json() == {"status": "NOT_SERVING"}
        assert httpx.get(f"{platform.url}/v1/events:stream").status_code == 200
