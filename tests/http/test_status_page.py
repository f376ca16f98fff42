"""GET /p/{token}: the buyer's status page over HTTP."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from tallystick.payment.v1.payment_pb2 import BuyerAmount, PaymentState, PendingReason
from tallystick_server.http.status_page import page as page_module
from tests.support.status_page import (
    RESOLVE_BY_TIME,
    TOKEN,
    BuyerStatuses,
    buyer_status,
    serve_status_page,
)

OPEN, PAID = PaymentState.PAYMENT_STATE_OPEN, PaymentState.PAYMENT_STATE_PAID
BUYER_ACTION = PendingReason.PENDING_REASON_BUYER_ACTION
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Vary": "Accept-Language",
    "Server": "tallystick",
}


class Elements(HTMLParser):
    """The elements of a page, with their attributes, in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def statuses() -> BuyerStatuses:
    return BuyerStatuses(
        buyer_status(
            OPEN,
            pending_reason=BUYER_ACTION,
            next_action_url="https://pay.example/page",
            resolve_by_time=RESOLVE_BY_TIME,
        )
    )


@pytest.fixture
def url(statuses: BuyerStatuses) -> Iterator[str]:
    with serve_status_page(statuses) as server_url:
        yield server_url


def get(url: str, path: str = f"/p/{TOKEN}", **headers: str) -> httpx.Response:
    return httpx.get(url + path, headers={"Accept-Language": "en", **headers}, timeout=30)


def test_the_page_is_complete_html(url: str) -> None:
    """One h1, a main landmark, a language, a title, links, a status region, and nothing that loads
    from elsewhere or that the policy forbids.
    """
    response = get(url)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    elements = Elements(response.text)
    assert elements.all("html") == [{"lang": "en"}]
    assert len(elements.all("h1")) == len(elements.all("main")) == len(elements.all("title")) == 1
    assert [link["href"] for link in elements.all("a")] == [
        "https://pay.example/page",
        "https://shop.example/cart",
    ]
    assert {"role": "status", "class": "announcement"} in elements.all("p")
    assert elements.all("main")[0] == {"data-version": "3", "data-refreshes": ""}
    assert elements.all("time")[0] == {"datetime": "2026-11-30T17:00:05Z"}
    loaded = [
        attributes.get("src") or attributes["href"]
        for tag, attributes in elements.found
        if tag in {"script", "link", "img"}
    ]
    assert loaded == ["/p/static/icon.svg", "/p/static/status.css", "/p/static/status.js"]
    names = {name for _, attributes in elements.found for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}
    assert not elements.all("style")


def test_headers_keep_the_page_private(url: str) -> None:
    """Also on the pages of errors; no cookie is set."""
    for path in (f"/p/{TOKEN}", f"/p/{TOKEN}x", "/p/short"):
        response = get(url, path)
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "Set-Cookie" not in response.headers


def test_only_the_return_from_the_provider_looks_up(url: str, statuses: BuyerStatuses) -> None:
    """A field of the query that is `returned`, with whatever fields a provider adds."""
    looks_up = {
        "": False,
        "?": False,
        "?returned": True,
        "?returned=": True,
        "?returned&session_id=cs_1": True,
        "?session_id=cs_1&returned": True,
        "?x=returned": False,
        "?returnedx": False,
        "?a=1": False,
    }
    for query in looks_up:
        assert get(url, f"/p/{TOKEN}{query}").status_code == 200
    assert [request.look_up for request in statuses.requests] == list(looks_up.values())
    assert {request.status_token for request in statuses.requests} == {TOKEN}


def test_head_answers_as_get_and_looks_nothing_up(url: str, statuses: BuyerStatuses) -> None:
    response = httpx.head(f"{url}/p/{TOKEN}?returned", headers={"Accept-Language": "en"})
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Length"] == get(url).headers["Content-Length"]
    assert not statuses.requests[0].look_up
    assert httpx.head(f"{url}/p/{TOKEN}x").status_code == 404
    assert httpx.head(f"{url}/p/static/status.css").status_code == 200


@pytest.mark.parametrize(
    "token",
    ["a" * 20, "a", "a" * 129, "a" * 7_000, "%FF", "a%2Fb", "a:b", f"{TOKEN}%20", "static", "..a"],
)
def test_an_unknown_token_is_a_page(url: str, statuses: BuyerStatuses, token: str) -> None:
    """404 with a page in the buyer's language. A malformed token is not looked for."""
    response = get(url, f"/p/{token}", **{"Accept-Language": "de"})
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Language"] == "de"
    assert "Dieser Link funktioniert nicht" in response.text
    assert "refresh" not in response.text
    assert len(statuses.requests) == (token == "a" * 20)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
