"""Fixtures: one PostgreSQL per run, databases for single tests, and running servers."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from psycopg import sql
from sqlalchemy import make_url

from tallystick import Client
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.event_loop import GC_THRESHOLDS
from tests.support.memory import memory_folder
from tests.support.platform import (
    COPY_SUFFIX,
    FAST_RETRY,
    ROOT,
    WORKER,
    ServedPlatform,
    drop_database,
    fresh_database,
    serve_platform,
    spare_databases,
)
from tests.support.spans import record_spans

# As in a served process. With the default, the search for unreachable objects took a fifth of the
# time in which pytest imports the tests.
gc.set_threshold(*GC_THRESHOLDS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run tests at full size, which takes minutes; .ci/run does it for some",
    )
    parser.addoption(
        "--screenshots",
        metavar="DIR",
        help="the folder into which the tests of pages write screenshots; the default is none",
    )


_ONLY_IF_NAMED = (
    "tests/browser",
    "tests/faults",
    "tests/app/test_shop.py",
    "tests/app/test_demo.py",
)
"""Tests that take long: of pages in a browser, of a shop, and of the demo. And those of faults, for
which a healthy platform must not be slow. .ci/run names them.
"""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the tests of `_ONLY_IF_NAMED` unless an argument names them."""
    for name in _ONLY_IF_NAMED:
        if collection_path == ROOT / name:
            return None if any(name in argument for argument in config.args) else True
    return None


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: no search for unreachable objects visits them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether to test at full size instead of a half of it or less."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(scope="session")
def admin_url() -> Iterator[str]:
    """The administrator's URL of the run's PostgreSQL: the given one, or an embedded one without
    fsync.
    """
    configured_url = os.environ.get("TALLYSTICK_DATABASE__URL", "")
    with memory_folder(ROOT / ".data" / "tests" / f"postgres{WORKER}") as folder:
        embedded = EmbeddedPostgres(folder, fsync=False)
        try:
            url = configured_url or _start(embedded)
            yield url
            while spare_databases:
                name, passwords = spare_databases.pop()
                drop_database(url, name, COPY_SUFFIX)
                shutil.rmtree(passwords.path.parent)
        finally:
            embedded.stop()


def _start(embedded: EmbeddedPostgres) -> str:
    url = embedded.start()
    # A login takes half the time if passwords are hashed once instead of 4,096 times.
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("alter system set scram_iterations = 1")
        # Databases live for seconds: a look at each of them every 5 s is of no use.
        admin.execute("alter system set autovacuum_naptime = '1min'")
        admin.execute("select pg_reload_conf()")
        admin.execute("set scram_iterations = 1")
        admin.execute(
            sql.SQL("alter role current_user password {}").format(
                sql.Literal(make_url(url).password)
            )
        )
    return url


@pytest.fixture(scope="session")
def database(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseUrls]:
    """The database that tests share; each test uses ids of its own."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("shared")) as databases:
        yield databases


@pytest.fixture
def scratch_database(admin_url: str, tmp_path: Path) -> Iterator[DatabaseUrls]:
    """A database that the test may break."""
    with fresh_database(admin_url, tmp_path) as databases:
        yield databases


@pytest.fixture(scope="module")
def platform(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """All services, in development mode, with a short retry of unknown outcomes. There is one
    platform per file, because an idle platform costs more than a start.
    """
    with serve_platform(
        database, Settings().replace(retry=FAST_RETRY, worker__scan_interval=0.2)
    ) as served_platform:
        yield served_platform


@pytest.fixture(scope="module")
def client(platform: ServedPlatform) -> Iterator[Client]:
    """The SDK's client of the shared platform."""
    with platform.client() as sdk_client:
        yield sdk_client


@pytest.fixture(scope="module")
def span_exporter() -> Iterator[InMemorySpanExporter]:
    """Records every span of this process, the server's thread included."""
    with record_spans() as exporter:
        yield exporter
