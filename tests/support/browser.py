"""Pages in a real browser: what they may request, how they are displayed, and what axe finds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

MAX_WAIT_SECONDS = 30.0
"""How long a page may take to load, and an element to appear."""
_MAX_ELEMENTS = 5  # shown for each rule of axe
_LOCAL_SCHEMES = {"data", "blob"}


@dataclass(frozen=True)
class Display:
    """A screen and the colors that its owner prefers."""

    device: Literal["desktop", "phone"]
    color_scheme: Literal["light", "dark"]

    def __str__(self) -> str:
        return f"{self.device}-{self.color_scheme}"


_SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
DESKTOP = Display("desktop", "light")
DISPLAYS = (
    DESKTOP,
    Display("desktop", "dark"),
    Display("phone", "light"),
    Display("phone", "dark"),
)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Debian's Chromium, which resolves no name and reaches this machine only. The test is skipped
    if it is not installed. The thread runs an event loop until the block ends, so it cannot run
    another one.
    """
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not here; .ci/run installs it on Debian")
    expect.set_options(timeout=MAX_WAIT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",  # which root does not get
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
            timeout=MAX_WAIT_SECONDS * 1000,
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Browser,
    *origins: str,
    display: Display = DESKTOP,
    javascript: bool = True,
    expected_problems: Sequence[str] = (),
) -> Iterator[Page]:
    """A page in a fresh context, without cookies or cache. The block fails at its end if the page,
    or one that it opened, sent a request to an origin that is not given, logged an error or a
    violation of its content security policy, or raised an exception. A problem that contains a text
    of `expected_problems` is no failure.
    """
    width, height = _SIZES[display.device]
    is_phone = display.device == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        has_touch=is_phone,
        is_mobile=is_phone,
        color_scheme=display.color_scheme,
        java_script_enabled=javascript,
    )
    context.set_default_timeout(MAX_WAIT_SECONDS * 1000)
    problems: list[str] = []

    def check_request(request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in _LOCAL_SCHEMES and f"{url.scheme}://{url.netloc}" not in origins:
            problems.append(f"request to another origin: {request.url}")

    def check_message(message: ConsoleMessage) -> None:
        if message.type == "error":  # violations of the content security policy too
            problems.append(f"console: {message.text}")

    context.on("request", check_request)
    context.on("console", check_message)
    context.on("weberror", lambda error: problems.append(f"uncaught error: {error.error}"))
    try:
        yield context.new_page()
    finally:
        context.close()
        unexpected = [
            problem
            for problem in problems
            if not any(text in problem for text in expected_problems)
        ]
        for problem in unexpected:  # shown also if the block fails by itself
            print(problem)
    assert not unexpected, "\n".join(unexpected)


def assert_accessible(page: Page) -> None:
    """axe finds nothing on the page once it is loaded with its styles. The page needs
    JavaScript.
    """
    page.wait_for_load_state("load")
    violations = Axe().run(page).response["violations"]
    lines = []
    for violation in violations:
        lines.append(f"{violation['id']}: {violation['help']} ({violation['helpUrl']})")
        for node in violation["nodes"][:_MAX_ELEMENTS]:
            lines.append(f"  {' '.join(map(str, node['target']))}: {node['html']}")
            lines += [f"    {line}" for line in node["failureSummary"].splitlines()]
        if len(violation["nodes"]) > _MAX_ELEMENTS:
            lines.append(f"  and {len(violation['nodes']) - _MAX_ELEMENTS} more elements")
    assert not violations, "\n".join(["axe found:", *lines])


_CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex]"
_NOTE_FOCUS = """() => {
    const element = document.activeElement;
    element.dataset.focus = getComputedStyle(element).outlineStyle === "none" ? "none" : "seen";
}"""
_LIST_PROBLEMS = """controls => controls
    .filter(element => element.checkVisibility() && !element.disabled)
    .filter(element => element.dataset.focus !== "seen")
    .map(element => (element.dataset.focus ? "the focus is invisible on " : "Tab does not reach ")
        + element.outerHTML)"""


def assert_keyboard_reaches(page: Page, controls: str = _CONTROLS) -> None:
    """From the start of the page, Tab reaches each visible control, and an outline shows the focus.
    Of a group of radio buttons Tab reaches one only, so name the `controls` of such a page by a CSS
    selector.
    """
    for _ in range(page.locator(_CONTROLS).count()):
        page.keyboard.press("Tab")
        page.evaluate(_NOTE_FOCUS)
    problems = page.locator(controls).evaluate_all(_LIST_PROBLEMS)
    assert not problems, "\n".join(problems)
