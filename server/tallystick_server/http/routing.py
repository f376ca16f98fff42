"""Routes: which handler answers a method and a path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from aiohttp import web

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError
from tallystick_server.http.request import Request

Handler = Callable[[Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path`: as in `google.api.http`, such as /v1/payments/{checkout_id}:cancel. A variable is one
    segment. A GET route also answers HEAD. `is_encoded`: the variables
    are left percent-encoded.
    """

    method: str
    path: str
    handler: Handler
    is_encoded: bool = False

    @property
    def segments(self) -> tuple[str | None, ...]:
        """The fixed segments of the path; None: a variable."""
        return tuple(
            None if part.startswith("{") else part for part in self._path_and_verb[0].split("/")[1:]
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields of the variables, in the order of the path."""
        parts = self._path_and_verb[0].split("/")
        return tuple(part[1:-1] for part in parts if part.startswith("{"))

    @property
    def verb(self) -> str:
        """The custom verb; "" if there is none."""
        return self._path_and_verb[1]

    @property
    def _path_and_verb(self) -> tuple[str, str]:
        head, _, last = self.path.rpartition("/")
        last, _, verb = last.partition(":")
        return f"{head}/{last}", verb


class Router:
    """Finds the route of a request. A fixed segment has precedence over a variable, and a verb over
    an id with a colon.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._groups: dict[tuple[int, str], list[tuple[Route, tuple[str | None, ...]]]] = {}
        taken: set[tuple[str, tuple[str | None, ...], str]] = set()
        for route in routes:
            key = (route.method, route.segments, route.verb)
            if key in taken:
                raise ValueError(f"two routes answer {route.method} {route.path}")
            taken.add(key)
            group = self._groups.setdefault((len(route.segments), route.verb), [])
            group.append((route, route.segments))
        for group in self._groups.values():
            group.sort(key=lambda item: [segment is None for segment in item[1]])

    def find(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
        """The route, and the values of its variables. `raw_path`: still percent-encoded. Raises
        HttpError: 404, 405, or 400 for a path that is not UTF-8.
        """
        parts = raw_path.split("/")[1:] or [""]  # "*" is a path too
        candidates = self._candidates(parts)
        if not candidates:
            raise HttpError(
                ApiError(
                    ErrorReason.NOT_FOUND, "This path does not exist: see /docs for those that do."
                )
            )
        wanted_method = "GET" if method == "HEAD" else method
        for route, values in candidates:
            if route.method == wanted_method:
                return route, _variables(route, values)
        allowed = sorted({name for route, _ in candidates for name in _methods(route)})
        raise HttpError(
            ApiError(
                ErrorReason.METHOD_UNKNOWN,
                f"This path does not answer the method of the request: use {', '.join(allowed)}.",
            ),
            405,
            {"Allow": ", ".join(allowed)},
        )

    def _candidates(self, parts: list[str]) -> list[tuple[Route, list[str]]]:
        """The routes of all methods for a path, best first, each with its variables' values. Only
        those with the best path.
        """
        last, colon, verb = parts[-1].rpartition(":")
        attempts = [([*parts[:-1], last], verb)] if colon and verb else []
        for segments, name in [*attempts, (parts, "")]:
            matches = [
                (route, [part for part, fixed in zip(segments, pattern, strict=True) if not fixed])
                for route, pattern in self._groups.get((len(segments), name), ())
                if all(
                    part if fixed is None else part == fixed
                    for part, fixed in zip(segments, pattern, strict=True)
                )
            ]
            if matches:
                best = matches[0][0].segments
                return [match for match in matches if match[0].segments == best]
        return []


def _methods(route: Route) -> tuple[str, ...]:
    return ("GET", "HEAD") if route.method == "GET" else (route.method,)


def _variables(route: Route, values: Sequence[str]) -> dict[str, str]:
    return {
        name: value if route.is_encoded else decode_text(value, name)
        for name, value in zip(route.variables, values, strict=True)
    }


def decode_text(text: str, field: str) -> str:
    """Decodes percent-encoded text of a path. Raises HttpError unless it is UTF-8."""
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise HttpError(
            ApiError(ErrorReason.FIELD_INVALID, f"{field} must be UTF-8.", field=field)
        ) from None
