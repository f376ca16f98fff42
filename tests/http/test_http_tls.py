"""The HTTP server with TLS: its clients, a renewed certificate, and its own calls to services."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tallystick_server.app import tls
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.http.test_http_server import environment_with
from tests.support.platform import ServedPlatform, eventually, free_address, serve_platform
from tests.support.processes import CLI
from tests.support.tls import ServerFiles, serial_of, served_serial, server_files, tls_connection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    return server_files(tmp_path_factory.mktemp("http-tls"))


@pytest.fixture(scope="module")
def tls_platform(database: DatabaseUrls, files: ServerFiles) -> Iterator[ServedPlatform]:
    """A platform with TLS for both of its servers, which polls their files often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "POLL_INTERVAL_SECONDS", 0.02)
        pair = {"certificate_file": files.certificate_file, "key_file": files.key_file}
        settings = Settings().replace(
            **{
                f"{section}__{name}": path
                for section in ("server", "http")
                for name, path in pair.items()
            }
        )
        with serve_platform(database, settings, (*service_names(), HTTP_SERVER)) as platform:
            yield platform


def status(address: str, ca_file: str) -> int:
    """The status of the health; 0: the server cannot be reached or verified."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
        return httpx.get(f"https://{address}/healthz", verify=context).status_code
    except httpx.TransportError:
        return 0


def test_clients_verify_the_server(
    tls_platform: ServedPlatform, files: ServerFiles, tmp_path: Path
) -> None:
    """The health is served by TLS to clients that trust the CA, and nothing in plain text."""
    address = tls_platform.server.http_address
    assert status(address, files.ca_file) == 200
    assert status(address, server_files(tmp_path).ca_file) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{address}/healthz")


def test_a_renewed_certificate_is_used_without_a_restart(
    tls_platform: ServedPlatform, files: ServerFiles
) -> None:
    """New connections get it, and an open one is still served."""
    address = tls_platform.server.http_address
    with tls_connection(address, protocol="http/1.1") as connection:
        first_serial = serial_of(connection)
        serial = files.renew()
        assert eventually(lambda: served_serial(address, "http/1.1") == serial)
        assert serial != first_serial
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert status(address, files.ca_file) == 200


def test_a_process_of_its_own_calls_services_by_tls(
    tls_platform: ServedPlatform, files: ServerFiles
) -> None:
    """`serve http` reaches services at https:// addresses, serves TLS itself, and stops."""
    address = free_address()
    environment = {
        "TALLYSTICK_SERVICE_ADDRESSES": ",".join(
            f"{name}=https://{tls_platform.address}" for name in service_names()
        ),
        "TALLYSTICK_SERVICE_CA_FILE": files.ca_file,
        "TALLYSTICK_HTTP__LISTEN": address,
        "TALLYSTICK_HTTP__CERTIFICATE_FILE": files.certificate_file,
        "TALLYSTICK_HTTP__KEY_FILE": files.key_file,
    }
    with subprocess.Popen([*CLI, "serve", "http"], env=environment_with(environment)) as process:
        try:
            assert eventually(lambda: status(address, files.ca_file) == 200, 30)
        finally:
            process.terminate()
        assert process.wait(30) == 0
