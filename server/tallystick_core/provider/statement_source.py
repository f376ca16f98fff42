"""The interface of statements: the file in which a provider reports what it paid to the bank."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from typing import Protocol


class StatementUnavailable(Exception):
    """A statement cannot be fetched now. Nothing that was received of it may be used. The text says
    why.
    """


class StatementSource(Protocol):
    """The statements of a provider."""

    name: str

    def fetch(self, first_day: date, last_day: date) -> AsyncIterator[bytes]:
        """The parts of the file about what was paid to the bank on these days, in UTC. Waits until
        the provider has written it. Raises StatementUnavailable.
        """
        ...
