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


def seller_changed(told: BatchPublishRequest, row: Row[Any], caller: str, traceparent: str) -> None:
    """Adds a seller that was claimed, or has come to another owner; the new owner's callers may stream it."""
    seller = messages.seller(row)
    type_, aggregate = event_pb2.EVENT_TYPE_SELLER_CHANGED, f"sellers/{seller.seller_account}"
    tell(told, type_, aggregate, seller.version, seller.update_time, caller, traceparent, seller.owner, seller=seller)


def assignment_changed(told: BatchPublishRequest, row: Row[Any], caller: str, traceparent: str) -> None:
    """Adds an assignment that was asked for, or decided."""
    assignment = messages.assignment(row)
    type_, aggregate = event_pb2.EVENT_TYPE_SELLER_ASSIGNMENT_CHANGED, f"sellerAssignments/{assignment.seller_assignment_id}"
    at = assignment.decide_time if assignment.HasField("decide_time") else assignment.create_time
    tell(told, type_, aggregate, assignment.version, at, caller, traceparent, seller_assignment=assignment)