def test_a_service_that_cannot_answer_is_a_page(
    url: str, statuses: BuyerStatuses, code: grpc.StatusCode
) -> None:
    """503, with the seconds to wait, and a page that tries again by itself."""
    statuses.answer = code
    response = get(url, **{"Accept-Language": "de"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert response.headers["Cache-Control"] == "no-store"
    assert "Der Status ist gerade nicht verfügbar" in response.text
    assert "data-refreshes" in response.text


@pytest.mark.parametrize("query", ["", "?returned"])
def test_a_service_that_does_not_answer_is_not_waited_for(
    url: str, statuses: BuyerStatuses, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """A lookup has more time than a read; a buyer waits for neither without end."""
    assert (page_module._READ_SECONDS, page_module._LOOK_UP_SECONDS) == (2.0, 5.0)
    limits = {"_READ_SECONDS": 30.0, "_LOOK_UP_SECONDS": 30.0}
    limits["_LOOK_UP_SECONDS" if query else "_READ_SECONDS"] = 0.01
    for name, seconds in limits.items():
        monkeypatch.setattr(page_module, name, seconds)
    statuses.answer = None
    assert get(url, f"/p/{TOKEN}{query}").status_code == 503


def test_readers_are_limited(
    url: str, statuses: BuyerStatuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls in flight have a limit. Those that have ended do not count."""
    monkeypatch.setattr(page_module, "_MAX_CALLS_IN_FLIGHT", 1)
    assert [get(url).status_code for _ in range(3)] == [200, 200, 200]
    monkeypatch.setattr(page_module, "_MAX_CALLS_IN_FLIGHT", 0)
    assert get(url).status_code == 503
    assert len(statuses.requests) == 3


def test_the_language_is_the_buyers_unless_the_caller_has_requested_one(
    url: str, statuses: BuyerStatuses
) -> None:
    for locale, header, expected in [
        ("", "de-AT,en;q=0.5", "de"),
        ("", "fr", "en"),
        ("de-DE", "en", "de"),
        ("pt-BR", "de", "de"),
        ("<script>", "\xff;q=1", "en"),
    ]:
        statuses.answer = buyer_status(PAID, locale=locale)
        response = httpx.get(f"{url}/p/{TOKEN}", headers={b"Accept-Language": header.encode()})
        assert response.headers["Content-Language"] == expected
        assert Elements(response.text).all("html") == [{"lang": expected}]


def test_the_page_refreshes_only_while_the_payment_is_open(
    url: str, statuses: BuyerStatuses
) -> None:
    """Without a script it is loaded again without its query, which would look up each time."""
    head, _, _ = get(url, f"/p/{TOKEN}?returned").text.partition("</head>")
    assert '<noscript><meta http-equiv="refresh" content="10;url=?"></noscript>' in head
    statuses.answer = buyer_status(PAID)
    page = get(url).text
    assert "http-equiv" not in page
    assert "data-refreshes" not in page


def test_values_are_escaped(url: str, statuses: BuyerStatuses) -> None:
    """No text of a caller or a provider becomes HTML."""
    statuses.answer = buyer_status(
        PAID,
        locale='"><script>',
        success_url="https://shop.example/?a=1&b='<c>",
        paid_amounts=[BuyerAmount(amount="1.00", currency="<b>")],
    )
    page = get(url).text
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert [tag for tag, _ in Elements(page).found].count("script") == 1
    assert not Elements(page).all("a")
    statuses.answer = buyer_status(PAID, success_url="https://shop.example/?a=1&b='c'")
    page = get(url).text
    assert Elements(page).all("a")[0]["href"] == "https://shop.example/?a=1&b='c'"
    assert "?a=1&amp;b=" in page


def test_the_page_has_no_token(url: str, statuses: BuyerStatuses) -> None:
    """What a buyer saves or sends on does not open the page again, nor does a link name it."""
    assert TOKEN not in get(url, f"/p/{TOKEN}?returned").text
    statuses.answer = grpc.StatusCode.UNAVAILABLE
    assert TOKEN not in get(url).text


def test_logs_have_no_token(
    url: str,
    statuses: BuyerStatuses,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the level DEBUG of all libraries, for every outcome: a page, no page, a service that is
    unavailable or whose error names the token, a defect, another method, a malformed request.
    """
    for name in ("httpx", "httpcore"):  # those of the test
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    with caplog.at_level(logging.DEBUG):
        for answer, status in [
            (statuses.answer, 200),
            (grpc.StatusCode.NOT_FOUND, 404),
            (grpc.StatusCode.UNAVAILABLE, 503),
            (grpc.StatusCode.INTERNAL, 503),
            (grpc.StatusCode.UNAUTHENTICATED, 503),
            (buyer_status(PAID, paid_amounts=[BuyerAmount(amount="x", currency="EUR")]), 500),
        ]:
            statuses.answer = answer
            for query in ("", "?returned"):
                assert get(url, f"/p/{TOKEN}{query}").status_code == status
        assert httpx.post(f"{url}/p/{TOKEN}").status_code == 405
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as tcp:
            tcp.sendall(f"GET /p/{TOKEN} HTTP/9.9\r\n\r\n".encode())
            assert tcp.recv(4096).startswith(b"HTTP/1.")
    assert "PaymentService has no status for a page" in caplog.text
    assert "a GET request to the HTTP server failed" in caplog.text
    assert TOKEN not in caplog.text


def test_static_files_are_served_from_a_path_that_no_token_has(url: str) -> None:
    for name, content_type in [
        ("status.css", "text/css"),
        ("status.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ]:
        response = get(url, f"/p/static/{name}")
        assert response.status_code == 200
        assert response.headers["Content-Type"] == f"{content_type}; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "http:" not in response.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "https:" not in response.text
    assert get(url, "/p/static/page.html").status_code == 404
    assert get(url, "/p/static/..%2Fpage.py").status_code == 404


def test_a_long_query_or_header_is_harmless(url: str) -> None:
    assert get(url, f"/p/{TOKEN}?{'returned&' * 800}").status_code == 200
    assert get(url, f"/p/{TOKEN}?{'a' * 9000}").status_code == 400
    response = get(url, **{"Accept-Language": "de," * 2000})
    assert (response.status_code, response.headers["Content-Language"]) == (200, "de")
