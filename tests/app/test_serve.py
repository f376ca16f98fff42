"""`tallystick serve` and related commands as processes: alone and together, starting, draining, and
refusing to start.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from psycopg import sql
from sqlalchemy import make_url

from tallystick import Client, ClientSettings, TallystickError, new_order
from tallystick._errors import from_rpc
from tallystick.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.access import Caller, Role
from tallystick_server.app import serve
from tallystick_server.app.configuration import SERVICES, Settings, load
from tallystick_server.app.database import schema
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import (
    SCHEMAS,
    Passwords,
    driver_url,
    migrate,
    role_names,
)
from tallystick_server.app.errors import StartupError
from tallystick_server.verify.run import verify
from tests.chaos.platform import freeze_postgres
from tests.support.platform import ROOT, eventually, free_address, fresh_database, run_command
from tests.support.platform import serve_platform as platform_of
from tests.support.processes import CLI, environment_of, is_serving, running_process

_PING, _GOAWAY = 6, 7  # types of HTTP/2 frames


def test_services_run_as_processes_of_their_own(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """payment, ledger, wallet and event as four processes with four roles, and the sandbox as a
    fifth, process the same checkout.
    """
    address = {name: free_address() for name in ("payment", "ledger", "wallet", "event", "sandbox")}
    urls = {name: scratch_database.service(name).replace("+psycopg", "") for name in address}
    peers = ",".join(f"{name}={at}" for name, at in address.items())
    with ExitStack() as stack:
        port = address["sandbox"].rpartition(":")[2]
        sandbox = subprocess.Popen(
            [*CLI, "sandbox", "--port", port],
            env={**os.environ, "TALLYSTICK_DATABASE__SERVICE_URLS": f"sandbox={urls['sandbox']}"},
            stderr=subprocess.DEVNULL,
        )
        stack.callback(sandbox.wait, 30)
        stack.callback(sandbox.terminate)
        for name in ("event", "ledger", "wallet", "payment"):
            environment = {
                "TALLYSTICK_DATABASE__SERVICE_URLS": f"{name}={urls[name]}",
                "TALLYSTICK_SERVER__LISTEN": address[name],
                "TALLYSTICK_SERVICE_ADDRESSES": peers,
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
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_sigterm_drains(scratch_database: DatabaseUrls) -> None:
    """SIGTERM: health becomes NOT_SERVING, the call in flight gets its answer, the payment is
    booked, the process exits 0.
    """
    address = free_address()
    environment = {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": address}
    with (
        running_process(["serve", "all"], environment, address) as server,
        Client(address) as client,
    ):
        responses = []
        order = new_order("o-1", "b", "s", "1.00", "EUR")
        caller = threading.Thread(
            target=lambda: responses.append(
                client.create_payment("c-1", [order], credit_card_info="tok_delay:1500")
            )
        )
        caller.start()
        assert eventually(
            lambda: client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
        )
        server.send_signal(signal.SIGTERM)
        caller.join(20)
        assert responses
        assert responses[0].is_payment_done
        assert server.wait(30) == 0
        assert not is_serving(address)
    assert verify(scratch_database).passed


def test_sigterm_answers_every_caller(scratch_database: DatabaseUrls) -> None:
    """SIGTERM with 120 callers in flight: each call gets its result or SHUTTING_DOWN with a retry
    delay; none is cancelled.
    """
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "3",
        "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": "1",
    }
    response_counts: Counter[str] = Counter()

    async def caller(number: int, channel: grpc.aio.Channel, ended: asyncio.Event) -> None:
        stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
        for turn in itertools.count():
            slow = "tok_delay:20000" if number % 10 == 0 else "tok_visa"
            order = new_order(f"o-{number}-{turn}", "b", "s", "1.00", "EUR")
            request = payment_service_pb2.CreatePaymentRequest(
                checkout_id=f"c-{number}-{turn}", payment_orders=[order], credit_card_info=slow
            )
            if ended.is_set():
                return
            try:
                await stub.CreatePayment(request, timeout=30)
                response_counts["result"] += 1
            except grpc.aio.AioRpcError as error:
                api_error = from_rpc(error)
                is_connection_lost = (
                    error.code() is grpc.StatusCode.UNAVAILABLE and not api_error.reason
                )  # the process has gone: nobody can answer
                response_counts[
                    "lost"
                    if is_connection_lost
                    else f"{api_error.reason or error.code().name} {api_error.retry_after}"
                ] += 1
                if is_connection_lost:
                    return
                await asyncio.sleep(api_error.retry_after or 0)

    async def callers(server: subprocess.Popen[str]) -> None:
        caller_stop = asyncio.Event()
        channels = [
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(12)
        ]
        tasks = [
            asyncio.ensure_future(caller(number, channels[number % 12], caller_stop))
            for number in range(120)
        ]
        # each of them with a call in flight
        await asyncio.to_thread(eventually, lambda: response_counts["result"] >= 60)
        server.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 60) == 0
        caller_stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        for channel in channels:
            await channel.close()

    with running_process(["serve", "all"], environment, address) as server:
        asyncio.run(callers(server))
    assert response_counts["SHUTTING_DOWN 0.5"] >= 12
    assert set(response_counts) <= {"result", "SHUTTING_DOWN 0.5", "lost"}, response_counts
    assert verify(scratch_database).passed


def test_who_watches_health_keeps_no_process_up(scratch_database: DatabaseUrls) -> None:
    """SIGTERM does not wait for an open Health.Watch, as load balancers have, or for a call that
    never sent its message.
    """
    address = free_address()
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "60",
    }
    with (
        running_process(["serve", "all"], environment, address) as server,
        grpc.insecure_channel(address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = channel.stream_unary(
            "/tallystick.payment.v1.PaymentService/GetPayment", None, None
        )
        mute = stub.future(_pending_messages())
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
        assert mute.exception() is not None


def _pending_messages() -> Iterator[bytes]:
    """The messages of a call, none of which arrives in time."""
    threading.Event().wait(20)
    yield b""


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_what_stands_beside_the_door_refuses_by_name(
    platform_address: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: malformed bytes to health and reflection are MESSAGE_MALFORMED, never UNKNOWN with an
    exception's text, and nothing is logged as failed.
    """
    with grpc.insecure_channel(platform_address) as channel, pytest.raises(grpc.RpcError) as error:
        stub: Any = channel.stream_stream(method, None, None)
        list(stub(iter([b"\xff\xff\xff"]), timeout=10))
    api_error = from_rpc(error.value)
    assert (error.value.code(), api_error.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MESSAGE_MALFORMED",
    )
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_reflection_lists_every_service(platform_address: str) -> None:
    """With reflection, as grpcurl uses it, the server lists its services and their files."""
    with grpc.insecure_channel(platform_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        responses = list(
            stub.ServerReflectionInfo(  # type: ignore[operator]
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
        )
    names = {service.name for service in responses[0].list_services_response.service}
    assert names >= {
        f"tallystick.{name.lower()}.v1.{name}Service"
        for name in ("Payment", "Ledger", "Wallet", "Payout", "Event")
    }
    for name in names:
        assert is_serving(platform_address, name) or not name.startswith("tallystick.")


def test_a_connection_that_pings_too_often_is_closed(platform_address: str) -> None:
    """A client that sends pings without end gets too_many_pings and loses its connection; the SDK's
    pings, every 10 s, are accepted.
    """
    host, _, port = platform_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        received_bytes = b""
        with suppress(OSError):  # the connection is closed while we send
            for _ in range(1000):
                connection.sendall(b"\0\0\x08\6\0\0\0\0\0" + bytes(8))
        with suppress(ConnectionError):
            while received := connection.recv(65536):
                received_bytes += received
    assert b"too_many_pings" in received_bytes


@pytest.mark.parametrize(
    ("option", "frame"),
    [("grpc.max_connection_age_ms", _GOAWAY), ("grpc.keepalive_time_ms", _PING)],
)
def test_connections_are_renewed_and_looked_after(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, option: str, frame: int
) -> None:
    """An old connection is ended by GOAWAY, so that its caller finds other processes; a connection
    whose caller answers no ping is closed.
    """
    soon = {option, "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
    monkeypatch.setattr(
        serve,
        "CONNECTIONS",
        [(name, 500 if name in soon else value) for name, value in serve.CONNECTIONS],
    )
    with platform_of(scratch_database, names=("event",)) as platform:
        host, _, port = platform.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as connection,
            connection.makefile("rb") as stream_reader,
        ):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            while head := stream_reader.read(9):
                stream_reader.read(int.from_bytes(head[:3]))
                if head[3] == frame:
                    break
            assert head
            while stream_reader.read(1000):
                pass


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("tallystick.payment.v1.PaymentService", "tallystick/payment/v1/payment_service.proto"),
        (
            "tallystick.payment.v1.PaymentService.CreatePayment",
            "tallystick/payment/v1/payment_service.proto",
        ),
        (
            "tallystick.payment.v1.CreatePaymentRequest.checkout_id",
            "tallystick/payment/v1/payment_service.proto",
        ),
        (
            "tallystick.payment.v1.CreatePaymentRequest.payment_method",
            "tallystick/payment/v1/payment_service.proto",
        ),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("tallystick.payment.v1.PaymentService.Nothing", ""),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_reflection_knows_every_symbol(platform_address: str, symbol: str, file: str) -> None:
    """The file of a service, a method, a field or a oneof is found by its full name, as grpcurl and
    ghz request it; an unknown name is NOT_FOUND.
    """
    with grpc.insecure_channel(platform_address) as channel:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    if not file:
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        return
    assert (
        FileDescriptorProto.FromString(
            answer.file_descriptor_response.file_descriptor_proto[0]
        ).name
        == file
    )


@pytest.fixture
def platform_address(platform: object) -> str:
    return platform.address  # type: ignore[attr-defined, no-any-return]


def expect_startup_error(arguments: list[str], environment: dict[str, str]) -> str:
    """The error line of a command that must fail."""
    completed = subprocess.run(
        [*CLI, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert completed.returncode == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    return completed.stderr.strip().splitlines()[-1]


@pytest.fixture
def toy_migrations(tmp_path: Path) -> Callable[..., str]:
    """Creates a copy of the migrations with one more for EventService, and returns its folder."""

    def make_migrations(
        *, minimum: str = "", upgrade: str = "run('event', 'create table toy (a int)')"
    ) -> str:
        folder = tmp_path / f"migrations-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        minimum_line = f"minimum_process_revision = {minimum!r}" if minimum else ""
        (folder / "event" / "0002_toy.py").write_text(
            "from tallystick_storage.migrations import build_index, run\n"
            "revision, down_revision, branch_labels, depends_on = 'event_0002', 'event_0001', "
            f"None, None\n{minimum_line}\n"
            f"def upgrade():\n    {upgrade}\n"
        )
        return str(folder)

    return make_migrations


def use_migrations(monkeypatch: pytest.MonkeyPatch, migrations: str) -> None:
    """From here on the code uses these migrations."""
    monkeypatch.setattr(schema, "_MIGRATIONS", migrations)


def test_a_database_that_is_behind_is_refused(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that is newer than the schema names the outdated service and the command to run."""
    use_migrations(monkeypatch, toy_migrations())
    with pytest.raises(
        StartupError,
        match=(
            r"event service's database is at version event_0001, and this code needs "
            r"event_0002: "
            r"run 'tallystick migrate'"
        ),
    ):
        schema.check_schema(scratch_database.service("event"), "event")
    schema.check_schema(scratch_database.service("ledger"), "ledger")
    migrate(scratch_database.admin, scratch_database.passwords)
    schema.check_schema(scratch_database.service("event"), "event")


@pytest.mark.parametrize(("minimum", "works"), [("event_0001", True), ("", False)])
def test_a_newer_schema_is_taken_as_far_as_it_says(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    minimum: str,
    works: bool,
) -> None:
    """While a new migration is applied, processes of the old code can restart if the migration
    allows them; otherwise they report that they are too old.
    """
    with monkeypatch.context() as newer:
        use_migrations(newer, toy_migrations(minimum=minimum))
        migrate(scratch_database.admin, scratch_database.passwords)
    if works:
        schema.check_schema(scratch_database.service("event"), "event")
        return
    with pytest.raises(StartupError, match="needs processes of event_0002 or newer"):
        schema.check_schema(scratch_database.service("event"), "event")


def test_a_schema_of_edited_migrations_is_refused(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve and migrate reject a revision that was made by other SQL, or by code that recorded
    none; nothing is changed.
    """
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        comment_row = admin.execute(
            "select obj_description('wallet.alembic_version'::regclass, 'pg_class')"
        ).fetchone()
        assert comment_row is not None
        for comment in (str(comment_row[0]).replace("a", "b"), None):
            admin.execute(
                sql.SQL("comment on table wallet.alembic_version is {}").format(
                    sql.Literal(comment)
                )
            )
            output = expect_startup_error(
                ["serve", "all"],
                {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": free_address()},
            )
            assert "wallet service's schema was made by other migrations" in output
            with pytest.raises(StartupError, match="made by other migrations"):
                migrate(scratch_database.admin, scratch_database.passwords)


def test_a_migration_waits_for_a_lock_without_holding_others_up(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A migration that does not get a table's lock leaves the lock queue and tries again; others
    use the table meanwhile.
    """
    use_migrations(
        monkeypatch,
        toy_migrations(
            minimum="event_0001", upgrade="run('event', 'alter table event add column toy int')"
        ),
    )
    with (
        psycopg.connect(scratch_database.admin) as holder,
        psycopg.connect(scratch_database.admin, autocommit=True) as other_connection,
    ):
        holder.execute("select from event.event")  # in a transaction that stays open
        migrating = threading.Thread(
            target=migrate, args=(scratch_database.admin, scratch_database.passwords)
        )
        migrating.start()
        other_connection.execute("set statement_timeout = '20s'")
        assert eventually(
            lambda: (
                other_connection.execute(
                    "select from pg_locks where not granted and mode = 'AccessExclusiveLock'"
                ).fetchone()
                is not None
            )
        )
        other_connection.execute("select from event.event")
        holder.commit()
        migrating.join(60)
        assert other_connection.execute("select toy from event.event").fetchall() == []


def test_a_migration_builds_an_index_while_the_table_is_written(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """build_index works outside a transaction, and rebuilds an index that an interrupted run has
    left invalid.
    """
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        admin.execute("create index toy_index on event.event (aggregate_id)")
        owner = role_names(str(make_url(scratch_database.admin).database), "event").owner
        admin.execute(
            "update pg_index set indisvalid = false where indexrelid = 'event.toy_index'::regclass"
        )
        use_migrations(
            monkeypatch,
            toy_migrations(
                minimum="event_0001",
                upgrade="build_index('event', 'toy_index', 'event (aggregate_id)')",
            ),
        )
        migrate(scratch_database.admin, scratch_database.passwords)
        row = admin.execute(
            "select indisvalid, pg_get_userbyid(relowner) from pg_index join pg_class c on c.oid "
            "= indexrelid where relname = 'toy_index'"
        )
        assert row.fetchall() == [(True, owner)]


def test_a_foreign_holder_of_the_lock_is_named(scratch_database: DatabaseUrls) -> None:
    """migrate waits for its lock for a limited time, and names the session that holds it."""
    with psycopg.connect(scratch_database.admin) as holder:
        holder.execute("select pg_advisory_lock(%s)", (0x7A11,))
        with pytest.raises(
            StartupError,
            match=(
                rf"Another session \({holder.info.user}, process {holder.info.backend_pid}.*\) "
                rf"has held the lock"
            ),
        ):
            migrate(scratch_database.admin, scratch_database.passwords, lock_timeout_seconds=0.2)


def test_no_password_reaches_the_servers_log(admin_url: str, tmp_path: Path) -> None:
    """Passwords are sent to the server as verifiers: no statement that it may log contains one in
    plain text, and roles can still log in.
    """
    with (
        fresh_database(admin_url, tmp_path, migrated=False) as platform_databases,
        psycopg.connect(admin_url, autocommit=True) as admin,
    ):
        log_lines: list[str] = []
        name = str(make_url(platform_databases.admin).database)
        admin.execute(f"alter database {name} set log_statement = 'ddl'")
        # Logged statements are sent to the client as well.
        admin.execute(f"alter database {name} set client_min_messages = 'log'")
        real = psycopg.connect

        class Listening(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *arguments: Any, **parameters: Any) -> Any:
                connection = super().connect(*arguments, **parameters)
                connection.add_notice_handler(
                    lambda notice: log_lines.append(notice.message_primary or "")
                )
                return connection

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg, "connect", Listening.connect)
            migrate(platform_databases.admin, platform_databases.passwords)
        text = "\n".join(log_lines)
        assert "SCRAM-SHA-256$" in text
        for service in SCHEMAS:
            for role in (role_names(name, service).service, role_names(name, service).reader):
                assert platform_databases.passwords.get(role) not in text
        real(platform_databases.service("event").replace("+psycopg", "")).close()


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


def test_a_service_waits_for_its_database_and_health_follows_it() -> None:
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
            assert server_process.stderr is not None
            assert server_process.stderr.readline().startswith(
                "Waiting up to 60 s for the event service's database"
            )
            with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
                stub: Any = channel.unary_unary("/tallystick.event.v1.EventService/ListEvents")
                stub(b"", timeout=10)
            assert from_rpc(error.value).reason == "DEPENDENCY_UNAVAILABLE"
            postgres.start()
            assert eventually(lambda: health_status(address) == serving_, 30)
            go_on = freeze_postgres(postgres)
            try:
                assert eventually(lambda: health_status(address) == not_serving, 30)
            finally:
                go_on()
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


def test_a_service_does_not_wait_for_ever(tmp_path: Path) -> None:
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


def test_a_database_without_schemas_is_refused(admin_url: str, tmp_path: Path) -> None:
    """serve on a database that was never migrated reports that."""
    with fresh_database(admin_url, tmp_path, migrated=False) as platform_databases:
        assert "tallystick migrate" in expect_startup_error(
            ["serve", "all"], environment_of(platform_databases)
        )


def test_migrate_shuts_nobody_out_unasked(scratch_database: DatabaseUrls, tmp_path: Path) -> None:
    """A folder with the passwords of another installation changes none: the command is rejected,
    and existing users keep working.
    """
    other_passwords = Passwords(tmp_path / "elsewhere" / "passwords.json")
    name = make_url(scratch_database.admin).database or ""
    for service in SCHEMAS:
        other_passwords.get_or_create(role_names(name, service).service)
        other_passwords.get_or_create(role_names(name, service).reader)
    with pytest.raises(StartupError, match="is not the one in"):
        migrate(scratch_database.admin, other_passwords)
    migrate(scratch_database.admin, scratch_database.passwords)
    for service in SCHEMAS:
        psycopg.connect(scratch_database.service(service).replace("+psycopg", "")).close()


def test_output_that_nobody_reads_ends_in_silence(scratch_database: DatabaseUrls) -> None:
    """`tallystick verify | head` and similar commands: no traceback, and another exit code than for
    violations.
    """
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [*CLI, "verify"], env={**os.environ, **environment_of(scratch_database)}, **pipe
    ) as command:  # type: ignore[call-overload]
        command.stdout.close()
        assert (command.wait(60), command.stderr.read()) == (141, b"")


def test_a_port_in_use_is_one_sentence(scratch_database: DatabaseUrls) -> None:
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


def test_migrating_twice_at_once_is_harmless(admin_url: str, tmp_path: Path) -> None:
    """Two concurrent migrations of one database run one after the other; both succeed."""
    with fresh_database(admin_url, tmp_path, migrated=False) as platform_databases:
        runs = [
            subprocess.Popen(
                [*CLI, "migrate"],
                env={**os.environ, **environment_of(platform_databases)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        output = [run.communicate(timeout=60)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], output
        assert verify(platform_databases).passed


UNREACHABLE_URL = "postgresql://nobody:secret@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("command", "environment", "said"),
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
            "There is no password for the role",
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
def test_a_database_out_of_reach_is_one_sentence(
    command: list[str], environment: dict[str, str], said: str, tmp_path: Path
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
    assert said in sentence
    assert len(sentence.splitlines()) == 1
    assert "secret" not in sentence


BAD_SETTINGS = [
    (
        {"TALLYSTICK_SERVER__LISTEN": "0.0.0.0:7070"},
        "TALLYSTICK_SERVER__LISTEN must be a loopback address",
    ),
    ({"TALLYSTICK_SERVER__LISTEN": "nowhere"}, "TALLYSTICK_SERVER__LISTEN must be host:port"),
    (
        {"TALLYSTICK_SERVER__LISTEN": "127.0.0.1:65536"},
        "TALLYSTICK_SERVER__LISTEN must be host:port",
    ),
    (
        {"TALLYSTICK_DATABASE__CONNECTIONS": "payment=5,ledger"},
        "TALLYSTICK_DATABASE__CONNECTIONS must look like key=value",
    ),
    (
        {"TALLYSTICK_PAYMENT__SELLER_FEE_RATES": "0.5"},
        "TALLYSTICK_PAYMENT__SELLER_FEE_RATES must look like key=value",
    ),
    (
        {"TALLYSTICK_RISK__BLOCKED_COUNTRIES": "Britain"},
        "TALLYSTICK_RISK__BLOCKED_COUNTRIES must have only valid items: each must be two capital",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "hope"},
        "TALLYSTICK_AUTHENTICATION must be one of none, tokens",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "tokens"},
        "callers (TALLYSTICK_CALLERS) must have at least one caller",
    ),
    (
        {"TALLYSTICK_AUTHENTICATION": "tokens", "TALLYSTICK_CALLERS": "a:team:0123456789abcdef"},
        "service_token (TALLYSTICK_SERVICE_TOKEN) must be a token",
    ),
    (
        {
            "TALLYSTICK_AUTHENTICATION": "tokens",
            "TALLYSTICK_CALLERS": "a:service:0123456789abcdef",
            "TALLYSTICK_SERVICE_TOKEN": "0123456789abcdef",
            "TALLYSTICK_PAYOUT_SERVICE": "b",
        },
        "TALLYSTICK_PAYOUT_SERVICE must be the name of a caller",
    ),
    (
        {"TALLYSTICK_CALLERS": "a:boss:0123456789abcdef"},
        "TALLYSTICK_CALLERS: [1] must have a name and an owner that are ids",
    ),
    (
        {"TALLYSTICK_CALLERS": "a:team:short"},
        "TALLYSTICK_CALLERS: [1] must have tokens of at least 16 characters",
    ),
    (
        {"TALLYSTICK_WORKER__LEASE_DURATION": "ten"},
        "TALLYSTICK_WORKER__LEASE_DURATION must be a number of seconds from 1 to 3,600",
    ),
    (
        {"TALLYSTICK_RELEASE_DELAY": "-1"},
        "TALLYSTICK_RELEASE_DELAY must be a whole number of seconds from 0 to 31,536,000",
    ),
    (
        {"TALLYSTICK_WORKER__LEASE_DURATION": "10"},
        "TALLYSTICK_WORKER__LEASE_DURATION must be more than 2 seconds longer",
    ),
    (
        {"TALLYSTICK_PROVIDERS__KEY_WINDOW": "60"},
        "TALLYSTICK_PROVIDERS__KEY_WINDOW must be longer than worker.lease_duration",
    ),
    (
        {"TALLYSTICK_RETRY": "circuit_open=cancel"},
        "TALLYSTICK_RETRY: circuit_open must be the policy of a known retry reason: not_sent",
    ),
    (
        {"TALLYSTICK_RETRY": "stripes.throttled=cancel"},
        "TALLYSTICK_RETRY: stripes.throttled must be a policy of a known provider: sandbox",
    ),
    ({"TALLYSTICK_PAYMENT__FEE_RATE": "1.5"}, "TALLYSTICK_PAYMENT__FEE_RATE must be a decimal"),
    (
        {"TALLYSTICK_RISK__AMOUNT_LIMITS": "EUR=1.005"},
        "TALLYSTICK_RISK__AMOUNT_LIMITS: EUR must be an amount",
    ),
    (
        {"TALLYSTICK_SERVER__MAX_CONCURRENT_CALLS": "0"},
        "TALLYSTICK_SERVER__MAX_CONCURRENT_CALLS must be a whole number",
    ),
    (
        {"TALLYSTICK_DATABASE__CONNECTIONS": "nobody=3"},
        "TALLYSTICK_DATABASE__CONNECTIONS must have only the keys payment",
    ),
    ({"TALLYSTICK_ENVIRONMENT": "Prod!"}, "TALLYSTICK_ENVIRONMENT must be"),
    (
        {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "localhost"},
        "TALLYSTICK_TRACING__OTLP_ENDPOINT must be a URL",
    ),
    (
        {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://host:port"},
        "TALLYSTICK_TRACING__OTLP_ENDPOINT must be a URL",
    ),
    (
        {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://"},
        "TALLYSTICK_PROVIDERS__SANDBOX__URL must be a URL",
    ),
    (
        {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://host?key=x"},
        "TALLYSTICK_PROVIDERS__SANDBOX__URL must be a URL",
    ),
]


@pytest.mark.parametrize(
    ("environment", "said"), BAD_SETTINGS, ids=[said for _, said in BAD_SETTINGS]
)
def test_each_bad_setting_is_named(environment: dict[str, str], said: str) -> None:
    """The configuration is checked at the start, and each error names its setting and the expected
    value.
    """
    with pytest.raises(StartupError, match=".") as failure:
        load(environment)
    assert said in str(failure.value)


def test_a_file_and_the_environment_over_it(tmp_path: Path) -> None:
    """A TOML file has the same settings by name; the environment overrides it; an unknown name is
    rejected.
    """
    path = tmp_path / "tallystick.toml"
    path.write_text(
        'release_delay = 60\nworker.lease_duration = 90\npayment.fee_rate = "0.025"\n'
        '[risk]\nblocked_accounts = ["x"]\namount_limits.EUR = "100.00"\n'
        '[[callers]]\nname = "shop"\nroles = ["team"]\ntokens = ["0123456789abcdef"]\n'
    )
    settings = load({"TALLYSTICK_RELEASE_DELAY": "5"}, str(path))
    assert (settings.worker.lease_duration, settings.release_delay) == (90, 5)
    assert settings.payment.fee_rate == 25_000
    assert settings.risk.amount_limits == {"EUR": 10_000}
    assert settings.callers["0123456789abcdef"].name == "shop"
    path.write_text('[[callers]]\nname = "shop"\nroles = ["team"]\ntokens = "0123456789abcdef"\n')
    with pytest.raises(
        StartupError, match=r"tallystick\.toml: callers\[1\] must have a list of tokens"
    ):
        load({}, str(path))
    path.write_text("leese = 1")
    with pytest.raises(StartupError, match="leese is not a setting. Did you mean worker.lease"):
        load({}, str(path))
    path.write_text("release_delay = ")
    with pytest.raises(StartupError, match="is not valid TOML"):
        load({}, str(path))
    with pytest.raises(StartupError, match="cannot be read"):
        load({}, str(tmp_path / "none.toml"))


SERVICE_LINKS = {
    "TALLYSTICK_PORT": "tcp://10.0.0.1:7070",
    "TALLYSTICK_PORT_7070_TCP": "tcp://10.0.0.1:7070",
    "TALLYSTICK_PORT_7070_TCP_ADDR": "10.0.0.1",
    "TALLYSTICK_PORT_7070_TCP_PORT": "7070",
    "TALLYSTICK_PORT_7070_TCP_PROTO": "tcp",
    "TALLYSTICK_SERVICE_HOST": "10.0.0.1",
    "TALLYSTICK_SERVICE_PORT": "7070",
    "TALLYSTICK_SERVICE_PORT_GRPC": "7070",
    "TALLYSTICK_LEDGER_SERVICE_HOST": "10.0.0.2",
    "TALLYSTICK_LEDGER_PORT_7071_TCP": "tcp://10.0.0.2:7071",
}
"""The variables that Kubernetes sets in every container if there are Services called tallystick and
tallystick-ledger.
"""


def test_settings_do_not_show_secrets() -> None:
    """The repr of the settings, and of the resulting database URLs, contains no token and no
    database URL, which may contain a password.
    """
    url = "postgresql://us:secret-one@host/tallystick"
    urls, of_readers = (
        {"payment": url.replace("one", "two")},
        {"ledger": url.replace("one", "three")},
    )
    callers = {"secret-four-of-shop": Caller("shop", frozenset({Role.TEAM}))}
    settings = Settings().replace(
        database__url=url,
        database__service_urls=urls,
        database__reader_urls=of_readers,
        callers=callers,
        service_token="secret-five",
        environment="shown",
        providers__sandbox__url="http://us:secret-six@host",
        tracing__otlp_endpoint="http://host/secret-seven",
    )
    assert "secret" not in repr(settings)
    assert "environment='shown'" in repr(settings)
    assert "secret" not in repr(
        DatabaseUrls(url, Passwords(Path("passwords.json")), urls, of_readers)
    )


SECRETS_IN_WRONG_PLACES = [
    {"TALLYSTICK_DATABASE__SERVICE_URLS": "postgresql://us:secret@host/db?sslmode=require"},
    {"TALLYSTICK_DATABASE__SERVICE_URLS": "payment=postgresql://us:one,secret=two@host/db"},
    {"TALLYSTICK_DATABASE__READER_URLS": "postgresql://us:secret@host/db"},
    {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "us:secret@host"},
    {"TALLYSTICK_PROVIDERS__SANDBOX__URL": "http://us:sec@secret@host"},
    {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://us:secret@host:many"},
    {"TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://host/?token=secret"},
    {"TALLYSTICK_CALLERS": "0123456789-secret:team:shop"},
    {"TALLYSTICK_CALLERS": "shop:0123456789-secret:team"},
    {"TALLYSTICK_CALLERS": "secret"},
    {
        "TALLYSTICK_AUTHENTICATION": "tokens",
        "TALLYSTICK_CALLERS": "a:team:0123456789abcdef",
        "TALLYSTICK_SERVICE_TOKEN": "secret",
    },
]


@pytest.mark.parametrize("environment", SECRETS_IN_WRONG_PLACES, ids=",".join)
def test_an_error_shows_no_secret(environment: dict[str, str]) -> None:
    """An error in a setting that may hold a password or a token never shows its value, even if a
    value stands where a name belongs.
    """
    with pytest.raises(StartupError) as failure:
        load(environment)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://us:pass@secret@host/tallystick", "%40"),
        ("postgresql://us:a@b/secret@host:5432/db", "%40"),
        ("postgresql:///us:secret@host/db", "%40"),
        ("postgresql://us:a@b?x=secret@host/db", "%40"),
        ("postgresql://us:a@b:secret@host/db", "cannot be read"),
        ("postgresql://us:secret", "cannot be read"),
    ],
)
def test_a_password_that_is_not_encoded_is_shown_by_no_connection_error(
    url: str, said: str
) -> None:
    """A database URL is rejected if a part of its password would be parsed as host, port, database
    or options, and no traceback shows it.
    """
    with pytest.raises(StartupError, match=said) as failure:
        driver_url(url)
    assert "secret" not in "".join(traceback.format_exception(failure.value))


PAYOUTS_TOKEN, WALLETS_TOKEN = "0123456789-of-payouts", "0123456789-of-wallets"
EACH_A_TOKEN = Settings().replace(
    authentication="tokens",
    callers={
        PAYOUTS_TOKEN: Caller("payouts", frozenset({Role.SERVICE})),
        WALLETS_TOKEN: Caller("wallets", frozenset({Role.SERVICE})),
        "0123456789-of-shop": Caller("shop", frozenset({Role.TEAM})),
    },
)


@pytest.mark.parametrize(
    ("names", "token", "payout_service", "said"),
    [
        (
            ("wallet",),
            WALLETS_TOKEN,
            "",
            (
                "must say which caller PayoutService is, among those with the role service: "
                "payouts, wallets"
            ),
        ),
        (
            ("wallet", "ledger", "payment", "event"),
            PAYOUTS_TOKEN,
            "",
            "must say which caller PayoutService is",
        ),
        (
            ("payout",),
            PAYOUTS_TOKEN,
            "wallets",
            "must be payouts, the caller of this PayoutService's service_token, or empty",
        ),
        (
            SERVICES,
            WALLETS_TOKEN,
            "payouts",
            "must be wallets, the caller of this PayoutService's service_token, or empty",
        ),
    ],
)
def test_payout_service_must_be_known_at_the_start(
    database: DatabaseUrls, names: tuple[str, ...], token: str, payout_service: str, said: str
) -> None:
    """If services have tokens of their own, a process refuses to start when WalletService would
    reject PayoutService's calls; the error names the setting.
    """
    address = dict.fromkeys(SERVICES, "127.0.0.1:1")
    settings = EACH_A_TOKEN.replace(
        server__listen=free_address(),
        service_addresses=address,
        service_token=token,
        payout_service=payout_service,
    )
    with pytest.raises(StartupError) as failure:
        asyncio.run(serve.start(names, settings, database.all()))
    assert f"payout_service (TALLYSTICK_PAYOUT_SERVICE) {said}" in str(failure.value)


@pytest.mark.parametrize(
    ("names", "token", "payout_service"),
    [
        (("wallet",), WALLETS_TOKEN, "payouts"),
        (SERVICES, WALLETS_TOKEN, ""),
        (SERVICES, WALLETS_TOKEN, "wallets"),
        (("wallet", "payout"), PAYOUTS_TOKEN, ""),
    ],
)
def test_services_whose_tokens_fit_start(
    database: DatabaseUrls, names: tuple[str, ...], token: str, payout_service: str
) -> None:
    """WalletService starts if PayoutService's caller is set, or PayoutService is served by the same
    process.
    """
    address = dict.fromkeys(SERVICES, "127.0.0.1:1")
    settings = EACH_A_TOKEN.replace(
        server__listen=free_address(),
        service_addresses=address,
        service_token=token,
        payout_service=payout_service,
    )

    async def start_and_stop() -> None:
        server = await serve.start(names, settings, database.all())
        await server.stop(1.0)

    asyncio.run(start_and_stop())


def test_variables_of_kubernetes_are_no_settings(caplog: pytest.LogCaptureFixture) -> None:
    """Next to a Kubernetes Service of its own name a command starts, and ignores the variables that
    Kubernetes sets.
    """
    assert load(SERVICE_LINKS) == load({})
    assert caplog.records == []


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "event"])
def test_a_service_alone_must_know_its_peers(database: DatabaseUrls, service: str) -> None:
    """A service that is served alone, without the addresses of the others, reports which address is
    missing.
    """
    first = "wallet" if service in ("payment", "payout") else "event"
    with pytest.raises(
        StartupError, match=f"TALLYSTICK_SERVICE_ADDRESSES must say where {service} reaches {first}"
    ):
        asyncio.run(
            serve.start(
                (service,), Settings().replace(server__listen=free_address()), database.all()
            )
        )


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if k != "TALLYSTICK_DATABASE__URL"}
    return subprocess.run(
        [sys.executable, "-m", "tallystick_server.cli.demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **given,
            "TALLYSTICK_DATA_DIR": str(folder),
            "TALLYSTICK_SERVER__LISTEN": free_address(),
            **environment,
        },
    )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The demo's private folder, which other users may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".data"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_demo_tells_its_story_twice(short_folder: Path) -> None:
    """A first run, and a second on the data of the first, both exit 0; as root nothing outside the
    demo's folder changes permissions.
    """
    before = {p: p.stat().st_mode for p in (short_folder, *short_folder.parents)}
    first = run_demo(short_folder)
    folder = Settings().replace(data_dir=short_folder)
    with (
        open_databases(folder, lambda _: None) as local_databases,
        platform_of(local_databases, Settings().replace(release_delay=604_800)) as platform,
        platform.client() as client,
    ):
        # as README's first call; it stays pending
        sale = new_order("order-1", "buyer-ada", "seller-books", "24.90", "EUR")
        client.create_payment("checkout-1", [sale], credit_card_info="tok_visa")
    second = run_demo(short_folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for run in (first, second):
        assert "PAID, is_payment_done = true" in run.stdout
        assert "trial balance of the whole ledger: 0.00 EUR" in run.stdout
        assert "verify: passed" in run.stdout
        assert "PAYOUT_RETURN" in run.stdout
    assert "0.00 available, 0.00 pending → 0.00 available, 23.65 pending" in first.stdout
    assert "0.00 available, 24.90 pending → 0.00 available, 48.55 pending" in second.stdout
    assert "8.77 available, 0.00 pending → 8.77 available, 9.02 pending" in second.stdout
    assert {p: p.stat().st_mode for p in before} == before


def test_the_demo_survives_what_goes_wrong_around_it(short_folder: Path) -> None:
    """A killed run's server is taken over. Two concurrent runs, a port in use and broken data each
    end in one clear sentence.
    """
    assert run_demo(short_folder).returncode == 0
    environment = {
        **{k: v for k, v in os.environ.items() if k != "TALLYSTICK_DATABASE__URL"},
        "TALLYSTICK_DATA_DIR": str(short_folder),
        "TALLYSTICK_SERVER__LISTEN": free_address(),
    }
    idle_process = subprocess.Popen(
        [sys.executable, "-m", "tallystick_server.cli.demo"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert idle_process.stdout is not None
    for line in idle_process.stdout:
        if "until Ctrl-C" in line:
            break
    two = run_demo(short_folder)
    assert two.returncode == 1
    assert "Another run uses" in two.stderr
    idle_process.send_signal(signal.SIGKILL)
    idle_process.communicate()
    assert run_demo(short_folder).returncode == 0, (
        "a killed run's PostgreSQL is stopped, and the next run goes on"
    )
    with socket.create_server(("127.0.0.1", 0)) as occupied_socket:
        busy = run_demo(
            short_folder, TALLYSTICK_SERVER__LISTEN=f"127.0.0.1:{occupied_socket.getsockname()[1]}"
        )
    assert busy.returncode == 1
    assert "Nothing can listen on" in busy.stderr
    (short_folder / "postgres" / "data" / "PG_VERSION").unlink()
    demo_result = run_demo(short_folder)
    assert demo_result.returncode == 1
    assert "is no complete PostgreSQL cluster" in demo_result.stderr
    assert "Traceback" not in demo_result.stderr + busy.stderr + two.stderr


def test_a_payout_in_flight_is_settled_while_the_process_drains(
    scratch_database: DatabaseUrls,
) -> None:
    """At shutdown, wallet and ledger serve until payouts in progress are booked; leases of
    unfinished operations are released.
    """
    from tests.support.payouts import create_destination, create_payout, create_sale  # noqa: PLC0415

    def look(statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(
            scratch_database.reader("payout").replace("+psycopg", "")
        ) as connection:
            return connection.execute(statement).fetchall()

    with platform_of(scratch_database) as platform, platform.client() as client:
        seller = create_sale(client, "50.00")
        create_destination(client, seller)
    with (
        platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=1.5)
        ) as platform,
        platform.client() as client,
    ):
        create_payout(client, seller, "20.00")
    assert look("select state, booked from payout") == [("PAID", True)]
    with (
        platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=60.0)
        ) as platform,
        platform.client() as client,
    ):
        create_payout(client, seller, "10.00")
    assert look(
        "select next_attempt_time <= clock() and lease_until <= clock() from operation"
    ) == [(True,)]


def test_work_in_progress_has_time_of_its_own_when_calls_use_up_the_drain(
    scratch_database: DatabaseUrls,
) -> None:
    """When a call lasts as long as the drain, the charge in progress gets the same time again. It
    completes and is booked within that reserve.
    """
    with ThreadPoolExecutor(1) as callers, ExitStack() as stack:
        # which has 5 s to stop
        with platform_of(
            scratch_database, Settings().replace(providers__sandbox__latency=6.5)
        ) as platform:
            client = stack.enter_context(
                Client(platform.address, settings=ClientSettings(attempts=1))
            )
            order = new_order("o-1", "b", "s", "1.00", "EUR")
            call = callers.submit(
                client.create_payment, "c-1", [order], credit_card_info="tok_visa"
            )
            assert eventually(
                lambda: (
                    client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
                )
            )
        with pytest.raises(TallystickError, match="SHUTTING_DOWN"):
            call.result(10)
    with psycopg.connect(scratch_database.reader("payment").replace("+psycopg", "")) as connection:
        assert connection.execute("select status from payment_order").fetchall() == [("SUCCESS",)]
    assert verify(scratch_database).passed
