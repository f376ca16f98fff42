"""The services of the platform."""

from __future__ import annotations

from collections.abc import Iterable

from tallystick_server.event import service as event
from tallystick_server.ledger import service as ledger
from tallystick_server.payment import service as payment
from tallystick_server.payout import service as payout
from tallystick_server.service_spec import ServiceSpec
from tallystick_server.wallet import service as wallet

SERVICES: tuple[ServiceSpec, ...] = (
    payment.SPEC,
    ledger.SPEC,
    wallet.SPEC,
    payout.SPEC,
    event.SPEC,
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
