"""The HTTP server: health, limits of connections, headers, bodies and time, and its shutdown."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.support.platform import ServedPlatform, eventually, free_address, serve_platform
from tests.support.processes import CLI, environment_of, running_process

NAMES = (*service_names(), HTTP_SERVER)
SHORT_LIMITS = Settings().replace(
    http__max_connections=4,
    http__header_timeout=0.5,
    http__body_timeout=0.5,
    http__max_body_bytes=64 * 1024,
)


@pytest.fixture(scope="module")
def limited(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform whose HTTP server has low limits."""
    with serve_platform(database, SHORT_LIMITS, NAMES) as platform:
        yield platform


@contextmanager
def connection(platform: ServedPlatform) -> Iterator[socket.socket]:
    host, _, port = platform.server.http_address.rpartition(":")
    with closing(socket.create_connection((host, int(port)), timeout=10)) as tcp:
        yield tcp


def read_all(tcp: socket.socket) -> bytes:
    """What the server sends until it ends the connection."""
    answer = b""
    try:
        while data := tcp.recv(65536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def exchange(platform: ServedPlatform, raw: bytes) -> bytes:
    with connection(platform) as tcp:
        tcp.sendall(raw)
        return read_all(tcp)


def test_health_is_that_of_the_services(limited: ServedPlatform) -> None:
    """/healthz says SERVING, for HEAD too, and only for GET."""
    response = httpx.get(f"{limited.url}/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "SERVING"})
    assert httpx.head(f"{limited.url}/healthz").status_code == 200
    response = httpx.post(f"{limited.url}/healthz")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
    assert response.json()["details"][0]["reason"] == "METHOD_UNKNOWN"


def test_an_unknown_path_is_a_status(limited: ServedPlatform) -> None:
    """404 has the status of gRPC in JSON, with a reason."""
    response = httpx.get(f"{limited.url}/nowhere")
    assert response.status_code == 404
    assert response.json()["code"] == 5
    assert response.json()["details"][0]["reason"] == "NOT_FOUND"
    assert response.headers["Content-Type"] == "application/json"
    assert "aiohttp" not in response.headers["Server"]


@pytest.mark.parametrize(
    "raw",
    [
        b"not http\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"s3cret" * 2000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: s3cret\r\n" * 100 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nBad\x00Name: s3cret\r\n\r\n",
        b"GET /" + b"s3cret" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["no HTTP", "long header", "many headers", "bad header", "long path"],
)
def test_what_is_no_request_is_answered_without_an_echo(
    limited: ServedPlatform, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be parsed gets 400 with a status, and nothing of it is shown or logged."""
    answer = exchange(limited, raw)
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"MESSAGE_MALFORMED" in answer
    assert b"s3cret" not in answer
    assert "s3cret" not in caplog.text
    assert not caplog.records


def test_slow_headers_are_cut(limited: ServedPlatform) -> None:
    """A connection without headers, or with headers that never end, is closed after the limit; an
    idle one too.
    """
    start = time.monotonic()
    for raw in (b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"):
        assert exchange(limited, raw) == b""
    answer = exchange(limited, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b'{"status": "SERVING"}' in answer
    assert 1.4 < time.monotonic() - start < 8


def test_slow_bodies_are_cut(limited: ServedPlatform) -> None:
    """A body that does not arrive in time gets 408, and the connection is closed."""
    head = b"POST /v1/payments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    start = time.monotonic()
    answer = exchange(limited, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"DEADLINE_EXCEEDED" in answer
    assert time.monotonic() - start < 8


def test_chunked_bodies_are_limited(limited: ServedPlatform) -> None:
    """A body without a length is rejected as soon as it is too large."""
    head = b"POST /v1/payments HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = exchange(limited, head + b"10000\r\n" + b" " * 0x10000 + b"\r\n1\r\n \r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"MESSAGE_TOO_LARGE" in answer


def test_a_body_after_100_continue(limited: ServedPlatform) -> None:
    """A caller that waits for 100 Continue receives it, and then sends its body."""
    head = b"POST /v1/payments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connection(limited) as tcp:
        tcp.sendall(head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert tcp.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        tcp.sendall(b"{}")
        answer = read_all(tcp)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"checkout_id is required" in answer


def test_bodies_in_flight_are_limited(database: DatabaseUrls) -> None:
    """While the bodies in flight use the whole limit, further ones get 429 with Retry-After; then
    they are accepted again.
    """
    settings = Settings().replace(http__max_body_bytes_in_flight=64 * 1024)
    head = (
        b"POST /v1/payments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: 60000\r\n\r\n"
    )
    with serve_platform(database, settings, NAMES) as platform:
        with connection(platform) as slow:
            slow.sendall(head + b" " * 59_000)
            assert eventually(lambda: b" 429 " in (exchange(platform, head + b" " * 60_000)))
        assert eventually(lambda: b" 400 " in exchange(platform, head + b" " * 59_998 + b"{}"))


def test_connections_are_limited(limited: ServedPlatform) -> None:
    """A connection above the limit is closed at once; when another ends, the next one is served."""
    with connection(limited), connection(limited), connection(limited), connection(limited):
        assert read_all_of_a_rejected(limited) == b""
    assert eventually(lambda: _is_up(limited))


def read_all_of_a_rejected(platform: ServedPlatform) -> bytes:
    with connection(platform) as tcp:
        try:
            tcp.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return read_all(tcp)


def _is_up(platform: ServedPlatform) -> bool:
    try:
        return httpx.get(f"{platform.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_shutdown_is_announced_and_ends_idle_connections(scratch_database: DatabaseUrls) -> None:
    """A stopping platform is NOT_SERVING first; then it ends idle connections and accepts none."""
    with serve_platform(scratch_database, names=NAMES) as platform:
        url = platform.url
        with httpx.Client() as client:
            assert client.get(f"{url}/healthz").status_code == 200
            platform.server._http_server.announce_stop()  # type: ignore[union-attr]
            response = client.get(f"{url}/healthz")
            assert (response.status_code, response.json()) == (503, {"status": "NOT_SERVING"})
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_process_of_its_own(scratch_database: DatabaseUrls) -> None:
    """`serve http` needs no database. It is SERVING while the services are, and stops by SIGTERM
    with exit code 0.
    """
    address, http_address = free_address(), free_address()
    names = service_names()
    environment = {
        "TALLYSTICK_SERVICE_ADDRESSES": ",".join(f"{name}={address}" for name in names),
        "TALLYSTICK_HTTP__LISTEN": http_address,
        "TALLYSTICK_DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none",
    }
    with subprocess.Popen([*CLI, "serve", "http"], env=environment_with(environment)) as process:
        try:
            url = f"http://{http_address}/healthz"
            assert eventually(lambda: _status(url) == 503, 30)
            services = {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": address}
            with running_process(["serve", "all"], services, address):
                assert eventually(lambda: _status(url) == 200, 30)
            assert eventually(lambda: _status(url) == 503, 30)
        finally:
            process.terminate()
        assert process.wait(30) == 0


def environment_with(environment: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **environment}


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "TALLYSTICK_SERVICE_ADDRESSES must say where the HTTP server reaches payment"),
        ({"TALLYSTICK_HTTP__LISTEN": ""}, "TALLYSTICK_HTTP__LISTEN must be an address"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], expected: str) -> None:
    """A wrong setting ends `serve http` with one sentence."""
    completed = subprocess.run(
        [*CLI, "serve", "http"],
        env=environment_with(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert completed.returncode == 1
    assert expected in completed.stderr
    assert sys.executable not in completed.stderr
