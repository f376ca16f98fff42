"""The embedded PostgreSQL repairs a damaged folder or reports it in one sentence, and never touches
another server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases, open_databases_read_only
from tallystick_server.app.database.embedded import EmbeddedPostgres, find_binaries
from tallystick_server.app.errors import StartupError
from tallystick_server.verify.run import verify
from tests.support.platform import ROOT, eventually
from tests.support.processes import wait_for_line


@pytest.fixture(scope="module")
def cluster_folder() -> Iterator[Path]:
    """A folder with a cluster on which no server runs."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-", dir=ROOT / ".data"))
    embedded = EmbeddedPostgres(folder / "postgres", fsync=False)
    embedded.start()
    embedded.stop()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster_copy(cluster_folder: Path) -> Iterator[Path]:
    """A copy of that folder, which the test may break."""
    copy = cluster_folder.with_name(f"{cluster_folder.name}-copy")
    shutil.copytree(cluster_folder, copy, symlinks=True)
    yield copy
    shutil.rmtree(copy, ignore_errors=True)


def can_query(folder: Path) -> bool:
    embedded = EmbeddedPostgres(folder / "postgres", fsync=False)
    try:
        with psycopg.connect(embedded.start()) as connection:
            return connection.execute("select 1").fetchone() == (1,)
    finally:
        embedded.stop()


def test_a_stale_pid_file_is_no_obstacle(cluster_copy: Path) -> None:
    """A postmaster.pid that is empty, or names an unrelated process, is removed; that process keeps
    running.
    """
    pid_file = cluster_copy / "postgres" / "data" / "postmaster.pid"
    pid_file.write_text("")
    assert can_query(cluster_copy)
    foreign_process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "postgres"]
    )
    try:
        pid_file.write_text(f"{foreign_process.pid}\n")
        assert can_query(cluster_copy)
        assert foreign_process.poll() is None
    finally:
        foreign_process.kill()
        foreign_process.wait(60)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("password", "does not accept connections"),
        ("data/PG_VERSION", "PG_VERSION"),
        ("data/global/pg_control", "pg_control"),
    ],
)
def test_a_broken_cluster_is_named_in_one_sentence(
    cluster_copy: Path, path: str, expected: str
) -> None:
    """A wrong password or a broken file immediately ends in one sentence with PostgreSQL's own
    cause, and nothing is deleted.
    """
    (cluster_copy / "postgres" / path).write_text("x\n")
    before = sorted(cluster_copy.rglob("*"))
    with pytest.raises(StartupError, match=".") as failure:
        EmbeddedPostgres(cluster_copy / "postgres", fsync=False).start()
    assert expected in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    removed_names = {path.name for path in set(before) - set(cluster_copy.rglob("*"))}
    assert removed_names <= {"postmaster.pid", "pg_internal.init"}, (
        "the server's own files, which it creates again"
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root changes to another user, by setpriv",
)
def test_without_user_namespaces_root_runs_postgres_as_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root on a machine without user namespaces the server runs as nobody, below folders
    that every user may enter.
    """
    root = Path(tempfile.mkdtemp(prefix="tally-"))
    root.chmod(0o755)
    failing_unshare = tmp_path / "unshare"
    failing_unshare.write_text("#!/bin/sh\nexit 1\n")
    failing_unshare.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    nobody_command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        str(find_binaries() / "postgres"),
        "--version",
    ]
    if subprocess.run(nobody_command, capture_output=True, check=False, timeout=60).returncode != 0:
        pytest.skip("nobody cannot reach this virtual environment")
    try:
        assert can_query(root)
        assert can_query(root), "and again on what the first run left"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def test_verify_creates_no_database(cluster_copy: Path) -> None:
    """verify runs while another process uses the database, and rejects a folder without one instead
    of passing an empty one.
    """
    settings = Settings().replace(data_dir=cluster_copy)
    with (
        open_databases(settings, lambda _: None, fsync=False),
        open_databases_read_only(settings, lambda _: None) as readable_databases,
    ):
        assert verify(readable_databases).passed
    with open_databases_read_only(settings, lambda _: None) as read_only_databases:
        assert verify(read_only_databases).passed
    empty = Settings().replace(data_dir=cluster_copy / "nothing")
    with (
        pytest.raises(StartupError, match="There is no database in"),
        open_databases_read_only(empty, lambda _: None),
    ):
        pass
    assert not empty.data_dir.exists()


def test_a_migration_from_another_folder_keeps_passwords(cluster_copy: Path) -> None:
    """A migration from another folder does not lock out the users of the database; only
    --new-passwords does.
    """
    with open_databases(
        Settings().replace(data_dir=cluster_copy), lambda _: None, fsync=False
    ) as local_databases:
        environment = {
            **os.environ,
            "TALLYSTICK_DATABASE__URL": local_databases.admin,
            "TALLYSTICK_DATA_DIR": str(cluster_copy / "elsewhere"),
        }
        command = [sys.executable, "-m", "tallystick_server.cli.main", "migrate"]
        rejected_command = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert rejected_command.returncode == 1
        assert "its password is not the one in" in rejected_command.stderr
        psycopg.connect(local_databases.service("payment")).close()
        renewed = subprocess.run(
            [*command, "--new-passwords"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert renewed.returncode == 0, renewed.stderr
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(local_databases.service("payment"))


def test_lost_passwords_of_the_embedded_database_are_recreated(cluster_copy: Path) -> None:
    """While we hold the folder's lock nobody else uses it: a missing file of generated passwords
    locks nobody out.
    """
    for _ in range(2):
        with open_databases(
            Settings().replace(data_dir=cluster_copy), lambda _: None, fsync=False
        ) as local_databases:
            psycopg.connect(local_databases.service("payment")).close()
        (cluster_copy / "passwords.json").unlink()


def test_serve_ends_with_its_database_and_leaves_no_process(cluster_copy: Path) -> None:
    """When the embedded PostgreSQL dies, serve says so and exits 1; SIGTERM at any moment leaves no
    server running.
    """
    environment = {
        **os.environ,
        "TALLYSTICK_DATA_DIR": str(cluster_copy),
        "TALLYSTICK_SERVER__LISTEN": f"unix:{cluster_copy}/s",
        "TALLYSTICK_HTTP__LISTEN": "",
    }
    environment.pop("TALLYSTICK_DATABASE__URL", None)
    command = [sys.executable, "-m", "tallystick_server.cli.main", "serve", "all"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_line(server, server.stderr, "Serving")
    postmaster = int((cluster_copy / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGQUIT)
    output = server.communicate(timeout=60)[1]
    assert server.returncode == 1
    assert "The embedded PostgreSQL has ended" in output
    assert "Traceback" not in output
    server_process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_line(server_process, server_process.stderr, "Bringing")
    server_process.send_signal(signal.SIGTERM)
    server_process.communicate(timeout=60)
    assert eventually(
        lambda: not (cluster_copy / "postgres" / "data" / "postmaster.pid").exists(), 10
    )
