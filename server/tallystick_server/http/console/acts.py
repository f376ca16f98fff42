"""Acts: the calls with which a person changes something, and the forms for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tallystick_server.http.console.visit import PageHandler


@dataclass(frozen=True, slots=True)
class Input:
    """A field of a form and of the call. `choices`: label by value; empty: free text."""

    name: str
    label: str
    hint: str = ""
    choices: Mapping[str, str] | None = None
    is_required: bool = True
    max_length: int = 255


@dataclass(frozen=True, slots=True)
class Act:
    """`name`: the last segment of the path of its form. `call`: such as payment.RetryDeadLetter.
    `done`: the notice afterwards. `is_grave`: money may be booked, or work is given up.
    """

    name: str
    label: str
    call: str
    inputs: tuple[Input, ...]
    done: str
    is_grave: bool = False
    hint: str = ""
    hidden: tuple[str, ...] = ()
    """Fields that the page fills in: the version that it shows, or the id of a request."""
    roles: frozenset[str] = frozenset({"OPERATOR"})
    """Whom the page shows the form. The platform checks the role again."""


@dataclass(frozen=True, slots=True)
class ActPage:
    """The acts on a resource. `path`: of the resource; its variables have the names of fields, and
    the calls get those that they have. `page`: shows the outcome, at `page_path`, which has
    variables of the path too ("": the path of the resource).
    """

    path: str
    page: PageHandler
    acts: tuple[Act, ...]
    page_path: str = ""


REASON = Input("reason", "Reason", "Why, for the audit. Up to 255 characters.")
