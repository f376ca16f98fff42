"""Payment admission: limits how many new charges may be queued while their provider fails. A
payment is rejected before sellers are claimed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tallystick_core.errors import ApiError, id_taken_error
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.charge import format_charge_id
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.payment.create_payment import ChargeCapacity, provider_unavailable_error
from tallystick_server.providers.gateway import ProviderGateway
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payment import checkouts as store
from tallystick_storage.sql import Connection

_MAX_COUNT_AGE_SECONDS = 1.0
"""Maximum age in seconds of a cached backlog count in the check before sellers are claimed."""


class PaymentAdmission:
    """Rejects payments that cannot be stored. A batch costs one read, and at most one count per
    second.
    """

    def __init__(
        self, database: Database, gateway: ProviderGateway, provider: str, max_queued_charges: int
    ) -> None:
        self._database = database
        self._gateway = gateway
        self._provider = provider
        self._max_queued_charges = max_queued_charges
        self._cached_count: tuple[float, int] | None = None
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
        self, connection: Connection, now: float, *, max_age_seconds: float = 0.0
    ) -> ChargeCapacity | None:
        """The number of charges that may be accepted at `now` (loop time) while the provider fails;
        None: no limit.

        `max_age_seconds`: how old the count may be. Perhaps none of the queued charges is sent
        soon; then a new one is allowed as a probe.
        """
        if not self._gateway.is_circuit_open(self._provider):
            return None
        cached_count = self._cached_count
        if cached_count is None or now - cached_count[0] >= max_age_seconds:
            cached_count = self._cached_count = (
                now,
                operation_store.count_backlog(
                    connection,
                    KindName.CHARGE,
                    self._provider,
                    max(self._max_queued_charges, 1),
                ),
            )
        queued_count = cached_count[1]
        allows_probe = self._gateway.needs_probe(
            self._provider, now, others_waiting=queued_count > 0
        )
        return ChargeCapacity(max(self._max_queued_charges - queued_count, 0), allows_probe)

    async def _check_batch(self, requests: Sequence[CheckoutRequest]) -> Sequence[ApiError | None]:
        now = asyncio.get_running_loop().time()
        checkout_ids = [request.checkout_id for request in requests]
        order_ids = [order.payment_order_id for request in requests for order in request.orders]

        def load(connection: Connection) -> tuple[set[tuple[str, str]], ChargeCapacity | None]:
            existing_ids = {
                (row.resource_type, row.id)
                for row in store.find_existing(connection, checkout_ids, order_ids)
            }
            return existing_ids, self.remaining_capacity(
                connection, now, max_age_seconds=_MAX_COUNT_AGE_SECONDS
            )

        existing_ids, capacity = await self._database.load(load)
        return [_admission_error(request, existing_ids, capacity) for request in requests]


def _admission_error(
    request: CheckoutRequest, existing_ids: set[tuple[str, str]], capacity: ChargeCapacity | None
) -> ApiError | None:
    ids = {
        ("checkout", request.checkout_id),
        *(("order", order.payment_order_id) for order in request.orders),
    }
    if ids & existing_ids:
        return id_taken_error("checkout_id")
    charge_count = len({format_charge_id(request, order) for order in request.orders})
    return (
        provider_unavailable_error()
        if capacity is not None and not capacity.allows_probe and capacity.charges < charge_count
        else None
    )
