"""The checks of pages find what they are there for."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import Browser

from tests.support.browser import assert_accessible, assert_keyboard_reaches, open_page

_PAGE = """<!doctype html><html lang="en"><head><title>A page</title>{head}</head>
<body><main><h1>A page</h1>{body}</main></body></html>"""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<img src='http://images.example/x.png' alt=''>", "to another origin: http://images."),
        ("<img src='http://192.0.2.1/x.png' alt=''>", "to another origin: http://192.0.2.1"),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>throw new Error('broken')</script>", "uncaught error: broken"),
        ("<p style='color: red'>x</p>", "console: Applying inline style violates"),
    ],
    ids=["name", "address", "console", "exception", "policy"],
)
def test_a_problem_of_a_page_fails_its_test(chromium: Browser, body: str, problem: str) -> None:
    """Requests to other origins, errors and violations of the policy fail a test that passes."""
    policy = "<meta http-equiv='Content-Security-Policy' content=\"style-src 'none'\">"
    with pytest.raises(AssertionError, match=problem), open_page(chromium) as page:
        page.set_content(_PAGE.format(head=policy, body=body))
    with open_page(chromium, expected_problems=(problem, "ERR_")) as page:
        page.set_content(_PAGE.format(head=policy, body=body))


@pytest.mark.parametrize("address", ["images.example", "192.0.2.1"])
def test_other_hosts_are_out_of_reach(chromium: Browser, address: str) -> None:
    """Chromium resolves no name and connects to no address but 127.0.0.1."""
    with open_page(chromium, f"http://{address}", expected_problems=("ERR_",)) as page:
        with page.expect_event("requestfailed") as failed:
            page.set_content(_PAGE.format(head="", body=f"<img src='http://{address}/x' alt=''>"))
        assert failed.value.failure == "net::ERR_NAME_NOT_RESOLVED"


def test_axe_reports_the_rule_and_the_element(chromium: Browser) -> None:
    """A text of low contrast is reported with its rule, its element and what to do."""
    body = "<p style='background: #fff; color: #ddd'>too pale</p>"
    with open_page(chromium) as page:
        page.set_content(_PAGE.format(head="", body="<p>legible</p>"))
        assert_accessible(page)
        page.set_content(_PAGE.format(head="", body=body))
        with pytest.raises(AssertionError) as report:
            assert_accessible(page)
    assert "color-contrast: Elements must meet" in str(report.value)
    assert '<p style="background: #fff; color: #ddd">' in str(report.value)
    assert "Expected contrast ratio of 4.5:1" in str(report.value)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<button tabindex='-1'>Pay</button>", "Tab does not reach <button"),
        ("<button style='outline: none'>Pay</button>", "the focus is invisible on <button"),
    ],
    ids=["unreachable", "invisible"],
)
def test_a_control_without_keyboard_is_reported(chromium: Browser, body: str, problem: str) -> None:
    """A control that Tab skips is reported, and one that does not show its focus."""
    others = "<a href='#x'>Back</a> <button disabled>Wait</button> <button hidden>No</button>"
    with open_page(chromium) as page:
        page.set_content(_PAGE.format(head="", body=others))
        assert_keyboard_reaches(page)
        page.set_content(_PAGE.format(head="", body=others + body))
        with pytest.raises(AssertionError, match=problem):
            assert_keyboard_reaches(page)


def test_a_page_runs_without_javascript(chromium: Browser) -> None:
    """Without JavaScript a page shows what is meant for such browsers."""
    body = "<noscript>no script</noscript><script>throw new Error('runs')</script>"
    url = f"data:text/html,{quote(_PAGE.format(head='', body=body))}"
    with open_page(chromium, javascript=False) as page:
        page.goto(url)
        assert page.locator("noscript").is_visible()
