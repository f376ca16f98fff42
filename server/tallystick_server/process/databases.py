"""Which PostgreSQL a command uses: the one that is given, or the embedded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tallystick_server.process.configuration import Settings
from tallystick_server.process.embedded import EmbeddedPostgres
from tallystick_server.process.failure import Failure
from tallystick_server.process.migrate import SCHEMAS, Passwords, driver_url, migrate, roles, service_url


@dataclass(frozen=True, slots=True)
class Databases:
    """The administrator's URL, empty if only the services' are known, and each schema's for its service and its reader."""

    admin: str = field(repr=False)  # a URL may hold a password
    passwords: Passwords
    given: Mapping[str, str] = field(repr=False)
    given_readers: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_ended: Callable[[], bool] = lambda: False
    """Whether the embedded PostgreSQL, if it is one, runs no more."""

    def service(self, name: str) -> str:
        """The service's own login, for SQLAlchemy. Raises Failure if none is known."""
        if name in self.given:
            return driver_url(self.given[name]).render_as_string(hide_password=False)
        return self._generated(roles(self._name, name).service)

    def reader(self, name: str) -> str:
        """The service's read-only login. Raises Failure if none is known."""
        if name in self.given_readers:
            return driver_url(self.given_readers[name]).render_as_string(hide_password=False)
        return self._generated(roles(self._name, name).reader)

    def all(self) -> dict[str, str]:
        return {name: self.service(name) for name in SCHEMAS}

    @property
    def _name(self) -> str:
        if not self.admin:
            raise Failure("TALLYSTICK_DATABASE_URL must be set, or TALLYSTICK_SERVICE_DATABASE_URL name every schema this command needs.")
        return driver_url(self.admin).database or "postgres"

    def _generated(self, role: str) -> str:
        return driver_url(service_url(self.admin, role, self.passwords.of(role))).render_as_string(hide_password=False)


@contextmanager
def databases(settings: Settings, say: Callable[[str], None], *, fsync: bool = True, folder: Path | None = None) -> Iterator[Databases]:
    """The databases of the settings. The embedded PostgreSQL is started, migrated, and stopped at the end. Raises Failure."""
    passwords = Passwords((folder or settings.data) / "passwords.json")
    if settings.database_url or settings.service_database_url:
        yield Databases(settings.database_url, passwords, settings.service_database_url, settings.reader_database_url)
        return
    embedded = EmbeddedPostgres((folder or settings.data) / "postgres", fsync=fsync)
    try:
        admin = embedded.start(say)
        say("Bringing the schemas up to date")
        migrate(admin, passwords, new_passwords=True)  # nobody else uses a cluster that we hold the lock of
        yield Databases(admin, passwords, {}, has_ended=lambda: embedded.has_ended)
    finally:
        embedded.stop()


@contextmanager
def databases_to_read(settings: Settings, say: Callable[[str], None]) -> Iterator[Databases]:
    """The databases of the settings as they are: none is made or migrated, and an embedded one that somebody runs is shared. Raises Failure."""
    embedded = EmbeddedPostgres(settings.data / "postgres")
    if settings.database_url or settings.service_database_url:
        with databases(settings, say) as known:
            yield known
        return
    embedded.refuse_half()
    if not embedded.exists:
        raise Failure(f"There is no database in {settings.data.resolve()}: say where it is in TALLYSTICK_DATABASE_URL or TALLYSTICK_DATA.")
    passwords = Passwords(settings.data / "passwords.json")
    if embedded.answers:
        yield Databases(embedded.url, passwords, {})
        return
    try:
        yield Databases(embedded.start(say), passwords, {})
    finally:
        embedded.stop()
