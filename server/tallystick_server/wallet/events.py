"""What WalletService tells of its changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick_server.runtime.relay import tell
from tallystick_server.wallet import messages
from tallystick_storage import wallet as store


def entry_made(told: BatchPublishRequest, item: store.Decided, created: datetime) -> None:
    """Adds a new entry to what is told."""
    entry, instruction = messages.new_entry(item, created), item.instruction
    type_, aggregate = event_pb2.EVENT_TYPE_WALLET_CHANGED, f"wallets/{entry.seller_account}/{entry.currency}"
    tell(told, type_, aggregate, entry.number, entry.create_time, instruction.caller, item.traceparent, wallet_entry=entry)


def policy_set(told: BatchPublishRequest, wallet: Row[Any], caller: str, traceparent: str) -> None:
    """Adds a wallet's new policy to what is told."""
    message = messages.wallet(wallet)
    type_, aggregate = event_pb2.EVENT_TYPE_WALLET_POLICY_CHANGED, f"walletPolicies/{wallet.seller_account}/{wallet.currency}"
    tell(told, type_, aggregate, wallet.policy_version, message.update_time, caller, traceparent, wallet=message)
