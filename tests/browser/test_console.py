"""The console in a browser: every page on every display, and a day's work by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Display, assert_accessible, assert_keyboard_reaches, open_page
from tests.support.callers import token_of
from tests.support.console import Work, create_work, serve_console
from tests.support.platform import ServedPlatform, fresh_database
from tests.support.reconcile_commands import file_line, write_statement

PAGES = {
    "overview": "",
    "payments": "payments",
    "payment": "payments/{paid}",
    "declined-payment": "payments/{declined}",
    "order": "orders/{declined}-0",
    "payouts": "payouts",
    "payout": "payouts/{payout}",
    "approvals": "approvals",
    "wallets": "sellers",
    "seller": "sellers/{seller}",
    "accounts": "accounts",
    "account": "accounts?account={account}",
    "transaction": "transactions/main-1",
    "trial-balance": "trial-balance",
    "search": "search?q=buyer-1",
    "search-empty": "search",
    "dead-letters": "dead-letters",
    "dead-letter": "dead-letters/payment/{dead_letter}",
    "unapplied-charges": "unapplied-charges",
    "breaks": "breaks",
    "break": "breaks/{break_id}",
    "alerts": "alerts",
    "statement-files": "statement-files",
    "statement-file": "statement-files/{file}",
    "clearing": "clearing",
    "metrics": "metrics?period=hour",
    "traces": "traces",
    "trace": "traces/{trace}",
    "trace-missing": "traces/00000000000000000000000000000000",
    "expected-entries": "expected-entries?account={account}&currency=EUR",
    "destination": "destinations/{destination}",
    "matching-dead-letters": "matching-dead-letters/payment?cause=REJECTED",
    "settings": "settings",
    "not-found": "payments/none",
}
ERROR_RESPONSES = (
    "400 (Bad Request)",
    "404 (Not Found)",
    "403 (Forbidden)",
    "401 (Unauthorized)",
)


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("console")) as databases,
        serve_console(databases) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def work(platform: ServedPlatform) -> Work:
    return create_work(platform)


def names_of(work: Work) -> dict[str, str]:
    """What the paths of PAGES name."""
    return {
        "paid": work.paid,
        "declined": work.declined,
        "payout": work.awaiting_payouts[0],
        "seller": work.seller,
        "destination": work.destination,
        "account": work.account,
        "dead_letter": work.dead_letters[0],
        "break_id": work.breaks[0],
        "file": work.statement_file,
        "trace": work.trace_id,
    }


def sign_in(page: Page, url: str, name: str, next_path: str = "/console") -> None:
    """Signs in by keyboard; the browser is then at `next_path`."""
    page.goto(f"{url}{next_path}")
    page.get_by_label("Your token").fill(token_of(name))
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}{next_path}")


def preview(page: Page, work: Work, path: str) -> None:
    """Uploads a file on the page of statement files, and shows its preview."""
    page.get_by_text("Reconcile another file").click()
    page.get_by_label("File", exact=True).set_input_files(path)
    page.locator("#account").fill(work.account)
    page.get_by_role("button", name="Show what would be done").click()
    expect(page.get_by_role("heading", name="Preview of uploaded.csv")).to_be_visible()


def test_every_page_is_accessible_on_every_display(
    chromium: Browser,
    platform: ServedPlatform,
    work: Work,
    display: Display,
    screenshot: Callable[[Page, str], None],
    tmp_path: Path,
) -> None:
    """axe finds nothing, and no page is wider than the screen."""
    url = platform.url
    with open_page(chromium, url, display=display, expected_problems=ERROR_RESPONSES) as page:
        page.goto(f"{url}/console/sign-in")
        screenshot(page, f"console-sign-in-{display}")
        assert_accessible(page)
        sign_in(page, url, "alice")
        for name, path in PAGES.items():
            page.goto(f"{url}/console/{path.format(**names_of(work))}".rstrip("/"))
            screenshot(page, f"console-{name}-{display}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert_accessible(page)
        page.goto(f"{url}/console/statement-files")
        preview(page, work, write_statement(tmp_path, [file_line(7_00, "ch-0")], "uploaded.csv"))
        screenshot(page, f"console-preview-{display}")
        assert_accessible(page)


@pytest.mark.parametrize(
    "name",
    ["overview", "payout", "break", "unapplied-charges", "trace", "breaks", "settings"],
)
def test_the_keyboard_reaches_every_control(
    chromium: Browser, platform: ServedPlatform, work: Work, name: str
) -> None:
    """Tab reaches each link, field and button, and shows where it is."""
    with open_page(chromium, platform.url) as page:
        sign_in(page, platform.url, "alice")
        page.goto(f"{platform.url}/console/{PAGES[name].format(**names_of(work))}".rstrip("/"))
        assert_keyboard_reaches(page)


def test_the_first_tab_skips_to_the_content(chromium: Browser, platform: ServedPlatform) -> None:
    """The link is visible once it has the focus, and leads past the navigation."""
    with open_page(chromium, platform.url) as page:
        sign_in(page, platform.url, "bob")
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to the content")
        expect(skip).to_be_focused()
        expect(skip).to_be_in_viewport()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("main").get_by_role("link").first).to_be_focused()


def test_a_person_works_without_scripts(
    chromium: Browser, platform: ServedPlatform, work: Work, tmp_path: Path
) -> None:
    """Finds a payout by its id, rejects it with a reason, uploads a file, and signs out."""
    url, payout_id = platform.url, work.awaiting_payouts[1]
    with open_page(chromium, url, javascript=False, expected_problems=ERROR_RESPONSES) as page:
        sign_in(page, url, "bob", "/console/payouts")
        page.get_by_role("searchbox").fill(payout_id)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/console/payouts/{payout_id}")
        form = page.locator("form", has_text="Reject the payout")
        form.get_by_label("Reason").fill("<b>not</b> this one")
        form.get_by_role("button").click()
        expect(page.get_by_role("status")).to_contain_text("The payout is rejected")
        expect(page.get_by_text("<b>not</b> this one", exact=True)).to_be_visible()
        page.get_by_role("link", name="Statement files").click()
        preview(page, work, write_statement(tmp_path, [file_line(8_00, "ch-0")], "uploaded.csv"))
        page.get_by_role("button", name="Reconcile").click()
        expect(page.get_by_role("status")).to_contain_text("The file is reconciled.")
        page.get_by_role("button", name="Sign out").click()
        page.goto(f"{url}/console/payouts/{payout_id}")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_charts_and_traces_are_read_without_scripts(
    chromium: Browser, platform: ServedPlatform, work: Work
) -> None:
    """Chooses a period and a method, opens the numbers of a chart, filters traces, and opens a
    failed span of one.
    """
    url = platform.url
    with open_page(chromium, url, javascript=False) as page:
        sign_in(page, url, "bob")
        page.get_by_label("Period").select_option("the last 30 days")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("heading", name="Payments of the last 30 days")).to_be_visible()
        charges = page.get_by_role("img", name="Charges", exact=True)
        expect(charges).to_be_visible()
        page.locator("figure", has=charges).get_by_text("Numbers").click()
        numbers = page.get_by_role("region", name="Numbers of Charges")
        expect(numbers.get_by_role("row")).to_have_count(61)
        page.get_by_role("link", name="Metrics").click()
        page.get_by_label("Method", exact=True).select_option("payout.CreatePayout")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("img", name="Latency of payout.CreatePayout")).to_be_visible()
        page.get_by_role("link", name="Traces").click()
        page.get_by_label("Show", exact=True).select_option("failed")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("link", name="payment.CreatePayment").first.click()
        expect(page.get_by_role("heading", name="Trace of payment.CreatePayment")).to_be_visible()
        span = page.get_by_role("listitem").filter(has_text="Level 3").first
        span.get_by_text("failed").click()
        expect(span.get_by_text("Own time")).to_be_visible()


def test_dead_letters_are_selected_by_keyboard(
    chromium: Browser,
    platform: ServedPlatform,
    work: Work,
    display: Display,
    screenshot: Callable[[Page, str], None],
) -> None:
    """Space checks a box, Enter sends the form, and the page shows what became of each: without
    evidence nothing is closed.
    """
    with open_page(
        chromium, platform.url, display=display, expected_problems=ERROR_RESPONSES
    ) as page:
        sign_in(page, platform.url, "alice", "/console/dead-letters")
        for dead_letter in work.dead_letters:
            box = page.get_by_label(f"Select {dead_letter}")
            box.focus()
            page.keyboard.press("Space")
            expect(box).to_be_checked()
        page.get_by_label("Reason").fill("asked the provider")
        screenshot(page, f"console-selected-{display}")
        page.get_by_label("Evidence").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Close the selected")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("0 of 2 done")
        expect(page.get_by_text("evidence is required").first).to_be_visible()
        screenshot(page, f"console-selection-rejected-{display}")
        assert_accessible(page)


def test_a_lost_entry_becomes_a_break(
    chromium: Browser,
    platform: ServedPlatform,
    work: Work,
    display: Display,
    screenshot: Callable[[Page, str], None],
) -> None:
    """From the clearing report to the entry, and to the form for its break."""
    with open_page(chromium, platform.url, display=display) as page:
        sign_in(page, platform.url, "alice", f"/console/clearing?account={work.account}")
        page.get_by_role("link", name="days or more").first.click()
        page.get_by_role("link", name=", entry ").first.click()
        expect(page.get_by_label("Account of the statements")).to_have_value(work.account)
        screenshot(page, f"console-expected-entry-{display}")
        assert_accessible(page)


def test_a_rejected_act_is_explained_next_to_its_form(
    chromium: Browser,
    platform: ServedPlatform,
    work: Work,
    display: Display,
    screenshot: Callable[[Page, str], None],
) -> None:
    """The error is an alert for screen readers, and the form keeps what was entered."""
    with open_page(
        chromium, platform.url, display=display, expected_problems=ERROR_RESPONSES
    ) as page:
        sign_in(page, platform.url, "payer", f"/console/payouts/{work.awaiting_payouts[0]}")
        form = page.locator("form", has_text="Approve the payout")
        form.get_by_label("Reason").fill("mine")
        form.get_by_role("button").click()
        expect(page.get_by_role("alert")).to_contain_text("SECOND_APPROVER_REQUIRED")
        expect(form.get_by_label("Reason")).to_have_value("mine")
        screenshot(page, f"console-rejected-{display}")
        assert_accessible(page)
