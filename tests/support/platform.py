"""A served platform, its clients, and helpers that wait for results."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.rows import TupleRow
from sqlalchemy import make_url

from tallystick import Client, ClientSettings
from tallystick_core.fingerprint import digest_text
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.roles import Passwords, role_names
from tallystick_server.app.event_loop import new_event_loop
from tallystick_server.app.serve import RunningServer
from tallystick_server.app.services import migration_folders, service_names
from tallystick_server.app.wiring import Dependencies
from tallystick_server.cli import main
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.operations.worker import OperationWorker
from tallystick_server.payment.handlers import PaymentHandlers
from tallystick_server.payment.payments import Payments
from tallystick_server.payout.handlers import PayoutHandlers
from tallystick_server.payout.payouts import Payouts
from tallystick_storage.database import Database

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""The name of this test process among those that run in parallel; "" if it is the only one."""
_port_numbers = itertools.count(
    17_300 + (os.getpid() * 7 + int(WORKER.removeprefix("gw") or 0) * 1_000) % 10_000
)
FAST_RETRY = {
    ("", reason): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 50)
    for reason in (
        RetryReason.NOT_SENT,
        RetryReason.NO_ANSWER,
        RetryReason.SERVER_ERROR,
        RetryReason.THROTTLED,
        RetryReason.PENDING,
    )
}
"""Retry policies with short waits."""


def unique_id(prefix: str = "t") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{digest_text(secrets.token_hex(8))[:12]}"


def eventually(condition: Callable[[], T], timeout_seconds: float = 15.0) -> T:
    """The result of `condition` as soon as it is true, or its last result after the timeout."""
    start_time = time.monotonic()
    while (
        not (result := condition()) and (elapsed := time.monotonic() - start_time) < timeout_seconds
    ):
        # The sleep gives the CPU to the platform, whose threads are in this process.
        time.sleep(min(max(elapsed / 10, 0.02), 0.2))
    return result


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The output of the command `tallystick` and its exit code; it runs in this process, which
    saves the second that a start takes. A command that serves sets up the whole process: it needs
    one of its own, see `processes`.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    previous_handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main.main(arguments)
        except SystemExit as exit_error:
            exit_code = int(exit_error.code or 0)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
    return subprocess.CompletedProcess(arguments, exit_code, stdout.getvalue(), stderr.getvalue())


WAITING_FOR_LOCK_QUERY = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type "
    "= 'Lock' and state = 'active'"
)
"""How many sessions of the database wait for a lock."""


def free_address() -> str:
    """A loopback address on which nothing listens, below the ports that the system assigns to
    clients.
    """
    while not _is_free(port := next(_port_numbers)):
        continue
    return f"127.0.0.1:{port}"


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


spare_databases: list[tuple[str, Passwords]] = []
"""Migrated databases that are free: the name of each, next to which there is a copy of its initial
contents, and its roles' passwords.
"""


@contextmanager
def fresh_database(
    admin_url: str, folder: Path, *, migrated: bool = True
) -> Iterator[DatabaseUrls]:
    """A private database with its roles, dropped at the end. A migrated one is a copy of a kept
    database, which saves the migration.
    """
    passwords = Passwords(folder / "passwords.json")
    if not migrated:
        name = f"tally_{secrets.token_hex(4)}"
        try:
            yield DatabaseUrls(_create_database(admin_url, name), passwords, {})
        finally:
            drop_database(admin_url, name)
        return
    name, saved_passwords = (
        spare_databases.pop(0) if spare_databases else _create_migrated(admin_url)
    )
    shutil.copy(saved_passwords.path, passwords.path)
    try:
        yield DatabaseUrls(_create_database(admin_url, name, COPY_SUFFIX), passwords, {})
    finally:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")
        spare_databases.append((name, saved_passwords))


COPY_SUFFIX = "_new"
"""The suffix of the name of the copy from which a database is restored."""


def _create_database(admin_url: str, name: str, copy_suffix: str = "") -> str:
    """Creates a database and returns its administrator's URL. With `copy_suffix` it is a copy, with
    the grants and role settings that PostgreSQL does not copy.
    """
    with psycopg.connect(admin_url, autocommit=True) as admin:
        if not copy_suffix:
            admin.execute(f"create database {name}")
        else:
            admin.execute(f"create database {name} template {name}{copy_suffix} strategy file_copy")
            admin.execute(_COPY_GRANTS_SQL.format(name=name, copy=name + copy_suffix))
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)


_COPY_GRANTS_SQL = """
do $$
declare
    statement text;
begin
    revoke connect, temporary on database {name} from public;
    for statement in
        select format('grant %s on database {name} to %s', privilege_type, grantee::regrole)
        from pg_database cross join aclexplode(datacl) where datname = '{copy}'
            and grantee <> datdba
        union all
        select format('alter role %s in database {name} set %s = %L', setrole::regrole,
            split_part(one, '=', 1), substr(one, strpos(one, '=') + 1))
        from pg_db_role_setting join pg_database d on d.oid = setdatabase cross
            join unnest(setconfig) as one where datname = '{copy}'
    loop
        execute statement;
    end loop;
end $$
"""


def _create_migrated(admin_url: str) -> tuple[str, Passwords]:
    """A database's name, the name of its copy, and its roles' passwords."""
    name = f"tally_{secrets.token_hex(4)}"
    passwords = Passwords(Path(tempfile.mkdtemp(prefix="tally-")) / "passwords.json")
    migrate(_create_database(admin_url, name), passwords)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"alter database {name} rename to {name}{COPY_SUFFIX}")
    return name, passwords


