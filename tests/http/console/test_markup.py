"""Texts of others on the pages: whatever they contain, they are text."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from tallystick.monitoring.v1.monitoring_service_pb2 import BatchGetMetricHistoriesResponse
from tallystick_server.http.console.calls import CallFailed, PublicCalls
from tallystick_server.http.console.pages.table import FORM_PAGES
from tallystick_server.http.field_types import is_map
from tests.support.console import ALL_PAGES, serve_pages, unreachable

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{7*7}}javascript:alert(3)"
_MAX_DEPTH = 6


def fill(message: Any, depth: int = 0) -> None:
    """Puts the hostile text into each text of a message, and a message into each part of it. Of an
    enum the last value, of a choice the last part.
    """
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.full_name.startswith("google."):
            if field.message_type.name == "Timestamp" and not field.is_repeated:
                getattr(message, field.name).seconds = 1_790_000_000
            continue
        if is_map(field):
            getattr(message, field.name)[HOSTILE] = HOSTILE
            continue
        if field.message_type is not None:
            if depth < _MAX_DEPTH:
                part = getattr(message, field.name)
                fill(part.add() if field.is_repeated else part, depth + 1)
            continue
        value = _hostile_value(field)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def _hostile_value(field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return HOSTILE
    if field.type == FieldDescriptor.TYPE_BYTES:
        return HOSTILE.encode()
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    return True if field.type == FieldDescriptor.TYPE_BOOL else 7


class HostileCalls(PublicCalls):
    """Answers every call with hostile texts, or rejects it with one."""

    def __init__(self) -> None:
        super().__init__(*unreachable())
        self.rejects = False

    async def send(self, name: str, message: Message, token: str) -> Message:
        if self.rejects:
            raise CallFailed(name, status_pb2.Status(code=5, message=HOSTILE))
        response = GetMessageClass(self.method(name).output_type)()
        fill(response)
        if isinstance(response, BatchGetMetricHistoriesResponse):
            _fill_histories(response, message)
        return response


def _fill_histories(response: BatchGetMetricHistoriesResponse, request: Any) -> None:
    """Gives each query a result, with the hostile text in what a chart names and a value now, so
    that it is drawn.
    """
    (result,) = response.results
    response.results.extend([result] * (len(request.queries) - 1))
    for query, result in zip(request.queries, response.results, strict=True):
        for history in result.history.histories:
            for name in query.group_by:
                history.attributes[name] = HOSTILE
            for point in history.points:
                point.time.GetCurrentTime()


class Markup(HTMLParser):
    """Everything of a page that a browser could act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture(scope="module")
def calls() -> list[HostileCalls]:
    """The calls of the served console, once it is served."""
    return []


@pytest.fixture(scope="module")
def client(calls: list[HostileCalls]) -> Iterator[httpx.Client]:
    """A browser that is signed in to a console whose platform sends hostile texts."""

    def make_calls() -> HostileCalls:
        calls.append(HostileCalls())
        return calls[0]

    with serve_pages(make_calls) as browser:
        yield browser


def assert_harmless(page: str) -> None:
    """No element, attribute or address comes from a text."""
    markup = Markup(page)
    assert not markup.tags & {"script", "img", "iframe", "object", "embed", "base", "style"}
    names = {name for name, _ in markup.attributes}
    assert not {name for name in names if name.startswith("on") or name in {"style", "srcdoc"}}
    for name, value in markup.attributes:
        if name in {"href", "src", "action"}:
            assert value.startswith(("/console", "#", "?")), (name, value)
            assert not value.startswith("//")
    assert "{{7*7}}" in page or "7*7" not in page
    assert ">49<" not in page


@pytest.mark.parametrize("path", sorted(ALL_PAGES))
@pytest.mark.parametrize("rejects", [False, True], ids=["texts", "errors"])
def test_no_text_becomes_markup(
    client: httpx.Client, calls: list[HostileCalls], path: str, rejects: bool
) -> None:
    """With hostile texts in every field of every response, in its errors, in the path and in the
    query, a page has no markup of theirs.
    """
    calls[0].rejects = rejects
    segments = [quote(HOSTILE, safe="") if part[:1] == "{" else part for part in path.split("/")]
    names = [
        *("q", "state", "seller", "buyer", "account", "currency", "prefix", "as_of", "done"),
        *("provider", "service", "assignee", "file", "period", "method", "name", "failed"),
    ]
    hostile_query = dict.fromkeys(names, HOSTILE)
    # the last name is that of a parameter of Jinja, and a field of an address as any other
    other_query = dict.fromkeys(("page_token", "events", "_Context__obj"), HOSTILE)
    for query in ({}, hostile_query, other_query):
        response = client.get("/".join(filter(None, ("/console", *segments))), params=query)
        assert response.status_code < 500
        if response.status_code != 303:
            assert_harmless(response.text)
            is_empty = path == "settings" or (path == "search" and "q" not in query)
            assert rejects or is_empty or "&lt;script&gt;" in response.text


def test_what_a_person_enters_is_text(client: httpx.Client, calls: list[HostileCalls]) -> None:
    """After an act that was rejected, the entered text is in its field, and nowhere else."""
    calls[0].rejects = False
    page = client.get("/console/unapplied-charges").text
    token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    response = client.post(
        "/console/payouts/p/approve", data={"csrf_token": token, "reason": HOSTILE}
    )
    assert response.status_code == 303
    calls[0].rejects = True
    response = client.post(
        "/console/unapplied-charges/u/acknowledge", data={"csrf_token": token, "reason": HOSTILE}
    )
    assert response.status_code == 404
    assert_harmless(response.text)


@pytest.mark.parametrize("path", sorted(FORM_PAGES))
@pytest.mark.parametrize("rejects", [False, True], ids=["texts", "errors"])
def test_a_form_about_several_items_takes_no_markup(
    client: httpx.Client, calls: list[HostileCalls], path: str, rejects: bool
) -> None:
    """Neither what was selected and entered, nor what the platform says of it."""
    calls[0].rejects = False
    page = client.get("/console/unapplied-charges").text
    token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    names = ("reason", "evidence", "provider", "page_token", "selected")
    data = {"csrf_token": token, **dict.fromkeys(names, HOSTILE)}
    calls[0].rejects = rejects
    response = client.post(f"/console/{path}", data=data, params={"provider": HOSTILE})
    assert response.status_code == (404 if rejects else 200)
    assert_harmless(response.text)
    assert "&lt;script&gt;" in response.text


def test_the_sign_in_page_takes_no_markup(client: httpx.Client) -> None:
    """Neither from its address nor from the form."""
    page = client.get("/console/sign-in", params={"next": HOSTILE, "ended": HOSTILE}).text
    assert_harmless(page)
    assert_harmless(client.post("/console/sign-in", data={"token": HOSTILE}).text)
