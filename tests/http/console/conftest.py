"""A platform with the console and work to do, and people who are signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.callers import token_of
from tests.support.console import Person, Work, create_work, serve_console
from tests.support.platform import ServedPlatform, fresh_database


@pytest.fixture(scope="package")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """A platform with a database of its own, because the pages show all that there is."""
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("console")) as databases,
        serve_console(databases) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="package")
def work(platform: ServedPlatform) -> Work:
    return create_work(platform)


@pytest.fixture
def sign_in(platform: ServedPlatform) -> Callable[[str], Person]:
    """Signs a person of a name in."""

    def sign_in_as(name: str) -> Person:
        person = Person(platform.url)
        assert person.sign_in(token_of(name)).status_code == 303
        return person

    return sign_in_as


@pytest.fixture
def alice(sign_in: Callable[[str], Person]) -> Person:
    """An operator."""
    return sign_in("alice")