def drop_database(admin_url: str, name: str, copy_suffix: str = "") -> None:
    """Drops a database and its roles."""
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"drop database {name}{copy_suffix} with (force)")
        for service in migration_folders():
            for role in (
                role_names(name, service).service,
                role_names(name, service).reader,
                role_names(name, service).owner,
            ):
                admin.execute(f'drop role if exists "{role}"')


def _run_without_sessions(
    admin: psycopg.Connection[TupleRow], database_name: str, statement: str
) -> None:
    """Ends the sessions of a database and runs a statement that requires none. Repeats it up to
    four times, because a session that was being opened may have been missed.
    """
    for tries in range(1, 6):
        admin.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s",
            (database_name,),
        )
        try:
            admin.execute(statement)
        except psycopg.errors.ObjectInUse:
            if tries == 5:
                raise
        else:
            return


@contextmanager
def unreachable_database(databases: DatabaseUrls) -> Iterator[None]:
    """Ends the sessions of the services' roles, and lets them open no new ones in the block."""
    name = str(make_url(databases.admin).database)
    with psycopg.connect(databases.admin, autocommit=True) as admin:  # a superuser still connects
        admin.execute(f"alter database {name} connection limit 0")
        # a session that was being opened when the limit changed is seen only later
        for _ in range(3):
            while admin.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where datname = %s and pid <> pg_backend_pid()",
                (name,),
            ).fetchall():
                pass
            admin.execute("select pg_sleep(0.05)")
        try:
            yield
        finally:
            admin.execute(f"alter database {name} connection limit -1")


def backup_database(admin_url: str, databases: DatabaseUrls) -> Callable[[], None]:
    """Copies a database while it is in use; the returned function replaces it with the copy."""
    database_name, copy_name = (
        str(make_url(databases.admin).database),
        f"tally_{secrets.token_hex(4)}",
    )

    def run_exclusively(*statements: str) -> None:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            # Except superusers.
            admin.execute(f"alter database {database_name} connection limit 0")
            for statement in statements:
                _run_without_sessions(admin, database_name, statement)

    def allow_connections() -> None:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(f"alter database {database_name} connection limit -1")

    def restore() -> None:
        run_exclusively(
            f"drop database {database_name}",
            f"alter database {copy_name} rename to {database_name}",
        )
        # The grants and settings of a database are not copied with it.
        migrate(databases.admin, databases.passwords)
        allow_connections()

    run_exclusively(f"create database {copy_name} template {database_name} connection limit 0")
    allow_connections()
    return restore


@dataclass
class ServedPlatform:
    """A running server in its own thread."""

    address: str
    databases: DatabaseUrls
    run_in_loop: Callable[..., Any]
    """Runs a coroutine function in the server's loop and returns its result."""
    server: RunningServer
    settings: Settings

    @property
    def url(self) -> str:
        """The URL of its HTTP server, if HTTP_SERVER is among the served names."""
        return f"http://{self.server.http_address}"

    def client(self, token: str = "", tries: int | None = None) -> Client:
        """A client with this token, which sends each call at most `tries` times."""
        settings = ClientSettings(token=token)
        if tries is not None:
            settings = replace(settings, tries=tries)
        return Client(self.address, settings=settings)


@contextmanager
def serve_platform(
    databases: DatabaseUrls,
    settings: Settings | None = None,
    names: tuple[str, ...] = service_names(),
    dependencies: Dependencies | None = None,
    address: str = "",
) -> Iterator[ServedPlatform]:
    """Serves in a thread until the block ends, then drains. `address`: "": a free one."""
    loop = new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="platform", daemon=True)
    thread.start()

    def run(work: Callable[..., Any], *arguments: object) -> Any:
        async def call() -> Any:
            return await work(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), loop).result(60)

    listen_settings = (settings or Settings()).replace(
        server__listen=address or free_address(), http__listen=free_address()
    )
    server = run(serve.start, names, listen_settings, databases.all(), dependencies)
    try:
        yield ServedPlatform(listen_settings.server.listen, databases, run, server, listen_settings)
    finally:
        run(server.stop, 5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def is_replayed(method: Any, request: object) -> bool:
    """Calls a method; returns whether its answer is marked as a replay."""
    _, call = method.with_call(request)
    return dict(call.trailing_metadata()).get("tallystick-replayed") == "true"


def payments_of(platform: ServedPlatform) -> Payments:
    """The payments of its PaymentService."""
    handlers = platform.server.service("payment").servicer
    assert isinstance(handlers, PaymentHandlers)
    return handlers.payments


def payouts_of(platform: ServedPlatform) -> Payouts:
    """The payouts of its PayoutService."""
    handlers = platform.server.service("payout").servicer
    assert isinstance(handlers, PayoutHandlers)
    return handlers.payouts


def payment_worker_of(platform: ServedPlatform) -> OperationWorker:
    """The worker of its PaymentService."""
    return payments_of(platform).worker


def payout_worker_of(platform: ServedPlatform) -> OperationWorker:
    """The worker of its PayoutService."""
    return payouts_of(platform).worker


def database_of(platform: ServedPlatform, service: str) -> Database:
    """The database of one of its services, for calls in the platform's loop."""
    return platform.server.service(service).databases[0]
