"""The buyer's status page in a browser: what it shows, and how it refreshes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from playwright.sync_api import Browser, Page, expect

from tallystick.payment.v1.payment_pb2 import (
    BuyerAmount,
    BuyerStatus,
    FailureReason,
    PaymentState,
    PendingReason,
)
from tests.support.browser import Display, assert_accessible, assert_keyboard_reaches, open_page
from tests.support.status_page import (
    RESOLVE_BY_TIME,
    TOKEN,
    BuyerStatuses,
    buyer_status,
    serve_status_page,
)

PAID_AMOUNTS = [BuyerAmount(amount="129.90", currency="EUR")]
BUYER_ACTION = buyer_status(
    PaymentState.PAYMENT_STATE_OPEN,
    pending_reason=PendingReason.PENDING_REASON_BUYER_ACTION,
    next_action_url="https://pay.example/page",
    resolve_by_time=RESOLVE_BY_TIME,
)
PROCESSING = buyer_status(PaymentState.PAYMENT_STATE_OPEN, version=4)
PAID = buyer_status(PaymentState.PAYMENT_STATE_PAID, paid_amounts=PAID_AMOUNTS, version=5)
ANSWERS: dict[str, BuyerStatus | grpc.StatusCode] = {
    "buyer-action": BUYER_ACTION,
    "processing": PROCESSING,
    "provider-review": buyer_status(
        PaymentState.PAYMENT_STATE_OPEN,
        pending_reason=PendingReason.PENDING_REASON_PROVIDER_REVIEW,
    ),
    "paid": PAID,
    "partially-paid": buyer_status(
        PaymentState.PAYMENT_STATE_PARTIALLY_PAID,
        failure_reason=FailureReason.FAILURE_REASON_INSUFFICIENT_FUNDS,
        paid_amounts=[BuyerAmount(amount="29.90", currency="EUR")],
        locale="de",
    ),
    "failed": buyer_status(
        PaymentState.PAYMENT_STATE_FAILED,
        failure_reason=FailureReason.FAILURE_REASON_AUTHENTICATION_FAILED,
    ),
    "not-found": grpc.StatusCode.NOT_FOUND,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}
TITLES = {
    "buyer-action": "Your payment is not finished yet",
    "processing": "Your payment is being processed",
    "provider-review": "Your payment is being reviewed",
    "paid": "Thank you for your payment",
    "partially-paid": "Ein Teil Ihrer Zahlung ist abgeschlossen",
    "failed": "Your payment was not confirmed",
    "not-found": "This link does not work",
    "unavailable": "The status is not available right now",
}
RESPONSE_ERRORS = ("404 (Not Found)", "503 (Service Unavailable)")
FIRST_WAITS = [2_000, 3_000, 4_500, 6_750, 10_125, 15_187, 22_781, 30_000, 30_000]
"""Between a response and the next request, in milliseconds."""
HIDE, SHOW = (
    f"""() => {{
        Object.defineProperty(document, "hidden", {{ value: {hidden}, configurable: true }});
        document.dispatchEvent(new Event("visibilitychange"));
    }}"""
    for hidden in ("true", "false")
)


@pytest.fixture
def statuses() -> BuyerStatuses:
    return BuyerStatuses(BUYER_ACTION)


@pytest.fixture
def url(statuses: BuyerStatuses) -> Iterator[str]:
    with serve_status_page(statuses) as server_url:
        yield server_url


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """The open page. Its clock is moved by the test."""
    with open_page(chromium, url, expected_problems=RESPONSE_ERRORS) as browser_page:
        stop_clock(browser_page)
        browser_page.goto(f"{url}/p/{TOKEN}")
        yield browser_page


def stop_clock(page: Page) -> None:
    page.clock.install(time=0)
    page.clock.pause_at(1_000)


def refresh(page: Page, milliseconds: int = FIRST_WAITS[0]) -> None:
    """Has the page ask again, and waits until it has read the answer."""
    with page.expect_response("**/p/*"):
        page.clock.run_for(milliseconds)
    await_answers(page)


def await_answers(page: Page) -> None:
    """Waits until the page has read every answer before this one."""
    page.evaluate(
        "() => fetch('/p/static/icon.svg', {cache: 'no-store'}).then(response => response.text())"
    )


def assert_quiet(page: Page, statuses: BuyerStatuses, milliseconds: int) -> None:
    """The page asks nothing within this time of its clock."""
    count = len(statuses.requests)
    page.clock.run_for(milliseconds)
    await_answers(page)
    assert len(statuses.requests) == count


@pytest.mark.parametrize("javascript", [True, False], ids=["script", "no-script"])
def test_every_state_is_shown(
    chromium: Browser,
    url: str,
    statuses: BuyerStatuses,
    display: Display,
    screenshot: Callable[[Page, str], None],
    javascript: bool,
) -> None:
    """With its title, no wider than the screen, and without faults that axe finds."""
    with open_page(
        chromium,
        url,
        display=display,
        javascript=javascript,
        expected_problems=RESPONSE_ERRORS,
    ) as page:
        for name, answer in ANSWERS.items():
            statuses.answer = answer
            page.goto(f"{url}/p/{TOKEN}")
            expect(page.get_by_role("heading", level=1)).to_have_text(TITLES[name])
            expect(page).to_have_title(TITLES[name])
            if javascript:
                screenshot(page, f"status-{name}-{display}")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                assert_accessible(page)


def test_the_keyboard_reaches_the_links_in_their_order(page: Page) -> None:
    names = []
    for _ in range(2):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names == ["Continue to payment", "Back to the shop"]
    page.reload()
    assert_keyboard_reaches(page)
    for link in page.get_by_role("link").all():
        box = link.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 24


def test_a_change_is_shown_and_announced(page: Page, statuses: BuyerStatuses) -> None:
    """The page refreshes itself until the payment has ended, and never reads with a lookup."""
    status = page.get_by_role("status")
    expect(status).to_have_text("")
    statuses.answer = PROCESSING
    refresh(page)
    expect(status).to_contain_text("Your payment is being processed. This usually takes")
    expect(page.get_by_role("link")).to_have_count(0)
    statuses.answer = PAID
    refresh(page, FIRST_WAITS[1])
    expect(status).to_have_text("Thank you for your payment. Your payment is complete.")
    expect(page).to_have_title("Thank you for your payment")
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you for your payment")
    assert_quiet(page, statuses, 120_000)
    page.clock.resume()  # axe waits
    assert_accessible(page)
    assert not any(request.look_up for request in statuses.requests)


def test_the_return_from_the_provider_is_looked_up_once(
    chromium: Browser, url: str, statuses: BuyerStatuses
) -> None:
    with open_page(chromium, url) as page:
        stop_clock(page)
        page.goto(f"{url}/p/{TOKEN}?returned")
        refresh(page)
        refresh(page, FIRST_WAITS[1])
    assert [request.look_up for request in statuses.requests] == [True, False, False]


def test_the_page_waits_longer_each_time(page: Page, statuses: BuyerStatuses) -> None:
    """Up to 30 s, and ends after six hours that the page was visible."""
    for wait in FIRST_WAITS:
        assert_quiet(page, statuses, wait - 1)
        refresh(page, 2)
    with page.expect_response("**/p/*"):  # the request that was due is sent at once
        page.clock.fast_forward(6 * 3_600_000)
    await_answers(page)
    assert_quiet(page, statuses, 120_000)


def test_nothing_is_replaced_while_nothing_changes(page: Page, statuses: BuyerStatuses) -> None:
    page.evaluate("document.querySelector('main').dataset.marked = 'yes'")
    refresh(page)
    refresh(page, FIRST_WAITS[1])
    expect(page.locator("main")).to_have_attribute("data-marked", "yes")
    expect(page.get_by_role("status")).to_have_text("")
    assert len(statuses.requests) == 3


def test_the_focus_is_kept(page: Page, statuses: BuyerStatuses) -> None:
    """On the same link if there is one, otherwise on the heading."""
    page.get_by_role("link", name="Back to the shop").focus()
    changed = BuyerStatus()
    changed.CopyFrom(BUYER_ACTION)
    changed.version += 1
    statuses.answer = changed
    refresh(page)
    expect(page.locator("main")).to_have_attribute("data-version", str(changed.version))
    expect(page.get_by_role("link", name="Back to the shop")).to_be_focused()
    statuses.answer = PAID
    refresh(page, FIRST_WAITS[1])
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Continue")).to_be_focused()


def test_a_hidden_page_asks_nothing(page: Page, statuses: BuyerStatuses) -> None:
    """Also one that was opened in the background. It asks at once when it is visible."""
    page.evaluate(HIDE)
    assert_quiet(page, statuses, 120_000)
    page.add_init_script(f"({HIDE})()")
    page.reload()
    assert_quiet(page, statuses, 120_000)
    statuses.answer = PAID
    page.evaluate(SHOW)
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you for your payment")
    page.evaluate(HIDE)
    page.evaluate(SHOW)
    assert_quiet(page, statuses, 120_000)


def test_an_outage_keeps_what_is_shown(page: Page, statuses: BuyerStatuses) -> None:
    statuses.answer = grpc.StatusCode.UNAVAILABLE
    refresh(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(TITLES["buyer-action"])
    statuses.answer = PAID
    refresh(page, FIRST_WAITS[1])
    expect(page.get_by_role("heading", level=1)).to_have_text(TITLES["paid"])


def test_a_link_that_is_revoked_ends_the_page(page: Page, statuses: BuyerStatuses) -> None:
    statuses.answer = grpc.StatusCode.NOT_FOUND
    refresh(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(TITLES["not-found"])
    assert_quiet(page, statuses, 120_000)


def test_a_page_without_a_script_refreshes_without_a_lookup(
    chromium: Browser, url: str, statuses: BuyerStatuses
) -> None:
    """After 10 s, and no more once the payment has ended."""
    with open_page(chromium, url, javascript=False) as page:
        page.goto(f"{url}/p/{TOKEN}?returned")
        statuses.answer = PAID
        expect(page.get_by_role("heading", level=1)).to_have_text(TITLES["paid"])
        assert "returned" not in page.url
        expect(page.locator("noscript")).to_have_count(0)
    assert [request.look_up for request in statuses.requests] == [True, False]
