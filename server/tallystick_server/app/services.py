"""The services of the platform."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tallystick_server.app.errors import StartupError
from tallystick_server.event import service as event
from tallystick_server.ledger import service as ledger
from tallystick_server.monitoring import service as monitoring
from tallystick_server.payment import service as payment
from tallystick_server.payout import service as payout
from tallystick_server.reconciliation import service as reconciliation
from tallystick_server.service_spec import ServiceSpec
from tallystick_server.wallet import service as wallet

SERVICES: tuple[ServiceSpec, ...] = (
    payment.SPEC,
    ledger.SPEC,
    wallet.SPEC,
    payout.SPEC,
    event.SPEC,
    reconciliation.SPEC,
    monitoring.SPEC,
)
"""The only list of services."""
HTTP_SERVER = "http"
"""The name of the HTTP server among what `serve` can serve. It is no service: it has no schema."""
SANDBOX_SCHEMA = "sandbox"
"""The sandbox provider owns its schema, as an external provider would."""
_SANDBOX_MIGRATIONS = "tallystick_sandbox:migrations"


def service_names() -> tuple[str, ...]:
    """The services that can be served, alone or together."""
    return tuple(spec.name for spec in SERVICES)


def find_spec(name: str) -> ServiceSpec:
    """The service of this name. Raises StopIteration if there is none."""
    return next(spec for spec in SERVICES if spec.name == name)


def essential_names(names: Sequence[str]) -> list[str]:
    """Those of the services without whose database a process does not work; all if none is."""
    return [name for name in names if find_spec(name).is_essential] or [*names]


def process_name(names: Sequence[str]) -> str:
    """The name in traces and metrics of a process that serves these."""
    services = [name for name in names if name != HTTP_SERVER] or names
    return "tallystick-" + ("all" if len(services) > 1 else services[0])


def check_addresses(caller: str, services: Iterable[str], addresses: Mapping[str, str]) -> None:
    """Raises StartupError if the address of a service that `caller` calls is not known."""
    for name in services:
        if not addresses.get(name):
            raise StartupError(
                f"TALLYSTICK_SERVICE_ADDRESSES must say where {caller} reaches {name}, such as "
                f'"{name}=127.0.0.1:7071".'
            )


def migration_folders() -> dict[str, str]:
    """The migrations of each schema, as "package:folder", by the schema's name."""
    return {spec.name: spec.migrations for spec in SERVICES} | {SANDBOX_SCHEMA: _SANDBOX_MIGRATIONS}


def stop_order(specs: Iterable[ServiceSpec]) -> list[ServiceSpec]:
    """The services in the order in which they stop: each before the services that it calls. Raises
    ValueError if services call each other in a circle.
    """
    remaining, ordered = list(specs), []
    while remaining:
        called = {name for spec in remaining for name in spec.dependencies}
        uncalled = next((spec for spec in remaining if spec.name not in called), None)
        if uncalled is None:
            names = ", ".join(spec.name for spec in remaining)
            raise ValueError(f"These services call each other in a circle: {names}.")
        remaining.remove(uncalled)
        ordered.append(uncalled)
    return ordered
