"""The OpenAPI document at /openapi.json, and a page of it for people at /docs, without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route

OPENAPI_PATH, PAGE_PATH, STYLE_PATH = "/openapi.json", "/docs", "/docs/style.css"
_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Server": "tallystick",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}

Node = Mapping[str, Any]


def documentation_routes() -> list[Route]:
    """The routes. They need no token: the document has nothing of an installation."""
    document = (_STATIC / "openapi.json").read_bytes()
    page = render_page(orjson.loads(document)).encode()
    style = (_STATIC / "docs.css").read_bytes()
    return [
        _file_route(OPENAPI_PATH, document, "application/json"),
        _file_route(PAGE_PATH, page, "text/html"),
        _file_route(STYLE_PATH, style, "text/css"),
    ]


def _file_route(path: str, content: bytes, content_type: str) -> Route:
    async def respond(_request: Request) -> web.StreamResponse:
        return web.Response(
            body=content, content_type=content_type, charset="utf-8", headers=_HEADERS
        )

    return Route("GET", path, respond)


def render_page(document: Node) -> str:
    """The page of an OpenAPI document: the calls by service, then the types and the errors."""
    info, components = document["info"], document["components"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{escape(info["title"])}</title><link rel="stylesheet" href="{STYLE_PATH}">',
            f"</head><body><main><h1>{escape(info['title'])}</h1>",
            f"<p>{escape(info['description'])}</p>",
            f'<p>The same as <a href="{OPENAPI_PATH}">OpenAPI</a>.</p>',
            *_contents(document),
            *(line for tag in document["tags"] for line in _service(document, tag)),
            '<h2 id="headers">Headers</h2>',
            _table([(item["name"], "text", item) for item in components["parameters"].values()]),
            '<h2 id="errors">Errors</h2>',
            _table([(status, "", item) for status, item in components["responses"].items()]),
            '<h2 id="types">Types</h2>',
            *(
                line
                for name, schema in components["schemas"].items()
                for line in _type(name, schema)
            ),
            "</main></body></html>",
        ]
    )


def _operations(document: Node, tag: str) -> Iterator[tuple[str, str, Node]]:
    """Method, path and operation of the calls of a service."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if tag in operation["tags"]:
                yield method.upper(), path, operation


def _contents(document: Node) -> Iterator[str]:
    yield "<nav><ul>"
    for tag in document["tags"]:
        name = escape(tag["name"])
        yield f'<li><a href="#{name}">{name}</a>'
    yield '<li><a href="#headers">Headers</a><li><a href="#errors">Errors</a>'
    yield '<li><a href="#types">Types</a></ul></nav>'


def _service(document: Node, tag: Node) -> Iterator[str]:
    name = escape(tag["name"])
    yield f'<h2 id="{name}">{name}</h2><p>{escape(tag["description"])}</p>'
    for method, path, operation in _operations(document, tag["name"]):
        anchor = escape(operation["operationId"])
        yield f'<h3 id="{anchor}"><code class="method">{method}</code> '
        yield f"<code>{escape(path)}</code></h3><p>{escape(operation['description'])}</p>"
        fields = [item for item in operation["parameters"] if "name" in item]
        if fields:
            yield _table(
                [(f"{item['name']} ({item['in']})", _kind(item["schema"]), item) for item in fields]
            )
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]
            example = orjson.dumps(content["example"], option=orjson.OPT_INDENT_2).decode()
            yield f"<p>Body: {_kind(content['schema'])}</p><pre>{escape(example)}</pre>"
        success = operation["responses"]["200"]
        (content,) = success["content"].values()
        yield f"<p>200: {_kind(content['schema'])} {escape(success['description'])}</p>"


def _type(name: str, schema: Node) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>'
    yield f"<p>{escape(schema.get('description', ''))}</p>".replace("\n", "<br>")
    properties = schema.get("properties", {})
    if properties:
        yield _table([(field, _kind(item), item) for field, item in properties.items()])


def _table(rows: Sequence[tuple[str, str, Node]]) -> str:
    """A table of names, kinds (in HTML) and what has a description."""
    lines = [
        f"<tr><td><code>{_breakable(name)}</code><td>{kind}"
        f"<td>{escape(item.get('description', ''))}"
        for name, kind, item in rows
    ]
    return f"<table><tr><th>name<th>type<th>meaning{''.join(lines)}</table>"


def _breakable(name: str) -> str:
    """A name in HTML that a narrow column breaks between its words only."""
    return re.sub("(?<=_)|(?<=[a-z])(?=[A-Z])", "<wbr>", escape(name))


def _kind(schema: Node) -> str:
    """The kind of a value, with a link to its type, in HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{escape(name)}">{_breakable(name.rpartition(".")[2])}</a>'
    if "data" in schema.get("properties", {}):  # of a server-sent event
        return f"stream of {_kind(schema['properties']['data']['contentSchema'])}"
    if "anyOf" in schema:
        choices = [_kind(item) for item in schema["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(choices))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = escape(next(name for name in kinds if name != "null"))
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    return f"{kind} ({escape(schema['format'])})" if "format" in schema else kind
