"""Uploads: who may send a file, and what one costs the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick.operator.v1 import operator_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
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


class SlowService(Operator):
    """Answers the first file that is sent once it may; each was reconciled before."""

    def __init__(self) -> None:
        super().__init__(*unreachable())
        self.sent_files: list[str] = []
        self.may_answer = threading.Event()

    async def send(self, name: str, message: Message, token: str) -> Message:
        if not isinstance(message, pb.CreateStatementFileRequest):
            return await super().send(name, message, token)
        self.sent_files.append(message.file_name)
        assert await asyncio.to_thread(self.may_answer.wait, 30)
        response = pb.CreateStatementFileResponse()
        response.statement_file.state = reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
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


def test_one_file_at_a_time_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is not received before the first one was sent, also to a slow service."""
    monkeypatch.setattr(statements, "_MAX_WAIT_SECONDS", 1.0)
    services: list[SlowService] = []
    read_files: list[str] = []

    def make_calls() -> PublicCalls:
        services.append(SlowService())
        return services[0]

    def read(name: str, content: bytes, account: str, reason: str) -> ReadStatement:
        read_files.append(name)
        create = pb.CreateStatementFileRequest(
            statement_file_id="f-1", file_name=name, account="banks/main"
        )
        return ReadStatement(create, (), 0)

    def send(name: str) -> httpx.Response:
        return browser.post(UPLOAD, data={"csrf_token": token}, files={"file": (name, b"lines")})

    with serve_pages(make_calls, read) as browser, ThreadPoolExecutor(1) as threads:
        page = browser.get("/console/statement-files").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        first = threads.submit(send, "first.csv")
        assert eventually(lambda: services[0].sent_files == ["first.csv"])
        assert send("second.csv").status_code == 429
        assert read_files == ["first.csv"]
        services[0].may_answer.set()
        assert first.result(30).status_code == 303
        assert send("third.csv").status_code == 303
    assert services[0].sent_files == read_files == ["first.csv", "third.csv"]
