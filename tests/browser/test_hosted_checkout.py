"""Buyers pay on the provider's page, in a browser. However they get there and back, the status page
and GetPayment say the same, and each payment is charged at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tallystick.payment.v1 import payment_pb2
from tests.support.browser import (
    DESKTOP,
    Display,
    assert_accessible,
    assert_keyboard_reaches,
    open_page,
)
from tests.support.checkout_pages import API_KEY, CheckoutPlatform, checkout_platform
from tests.support.platform import eventually, fresh_database

OPEN, PAID, FAILED = (
    payment_pb2.PAYMENT_STATE_OPEN,
    payment_pb2.PAYMENT_STATE_PAID,
    payment_pb2.PAYMENT_STATE_FAILED,
)
NOT_FINISHED, THANKS = "Your payment is not finished yet", "Thank you for your payment"
IN_REVIEW, EXPIRED = "Your payment is being reviewed", "Your payment has expired"
PAYS, IS_DECLINED, AUTHENTICATES, DEBIT = (
    "Card that is charged",
    "Card that is declined",
    "Card with 3-D Secure",
    "Bank debit that succeeds",
)
GONE = "410 (Gone)"


@pytest.fixture(scope="module")
def platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CheckoutPlatform]:
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("checkout")) as databases,
        checkout_platform(databases) as served,
    ):
        yield served


@pytest.fixture
def page(chromium: Browser, platform: CheckoutPlatform) -> Iterator[Page]:
    with open_buyer(chromium, platform) as buyer_page:
        yield buyer_page


def open_buyer(
    chromium: Browser, platform: CheckoutPlatform, display: Display = DESKTOP
) -> AbstractContextManager[Page]:
    """The browser of a buyer: it may open the shop, the provider's pages and the platform's."""
    origins = (platform.served.url, platform.stripe_url, platform.shop_url)
    return open_page(chromium, *origins, display=display, expected_problems=(GONE,))


def pay(page: Page, card: str = PAYS) -> None:
    """Chooses a card on the provider's page, and pays."""
    page.get_by_label(card).check()
    page.get_by_role("button", name="Pay").click()


def expect_status(
    page: Page, platform: CheckoutPlatform, payment: payment_pb2.Payment, title: str
) -> None:
    """The buyer is on the status page, which says this, as GetPayment does; the buyer was charged
    once if it is paid, and never otherwise.
    """
    expect(page.get_by_role("heading", level=1)).to_have_text(title)
    assert page.url.split("?")[0] == payment.status_url
    states = {THANKS: PAID, EXPIRED: FAILED}
    current = platform.client.get_payment(payment.checkout_id)
    assert current.payment_state == states.get(title, OPEN)
    assert platform.count_charges(payment) == (1 if title == THANKS else 0)


def test_a_buyer_pays_and_continues_to_the_shop(page: Page, platform: CheckoutPlatform) -> None:
    """No webhook comes: the redirect makes the platform ask the provider."""
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page)
    expect_status(page, platform, payment, THANKS)
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("thanks")
    platform.deliver()
    page.go_back()
    expect_status(page, platform, payment, THANKS)


def test_the_webhook_comes_before_the_redirect(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)

    def deliver_first(route: Route) -> None:
        platform.deliver()
        assert platform.client.wait_for_payment(payment.checkout_id).payment_state == PAID
        route.continue_()

    page.route("**/p/*?returned", deliver_first)
    pay(page)
    expect_status(page, platform, payment, THANKS)


def test_the_redirect_comes_before_the_webhook(page: Page, platform: CheckoutPlatform) -> None:
    """The webhook that follows changes nothing."""
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page)
    expect_status(page, platform, payment, THANKS)
    platform.deliver()
    page.reload()
    expect_status(page, platform, payment, THANKS)


def test_a_declined_buyer_pays_with_another_card(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page, IS_DECLINED)
    expect(page.get_by_role("alert")).to_be_visible()
    platform.deliver()
    assert platform.client.get_payment(payment.checkout_id).payment_state == OPEN
    pay(page)
    expect_status(page, platform, payment, THANKS)


def test_a_buyer_fails_3_d_secure_and_then_passes_it(
    page: Page, platform: CheckoutPlatform
) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page, AUTHENTICATES)
    page.get_by_role("button", name="Fail authentication").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert platform.client.get_payment(payment.checkout_id).payment_state == OPEN
    pay(page, AUTHENTICATES)
    page.get_by_role("button", name="Complete authentication").click()
    expect_status(page, platform, payment, THANKS)


def test_a_buyer_leaves_and_returns(page: Page, platform: CheckoutPlatform) -> None:
    """The status page leads to the shop and back to the payment."""
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    page.get_by_role("link", name="Leave without paying").click()
    expect_status(page, platform, payment, NOT_FINISHED)
    page.get_by_role("link", name="Back to the shop").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("basket")
    page.goto(payment.status_url)
    expect_status(page, platform, payment, NOT_FINISHED)
    page.get_by_role("link", name="Continue to payment").click()
    pay(page)
    expect_status(page, platform, payment, THANKS)


