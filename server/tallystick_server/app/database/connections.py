"""Selects the PostgreSQL of a command: the configured one, or the embedded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import SCHEMAS, migrate, parse_url
from tallystick_server.app.database.roles import Passwords, role_names, role_url
from tallystick_server.app.errors import StartupError

_CONNECT_TIMEOUT_SECONDS = 3


@dataclass(frozen=True, slots=True)
class DatabaseUrls:
    """The URL of the administrator, and the service and reader URLs of each schema. `admin` is
    empty if only the services' URLs are known.
    """

    admin: str = field(repr=False)  # a URL may hold a password
    passwords: Passwords
    overrides: Mapping[str, str] = field(repr=False)
    reader_overrides: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_ended: Callable[[], bool] = lambda: False
    """Whether an embedded PostgreSQL has ended."""

    def service(self, name: str) -> str:
        """The URL of the service's login. Raises StartupError if it is unknown."""
        if name in self.overrides:
            return parse_url(self.overrides[name]).render_as_string(hide_password=False)
        return self._generated_url(role_names(self.database_name, name).service)

    def reader(self, name: str) -> str:
        """The URL of the service's read-only login. Raises StartupError if it is unknown."""
        if name in self.reader_overrides:
            return parse_url(self.reader_overrides[name]).render_as_string(hide_password=False)
        return self._generated_url(role_names(self.database_name, name).reader)

    def all(self) -> dict[str, str]:
        return {name: self.service(name) for name in SCHEMAS}

    @property
    def database_name(self) -> str:
        if not self.admin:
            raise StartupError(
                "TALLYSTICK_DATABASE__URL must be set, or TALLYSTICK_DATABASE__SERVICE_URLS name "
                "every schema this command needs."
            )
        return parse_url(self.admin).database or "postgres"

    def _generated_url(self, role: str) -> str:
        if not self.passwords.has(role):
            _require_server(self.admin)
        return parse_url(role_url(self.admin, role, self.passwords.get(role))).render_as_string(
            hide_password=False
        )


def _require_server(admin_url: str) -> None:
    """Raises StartupError if no PostgreSQL answers at the URL. Does not log in."""
    url = parse_url(admin_url)
    connection_info = make_conninfo(
        url.render_as_string(hide_password=False), connect_timeout=_CONNECT_TIMEOUT_SECONDS
    )
    if PGconn.ping(connection_info.encode()) == Ping.NO_RESPONSE:
        address = f"{url.host}:{url.port or 5432}" if url.host else "the local socket"
        raise StartupError(
            f"The database at {address} does not answer. Start it, or correct "
            "TALLYSTICK_DATABASE__URL."
        )


@contextmanager
def open_databases(
    settings: Settings,
    print_status: Callable[[str], None],
    *,
    fsync: bool = True,
    folder: Path | None = None,
) -> Iterator[DatabaseUrls]:
    """The databases of the settings. The embedded PostgreSQL is started, migrated, and stopped at
    the end. Raises StartupError.
    """
    passwords = Passwords((folder or settings.data_dir) / "passwords.json")
    if settings.database.url or settings.database.service_urls:
        yield DatabaseUrls(
            settings.database.url,
            passwords,
            settings.database.service_urls,
            settings.database.reader_urls,
        )
        return
    embedded = EmbeddedPostgres((folder or settings.data_dir) / "postgres", fsync=fsync)
    try:
        admin = embedded.start(print_status)
        print_status("Bringing the schemas up to date")
        # no other process uses a cluster whose lock is held here
        migrate(admin, passwords, new_passwords=True)
        yield DatabaseUrls(admin, passwords, {}, has_ended=lambda: embedded.has_ended)
    finally:
        embedded.stop()


@contextmanager
def open_databases_read_only(
    settings: Settings, print_status: Callable[[str], None]
) -> Iterator[DatabaseUrls]:
    """The databases of the settings, without creating or migrating any. An embedded PostgreSQL that
    already runs is shared. Raises StartupError.
    """
    embedded = EmbeddedPostgres(settings.data_dir / "postgres")
    if settings.database.url or settings.database.service_urls:
        with open_databases(settings, print_status) as database_urls:
            yield database_urls
        return
    embedded.require_complete_cluster()
    if not embedded.exists:
        raise StartupError(
            f"There is no database in {settings.data_dir.resolve()}. Set TALLYSTICK_DATABASE__URL, "
            "or TALLYSTICK_DATA_DIR to the folder of the embedded one."
        )
    passwords = Passwords(settings.data_dir / "passwords.json")
    if embedded.is_running:
        yield DatabaseUrls(embedded.url, passwords, {})
        return
    try:
        yield DatabaseUrls(embedded.start(print_status), passwords, {})
    finally:
        embedded.stop()
