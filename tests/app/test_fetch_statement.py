"""The command `tallystick fetch-statement`: it writes a file once, and can be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tallystick_server.cli import fetch_statement
from tallystick_server.providers.provider_type import BuiltProvider
from tests.support.platform import run_command


class Statements:
    """Statements with this content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def fetch(self, first: date, last: date) -> AsyncIterator[bytes]:
        assert first == last == date(2026, 11, 29)
        yield self.content[:3]
        yield self.content[3:]


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Statements:
    """The statements of the provider; the folder of the test is the working directory."""
    source = Statements(b"a,b\n1,2\n")
    built: Any = BuiltProvider(source, [])
    monkeypatch.setattr(fetch_statement, "_build", lambda *_: built)
    monkeypatch.chdir(tmp_path)
    return source


ARGUMENTS = ("fetch-statement", "--provider", "stripe", "--day", "2026-11-29")


def test_a_statement_can_be_fetched_again(statements: Statements, tmp_path: Path) -> None:
    """The next command of a script runs, as after the first time."""
    path = tmp_path / "stripe-2026-11-29.csv"
    first = run_command(*ARGUMENTS)
    assert (first.returncode, first.stderr) == (0, "Fetched stripe-2026-11-29.csv (8 bytes)\n")
    assert path.read_bytes() == statements.content
    again = run_command(*ARGUMENTS)
    assert again.returncode == 0
    assert again.stderr == "stripe-2026-11-29.csv has the statement already\n"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_another_content_is_not_overwritten(statements: Statements, tmp_path: Path) -> None:
    path = tmp_path / "stripe-2026-11-29.csv"
    path.write_bytes(b"mine")
    completed = run_command(*ARGUMENTS)
    assert completed.returncode == 1
    assert completed.stderr == (
        "tallystick: stripe-2026-11-29.csv exists, and has another content than the statement; "
        "name another file with --output.\n"
    )
    assert path.read_bytes() == b"mine"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
