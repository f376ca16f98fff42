"""The pages of a Checkout Session, as a browser without script sees them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import aiohttp
import pytest

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import LookAlike, line_item, look_alike

_CANCEL_URL = "https://shop.example:8443/basket?a=1&b=<2>"


@dataclass
class Page(HTMLParser):
    """An answer, and what is on its page."""

    status: int
    headers: Any
    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    alert: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._is_alert = False
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_alert = ("role", "alert") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_alert:
            self.alert += data
            self._is_alert = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def location(self) -> str:
        assert self.status == 303, self.text
        location: str = self.headers["Location"]
        return location


@dataclass
class Browser:
    """Sends single requests, and follows no redirect by itself."""

    client: aiohttp.ClientSession

    async def get(self, path: str) -> Page:
        return await self._request("GET", path)

    async def post(self, path: str, **fields: str) -> Page:
        return await self._request("POST", path, fields)

    async def _request(self, method: str, path: str, fields: dict[str, str] | None = None) -> Page:
        async with self.client.request(
            method, path, data=fields, allow_redirects=False
        ) as response:
            return Page(response.status, response.headers, await response.text())


@asynccontextmanager
async def _browse(databases: DatabaseUrls) -> AsyncIterator[tuple[LookAlike, Browser]]:
    async with (
        look_alike(databases) as server,
        aiohttp.ClientSession(server.url) as client,
    ):
        yield server, Browser(client)


def _check_page(page: Page, form_action: str) -> None:
    """What every page has: its headers, and nothing that another host serves or that runs."""
    assert page.headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'self'; form-action {form_action}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    _check_headers(page)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert page.all("script") == page.all("style") == page.all("img") == []
    assert [link["href"] for link in page.all("link")] == ["/c/checkout.css"]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def _check_headers(page: Page) -> None:
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_a_buyer_pays_on_the_page(database: DatabaseUrls) -> None:
    """The form has a label for each test card. It is answered by redirects, which end in the shop;
    a reload, a second submission and the way back lead there too.
    """

    async def run() -> None:
        async with _browse(database) as (server, browser):
            items = [line_item("Blue vase", 1200, 2), line_item("Box", 99)]
            session = await server.check_out(line_items=items, cancel_url=_CANCEL_URL)
            path = f"/c/pay/{session.id}"
            assert session.url.endswith(path)
            page = await browser.get(path)
            assert page.status == 200
            _check_page(page, "'self' https://shop.example https://shop.example:8443")
            for text in ("24.99 EUR", "Blue vase", "× 2", "24.00 EUR", "Box", "0.99 EUR"):
                assert text in page.text
            assert page.all("form") == [{"method": "post", "action": path}]
            inputs = page.all("input")
            assert [item["value"] for item in inputs] == [str(card) for card in BuyerCard]
            assert all((item["type"], item["name"]) == ("radio", "card") for item in inputs)
            assert len(page.all("label")) == len(inputs)
            assert len(page.all("fieldset")) == len(page.all("legend")) == 1
            assert [link["href"] for link in page.all("a")] == [_CANCEL_URL]
            assert "Leave without paying" in page.text
            assert page.alert == ""

            for _ in range(2):
                answer = await browser.post(path, card="success")
                _check_headers(answer)
                assert answer.location == path
                paid = await browser.get(path)
                _check_headers(paid)
                assert paid.location == f"https://shop.example/paid?session={session.id}"
            assert (await browser.get(f"{path}/authenticate")).location == path
            assert (await browser.post(f"{path}/authenticate", result="fail")).location == path
            assert (await server.session(session.id)).payment_status == "paid"

    asyncio.run(run())


def test_a_decline_is_shown(database: DatabaseUrls) -> None:
    """The page says that nothing was paid, and can be submitted again."""

    async def run() -> None:
        async with _browse(database) as (server, browser):
            path = f"/c/pay/{(await server.check_out()).id}"
            for card, message in (
                ("declined", "Your card was declined."),
                ("insufficient_funds", "Your card has insufficient funds."),
            ):
                assert (await browser.post(path, card=card)).location == path
                page = await browser.get(path)
                _check_page(page, "'self' https://shop.example")
                assert page.status == 200
                assert page.alert.startswith(message)
                assert "Nothing was paid" in page.alert
                assert page.all("a") == []  # there is no cancel_url
            await browser.post(path, card="success")
            assert (await browser.get(path)).location.startswith("https://shop.example/paid")

    asyncio.run(run())


def test_a_challenge_is_answered(database: DatabaseUrls) -> None:
    """A card with 3-D Secure leads to a page of its own. It can be left for another card."""

    async def run() -> None:
        async with _browse(database) as (server, browser):
            session = await server.check_out()
            path = f"/c/pay/{session.id}"
            challenge = f"{path}/authenticate"
            assert (await browser.get(challenge)).location == path
            assert (await browser.post(path, card="3d_secure")).location == challenge
            page = await browser.get(challenge)
            assert page.status == 200
            _check_page(page, "'self' https://shop.example")
            assert page.all("form") == [{"method": "post", "action": challenge}]
            buttons = [(item["name"], item["value"]) for item in page.all("button")]
            assert buttons == [("result", "pass"), ("result", "fail")]
            assert "Complete authentication" in page.text
            assert "Fail authentication" in page.text
            waiting = await browser.get(path)
            assert [link["href"] for link in waiting.all("a")] == [challenge]
            assert (await browser.post(challenge, result="x")).location == challenge
            assert (await browser.post(challenge, result="fail")).location == path
            assert "authentication failed" in (await browser.get(path)).alert
            assert (await browser.post(path, card="3d_secure")).location == challenge
            assert (await browser.get(path)).alert == ""
            assert (await browser.post(challenge, result="pass")).location == path
            assert (await browser.get(path)).location.startswith("https://shop.example/paid")
            assert (await server.session(session.id)).payment_status == "paid"

    asyncio.run(run())


def test_a_bank_debit_leads_to_the_shop(database: DatabaseUrls) -> None:
    """The buyer has done everything, although the money arrives later."""

    async def run() -> None:
        async with _browse(database) as (server, browser):
            session = await server.check_out()
            path = f"/c/pay/{session.id}"
            assert (await browser.post(path, card="delayed_failure")).location == path
            assert (await browser.get(path)).location.startswith("https://shop.example/paid")
            assert (await server.session(session.id)).payment_status == "unpaid"

    asyncio.run(run())


def test_an_expired_page_offers_no_payment(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with _browse(database) as (server, browser):
            session = await server.check_out(cancel_url=_CANCEL_URL)
            path = f"/c/pay/{session.id}"
            await browser.post(path, card="3d_secure")
            await server.client.v1.checkout.sessions.expire_async(session.id)
            page = await browser.get(path)
            assert page.status == 410
            _check_page(page, "'none'")
            assert page.all("form") == []
            assert [link["href"] for link in page.all("a")] == [_CANCEL_URL]
            assert (await browser.post(path, card="success")).location == path
            challenge = f"{path}/authenticate"
            assert (await browser.get(challenge)).location == path
            assert (await browser.post(challenge, result="pass")).location == path

    asyncio.run(run())


@pytest.mark.parametrize("id_", ["cs_test_x", "pi_1", "%00", "%2e%2e%2f", "a" * 300, "<b>"])
def test_an_unknown_session_has_a_page(database: DatabaseUrls, id_: str) -> None:
    async def run() -> None:
        async with _browse(database) as (_server, browser):
            for path in (f"/c/pay/{id_}", f"/c/pay/{id_}/authenticate"):
                for page in (await browser.get(path), await browser.post(path, card="success")):
                    assert page.status == 404
                    _check_page(page, "'none'")
                    assert "no such payment page" in page.text

    asyncio.run(run())


@pytest.mark.parametrize("body", [b"", b"card=gold", b"card[]=success", b"\xff", b"card=a&card=b"])
def test_a_form_without_a_card_is_shown_again(database: DatabaseUrls, body: bytes) -> None:
    async def run() -> None:
        async with _browse(database) as (server, browser):
            session = await server.check_out()
            async with browser.client.post(f"/c/pay/{session.id}", data=body) as response:
                page = Page(response.status, response.headers, await response.text())
            assert page.status == 400
            assert page.alert == "Choose one of the test cards."
            assert (await server.session(session.id)).payment_intent is None

    asyncio.run(run())


def test_texts_of_a_session_are_no_html(database: DatabaseUrls) -> None:
    """Names and URLs with markup appear as text."""

    async def run() -> None:
        async with _browse(database) as (server, browser):
            names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"]
            session = await server.check_out(
                line_items=[line_item(name, 1000) for name in names],
                cancel_url="https://shop.example/'\"><script>alert(1)</script>",
            )
            page = await browser.get(f"/c/pay/{session.id}")
            _check_page(page, "'self' https://shop.example")
            for name in names:
                assert name in page.text
            (link,) = page.all("a")
            assert link["href"] == "https://shop.example/'\"><script>alert(1)</script>"

    asyncio.run(run())


def test_the_style_is_readable(database: DatabaseUrls) -> None:
    """It is served with its type. In light and dark, each text has a contrast of 4.5 or more."""

    async def run() -> str:
        async with _browse(database) as (_server, browser):
            style = await browser.get("/c/checkout.css")
            assert style.status == 200
            assert style.headers["Content-Type"] == "text/css; charset=utf-8"
            _check_headers(style)
            return style.html

    css = asyncio.run(run())
    pairs = re.findall(r"--([\w-]+): (?:light-dark\((#\w+), (#\w+)\)|(#\w+));", css)
    colors = {name: (light or both, dark or both) for name, light, dark, both in pairs}
    for text, background in (
        ("text", "sheet"),
        ("muted", "sheet"),
        ("link", "sheet"),
        ("alert-text", "alert"),
        ("button-text", "button"),
    ):
        for scheme in (0, 1):
            assert _contrast(colors[text][scheme], colors[background][scheme]) >= 4.5
    assert "http" not in css
    assert "url(" not in css


def _contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2 of two colors such as "#1a2b3c"."""
    bright, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
