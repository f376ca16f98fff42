"""One Chromium for the tests of this folder, the displays, and screenshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import DISPLAYS, Display, running_chromium


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """It ends with this folder, because other tests run event loops in the same thread."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture(params=DISPLAYS, ids=str)
def display(request: pytest.FixtureRequest) -> Display:
    """Each display in turn."""
    assert isinstance(request.param, Display)
    return request.param


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Writes what a page shows as NAME.png into the folder of the option --screenshots."""
    folder = request.config.getoption("--screenshots")

    def screenshot(page: Page, name: str) -> None:
        if folder is not None:
            page.screenshot(path=Path(folder) / f"{name}.png")

    return screenshot
