"""Fixtures: a PostgreSQL for the run, a database of its own for whoever wants one, and running servers."""

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
from psycopg import sql
from sqlalchemy import make_url

from tallystick import Client, ClientSettings
from tallystick_core.canonical import letters
from tallystick_core.provider import Trouble
from tallystick_server.payment.flow import PayIn
from tallystick_server.process import cli, serve
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.embedded import EmbeddedPostgres
from tallystick_server.process.migrate import SCHEMAS, Passwords, migrate, roles
from tallystick_server.process.serve import Running
from tallystick_server.process.wiring import Ports
from tallystick_server.runtime.retry import Policy, Strategy

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""The name of this test process among those that run in parallel; "" if it is the only one."""
_ports = itertools.count(17_300 + (os.getpid() * 7 + int(WORKER.removeprefix("gw") or 0) * 1_000) % 10_000)


QUICK = {
    ("", trouble): Policy(Strategy.FIXED, 0.2, 0.2, 50)
    for trouble in (Trouble.NOT_SENT, Trouble.NO_ANSWER, Trouble.SERVER_ERROR, Trouble.BUSY, Trouble.WAITING)
}
"""Policies that do not keep a test waiting."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="what takes minutes in its full measure, as .ci/run does")


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether to measure in full, not a tenth of it."""
    return bool(request.config.getoption("--thorough"))


def unique(prefix: str = "t") -> str:
    """An id that no other test uses."""
    return f"{prefix}-{letters(secrets.token_hex(8))[:12]}"


def eventually(look: Callable[[], T], seconds: float = 15.0) -> T:
    """What `look` gives as soon as it is true, or what it gives when the time is up."""
    begin = time.monotonic()
    while not (found := look()) and (waited := time.monotonic() - begin) < seconds:
        time.sleep(min(max(waited / 20, 0.01), 0.1))  # which leaves the processor to the platform, whose threads are in this process
    return found


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the command `tallystick` says and its exit code; it runs in this process, which saves the second that a start takes."""
    out, error = io.StringIO(), io.StringIO()
    ends = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, ends)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def free_address() -> str:
    """An address on loopback that nothing listens on, below the ports that the system gives to clients."""
    while not _is_free(port := next(_ports)):
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


@pytest.fixture(scope="session")
def admin_url() -> Iterator[str]:
    """The administrator of the run's PostgreSQL: the one that is given, or an embedded one without fsync."""
    given = os.environ.get("TALLYSTICK_DATABASE_URL", "")
    embedded = EmbeddedPostgres(ROOT / ".data" / "tests" / f"postgres{WORKER}", fsync=False)
    try:
        if not (url := given):
            url = embedded.start()
            with psycopg.connect(url, autocommit=True) as admin:  # a log-in costs half as much where passwords are hashed once, not 4,096 times
                admin.execute("alter system set scram_iterations = 1")
                admin.execute("select pg_reload_conf()")
                admin.execute("set scram_iterations = 1")
                admin.execute(sql.SQL("alter role current_user password {}").format(sql.Literal(make_url(url).password)))
        yield url
        while _migrated:
            name, kept = _migrated.pop()
            _drop(url, name, _NEW)
            shutil.rmtree(kept.path.parent)
    finally:
        embedded.stop()


_migrated: list[tuple[str, Passwords]] = []
"""Migrated databases that nobody uses: the name of each, beside which there is a copy of it as it was when it was new, and its roles' passwords."""


@contextmanager
def fresh_database(admin_url: str, folder: Path, *, migrated: bool = True) -> Iterator[Databases]:
    """A database of one's own, with its roles, dropped at the end. A migrated one is a copy of one that is kept, which saves the migration."""
    passwords = Passwords(folder / "passwords.json")
    if not migrated:
        name = f"tally_{secrets.token_hex(4)}"
        try:
            yield Databases(_create(admin_url, name), passwords, {})
        finally:
            _drop(admin_url, name)
        return
    name, kept = _migrated.pop(0) if _migrated else _migrate(admin_url)
    shutil.copy(kept.path, passwords.path)
    try:
        yield Databases(_create(admin_url, name, _NEW), passwords, {})
    finally:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")
        _migrated.append((name, kept))


_NEW = "_new"
"""What follows a database's name in that of the copy from which it is made anew."""


def _create(admin_url: str, name: str, copy: str = "") -> str:
    """Makes a database, and returns its administrator's URL; with `copy`, from that, with its grants and its roles' settings, which PostgreSQL leaves out."""
    with psycopg.connect(admin_url, autocommit=True) as admin:
        if not copy:
            admin.execute(f"create database {name}")
        else:
            admin.execute(f"create database {name} template {name}{copy} strategy file_copy")
            admin.execute(_AS_IN_COPY.format(name=name, copy=name + copy))
    return make_url(admin_url).set(database=name).render_as_string(hide_password=False)


