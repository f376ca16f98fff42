"""What pages in HTML share: the headers, the templates and the files next to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route

_CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {"Server": "tallystick", "X-Content-Type-Options": "nosniff"}


def page_headers(policy: str, referrer_policy: str) -> Mapping[str, str]:
    """The headers of a page that no cache may store. `policy`: what it may load, as directives of a
    Content-Security-Policy that allows nothing else.
    """
    return {
        **_HEADERS,
        "Referrer-Policy": referrer_policy,
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            f"default-src 'none'; {policy}; frame-ancestors 'none'; base-uri 'none'"
        ),
        "X-Robots-Tag": "noindex",
    }


def template_environment(folder: Path) -> Environment:
    """The templates of a folder. Every value is escaped, and a missing one is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def static_routes(folder: Path, path: str) -> list[Route]:
    """A route below `path` for each file of a folder."""
    return [_static_route(file, f"{path}/{file.name}") for file in sorted(folder.iterdir())]


def _static_route(file: Path, path: str) -> Route:
    content, content_type = file.read_bytes(), _CONTENT_TYPES[file.suffix]
    headers = {
        **_HEADERS,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "public, max-age=300",
    }

    async def respond(_request: Request) -> web.StreamResponse:
        return web.Response(
            body=content, content_type=content_type, charset="utf-8", headers=headers
        )

    return Route("GET", path, respond)
