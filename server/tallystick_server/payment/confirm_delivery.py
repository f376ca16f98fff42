"""Delivery confirmation: records deliveries, then asks the wallet to release the sellers' funds.

The release is idempotent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_server.observability import names
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.outbox.events import record_events
from tallystick_server.payment import convert, events
from tallystick_server.rpc.batch import (
    ItemRejected,
    item_errors,
    raise_if_unavailable,
    split_results,
)
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database
from tallystick_storage.payment import deliveries as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

_MAX_RELEASES = 500


class DeliveryConfirmation:
    """Records deliveries and requests the wallet releases that follow."""

    def __init__(
        self, database: Database, service_client: ServiceClient, wallet_address: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._wallet = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )

    async def run(self, order_ids: Sequence[str]) -> Sequence[bool | Exception]:
        """Returns for each order whether its delivery is recorded only now.

        False: it was recorded before, or the order is not booked.
        """
        return await bisect_on_error(self._confirm_batch, order_ids)

    async def _confirm_batch(self, order_ids: Sequence[str]) -> Sequence[bool | Exception]:
        def confirm(connection: Connection) -> set[str]:
            rows = store.confirm_delivery(connection, sorted(set(order_ids)))
            with record_events(connection, rows) as publish_request:
                for row in rows:
                    events.add_order_changed(publish_request, convert.stored_order(row), row)
            return {row.payment_order_id for row in rows}

        confirmed_ids = await self._database.transact(confirm)
        return [order_id in confirmed_ids for order_id in order_ids]

    async def run_once(self) -> None:
        """Requests the wallet releases that are due.

        A rejected release is delayed longer each time and raises an alert. Raises
        DEPENDENCY_UNAVAILABLE.
        """
        rows = await self._database.load(
            lambda connection: store.list_releasable(connection, _MAX_RELEASES)
        )
        if not rows:
            return
        results = await bisect_on_error(self._release, rows)
        released_ids, rejections = split_results([row.payment_order_id for row in rows], results)

        def record_results(connection: Connection) -> list[str]:
            store.mark_released(connection, released_ids)
            return store.mark_release_rejected(connection, rejections)

        for order_id in await self._database.transact(record_results):
            log.warning(
                "WalletService rejects the release of order %s: %s",
                order_id,
                rejections[order_id],
                extra=names.BOOKING_REJECTED.extra,
            )
        raise_if_unavailable(results)

    async def _release(
        self, rows: Sequence[store.PendingReleaseRow]
    ) -> Sequence[ItemRejected | None]:
        releases = [
            wallet_service_pb2.Release(
                source_id=f"PAY_IN/{row.payment_order_id}", caller=row.caller
            )
            for row in rows
        ]
        request = wallet_service_pb2.BatchReleaseRequest(releases=releases, outcome_only=True)
        return item_errors(
            (await self._service_client.call(self._wallet.BatchRelease, request)).results
        )
