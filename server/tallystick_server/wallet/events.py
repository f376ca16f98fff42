"""What WalletService tells of its changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick_core.event import event_id
from tallystick_server.runtime.fields import to_timestamp
from tallystick_server.wallet import messages
from tallystick_storage import outbox
from tallystick_storage import wallet as store
from tallystick_storage.database import Database

_WALLETS, _POLICIES = "wallets/", "walletPolicies/"


class WalletEvents:
    """The source of WalletService's relay."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most

    async def __call__(self) -> tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]:
        def unpublished(connection: Connection) -> tuple[list[outbox.Key], list[event_pb2.Event]]:
            keys = outbox.unpublished(connection, self._most)
            wallets = [key for key in keys if key[0].startswith(_WALLETS)]
            policies = [key for key in keys if key[0].startswith(_POLICIES)]
            events = [_entry_event(row) for row in store.entry_events(connection, wallets)] if wallets else []
            return keys, events + ([_policy_event(row) for row in store.policy_events(connection, policies)] if policies else [])

        keys, events = await self._database.read(unpublished)

        def published(connection: Connection) -> None:
            outbox.published(connection, keys)

        return events, lambda: self._database.transact(published)


def _entry_event(row: Row[Any]) -> event_pb2.Event:
    aggregate = f"{_WALLETS}{row.seller_account}/{row.currency}"
    return event_pb2.Event(
        event_id=event_id(aggregate, row.number),
        type=event_pb2.EVENT_TYPE_WALLET_CHANGED,
        aggregate_id=aggregate,
        aggregate_version=row.number,
        create_time=to_timestamp(row.create_time),
        caller=row.caller,
        traceparent=row.traceparent,
        wallet_entry=messages.entry(row),
    )


def _policy_event(row: Row[Any]) -> event_pb2.Event:
    aggregate = f"{_POLICIES}{row.seller_account}/{row.currency}"
    return event_pb2.Event(
        event_id=event_id(aggregate, row.policy_version),
        type=event_pb2.EVENT_TYPE_WALLET_POLICY_CHANGED,
        aggregate_id=aggregate,
        aggregate_version=row.policy_version,
        create_time=to_timestamp(row.update_time),
        caller=row.caller,
        traceparent=row.traceparent,
        wallet=messages.wallet(row),
    )
