"""The errors of commands that cannot start name the cause: the database, or the address."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.listening import listen
from tests.support.platform import free_address, run_command
from tests.support.processes import environment_of, expect_startup_error

_NOT_SHARED = [("grpc.so_reuseport", 0)]


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    server = grpc.server(ThreadPoolExecutor(1), options=_NOT_SHARED)
    yield server
    server.stop(None)


@pytest.mark.parametrize("command", [("serve", "all"), ("verify",)])
@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_an_unreachable_database_is_named_before_a_missing_password(
    tmp_path: Path, command: tuple[str, ...], host: str
) -> None:
    """A new `data_dir` has no passwords. That is no help if the database cannot be reached."""
    completed = run_command(
        *command,
        TALLYSTICK_DATA_DIR=str(tmp_path),
        TALLYSTICK_DATABASE__URL=f"postgresql://admin:secret@{host}/tallystick",
    )
    address = host if ":" in host else f"{host}:5432"
    assert completed.returncode == 1
    assert (
        f"The database at {address} does not answer. Start it, or correct "
        "TALLYSTICK_DATABASE__URL." in completed.stderr
    )
    assert "secret" not in completed.stderr


def test_an_address_in_use_is_named(server: grpc.Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartupError) as error:
            listen(server, address)
    assert str(error.value) == (
        f"Cannot listen on {address}: address already in use. Set TALLYSTICK_SERVER__LISTEN to "
        "another address."
    )


def test_a_taken_http_address_is_one_line(scratch_database: DatabaseUrls) -> None:
    """`serve all` ends with the address and its setting, and nothing that was begun complains."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        environment = environment_of(scratch_database) | {
            "TALLYSTICK_SERVER__LISTEN": free_address(),
            "TALLYSTICK_HTTP__LISTEN": address,
        }
        error = expect_startup_error(["serve", "all"], environment)
    assert error == (
        f"tallystick: Cannot listen on {address}: address already in use. Set "
        "TALLYSTICK_HTTP__LISTEN to another address, or to nothing for no HTTP server."
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:7070", "cannot assign requested address"),
        ("no-such-host.invalid:7070", "name or service not known"),
        ("unix:/no-such-folder/socket", "no such file or directory"),
    ],
)
def test_an_address_of_another_machine_is_named(
    server: grpc.Server, address: str, reason: str
) -> None:
    with pytest.raises(StartupError, match=f"^Cannot listen on {address}: {reason}\\. Set "):
        listen(server, address)


def test_a_free_address_is_used(server: grpc.Server) -> None:
    address = free_address()
    listen(server, address)
    with pytest.raises(StartupError, match="address already in use"):
        listen(grpc.server(ThreadPoolExecutor(1), options=_NOT_SHARED), address)