def test_a_page_expires_while_the_buyer_looks_at_it(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    session_id = payment.hosted_page.url.rpartition("/")[2]
    answer = platform.served.run_in_loop(
        platform.stripe.handle,
        "POST",
        "/sandbox/advance",
        {"Authorization": f"Bearer {API_KEY}"},
        f"id={session_id}&status=expired".encode(),
    )
    assert answer.status == 200
    pay(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("This payment page has expired")
    page.goto(f"{payment.status_url}?returned")
    expect_status(page, platform, payment, EXPIRED)
    platform.deliver()
    page.reload()
    expect_status(page, platform, payment, EXPIRED)


def test_a_buyer_pays_in_one_of_two_tabs(page: Page, platform: CheckoutPlatform) -> None:
    """The other tab leads to the same status page, without a second charge."""
    payment = platform.create()
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(payment.hosted_page.url)
    pay(page)
    expect_status(page, platform, payment, THANKS)
    pay(other)
    expect_status(other, platform, payment, THANKS)


def test_the_back_button_leads_to_no_second_charge(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page)
    expect_status(page, platform, payment, THANKS)
    page.go_back()
    expect_status(page, platform, payment, THANKS)


def test_a_double_click_pays_once(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    page.get_by_label(PAYS).check()
    page.get_by_role("button", name="Pay").dblclick()
    expect_status(page, platform, payment, THANKS)
    platform.deliver()
    assert platform.count_charges(payment) == 1


def test_a_delayed_method_is_in_review_until_its_result(
    page: Page, platform: CheckoutPlatform
) -> None:
    """The status page refreshes itself when the result comes by webhook."""
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    pay(page, DEBIT)
    expect_status(page, platform, payment, IN_REVIEW)
    session_id = payment.hosted_page.url.rpartition("/")[2]
    platform.served.run_in_loop(
        platform.stripe.handle,
        "POST",
        "/sandbox/advance",
        {"Authorization": f"Bearer {API_KEY}"},
        f"id={session_id}&status=paid".encode(),
    )
    platform.deliver()
    assert eventually(
        lambda: platform.client.get_payment(payment.checkout_id).payment_state == PAID
    )
    expect_status(page, platform, payment, THANKS)


def test_without_a_webhook_or_a_return_the_buyer_finds_out_later(
    page: Page, platform: CheckoutPlatform
) -> None:
    """The buyer's browser dies after the payment. The link shows what is stored; a return shows
    the truth.
    """
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    page.route("**/p/*", lambda route: route.abort())
    page.get_by_label(PAYS).check()
    page.get_by_role("button", name="Pay").click(no_wait_after=True)
    assert eventually(lambda: platform.count_charges(payment) == 1)
    page.unroute("**/p/*")
    page.goto(f"{payment.status_url}?returned")
    expect_status(page, platform, payment, THANKS)


def test_every_page_of_a_payment_is_accessible(
    chromium: Browser,
    platform: CheckoutPlatform,
    display: Display,
    screenshot: Callable[[Page, str], None],
) -> None:
    """axe finds nothing on any page of a payment, and each fits on its screen."""
    with open_buyer(chromium, platform, display) as page:

        def look(name: str) -> None:
            screenshot(page, f"checkout-{name}-{display}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert_accessible(page)

        payment = platform.create()
        page.goto(payment.hosted_page.url)
        look("1-pay")
        pay(page, IS_DECLINED)
        expect(page.get_by_role("alert")).to_be_visible()
        look("2-declined")
        pay(page, AUTHENTICATES)
        expect(page.get_by_role("button", name="Complete authentication")).to_be_visible()
        look("3-authenticate")
        page.goto(f"{payment.status_url}?returned")
        expect_status(page, platform, payment, NOT_FINISHED)
        look("4-not-finished")
        page.goto(payment.hosted_page.url)
        pay(page)
        expect_status(page, platform, payment, THANKS)
        look("5-paid")


def test_a_buyer_pays_by_keyboard_alone(page: Page, platform: CheckoutPlatform) -> None:
    payment = platform.create()
    page.goto(payment.hosted_page.url)
    assert_keyboard_reaches(page, "a[href], button")
    page.get_by_label(PAYS).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect_status(page, platform, payment, THANKS)


def test_no_page_names_the_buyer_or_leaks_the_link(page: Page, platform: CheckoutPlatform) -> None:
    """No URL and no referrer has an account or the link, but the status page's own URL."""
    payment = platform.create()
    requests: list[tuple[str, str]] = []
    page.context.on(
        "request",
        lambda request: requests.append((request.url, request.headers.get("referer", ""))),
    )
    page.goto(payment.hosted_page.url)
    pay(page)
    expect_status(page, platform, payment, THANKS)
    page.get_by_role("link", name="Continue").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("thanks")
    assert len(requests) > 5
    assert not [referrer for _, referrer in requests if referrer]
    assert not [url for url, _ in requests if "buyer-1" in url or "seller-" in url]
    token = payment.status_url.rpartition("/")[2]
    with_token = {url.split("?")[0] for url, _ in requests if token in url}
    assert with_token == {payment.status_url}
