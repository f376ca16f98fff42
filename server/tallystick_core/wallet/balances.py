"""How an instruction changes a wallet's balances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from tallystick_core.errors import (
    ApiError,
    ErrorReason,
    key_reused_error,
    not_found_error,
    state_error,
)
from tallystick_core.money import MAX_BALANCE
from tallystick_core.wallet.holds import Hold, hold_ended_error
from tallystick_core.wallet.instructions import Credit, Instruction
from tallystick_core.wallet.state import HOLD_TRANSITIONS, EntryKind, HoldState


@dataclass(frozen=True, slots=True)
class Balances:
    """The parts of a wallet in minor units, each at least 0. `owed` is 0 unless `available` is
    0.
    """

    pending: int = 0
    available: int = 0
    held: int = 0
    owed: int = 0

    @property
    def balance(self) -> int:
        return self.pending + self.available + self.held - self.owed


@dataclass(frozen=True, slots=True)
class Wallet:
    """One seller's wallet in one currency. `version` is the number of its last entry."""

    seller_account: str
    currency: str
    balances: Balances = Balances()
    version: int = 0
    frozen: bool = False
    release_delay: int = 0
    """Seconds that a sale stays pending; 0: it is available immediately."""


@dataclass(frozen=True, slots=True)
class WalletChange:
    """The effect of an instruction: the wallet after it, and the hold after it if it touches one.
    `amount` is the amount moved.
    """

    wallet: Wallet
    amount: int
    hold: Hold | None = None
    adds_pending: bool = False
    """Whether the credit must be released before it becomes available."""


def repay_then_add_available(balances: Balances, amount: int) -> Balances:
    """Makes money available, after repaying what is owed."""
    repaid = min(balances.owed, amount)
    return replace(
        balances, available=balances.available + amount - repaid, owed=balances.owed - repaid
    )


def is_already_released(credit: Credit | None, instruction: Instruction) -> bool:
    """Whether a release has nothing to do because its credit became available immediately. The
    response is that of a repeated release.
    """
    return instruction.kind is EntryKind.RELEASE and credit is not None and not credit.is_pending


def can_open_wallet(instruction: Instruction) -> bool:
    """Whether the instruction opens a missing wallet. Instructions that must always be booked
    do.
    """
    return instruction.kind is EntryKind.CREDIT or (
        instruction.kind is EntryKind.DEBIT and instruction.allow_owed
    )


def apply_instruction(
    wallet: Wallet,
    hold: Hold | None,
    instruction: Instruction,
    credit: Credit | None = None,
    *,
    now: datetime,
) -> WalletChange:
    """Applies one instruction that was not applied before. All checks come first, so nothing fails
    after the first change. `credit`: the credit that a release refers to.

    `now` is the database's time. Raises INSUFFICIENT_FUNDS, INVALID_STATE (frozen),
    BALANCE_OUT_OF_RANGE, NOT_FOUND, FIELD_INVALID (a past expire_time), HOLD_ENDED, HOLD_EXCEEDED.
    """
    match instruction.kind:
        case EntryKind.CREDIT:
            return _credit(wallet, instruction)
        case EntryKind.DEBIT:
            return _debit(wallet, instruction)
        case EntryKind.HOLD_PLACED:
            return _place_hold(wallet, hold, instruction, now)
        case EntryKind.HOLD_CAPTURED | EntryKind.HOLD_RELEASED | EntryKind.HOLD_EXPIRED:
            return _end_hold(wallet, hold, instruction, now)
        case EntryKind.RELEASE:
            return _release(wallet, credit, instruction.source_id)


def _with_balances(wallet: Wallet, balances: Balances) -> Wallet:
    if not -MAX_BALANCE <= balances.balance <= MAX_BALANCE:
        raise ApiError(
            ErrorReason.BALANCE_OUT_OF_RANGE,
            "The wallet's balance would exceed the maximum.",
        )
    return replace(wallet, balances=balances, version=wallet.version + 1)


