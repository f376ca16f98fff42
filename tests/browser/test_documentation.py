"""The page of the OpenAPI document in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.support.browser import Display, assert_accessible, assert_keyboard_reaches, open_page
from tests.support.platform import serve_platform


@pytest.fixture(scope="module")
def url(database: DatabaseUrls) -> Iterator[str]:
    with serve_platform(database, names=(*service_names(), HTTP_SERVER)) as platform:
        yield platform.url


def test_the_page_is_accessible(
    chromium: Browser, url: str, display: Display, screenshot: Callable[[Page, str], None]
) -> None:
    """On each display axe finds nothing, and no part is wider than the screen."""
    with open_page(chromium, url, display=display) as page:
        page.goto(f"{url}/docs")
        screenshot(page, f"docs-{display}")
        page.goto(f"{url}/docs#PaymentService.ListPayments")
        screenshot(page, f"docs-operation-{display}")
        page.goto(f"{url}/docs#types")
        screenshot(page, f"docs-types-{display}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert_accessible(page)


def test_the_keyboard_reaches_every_link(chromium: Browser, url: str) -> None:
    """Tab reaches the links, and Enter follows one to its part of the page."""
    with open_page(chromium, url) as page:
        page.goto(f"{url}/docs")
        assert_keyboard_reaches(page)
        page.get_by_role("link", name="PayoutService", exact=True).press("Enter")
        page.wait_for_url("**/docs#PayoutService")
        heading = page.get_by_role("heading", name="PayoutService", exact=True)
        expect(heading).to_be_in_viewport()


def test_the_page_needs_no_javascript(chromium: Browser, url: str) -> None:
    """Without JavaScript the page has its style and its links."""
    with open_page(chromium, url, javascript=False) as page:
        page.goto(f"{url}/docs")
        page.get_by_role("link", name="Errors", exact=True).click()
        expect(page.get_by_role("heading", name="Errors", exact=True)).to_be_in_viewport()
