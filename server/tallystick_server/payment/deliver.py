"""Deliver: deliveries are noted; the wallet is told afterwards to make the sellers' money available. Telling it may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_server.payment import encode, events
from tallystick_server.runtime.items import ItemRefused, outcomes, raise_unavailable, refused_items
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.relay import telling
from tallystick_server.runtime.stage import by_halves
from tallystick_storage.database import Database
from tallystick_storage.payment import delivery as store

log = logging.getLogger(__name__)

_MOST_RELEASED = 500


class Deliver:
    """The deliver stage's work, and what follows from it."""

    def __init__(self, database: Database, peers: Peers, wallet_address: str) -> None:
        self._database = database
        self._peers = peers
        self._wallet: Any = peers.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet_address)

    async def run(self, order_ids: Sequence[str]) -> Sequence[bool | Exception]:
        """Whether each order's delivery was noted now; it was before, or the order is not settled, if not."""
        return await by_halves(self._confirm, order_ids)

    async def _confirm(self, order_ids: Sequence[str]) -> Sequence[bool | Exception]:
        def confirm(connection: Connection) -> set[str]:
            rows = store.confirm(connection, sorted(set(order_ids)))
            with telling(connection, rows) as told:
                for row in rows:
                    events.order_changed(told, encode.stored_order(row), row)
            return {row.payment_order_id for row in rows}

        confirmed = await self._database.transact(confirm)
        return [order_id in confirmed for order_id in order_ids]

    async def turn(self) -> None:
        """Has the wallet release what is due. What it refuses waits longer each time, and is an alert. Raises DEPENDENCY_UNAVAILABLE."""
        rows = await self._database.load(lambda connection: store.to_release(connection, _MOST_RELEASED))
        if not rows:
            return
        results = await by_halves(self._release, rows)
        released = [row.payment_order_id for row, result in zip(rows, results, strict=True) if result is None]
        refused = refused_items([row.payment_order_id for row in rows], results)

        def note(connection: Connection) -> list[str]:
            store.released(connection, released)
            return store.refused(connection, refused) if refused else []

        for order_id in await self._database.transact(note):
            log.warning("the wallet refuses to release what was paid for order %s: %s", order_id, refused[order_id])
        raise_unavailable(results)

    async def _release(self, rows: Sequence[Row[Any]]) -> Sequence[ItemRefused | None]:
        releases = [wallet_service_pb2.Release(cause=f"PAY_IN/{row.payment_order_id}", caller=row.caller) for row in rows]
        request = wallet_service_pb2.BatchReleaseRequest(releases=releases, outcome_only=True)
        return outcomes((await self._peers.call(self._wallet.BatchRelease, request)).results)
