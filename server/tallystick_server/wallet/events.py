"""What WalletService tells of its changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick_core.event import event_id
from tallystick_server.runtime.fields import to_timestamp
from tallystick_server.wallet import messages
from tallystick_storage import wallet as store


def entry_made(told: BatchPublishRequest, item: store.Decided, created: datetime) -> None:
    """Adds a new entry to what is told."""
    entry = messages.new_entry(item, created)
    aggregate = f"wallets/{entry.seller_account}/{entry.currency}"
    told.events.add(
        event_id=event_id(aggregate, entry.number),
        type=event_pb2.EVENT_TYPE_WALLET_CHANGED,
        aggregate_id=aggregate,
        aggregate_version=entry.number,
        create_time=entry.create_time,
        caller=item.instruction.caller,
        traceparent=item.traceparent,
        wallet_entry=entry,
    )


def policy_set(told: BatchPublishRequest, wallet: Row[Any], caller: str, traceparent: str) -> None:
    """Adds a wallet's new policy to what is told."""
    aggregate = f"walletPolicies/{wallet.seller_account}/{wallet.currency}"
    told.events.add(
        event_id=event_id(aggregate, wallet.policy_version),
        type=event_pb2.EVENT_TYPE_WALLET_POLICY_CHANGED,
        aggregate_id=aggregate,
        aggregate_version=wallet.policy_version,
        create_time=to_timestamp(wallet.update_time),
        caller=caller,
        traceparent=traceparent,
        wallet=messages.wallet(wallet),
    )
