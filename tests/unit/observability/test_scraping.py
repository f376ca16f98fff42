"""The server that is scraped: what it answers, and that slow or many scrapers do not exhaust it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tallystick_server.observability import scraping
from tallystick_server.observability.scraping import ScrapeServer
from tests.support.metrics import is_closed
from tests.support.platform import eventually, free_address


@contextmanager
def scrape_server(
    render_count: list[int] | None, body: bytes = b"x 1\n", seconds: float = 60.0
) -> Iterator[tuple[str, int]]:
    """The address of a scrape server of its own, in a loop in a thread. Each time it renders,
    `render_count` gets an item; if it is None, rendering fails.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    address = ("127.0.0.1", int(free_address().rpartition(":")[2]))

    def render() -> bytes:
        if render_count is None:
            raise ValueError("a test")
        render_count.append(1)
        return body

    async def start() -> ScrapeServer:
        server = ScrapeServer(render, read_seconds=seconds, write_seconds=seconds)
        await server.start(*address)
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield address
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _get(address: tuple[str, int], head: bytes = b"GET /metrics HTTP/1.1") -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head + b"\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1", b"200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200 OK"),
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"", b"404 Not Found"),
    ],
)
def test_only_get_metrics_is_answered(head: bytes, status: bytes) -> None:
    with scrape_server([]) as address:
        response = _get(address, head)
    assert response.startswith(b"HTTP/1.1 " + status)
    assert (b"\r\n\r\nx 1\n" in response) == (status == b"200 OK")


def test_metrics_that_cannot_be_rendered_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """The scraper gets a status, and the operator a log line."""
    with scrape_server(None) as address:
        assert _get(address).startswith(b"HTTP/1.1 500 ")
    assert [record.__dict__["event_name"] for record in caplog.records] == ["metrics.scrape.failed"]


def test_a_request_without_end_is_closed() -> None:
    """More bytes than a request may have, and a request that is never completed."""
    with scrape_server([], seconds=0.2) as address:
        for data in (b"x" * 100_000, b"GET /metrics HTTP/1.1\r\n"):
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(data)
                assert is_closed(connection)


def test_many_connections_are_bounded() -> None:
    """Beyond the limit a connection is closed at once. Those that end count no more."""
    with scrape_server([]) as address:
        silent = [socket.create_connection(address, timeout=10) for _ in range(50)]
        for connection in silent:
            connection.settimeout(0.5)
        open_connections = []
        for connection in silent:
            try:
                assert is_closed(connection)
                connection.close()
            except TimeoutError:
                open_connections.append(connection)
        assert len(open_connections) == scraping.MAX_CONNECTIONS
        for connection in open_connections:
            connection.close()
        assert eventually(lambda: b"200 OK" in _try_get(address))


def _try_get(address: tuple[str, int]) -> bytes:
    try:
        return _get(address)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_a_scraper_that_does_not_read_is_closed() -> None:
    """Scrapers that hold every connection, and read nothing of a long response, are closed
    for others once their time is up.
    """
    body = b"x" * 20_000_000
    with scrape_server([], body, seconds=0.5) as address, ExitStack() as connections:
        for _ in range(scraping.MAX_CONNECTIONS):
            connection = connections.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert _try_get(address) == b""
        assert eventually(lambda: len(_try_get(address)) > len(body))


def test_scrapes_within_a_second_are_rendered_once() -> None:
    """Scrapers that ask again and again cost no more than one per second."""
    renders: list[int] = []
    with scrape_server(renders) as address, ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: _get(address), range(40)))
    assert all(b"200 OK" in response for response in responses)
    assert len(renders) <= 2
