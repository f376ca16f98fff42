"""The declaration of a service, which everything reads that concerns all services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What the platform must know of a service. Its modules are named here, and imported when they
    are needed, so that the command line starts quickly.
    """

    name: str
    """Also the name of its schema and of its roles."""
    contract: str
    """Its generated module and its name there, as "module:PaymentService"."""
    wiring: str
    """The module with `IMPLEMENTATION`: access rules, alert queries, and how it is built."""
    migrations: str
    """The package and the folder of its migrations, as "package:folder"."""
    queries: str
    """The module with the `QUERIES` of `tallystick verify`, and its `INCONSISTENCY_QUERIES`."""
    checks: str
    """The module with the `CHECKS` of `tallystick verify`. A check that reads several services
    belongs to the one whose claim it checks.
    """
    dependencies: tuple[str, ...] = ()
    """The services that it calls. It stops before them."""
    connections: int = 4
    """The default of the setting `database.connections`."""
    publishes_events: bool = True
    """It has an outbox and alerts."""
    is_essential: bool = True
    """Without its database the process does not start, and its health is NOT_SERVING."""
    calls_providers: bool = False
    """It has operations and dead letters."""
    history_collection: str = ""
    """The collection of the resources whose every version it keeps, such as "paymentOrders"."""
    event_tables: Mapping[str, str] = field(default_factory=dict)
    """The tables of its other resources with events, by collection. Each row has the version of its
    last event.
    """

    @property
    def descriptor(self) -> ServiceDescriptor:
        """Its RPCs."""
        module, _, name = self.contract.partition(":")
        descriptor: ServiceDescriptor = import_module(module).DESCRIPTOR.services_by_name[name]
        return descriptor

    def load_queries(self) -> Mapping[str, str]:
        """The queries of `tallystick verify` on its schema, by "{schema}.{name}"."""
        queries: Mapping[str, str] = import_module(self.queries).QUERIES
        return queries

    def load_inconsistency_queries(self) -> tuple[str, ...]:
        """The names of the queries for rows that disagree with other rows of its schema."""
        return tuple(import_module(self.queries).INCONSISTENCY_QUERIES)

    def load_checks(self) -> tuple[Any, ...]:
        """Its checks of `tallystick verify`, the costly ones last."""
        return tuple(import_module(self.checks).CHECKS)
