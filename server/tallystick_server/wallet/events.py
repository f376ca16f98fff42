"""Events of WalletService."""

from __future__ import annotations

from datetime import datetime

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick_server.outbox.events import add_event
from tallystick_server.wallet import convert
from tallystick_storage.wallet import wallets as store
from tallystick_storage.wallet.queries import WalletRow
from tallystick_storage.wallet.seller_ownership import AssignmentRow, SellerRow


def add_wallet_changed(
    publish_request: BatchPublishRequest, item: store.DecidedInstruction, create_time: datetime
) -> None:
    """Adds the event of a new entry."""
    entry, instruction = convert.new_entry(item, create_time), item.instruction
    type_, aggregate = (
        event_pb2.EVENT_TYPE_WALLET_CHANGED,
        f"wallets/{entry.seller_account}/{entry.currency}",
    )
    add_event(
        publish_request,
        type_,
        aggregate,
        entry.number,
        entry.create_time,
        instruction.caller,
        item.traceparent,
        wallet_entry=entry,
    )


def add_policy_changed(
    publish_request: BatchPublishRequest, wallet: WalletRow, caller: str, traceparent: str
) -> None:
    """Adds the event of a wallet's new policy."""
    message = convert.wallet(wallet)
    type_, aggregate = (
        event_pb2.EVENT_TYPE_WALLET_POLICY_CHANGED,
        f"walletPolicies/{wallet.seller_account}/{wallet.currency}",
    )
    add_event(
        publish_request,
        type_,
        aggregate,
        wallet.policy_version,
        message.update_time,
        caller,
        traceparent,
        wallet=message,
    )


def add_seller_changed(
    publish_request: BatchPublishRequest, row: SellerRow, caller: str, traceparent: str
) -> None:
    """Adds the event of a seller that was claimed or assigned to another owner.

    The callers of the new owner may stream it.
    """
    seller = convert.seller(row)
    type_, aggregate = event_pb2.EVENT_TYPE_SELLER_CHANGED, f"sellers/{seller.seller_account}"
    add_event(
        publish_request,
        type_,
        aggregate,
        seller.version,
        seller.update_time,
        caller,
        traceparent,
        seller.owner,
        seller=seller,
    )


def add_assignment_changed(
    publish_request: BatchPublishRequest, row: AssignmentRow, caller: str, traceparent: str
) -> None:
    """Adds the event of an assignment that was requested or decided."""
    assignment = convert.assignment(row)
    type_, aggregate = (
        event_pb2.EVENT_TYPE_SELLER_ASSIGNMENT_CHANGED,
        f"sellerAssignments/{assignment.seller_assignment_id}",
    )
    event_time = (
        assignment.decide_time if assignment.HasField("decide_time") else assignment.create_time
    )
    add_event(
        publish_request,
        type_,
        aggregate,
        assignment.version,
        event_time,
        caller,
        traceparent,
        seller_assignment=assignment,
    )
