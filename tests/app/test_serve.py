"""`tallystick serve` as a process: all services or one, its database, and errors at the start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import make_url

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import SCHEMAS, migrate
from tallystick_server.app.database.roles import Passwords
from tallystick_server.app.services import HTTP_SERVER, process_name, service_names
from tallystick_server.verify.run import verify
from tests.chaos.platform import freeze_postgres
from tests.support.errors import from_rpc
from tests.support.platform import ROOT, eventually, free_address, fresh_database, run_command
from tests.support.processes import (
    CLI,
    UNREACHABLE_URL,
    environment_of,
    expect_startup_error,
    running_process,
    wait_for_line,
)
from tests.support.reconciliation import charge, reconcile


def test_services_run_as_separate_processes(scratch_database: DatabaseUrls, tmp_path: Path) -> None:
    """Each service as a process with its own role, and the sandbox as another, process the same
    checkout, and its statement.
    """
    address = {name: free_address() for name in (*service_names(), "sandbox")}
    urls = {name: scratch_database.service(name) for name in address}
    service_addresses = ",".join(f"{name}={at}" for name, at in address.items())
    with ExitStack() as stack:
        port = address["sandbox"].rpartition(":")[2]
        sandbox = subprocess.Popen(
            [*CLI, "sandbox", "--port", port],
            env={**os.environ, "TALLYSTICK_DATABASE__SERVICE_URLS": f"sandbox={urls['sandbox']}"},
            stderr=subprocess.DEVNULL,
        )
        stack.callback(sandbox.wait, 30)
        stack.callback(sandbox.terminate)
        for name in (
            "event",
            "ledger",
            "wallet",
            "payment",
            "payout",
            "reconciliation",
            "monitoring",
        ):
            environment = {
                "TALLYSTICK_DATABASE__SERVICE_URLS": f"{name}={urls[name]}",
                "TALLYSTICK_SERVER__LISTEN": address[name],
                "TALLYSTICK_SERVICE_ADDRESSES": service_addresses,
                "TALLYSTICK_PROVIDERS__SANDBOX__URL": f"http://{address['sandbox']}",
                "TALLYSTICK_RETRY": "no_answer=fixed:0.2:50,server_error=fixed:0.2:50",
                "TALLYSTICK_DATA_DIR": str(tmp_path),
            }
            stack.enter_context(running_process(["serve", name], environment, address[name]))
        client = stack.enter_context(
            Client(
                address["payment"],
                ledger=address["ledger"],
                wallet=address["wallet"],
                event=address["event"],
                reconciliation=address["reconciliation"],
            )
        )
        orders = [new_order(f"o-{n}", "b", f"s-{n}", "10.00", "EUR") for n in range(2)]
        assert client.create_payment("c-1", orders, credit_card_info="tok_visa").is_payment_done
        unknown_payment = client.create_payment(
            "c-2", [new_order("o-9", "b", "s-1", "1.00", "EUR")], credit_card_info="tok_lost_after"
        )
        assert unknown_payment.is_payment_done
        assert eventually(
            lambda: any(
                e.aggregate_id == "payments/c-2" and e.aggregate_version == 2
                for e in client.events()
            )
        )
        request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id="o-0")
        reference = client.payment.GetPaymentOrder(request).payment_order.provider_reference
        line = charge(10_00, reference, booking_date="")
        file = reconcile(client, "psp/sandbox/clearing", [line]).statement_file
        assert file.matched_count == 1
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_serve_needs_no_administrator(scratch_database: DatabaseUrls) -> None:
    """With only host and database, and the generated passwords, services serve: only migrate needs
    the administrator's name and password.
    """
    address = free_address()
    bare = make_url(scratch_database.admin)
    bare = bare._replace(username=None, password=None)
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_DATABASE__URL": bare.render_as_string(),
        "TALLYSTICK_SERVER__LISTEN": address,
    }
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        order = new_order("o-1", "b", "s", "1.00", "EUR")
        assert client.create_payment("c-1", [order], credit_card_info="tok_visa").is_payment_done


def health_status(address: str) -> int | None:
    """The health of the whole process; None if there is no answer."""
    with grpc.insecure_channel(address) as channel:
        try:
            return int(
                health_pb2_grpc.HealthStub(channel)  # type: ignore[attr-defined]
                .Check(health_pb2.HealthCheckRequest(), timeout=5)
                .status
            )
        except grpc.RpcError:
            return None


def test_health_follows_the_database() -> None:
    """A service that starts before PostgreSQL waits, NOT_SERVING. While PostgreSQL is frozen or
    stopped health is NOT_SERVING, and afterwards SERVING again.
    """
    folder = Path(tempfile.mkdtemp(prefix="away-", dir=ROOT / ".data"))
    postgres = EmbeddedPostgres(folder / "postgres", fsync=False)
    serving_, not_serving = (
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    )
    try:
        admin, passwords = postgres.start(), Passwords(folder / "passwords.json")
        migrate(admin, passwords)
        postgres.stop()
        address = free_address()
        environment = {
            **os.environ,
            "TALLYSTICK_DATABASE__URL": admin,
            "TALLYSTICK_DATA_DIR": str(folder),
            "TALLYSTICK_SERVER__LISTEN": address,
        }
        server_process = subprocess.Popen(
            [*CLI, "serve", "event"], env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            assert eventually(lambda: health_status(address) == not_serving, 30)
            lines = wait_for_line(
                server_process,
                server_process.stderr,
                "Waiting up to 60 s for the event service's database",
            )
            assert len(lines) == 1
            with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
                stub: Any = channel.unary_unary("/tallystick.event.v1.EventService/ListEvents")
                stub(b"", timeout=10)
            assert from_rpc(error.value).reason == "DEPENDENCY_UNAVAILABLE"
            postgres.start()
            assert eventually(lambda: health_status(address) == serving_, 30)
            resume = freeze_postgres(postgres)
            try:
                assert eventually(lambda: health_status(address) == not_serving, 30)
            finally:
                resume()
            assert eventually(lambda: health_status(address) == serving_, 30)
            postgres.stop()
            assert eventually(lambda: health_status(address) == not_serving, 30)
            postgres.start()
            assert eventually(lambda: health_status(address) == serving_, 30)
        finally:
            server_process.terminate()
            output = server_process.communicate(timeout=60)[1]
        assert server_process.returncode == 0, output
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_wait_for_a_database_is_bounded(tmp_path: Path) -> None:
    """If the database remains unavailable, the wait ends with the cause, and without the advice to
    migrate.
    """
    environment = {
        "TALLYSTICK_DATABASE__STARTUP_TIMEOUT": "1.5",
        "TALLYSTICK_DATA_DIR": str(tmp_path),
        "TALLYSTICK_SERVER__LISTEN": free_address(),
    }
    output = expect_startup_error(
        ["serve", "event"],
        {**environment, "TALLYSTICK_DATABASE__SERVICE_URLS": f"event={UNREACHABLE_URL}"},
    )
    assert "It was waited for 1.5 s" in output
    assert "migrate" not in output


def test_a_database_without_schemas_is_rejected(admin_url: str, tmp_path: Path) -> None:
    """serve on a database that was never migrated reports that."""
    with fresh_database(admin_url, tmp_path, migrated=False) as platform_databases:
        assert "tallystick migrate" in expect_startup_error(
            ["serve", "all"], environment_of(platform_databases)
        )


def test_verify_into_a_closed_pipe_shows_no_traceback(scratch_database: DatabaseUrls) -> None:
    """`tallystick verify | head` and similar commands: no traceback, and another exit code than for
    violations.
    """
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [*CLI, "verify"], env={**os.environ, **environment_of(scratch_database)}, **pipe
    ) as command:  # type: ignore[call-overload]
        command.stdout.close()
        assert (command.wait(60), command.stderr.read()) == (141, b"")


def test_a_port_in_use_is_reported_in_one_sentence(scratch_database: DatabaseUrls) -> None:
    """The error names the address and the setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as occupied_socket:
        address = f"127.0.0.1:{occupied_socket.getsockname()[1]}"
        output = expect_startup_error(
            ["serve", "all"],
            {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": address},
        )
    assert address in output
    assert "TALLYSTICK_SERVER__LISTEN" in output
    assert "add_port" not in output  # gRPC's own line


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        (
            ["migrate"],
            {"TALLYSTICK_DATABASE__URL": UNREACHABLE_URL},
            "The database cannot be set up: connection failed",
        ),
        (
            ["serve", "payment"],
            {"TALLYSTICK_DATABASE__SERVICE_URLS": f"payment={UNREACHABLE_URL}"},
            "TALLYSTICK_DATABASE__URL must be set",
        ),
        (
            ["serve", "event"],
            {
                "TALLYSTICK_DATABASE__SERVICE_URLS": f"event={UNREACHABLE_URL}",
                "TALLYSTICK_DATABASE__STARTUP_TIMEOUT": "0",
            },
            "database cannot be used",
        ),
        (
            ["verify"],
            {"TALLYSTICK_DATABASE__SERVICE_URLS": f"payment={UNREACHABLE_URL}"},
            "TALLYSTICK_DATABASE__URL must be set",
        ),
        (
            ["verify"],
            {"TALLYSTICK_DATABASE__URL": UNREACHABLE_URL},
            "does not answer",
        ),
        (
            ["verify"],
            {
                "TALLYSTICK_DATABASE__SERVICE_URLS": f"payment={UNREACHABLE_URL}",
                "TALLYSTICK_DATABASE__READER_URLS": ",".join(
                    f"{name}={UNREACHABLE_URL}" for name in SCHEMAS
                ),
            },
            "cannot be read",
        ),
    ],
)
def test_an_unreachable_database_is_reported_in_one_sentence(
    command: list[str], environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """For every invalid database URL a command ends in one sentence that contains no password."""
    full_environment = {
        "TALLYSTICK_DATABASE__URL": "",
        **environment,
        "TALLYSTICK_DATA_DIR": str(tmp_path),
    }
    # This URL is accepted until serve starts, which needs a process of its own.
    if "TALLYSTICK_DATABASE__STARTUP_TIMEOUT" in environment:
        sentence = expect_startup_error(command, full_environment)
    else:
        completed = run_command(*command, **full_environment)
        sentence = completed.stderr.strip()
        assert completed.returncode == 1
    assert expected in sentence
    assert len(sentence.splitlines()) == 1
    assert "secret" not in sentence


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["payment"], "tallystick-payment"),
        (["payment", HTTP_SERVER], "tallystick-payment"),
        (["payment", "payout"], "tallystick-all"),
        ([*service_names(), HTTP_SERVER], "tallystick-all"),
        ([HTTP_SERVER], "tallystick-http"),
    ],
)
def test_the_name_of_a_process_is_that_of_its_services(names: list[str], name: str) -> None:
    """Traces and metrics have one name, with the HTTP server and without it."""
    assert process_name(names) == name