_AS_IN_COPY = """
do $$
declare
    statement text;
begin
    revoke connect, temporary on database {name} from public;
    for statement in
        select format('grant %s on database {name} to %s', privilege_type, grantee::regrole)
        from pg_database cross join aclexplode(datacl) where datname = '{copy}' and grantee <> datdba
        union all
        select format('alter role %s in database {name} set %s = %L', setrole::regrole, split_part(one, '=', 1), substr(one, strpos(one, '=') + 1))
        from pg_db_role_setting join pg_database d on d.oid = setdatabase cross join unnest(setconfig) as one where datname = '{copy}'
    loop
        execute statement;
    end loop;
end $$
"""


def _migrate(admin_url: str) -> tuple[str, Passwords]:
    """A database's name, where its copy is, and its roles' passwords."""
    name = f"tally_{secrets.token_hex(4)}"
    kept = Passwords(Path(tempfile.mkdtemp(prefix="tally-")) / "passwords.json")
    migrate(_create(admin_url, name), kept)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"alter database {name} rename to {name}{_NEW}")
    return name, kept


def _drop(admin_url: str, name: str, copy: str = "") -> None:
    """Drops a database and its roles."""
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"drop database {name}{copy} with (force)")
        for service in SCHEMAS:
            for role in (roles(name, service).service, roles(name, service).reader, roles(name, service).owner):
                admin.execute(f'drop role if exists "{role}"')


@pytest.fixture(scope="session")
def database(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The database that tests share; each uses ids of its own."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("shared")) as known:
        yield known


@pytest.fixture
def own_database(admin_url: str, tmp_path: Path) -> Iterator[Databases]:
    """A database that the test may break."""
    with fresh_database(admin_url, tmp_path) as known:
        yield known


def backup(admin_url: str, known: Databases) -> Callable[[], None]:
    """Copies a database, under whatever uses it; what is returned puts the copy in its place."""
    name, copy = str(make_url(known.admin).database), f"tally_{secrets.token_hex(4)}"

    def alone(*statements: str) -> None:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(f"alter database {name} connection limit 0")  # for all but superusers
            admin.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (name,))
            for statement in statements:
                admin.execute(statement)

    def open_() -> None:
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(f"alter database {name} connection limit -1")

    def restore() -> None:
        alone(f"drop database {name}", f"alter database {copy} rename to {name}")
        migrate(known.admin, known.passwords)  # grants and settings of a database are not copied with it
        open_()

    alone(f"create database {copy} template {name} connection limit 0")
    open_()
    return restore


@dataclass
class Platform:
    """A running server, in a thread of its own."""

    address: str
    databases: Databases
    run: Callable[..., object]
    """Runs a coroutine function in the server's loop and returns its result."""
    running: Running

    def client(self, token: str = "") -> Client:
        return Client(self.address, settings=ClientSettings(token=token))


@contextmanager
def serving(
    databases: Databases, settings: Settings | None = None, names: tuple[str, ...] = SERVED, ports: Ports | None = None
) -> Iterator[Platform]:
    """Serves in a thread until the block ends, then drains."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="platform", daemon=True)
    thread.start()

    def run(work: Callable[..., object], *arguments: object) -> object:
        async def call() -> object:
            return await work(*arguments)  # type: ignore[misc]

        return asyncio.run_coroutine_threadsafe(call(), loop).result(60)

    wanted = replace(settings or Settings(), listen=free_address())
    running: Running = run(serve.start, names, wanted, databases.all(), ports)  # type: ignore[assignment]
    try:
        yield Platform(wanted.listen, databases, run, running)
    finally:
        run(running.stop, 5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def platform(database: Databases) -> Iterator[Platform]:
    """All services, in development mode, with a quick resend of unknown outcomes; one for each file, since it costs more to idle than to start."""
    with serving(database, Settings(retry=QUICK, sweep_interval=0.1)) as running:
        yield running


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[Client]:
    """The SDK's client of the shared platform."""
    with platform.client() as made:
        yield made


def replayed(method: Any, request: object) -> bool:
    """Calls a method; whether its answer is marked as one to a repeat."""
    _, call = method.with_call(request)
    return dict(call.trailing_metadata()).get("tallystick-replayed") == "true"


def flow_of(platform: Platform) -> PayIn:
    """The flow of its PaymentService."""
    (handlers,) = (service.servicer for service in platform.running._services if service.name == "payment")
    return handlers._flow  # type: ignore[attr-defined,no-any-return]
