"""The OpenAPI document and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass
from openapi_spec_validator import validate

from tallystick_core.errors import ErrorReason
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, SERVICES, service_names
from tallystick_server.http.documentation import render_page
from tallystick_server.http.http_rules import http_rules
from tallystick_server.http.message_decoder import decode_message
from tests.support.platform import ROOT, ServedPlatform, serve_platform

DOCUMENT: Any = json.loads(
    (ROOT / "server/tallystick_server/http/static/openapi.json").read_text(encoding="utf-8")
)
RULES = http_rules(spec.descriptor for spec in SERVICES)


@pytest.fixture(scope="module")
def http(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    with serve_platform(database, names=(*service_names(), HTTP_SERVER)) as platform:
        yield platform


def test_the_document_is_valid() -> None:
    """It is OpenAPI 3.1, and every element has a description."""
    validate(DOCUMENT)
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert operation["description"]
            assert all(item.get("description") for item in operation["parameters"] if "in" in item)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        for field, item in schema.get("properties", {}).items():
            assert item["description"], f"{name}.{field}"


def test_the_document_has_the_routes() -> None:
    """Its operations are exactly the rules of the contract, with their fields."""
    documented = {
        (method.upper(), path, operation["operationId"].partition(".")[2])
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }
    assert documented == {(rule.http_method, rule.path, rule.method.name) for rule in RULES}
    for rule in RULES:
        operation = DOCUMENT["paths"][rule.path][rule.http_method.lower()]
        places = {(item["in"], item["name"]) for item in operation["parameters"] if "in" in item}
        assert places == {("path", name) for name in rule.path_fields} | {
            ("query", name) for name in rule.query_fields
        }
        if rule.has_body:
            fields = {field.name for field in rule.method.input_type.fields}
            schema = DOCUMENT["components"]["schemas"][rule.method.input_type.full_name]
            assert set(schema["properties"]) == fields - set(rule.path_fields)


def test_a_double_is_a_number() -> None:
    """A field that answers have as a JSON number is a number in the document."""
    schema = DOCUMENT["components"]["schemas"]["tallystick.monitoring.v1.MetricPoint"]
    assert schema["properties"]["value"]["type"] == "number"


def test_every_reason_has_a_status() -> None:
    """Each error reason is in the response of one HTTP status."""
    descriptions = [item["description"] for item in DOCUMENT["components"]["responses"].values()]
    named = [name for text in descriptions for name in re.findall(r"[A-Z_]{5,}", text)]
    assert set(named) == set(ErrorReason)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.has_body], ids=lambda r: r.path)
def test_every_example_is_a_request(rule: Any) -> None:
    """The example of each body can be sent."""
    operation = DOCUMENT["paths"][rule.path][rule.http_method.lower()]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    decode_message(GetMessageClass(rule.method.input_type)(), example)
    assert bool(example) == (len(rule.method.input_type.fields) > len(rule.path_fields))


def test_the_document_and_its_page_are_served(http: ServedPlatform) -> None:
    """Both need no token. The page loads nothing from elsewhere and runs no script."""
    response = httpx.get(f"{http.url}/openapi.json")
    assert response.json() == DOCUMENT
    page = httpx.get(f"{http.url}/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; style-src 'self'" in page.headers["Content-Security-Policy"]
    style = httpx.get(f"{http.url}/docs/style.css")
    assert style.headers["Content-Type"] == "text/css; charset=utf-8"
    assert "url(" not in style.text


class _Page(HTMLParser):
    """The anchors, links and tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []


def test_the_page_has_every_call_and_no_dead_link() -> None:
    """Each operation and each type has an anchor, and each link leads to one."""
    page = _Page(render_page(DOCUMENT))
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    operations = [
        item["operationId"] for path in DOCUMENT["paths"].values() for item in path.values()
    ]
    assert set(operations) | set(DOCUMENT["components"]["schemas"]) <= set(page.ids)
    anchors = {f"#{name}" for name in page.ids}
    assert set(page.links) - anchors == {"/openapi.json", "/docs/style.css"}


def test_the_page_escapes_texts() -> None:
    """A comment with markup is shown as text."""
    document = json.loads(json.dumps(DOCUMENT).replace("Trace-Id", "<b>x</b>"))
    document["info"]["description"] = "<script>x</script>"
    assert "script" not in _Page(render_page(document)).tags
