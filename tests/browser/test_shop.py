"""The example shop in a browser: from the basket to the page of the provider, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Display, assert_accessible, assert_keyboard_reaches, open_page
from tests.support.demo import DemoShop, running_demo_shop


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoShop]:
    with running_demo_shop() as demo_shop:
        yield demo_shop


def test_a_buyer_pays(
    chromium: Browser, demo: DemoShop, display: Display, screenshot: Callable[[Page, str], None]
) -> None:
    """A buyer leaves the page of the provider, returns to the basket, and pays: each page links
    to the next one, and axe finds nothing.
    """
    with open_page(chromium, *demo.origins, display=display) as page:

        def check(name: str) -> None:
            screenshot(page, f"shop-{name}-{display}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert_accessible(page)

        page.goto(demo.shop.url)
        check("basket")
        assert_keyboard_reaches(page)
        page.get_by_role("button", name="Pay").click()
        check("provider")
        page.get_by_role("link", name="Leave without paying").click()
        check("open")
        page.get_by_role("link", name="Back to the shop").click()
        page.get_by_role("button", name="Pay").dblclick()
        expect(page.get_by_role("heading", name="Pay 34.40 EUR")).to_be_visible()
        page.get_by_role("button", name="Pay").click()
        expect(page.get_by_role("heading", name="Thank you for your payment")).to_be_visible()
        check("paid")
        page.get_by_role("link", name="Continue").click()
        expect(page.get_by_role("heading", name="Thank you", exact=True)).to_be_visible()
        check("order")
