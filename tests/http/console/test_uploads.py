"""Uploads: who may send a file, and what one costs the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick.operator.v1 import operator_pb2
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.http.console.calls import PublicCalls
from tallystick_server.http.console.pages import statements
from tallystick_server.http.console.statement_reader import ReadStatement, UnreadableStatement
from tests.support.callers import token_of
from tests.support.console import SETTINGS, Person, serve_pages, unreachable
from tests.support.platform import ServedPlatform, eventually, serve_platform

UPLOAD = "/console/statement-files/upload"


def test_the_role_is_checked_before_the_body(sign_in: Callable[[str], Person]) -> None:
    """An auditor is rejected by the platform, whatever the form has."""
    response = sign_in("auditor").http.post(UPLOAD, content=b"no form")
    assert response.status_code == 403
    assert "PERMISSION_DENIED, from payment.GetCaller" in response.text


def test_an_upload_takes_nothing_from_other_requests(platform: ServedPlatform) -> None:
    """A file may be larger than all other bodies together, and they are accepted meanwhile."""
    settings = SETTINGS.replace(
        http__max_body_bytes_in_flight=64 * 1024,
        http__max_body_bytes=64 * 1024,
    )
    names = (*service_names(), HTTP_SERVER)
    with serve_platform(platform.databases, settings, names) as server:
        alice = Person(server.url)
        assert alice.sign_in(token_of("alice")).status_code == 303
        response = alice.http.post(
            UPLOAD,
            data={"csrf_token": alice.csrf_token(), "account": "psp/acme/clearing"},
            files={"file": b"x" * 200_000},
        )
    assert response.status_code == 400
    assert "the file must have one of these formats" in response.text


class Operator(PublicCalls):
    """Calls as an operator's: there are no files, and none is sent."""

    async def send(self, name: str, message: Message, token: str) -> Message:
        assert name != "reconciliation.CreateStatementFile"
        if name == "payment.GetCaller":
            return operator_pb2.GetCallerResponse(roles=[operator_pb2.CALLER_ROLE_OPERATOR])
        response: Message = GetMessageClass(self.method(name).output_type)()
        return response


class BlockedReader:
    """Reads the first file until it may end, and others at once."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, name: str, content: bytes, account: str, reason: str) -> ReadStatement:
        if not self.begun.is_set():
            self.begun.set()
            assert self.may_end.wait(30)
        raise UnreadableStatement(f"Read {name}.")


def test_a_file_whose_browser_left_is_still_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it was read, another one waits, and is rejected if that takes too long."""
    monkeypatch.setattr(statements, "_MAX_WAIT_SECONDS", 1.0)
    reader = BlockedReader()

    def send(name: str, timeout: float = 30) -> httpx.Response:
        files = {"file": (name, b"lines")}
        return browser.post(UPLOAD, data={"csrf_token": token}, files=files, timeout=timeout)

    with serve_pages(lambda: Operator(*unreachable()), reader) as browser:
        page = browser.get("/console/statement-files").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        with ThreadPoolExecutor(1) as threads:
            left = threads.submit(send, "first.csv", timeout=0.5)
            assert reader.begun.wait(30)
            with pytest.raises(httpx.ReadTimeout):
                left.result()
        assert (busy := send("second.csv")).status_code == 429
        assert "Another file is being uploaded" in busy.text
        reader.may_end.set()
        assert eventually(lambda: "Read third.csv." in send("third.csv").text)
