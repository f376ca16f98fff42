"""Converts WalletService messages to values and back. Parsing validates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from google.protobuf.duration_pb2 import Duration

from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_core.money import format_amount, parse_amount, parse_currency
from tallystick_core.validation import (
    parse_id,
    parse_optional_id,
    parse_reason_text,
    reject_card_id,
    require_item_count,
)
from tallystick_core.wallet.holds import is_hold_id, parse_hold_id, require_hold_namespace
from tallystick_core.wallet.instructions import Instruction
from tallystick_core.wallet.seller_ownership import NewAssignment, SellerClaim
from tallystick_core.wallet.state import EntryKind
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_optional_timestamp, to_timestamp
from tallystick_storage.wallet import wallets as store
from tallystick_storage.wallet.queries import EntryRow, WalletRow
from tallystick_storage.wallet.seller_ownership import AssignmentRow, SellerRow

_ENTRY_KINDS = EnumNames(wallet_pb2.WalletEntryKind.DESCRIPTOR)
_HOLD_STATES = EnumNames(wallet_pb2.HoldState.DESCRIPTOR)
_PURPOSES = EnumNames(wallet_pb2.HoldPurpose.DESCRIPTOR)
_ASSIGNMENT_STATES = EnumNames(wallet_pb2.SellerAssignmentState.DESCRIPTOR)
_SOURCE_ID = re.compile(r"\A([A-Z_]+)/[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", re.ASCII)
_MAX_SOURCES = 300
_MAX_DELAY_SECONDS = 365 * 86_400


def _parse_source_id(text: str, field: str = "source_id") -> str:
    match = _SOURCE_ID.match(text)
    if match is None or match[1] not in PostingKind.__members__:
        reason = ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED
        raise ApiError(
            reason,
            f"{field} must be {{TransactionKind}}/{{source_id}}, such as PAY_IN/po-1.",
            field=field,
        )
    reject_card_id(text.rpartition("/")[2], field)
    return text


def parse_entry_source(text: str, field: str = "source_id") -> str:
    """Parses the source of an entry to search for: of a movement, or a hold; "": none. Raises
    FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if not text or is_hold_id(text):
        return text
    return _parse_source_id(text, field)


def parse_entry_sources(texts: Sequence[str]) -> list[str]:
    """Parses 1 to 300 sources as `parse_entry_source` does."""
    require_item_count(texts, "source_ids", _MAX_SOURCES)
    return [parse_entry_source(text, f"source_ids[{index}]") for index, text in enumerate(texts)]


def parse_credit(message: pb.Credit) -> Instruction:
    """Parses a credit. Raises ApiError with the first invalid field."""
    return _parse_movement(EntryKind.CREDIT, message, is_pending=message.pending)


def parse_release(message: pb.Release) -> Instruction:
    """Parses a release. Raises ApiError with the first invalid field."""
    return Instruction(
        EntryKind.RELEASE, _parse_source_id(message.source_id), parse_id(message.caller, "caller")
    )


def parse_debit(message: pb.Debit) -> Instruction:
    """Parses a debit. Raises ApiError with the first invalid field."""
    return _parse_movement(EntryKind.DEBIT, message, allow_owed=message.allow_owed)


def _parse_movement(
    kind: EntryKind,
    message: pb.Credit | pb.Debit,
    *,
    is_pending: bool = False,
    allow_owed: bool = False,
) -> Instruction:
    source_id = _parse_source_id(message.source_id)
    caller = parse_id(message.caller, "caller")
    seller = parse_id(message.seller_account, "seller_account")
    currency = parse_currency(message.currency)
    return Instruction(
        kind,
        source_id,
        caller,
        seller,
        currency,
        parse_amount(message.amount, currency),
        is_pending,
        allow_owed,
    )


def parse_hold(message: pb.NewHold) -> Instruction:
    """Parses a hold to place. Raises ApiError with the first invalid field."""
    hold_id = parse_hold_id(message.hold_id)
    caller = parse_id(message.caller, "caller")
    seller = parse_id(message.seller_account, "seller_account")
    currency = parse_currency(message.currency)
    amount = parse_amount(message.amount, currency)
    purpose = _PURPOSES.parse(message.purpose, "purpose")
    require_hold_namespace(hold_id, purpose)
    expire_time = parse_time(message, "expire_time")
    if expire_time is not None and purpose == "PAYOUT":
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "expire_time must be unset: a payout's hold never expires.",
            field="expire_time",
        )
    minimum_remaining = (
        parse_amount(message.minimum_remaining, currency, "minimum_remaining", min_amount=0)
        if message.minimum_remaining
        else 0
    )
    return Instruction(
        EntryKind.HOLD_PLACED,
        hold_id,
        caller,
        seller,
        currency,
        amount,
        purpose=purpose,
        expire_time=expire_time,
        minimum_remaining=minimum_remaining,
    )


