"""Streaming calls as server-sent events: their ids, their end, and heartbeats."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import aiohttp
import grpc
import httpx
import pytest
from google.protobuf.empty_pb2 import Empty

from tallystick.payment.v1 import payment_service_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.http.event_stream import EventStream
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer
from tests.support.json_calls import create, field_of, new_payment, reason_of
from tests.support.platform import FAST_RETRY, ServedPlatform, eventually, serve_platform

NAMES = (*service_names(), HTTP_SERVER)


@pytest.fixture(scope="module")
def http(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    settings = Settings().replace(retry=FAST_RETRY, worker__scan_interval=0.1)
    with serve_platform(database, settings, NAMES) as platform:
        yield platform


def read_events(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The events of a stream, without its comments."""
    event: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line and name != ":":
            event[name] = value
        elif event:
            yield event
            event = {}


def test_a_watch_is_a_stream_of_events(http: ServedPlatform) -> None:
    """A watch sends each state with its version as id, then `end`. Last-Event-ID resumes it."""
    payment = new_payment("tok_delay:1500", wait_for="WAIT_FOR_ACCEPTANCE")
    assert create(http, payment).status_code == 200
    url = f"{http.url}/v1/payments/{payment['checkout_id']}:watch"
    with httpx.stream("GET", url, timeout=30) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        events = list(read_events(response))
    assert events[-1] == {"event": "end", "data": "{}"}
    versions = [int(event["id"]) for event in events[:-1]]
    assert versions == sorted(set(versions))
    assert len(versions) >= 2
    last = json.loads(events[-2]["data"])["payment"]
    assert (last["is_payment_done"], last["version"]) == (True, str(versions[-1]))
    for version, expected in ((versions[-2], [str(versions[-1])]), (versions[-1], [])):
        with httpx.stream("GET", url, headers={"Last-Event-ID": str(version)}) as response:
            resumed = list(read_events(response))
        assert [event["id"] for event in resumed if "id" in event] == expected
    wrong = httpx.get(f"{url}?after_version=", headers={"Last-Event-ID": "1"})
    assert (wrong.status_code, field_of(wrong)) == (400, "after_version")
    wrong = httpx.get(url, headers={"Last-Event-ID": "x"})
    assert (wrong.status_code, field_of(wrong)) == (400, "after_version")
    missing = httpx.get(f"{http.url}/v1/payments/none:watch")
    assert (missing.status_code, reason_of(missing)) == (404, "NOT_FOUND")


def test_a_caller_that_leaves_cancels_its_call(http: ServedPlatform) -> None:
    """When the caller of a stream or of a waiting call disconnects, the gRPC call ends too."""
    rpc_server = http.server.rpc_server
    assert create(http, new_payment()).status_code == 200  # so that there is an event
    with (
        httpx.Client(timeout=30) as client,
        client.stream("GET", f"{http.url}/v1/events:stream?follow=true") as response,
    ):
        lines = response.iter_lines()
        first_line = next(lines)
        assert (response.status_code, first_line[:3]) == (200, "id:"), first_line
        is_one = eventually(lambda: rpc_server.stream_count == 1)
        # a stream that has ended says why
        assert is_one, rpc_server.stream_count or list(lines)[-4:]
    assert eventually(lambda: rpc_server.stream_count == 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{http.url}/v1/payments", json=new_payment("tok_delay:20000"), timeout=0.5)
    assert eventually(lambda: rpc_server.call_count == 0, 5)


def test_streams_end_when_the_process_stops(scratch_database: DatabaseUrls) -> None:
    """A drain ends a stream with an event that says why and when to retry, and answers a call
    in flight.
    """
    events: list[dict[str, str]] = []
    answers: list[httpx.Response] = []
    with serve_platform(scratch_database, names=NAMES) as platform:

        def watch() -> None:
            url = f"{platform.url}/v1/events:stream?follow=true"
            with httpx.stream("GET", url, timeout=30) as response:
                for event in read_events(response):
                    events.append(event)  # noqa: PERF402 - the test waits for the first one

        payment = new_payment("tok_delay:1000")
        threads = [
            threading.Thread(target=watch),
            threading.Thread(target=lambda: answers.append(create(platform, payment))),
        ]
        for thread in threads:
            thread.start()
        with platform.client() as client:
            assert eventually(
                lambda: (
                    client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
                )
            )
        assert eventually(lambda: events)
    for thread in threads:
        thread.join(30)
    assert events[-1]["event"] == "error"
    assert json.loads(events[-1]["data"])["details"][0]["reason"] == "SHUTTING_DOWN"
    assert int(events[-1]["retry"]) > 0
    assert answers[0].json()["payment"]["is_payment_done"] is True


def test_a_deadline_of_the_caller(http: ServedPlatform) -> None:
    """Request-Timeout is the deadline of the call: a payment answers with the state that it has
    before, and a stream ends with an error.
    """
    response = create(http, new_payment("tok_delay:20000"), **{"Request-Timeout": "1.5"})
    assert (response.status_code, response.elapsed.total_seconds() < 10) == (200, True)
    assert response.json()["payment"]["is_payment_done"] is False
    url, headers = f"{http.url}/v1/events:stream?follow=true", {"Request-Timeout": "1.5"}
    with httpx.stream("GET", url, headers=headers, timeout=30) as stream:
        last = list(read_events(stream))[-1]
    assert last["event"] == "error"
    assert json.loads(last["data"])["details"][0]["reason"] == "DEADLINE_EXCEEDED"


class QuietCall:
    """A streaming call with one message. It ends when `end` is set."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self._has_begun = False

    async def read(self) -> object:
        if self._has_begun:
            await self.end.wait()
            return grpc.aio.EOF
        self._has_begun = True
        return Empty()

    def cancel(self) -> None:
        self.end.set()


def test_a_quiet_stream_has_heartbeats() -> None:
    """A comment follows each interval without an event, so that no proxy ends the connection."""

    async def check() -> None:
        call = QuietCall()
        stream = EventStream(
            lambda *_, **__: call, lambda _message: {"first": True}, None, heartbeat_seconds=0.01
        )
        server = HttpServer(
            [Route("GET", "/stream", lambda request: stream.respond(request, Empty(), (), None))],
            HttpLimits(),
        )
        listener = await asyncio.get_running_loop().create_server(server.connect, "127.0.0.1", 0)
        host, port = listener.sockets[0].getsockname()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
            session.get(f"http://{host}:{port}/stream") as response,
        ):
            first = b'data: {"first":true}\n\n:\n\n:\n\n'
            assert await response.content.readexactly(len(first)) == first
            call.end.set()
            rest = await response.content.read()
            assert rest.replace(b":\n\n", b"") == b"event: end\ndata: {}\n\n"
        listener.close()
        await server.stop()

    asyncio.run(check())
