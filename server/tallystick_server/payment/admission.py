"""Payment admission: limits how many new charges may be queued while their provider fails. A
payment is rejected before sellers are claimed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from tallystick_core.errors import ApiError, id_taken_error
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.routing import RoutingTable
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.payment.capacity import (
    CapacityCounter,
    ChargeCapacity,
    Route,
    provider_unavailable_error,
)
from tallystick_server.providers.gateway import ProviderGateway
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payment import checkouts as store
from tallystick_storage.sql import Connection

_MAX_COUNT_AGE_SECONDS = 1.0
"""Maximum age in seconds of a cached backlog count in the check before sellers are claimed."""


class PaymentAdmission:
    """Rejects payments that cannot be stored. A batch costs one read, and at most one count of each
    failing provider per second.
    """

    def __init__(
        self,
        database: Database,
        gateway: ProviderGateway,
        routing: RoutingTable,
        max_queued_charges: int,
    ) -> None:
        self._database = database
        self._gateway = gateway
        self._routing = routing
        self._max_queued_charges = max_queued_charges
        self._cached_counts: dict[str, tuple[float, int]] = {}
        self.batcher: Batcher[CheckoutRequest, None] = Batcher(
            "payment.check_admission",
            self._check_batch,
            max_batch=MAX_ITEMS,
            size_of=lambda request: len(request.orders),
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )

    async def check(self, request: CheckoutRequest) -> None:
        """Raises the error of a payment that is rejected regardless of the owners of its sellers.

        Raises ALREADY_EXISTS if one of its ids exists. That ends this check; CreatePayment then
        answers with the stored payment.
        """
        await self.batcher.submit(request)

    def remaining_capacity(
        self,
        connection: Connection,
        now: float,
        routes: Collection[Route],
        *,
        max_age_seconds: float = 0.0,
    ) -> dict[Route, ChargeCapacity]:
        """The number of charges that each of these routes accepts at `now` (loop time). Only routes
        with a limit are in the result: their provider fails, and no fallback answers instead.

        `max_age_seconds`: how old the counts may be. Perhaps none of the queued charges is sent
        soon; then a new one is allowed as a probe.
        """
        limited = sorted(route for route in routes if self._must_queue(route))
        by_provider = {
            provider: self._capacity_of(connection, provider, now, max_age_seconds)
            for provider in dict.fromkeys(route.provider for route in limited)
        }
        return {route: by_provider[route.provider] for route in limited}

    def _must_queue(self, route: Route) -> bool:
        """Whether charges of a route wait now."""
        is_open = self._gateway.is_circuit_open
        return is_open(route.provider) and (not route.fallback or is_open(route.fallback))

    def _capacity_of(
        self, connection: Connection, provider: str, now: float, max_age_seconds: float
    ) -> ChargeCapacity:
        cached_count = self._cached_counts.get(provider)
        if cached_count is None or now - cached_count[0] >= max_age_seconds:
            limit = max(self._max_queued_charges, 1)
            cached_count = self._cached_counts[provider] = (
                now,
                operation_store.count_backlog(connection, KindName.CHARGE, provider, limit),
            )
        queued_count = cached_count[1]
        allows_probe = self._gateway.needs_probe(provider, now, others_waiting=queued_count > 0)
        return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe)

    async def _check_batch(self, requests: Sequence[CheckoutRequest]) -> Sequence[ApiError | None]:
        now = asyncio.get_running_loop().time()
        checkout_ids = [request.checkout_id for request in requests]
        order_ids = [order.payment_order_id for request in requests for order in request.orders]
        routes_by_request = [self._routes_of(request) for request in requests]
        all_routes = {route for routes in routes_by_request for route in routes}

        def load(
            connection: Connection,
        ) -> tuple[set[tuple[str, str]], dict[Route, ChargeCapacity]]:
            existing_ids = {
                (row.resource_type, row.id)
                for row in store.find_existing(connection, checkout_ids, order_ids)
            }
            return existing_ids, self.remaining_capacity(
                connection, now, all_routes, max_age_seconds=_MAX_COUNT_AGE_SECONDS
            )

        existing_ids, capacities = await self._database.load(load)
        return [
            _admission_error(request, existing_ids, routes, capacities)
            for request, routes in zip(requests, routes_by_request, strict=True)
        ]

    def _routes_of(self, request: CheckoutRequest) -> list[Route]:
        """The route of each charge, if no risk rule rejects an order."""
        decisions = self._routing.route_charges(request, request.orders)
        return [Route(decision.provider, decision.fallback) for decision in decisions.values()]


def _admission_error(
    request: CheckoutRequest,
    existing_ids: set[tuple[str, str]],
    routes: Sequence[Route],
    capacities: Mapping[Route, ChargeCapacity],
) -> ApiError | None:
    ids = {
        ("checkout", request.checkout_id),
        *(("order", order.payment_order_id) for order in request.orders),
    }
    if ids & existing_ids:
        return id_taken_error("checkout_id")
    return None if CapacityCounter(capacities).admit(routes) else provider_unavailable_error()
