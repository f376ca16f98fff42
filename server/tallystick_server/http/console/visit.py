"""A request of a signed-in person, and what its handler answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.console.calls import CallFailed, PageCalls
from tallystick_server.http.console.links import with_query
from tallystick_server.http.console.session import Session
from tallystick_server.http.request import Request
from tallystick_server.rpc.errors import to_status

if TYPE_CHECKING:
    from tallystick_server.http.console.acts import Act

PAGE_SIZE = 25


@dataclass(frozen=True, slots=True)
class FailedAct:
    """An act that the platform rejected, or did not answer. `action`: the path of its form.
    `entered`: what the person wrote, so that nobody must write it again.
    """

    action: str
    error: CallFailed
    entered: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Visit:
    """`variables`: of the path. `query`: of the address. `failed_act`: what was tried on this
    page just now.
    """

    request: Request
    session: Session
    calls: PageCalls
    path: str
    time: datetime
    variables: Mapping[str, str]
    query: Mapping[str, str]
    failed_act: FailedAct | None = None

    def allowed(self, acts: Iterable[Act]) -> tuple[Act, ...]:
        """The acts whose form the person sees, by the roles of the sign-in."""
        return tuple(act for act in acts if self.session.may_have(act.roles))

    async def require_operator(self, subject: str) -> None:
        """Raises CallFailed for a person who is no operator now. `subject`: such as "Uploads"."""
        caller = await self.calls.call("payment.GetCaller")
        if "OPERATOR" not in caller["roles"]:
            text = f"{subject} are for callers with the role operator."
            error = ApiError(ErrorReason.PERMISSION_DENIED, text)
            raise CallFailed("payment.GetCaller", to_status(error))

    def link(self, **changes: str) -> str:
        """This page with other fields in its query; an empty one leaves it out."""
        return with_query(self.path, **{**self.query, **changes})

    def other(self, path: str) -> str:
        """Another page with the query of this one."""
        return with_query(path, **self.query)

    def list_fields(self) -> dict[str, Any]:
        """The fields of a list call that choose the page."""
        return {"page_size": PAGE_SIZE, "page_token": self.query.get("page_token", "")}


@dataclass(frozen=True, slots=True)
class Page:
    """`template`: its name. `title`: the heading. `visit`: with the path, the query and the failed
    act of the page, if they are not those of the request.
    """

    template: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    visit: Visit | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """The answer that leads to another page of the console."""

    path: str


Answer = Page | Redirect


@dataclass(frozen=True, slots=True)
class Form:
    """A form about several items. `fields`: by name. `selected`: the items whose box is checked."""

    fields: Mapping[str, str]
    selected: Sequence[str]


FormHandler = Callable[[Visit, Form], Awaitable[Answer]]
PageHandler = Callable[[Visit], Awaitable[Answer]]