def _credit(wallet: Wallet, instruction: Instruction) -> WalletChange:
    before = wallet.balances
    adds_pending = instruction.is_pending and wallet.release_delay > 0
    after = (
        replace(before, pending=before.pending + instruction.amount)
        if adds_pending
        else repay_then_add_available(before, instruction.amount)
    )
    return WalletChange(
        _with_balances(wallet, after), instruction.amount, adds_pending=adds_pending
    )


def _release(wallet: Wallet, credit: Credit | None, source_id: str) -> WalletChange:
    """Releases the whole pending credit. A frozen wallet allows it, because the owner of the money
    does not change.
    """
    if credit is None:
        raise not_found_error("credit", source_id, "source_id")
    before = wallet.balances
    after = repay_then_add_available(
        replace(before, pending=before.pending - credit.amount), credit.amount
    )
    return WalletChange(_with_balances(wallet, after), credit.amount)


def _reject_unavailable(wallet: Wallet, amount: int, verb: str) -> None:
    if wallet.frozen:
        raise state_error("The wallet is FROZEN and cannot be debited or held.", "FROZEN", verb)
    if wallet.balances.available < amount:
        raise ApiError(
            ErrorReason.INSUFFICIENT_FUNDS,
            "The amount must be at most the available balance of the wallet.",
        )


def _debit(wallet: Wallet, instruction: Instruction) -> WalletChange:
    before = wallet.balances
    if not instruction.allow_owed:
        _reject_unavailable(wallet, instruction.amount, "DEBIT")
    from_available = min(before.available, instruction.amount)
    after = replace(
        before,
        available=before.available - from_available,
        owed=before.owed + instruction.amount - from_available,
    )
    return WalletChange(_with_balances(wallet, after), instruction.amount)


def _is_expired(expire_time: datetime | None, now: datetime) -> bool:
    """Whether a hold with this expire_time has expired."""
    return expire_time is not None and expire_time <= now


def _place_hold(
    wallet: Wallet, hold: Hold | None, instruction: Instruction, now: datetime
) -> WalletChange:
    if hold is not None:
        raise key_reused_error("hold_id")
    if _is_expired(instruction.expire_time, now):
        raise ApiError(
            ErrorReason.FIELD_INVALID, "expire_time must be in the future.", field="expire_time"
        )
    _reject_unavailable(wallet, instruction.amount + instruction.minimum_remaining, "HOLD")
    before = wallet.balances
    after = replace(
        before,
        available=before.available - instruction.amount,
        held=before.held + instruction.amount,
    )
    new_hold = Hold(
        instruction.source_id,
        wallet.seller_account,
        wallet.currency,
        instruction.amount,
        instruction.purpose,
        instruction.caller,
        expire_time=instruction.expire_time,
    )
    return WalletChange(_with_balances(wallet, after), instruction.amount, new_hold)


def _end_hold(
    wallet: Wallet, hold: Hold | None, instruction: Instruction, now: datetime
) -> WalletChange:
    if hold is None:
        raise not_found_error("hold", instruction.source_id, "hold_id")
    state = HOLD_TRANSITIONS.get((hold.state, instruction.kind))
    if state is None:
        raise hold_ended_error(hold.state, instruction.kind)
    # applies even if the expiry job has not run yet
    if instruction.kind is not EntryKind.HOLD_EXPIRED and _is_expired(hold.expire_time, now):
        raise hold_ended_error(HoldState.EXPIRED, instruction.kind)
    captured_amount = instruction.amount if instruction.kind is EntryKind.HOLD_CAPTURED else 0
    if captured_amount > hold.amount:
        raise ApiError(
            ErrorReason.HOLD_EXCEEDED,
            "amount must be at most the amount of the hold.",
            field="amount",
        )
    after = repay_then_add_available(
        replace(wallet.balances, held=wallet.balances.held - hold.amount),
        hold.amount - captured_amount,
    )
    amount = captured_amount if instruction.kind is EntryKind.HOLD_CAPTURED else hold.amount
    return WalletChange(
        _with_balances(wallet, after),
        amount,
        replace(hold, state=state, captured_amount=captured_amount),
    )
