"""The paths of the look-alike, and the function that serves each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tallystick_sandbox.stripe import charges, payment_intents
from tallystick_sandbox.stripe.context import Advance
from tallystick_sandbox.stripe.errors import unknown_path
from tallystick_sandbox.stripe.lists import list_page, search_page
from tallystick_sandbox.stripe.parameters import Parameters

Handler = Callable[..., Any]
"""Takes the context, the parameters and the ids of the path; returns the body."""


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path. `{id}` in it is one segment."""

    method: str
    path: str
    handler: Handler

    def match(self, method: str, path: str) -> list[str] | None:
        """The ids of a path, or None if this is another route."""
        pattern = re.sub(r"\{\w+\}", "([^/]+)", self.path)
        match = re.fullmatch(pattern, path) if method == self.method else None
        return None if match is None else [unquote(id_) for id_ in match.groups()]


def _no_filter(_parameters: Parameters) -> dict[str, Any]:
    return {}


ROUTES = [
    Route(
        "GET",
        "/v1/payment_intents/search",
        search_page("payment_intent", "/v1/payment_intents/search", payment_intents.search_filter),
    ),
    Route("POST", "/v1/payment_intents", payment_intents.create),
    Route(
        "GET",
        "/v1/payment_intents",
        list_page("payment_intent", "/v1/payment_intents", payment_intents.list_filter),
    ),
    Route("GET", "/v1/payment_intents/{id}", payment_intents.retrieve),
    Route("POST", "/v1/payment_intents/{id}/confirm", payment_intents.confirm),
    Route("POST", "/v1/payment_intents/{id}/cancel", payment_intents.cancel),
    Route("GET", "/v1/charges", list_page("charge", "/v1/charges", charges.list_filter)),
    Route("GET", "/v1/charges/{id}", charges.retrieve),
    Route("GET", "/v1/events", list_page("event", "/v1/events", _no_filter)),
]

ADVANCES: dict[str, Advance] = {"charge": charges.advance}
"""How an object of each type advances when it is due."""


def find_route(method: str, path: str) -> tuple[Route, list[str]]:
    """The route of a path, and the ids in it. Raises StripeFailure."""
    for route in ROUTES:
        ids = route.match(method, path)
        if ids is not None:
            return route, ids
    raise unknown_path(method, path)