def parse_policy(message: pb.SetWalletPolicyRequest) -> tuple[bool | None, int | None]:
    """Whether to freeze, and the release delay in whole seconds; None: unchanged.

    Raises FIELD_REQUIRED, FIELD_INVALID.
    """
    frozen = message.frozen if message.HasField("frozen") else None
    if not message.HasField("release_delay"):
        if frozen is None:
            raise ApiError(
                ErrorReason.FIELD_REQUIRED,
                "frozen or release_delay must be set; an unset field does not change.",
                field="frozen",
            )
        return frozen, None
    delay = message.release_delay
    if delay.nanos or not 0 <= delay.seconds <= _MAX_DELAY_SECONDS:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "release_delay must be whole seconds from 0 to 365 days.",
            field="release_delay",
        )
    return frozen, delay.seconds


def wallet(row: WalletRow) -> wallet_pb2.Wallet:
    def text(amount: Decimal) -> str:
        return format_amount(int(amount), row.currency)

    return wallet_pb2.Wallet(
        seller_account=row.seller_account,
        currency=row.currency,
        balance=text(row.balance),
        pending=text(row.pending),
        available=text(row.available),
        held=text(row.held),
        owed=text(row.owed),
        frozen=row.frozen,
        release_delay=Duration(seconds=row.release_delay),
        version=row.version,
        update_time=to_timestamp(row.update_time),
        policy_version=row.policy_version,
    )


def entry(row: EntryRow) -> wallet_pb2.WalletEntry:
    def text(amount: Decimal | int) -> str:
        return format_amount(int(amount), row.currency)

    return wallet_pb2.WalletEntry(
        seller_account=row.seller_account,
        number=row.number,
        kind=_ENTRY_KINDS.number(row.kind),
        source_id=row.source_id,
        amount=text(row.amount),
        currency=row.currency,
        pending_after=text(row.pending_after),
        available_after=text(row.available_after),
        held_after=text(row.held_after),
        owed_after=text(row.owed_after),
        create_time=to_timestamp(row.create_time),
    )


def new_entry(item: store.DecidedInstruction, create_time: datetime) -> wallet_pb2.WalletEntry:
    """A new entry."""
    wallet, instruction = item.change.wallet, item.instruction

    def text(amount: int) -> str:
        return format_amount(amount, wallet.currency)

    return wallet_pb2.WalletEntry(
        seller_account=wallet.seller_account,
        number=wallet.version,
        kind=_ENTRY_KINDS.number(instruction.kind),
        source_id=instruction.source_id,
        amount=text(item.change.amount),
        currency=wallet.currency,
        pending_after=text(wallet.balances.pending),
        available_after=text(wallet.balances.available),
        held_after=text(wallet.balances.held),
        owed_after=text(wallet.balances.owed),
        create_time=to_timestamp(create_time),
    )


def hold(row: store.HoldRow) -> wallet_pb2.Hold:
    return wallet_pb2.Hold(
        hold_id=row.hold_id,
        seller_account=row.seller_account,
        amount=format_amount(row.amount, row.currency),
        captured_amount=format_amount(row.captured_amount, row.currency),
        currency=row.currency,
        purpose=_PURPOSES.number(row.purpose),
        state=_HOLD_STATES.number(row.state),
        expire_time=to_optional_timestamp(row.expire_time),
        create_time=to_timestamp(row.create_time),
        end_time=to_optional_timestamp(row.end_time),
    )


def parse_claim(message: pb.SellerClaim) -> SellerClaim:
    """Parses a claim. Raises ApiError with the first invalid field."""
    owner = parse_optional_id(message.owner, "owner")
    return SellerClaim(parse_id(message.seller_account, "seller_account"), owner, message.group)


def parse_assignment(message: pb.RequestSellerAssignmentRequest, caller: str) -> NewAssignment:
    """Parses a requested assignment. Raises ApiError with the first invalid field."""
    return NewAssignment(
        parse_id(message.seller_assignment_id, "seller_assignment_id"),
        parse_id(message.seller_account, "seller_account"),
        parse_id(message.owner, "owner"),
        caller,
        parse_reason_text(message.reason, "reason"),
    )


def seller(row: SellerRow) -> wallet_pb2.Seller:
    return wallet_pb2.Seller(
        seller_account=row.seller_account,
        owner=row.owner,
        version=row.version,
        update_time=to_timestamp(row.update_time),
    )


def assignment(row: AssignmentRow) -> wallet_pb2.SellerAssignment:
    return wallet_pb2.SellerAssignment(
        seller_assignment_id=row.seller_assignment_id,
        seller_account=row.seller_account,
        owner=row.owner,
        previous_owner=row.previous_owner,
        state=_ASSIGNMENT_STATES.number(row.state),
        requested_by=row.requested_by,
        reason=row.reason,
        decided_by=row.decided_by,
        decision_reason=row.decision_reason,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        decide_time=to_optional_timestamp(row.decide_time),
    )
