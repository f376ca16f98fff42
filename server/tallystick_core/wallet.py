"""Sellers' wallets: total functions over the four parts of a balance, and the table of a hold's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from tallystick_core.canonical import fingerprint
from tallystick_core.identifier import is_id, parse_id
from tallystick_core.money import MAX_BALANCE
from tallystick_core.refusal import ApiError, ErrorReason, key_reused_error, not_found_error
from tallystick_core.table import Verb


class EntryKind(StrEnum):
    """What changed a wallet."""

    CREDIT = "CREDIT"
    RELEASE = "RELEASE"
    DEBIT = "DEBIT"
    HOLD_PLACED = "HOLD_PLACED"
    HOLD_CAPTURED = "HOLD_CAPTURED"
    HOLD_RELEASED = "HOLD_RELEASED"
    HOLD_EXPIRED = "HOLD_EXPIRED"


class HoldState(StrEnum):
    """How far a hold has come. Only OPEN moves on: by capture, by release, or at its expire_time."""

    OPEN = "OPEN"
    CAPTURED = "CAPTURED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


HOLD_TRANSITIONS: dict[tuple[HoldState, EntryKind], HoldState] = {
    (HoldState.OPEN, EntryKind.HOLD_CAPTURED): HoldState.CAPTURED,
    (HoldState.OPEN, EntryKind.HOLD_RELEASED): HoldState.RELEASED,
    (HoldState.OPEN, EntryKind.HOLD_EXPIRED): HoldState.EXPIRED,
}


_PAYOUT_PREFIX = "payouts/"
"""The namespace of the holds of payouts: no id of a caller contains a slash, so no other hold takes the id of a payout's hold."""


def is_hold_id(text: str) -> bool:
    """Whether `text` has the form of a hold's id."""
    return is_id(text.removeprefix(_PAYOUT_PREFIX))


def parse_hold_id(text: str, field: str = "hold_id") -> str:
    """A hold's id: payouts/{payout_id} for a payout, an id for every other purpose. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    parse_id(text.removeprefix(_PAYOUT_PREFIX), field)
    return text


def require_hold_namespace(hold_id: str, purpose: str) -> None:
    """Raises FIELD_INVALID where a hold's id is not of the namespace of its purpose."""
    if purpose == "PAYOUT" and not hold_id.startswith(_PAYOUT_PREFIX):
        raise ApiError(ErrorReason.FIELD_INVALID, f"hold_id must be {_PAYOUT_PREFIX}{{payout_id}} for the purpose PAYOUT.", field="hold_id")
    if purpose != "PAYOUT" and hold_id.startswith(_PAYOUT_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID, f"hold_id must not begin with {_PAYOUT_PREFIX}: such ids are for the purpose PAYOUT.", field="hold_id"
        )


def require_payout_service(hold_ids: Sequence[str], caller: str, payout_service: str, field_template: str) -> None:
    """Raises METHOD_FORBIDDEN where another caller than PayoutService names the hold of a payout. `field_template`: of a hold's id, by its place."""
    if caller == payout_service:
        return
    for index, hold_id in enumerate(hold_ids):
        if hold_id.startswith(_PAYOUT_PREFIX):
            field = field_template.format(index)
            message = f"{field} must not begin with {_PAYOUT_PREFIX}: such holds are for PayoutService alone, which calls as {payout_service}."
            raise ApiError(ErrorReason.METHOD_FORBIDDEN, message, field=field)


@dataclass(frozen=True, slots=True)
class Balances:
    """The parts of a wallet in minor units, each at least 0; `owed` is 0 unless `available` is 0."""

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
    """Seconds a sale stays pending; 0: it is available at once."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Money set aside in a wallet."""

    hold_id: str
    seller_account: str
    currency: str
    amount: int
    purpose: str
    caller: str
    captured_amount: int = 0
    state: HoldState = HoldState.OPEN
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """A credit that was made before, as a release finds it by its cause. `pending`: it did not become available at once."""

    seller_account: str
    currency: str
    amount: int
    pending: bool


@dataclass(frozen=True)
class Instruction:
    """One change to make. `cause` with `kind` is its key: "PAY_IN/po-1", or the hold's id. A release has the cause of its credit, and no amount."""

    kind: EntryKind
    cause: str
    caller: str = ""
    seller_account: str = ""
    currency: str = ""
    amount: int = 0
    pending: bool = False
    allow_owed: bool = False
    purpose: str = ""
    expire_time: datetime | None = None
    minimum_remaining: int = 0
    """What has to stay available beside a hold that is placed."""

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        expire = self.expire_time.isoformat() if self.expire_time else ""
        identity = (self.kind, self.cause, self.seller_account, self.currency, self.amount)
        minimum = (self.minimum_remaining,) if self.minimum_remaining else ()  # holds that keep nothing have the fingerprint they always had
        return fingerprint(*identity, int(self.pending), int(self.allow_owed), self.purpose, expire, *minimum)


_LAST_FIELD = {EntryKind.CREDIT: "pending", EntryKind.DEBIT: "as_fact", EntryKind.HOLD_PLACED: "keep_available"}
"""What differs when nothing else does, of the kinds whose entries name a seller and an amount."""


@dataclass(frozen=True, slots=True)
class StoredInstruction:
    """A change that was made before, as its entry has it."""

    fingerprint: bytes
    seller_account: str
    currency: str
    amount: int


def first_difference(sent: Instruction, stored: StoredInstruction, hold: Hold | None) -> str:
    """The contract's name of the first field in which an instruction differs from the one of its key that was made; `hold`: the one it placed."""
    if sent.kind is EntryKind.HOLD_CAPTURED:
        return "amount"
    names = ("seller_account", "amount", "currency") if sent.kind in _LAST_FIELD else ()
    differences = [name for name in names if getattr(sent, name) != getattr(stored, name)]
    if hold is not None and not differences:
        differences = [name for name in ("purpose", "expire_time") if getattr(sent, name) != getattr(hold, name)]
    return differences[0] if differences else _LAST_FIELD.get(sent.kind, "hold_id")


@dataclass(frozen=True, slots=True)
class WalletChange:
    """What an instruction does: the wallet after it, and the hold after it if it touches one. `amount` is what moved."""

    wallet: Wallet
    amount: int
    hold: Hold | None = None
    adds_pending: bool = False
    """A credit that has to be released before it is available."""


def repay_then_add_available(balances: Balances, amount: int) -> Balances:
    """Money becomes available; what is owed is repaid first."""
    repaid = min(balances.owed, amount)
    return replace(balances, available=balances.available + amount - repaid, owed=balances.owed - repaid)


def is_already_released(credit: Credit | None, instruction: Instruction) -> bool:
    """Whether a release has nothing to do, because its credit became available at once; it is answered as one that was made before."""
    return instruction.kind is EntryKind.RELEASE and credit is not None and not credit.pending


def can_open_wallet(instruction: Instruction) -> bool:
    """Whether the instruction opens a missing wallet: whatever must always be booked does."""
    return instruction.kind is EntryKind.CREDIT or (instruction.kind is EntryKind.DEBIT and instruction.allow_owed)


def apply_instruction(
    wallet: Wallet, hold: Hold | None, instruction: Instruction, credit: Credit | None = None, *, now: datetime | None
) -> WalletChange:
    """Decides one instruction that was not made before. All refusals come first, then success is certain. `credit`: what a release is about.

    `now` is the database's time; it may be None only if neither the hold nor the instruction has an expire_time.
    Raises INSUFFICIENT_FUNDS, STATE_FORBIDS (frozen), BALANCE_OUT_OF_RANGE, NOT_FOUND, FIELD_INVALID (a past expire_time), HOLD_ENDED, HOLD_EXCEEDED.
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
            return _release(wallet, credit, instruction.cause)


def _with_balances(wallet: Wallet, balances: Balances) -> Wallet:
    if not -MAX_BALANCE <= balances.balance <= MAX_BALANCE:
        raise ApiError(ErrorReason.BALANCE_OUT_OF_RANGE, "The wallet's balance would outgrow what can be booked.")
    return replace(wallet, balances=balances, version=wallet.version + 1)


def _credit(wallet: Wallet, instruction: Instruction) -> WalletChange:
    before = wallet.balances
    adds_pending = instruction.pending and wallet.release_delay > 0
    after = replace(before, pending=before.pending + instruction.amount) if adds_pending else repay_then_add_available(before, instruction.amount)
    return WalletChange(_with_balances(wallet, after), instruction.amount, adds_pending=adds_pending)


def _release(wallet: Wallet, credit: Credit | None, cause: str) -> WalletChange:
    """The whole of a credit that pends, also of a frozen wallet: whose money it is does not change by it."""
    if credit is None:
        raise not_found_error("credit", cause, "cause")
    before = wallet.balances
    after = repay_then_add_available(replace(before, pending=before.pending - credit.amount), credit.amount)
    return WalletChange(_with_balances(wallet, after), credit.amount)


def _reject_unavailable(wallet: Wallet, amount: int, verb: str) -> None:
    if wallet.frozen:
        raise ApiError(
            ErrorReason.STATE_FORBIDS, "The wallet is FROZEN: its money can be neither debited nor held.", metadata={"state": "FROZEN", "verb": verb}
        )
    if wallet.balances.available < amount:
        raise ApiError(ErrorReason.INSUFFICIENT_FUNDS, "The wallet has less available than is asked for.")


def _debit(wallet: Wallet, instruction: Instruction) -> WalletChange:
    before = wallet.balances
    if not instruction.allow_owed:
        _reject_unavailable(wallet, instruction.amount, "DEBIT")
    from_available = min(before.available, instruction.amount)
    after = replace(before, available=before.available - from_available, owed=before.owed + instruction.amount - from_available)
    return WalletChange(_with_balances(wallet, after), instruction.amount)


def _is_expired(expire_time: datetime | None, now: datetime | None) -> bool:
    """Whether a hold with this expire_time has expired. A missing `now` counts as too late: an unknown time moves no money."""
    return expire_time is not None and (now is None or expire_time <= now)


def _place_hold(wallet: Wallet, hold: Hold | None, instruction: Instruction, now: datetime | None) -> WalletChange:
    if hold is not None:
        raise key_reused_error("hold_id")
    if _is_expired(instruction.expire_time, now):
        raise ApiError(ErrorReason.FIELD_INVALID, "expire_time must be in the future.", field="expire_time")
    _reject_unavailable(wallet, instruction.amount + instruction.minimum_remaining, "HOLD")
    before = wallet.balances
    after = replace(before, available=before.available - instruction.amount, held=before.held + instruction.amount)
    new_hold = Hold(
        instruction.cause,
        wallet.seller_account,
        wallet.currency,
        instruction.amount,
        instruction.purpose,
        instruction.caller,
        expire_time=instruction.expire_time,
    )
    return WalletChange(_with_balances(wallet, after), instruction.amount, new_hold)


_HOLD_VERBS = {
    EntryKind.HOLD_PLACED: Verb("PLACE", "placed again"),
    EntryKind.HOLD_CAPTURED: Verb("CAPTURE", "captured"),
    EntryKind.HOLD_RELEASED: Verb("RELEASE", "released"),
    EntryKind.HOLD_EXPIRED: Verb("EXPIRE", "expired"),
}


def hold_ended_error(state: HoldState, kind: EntryKind) -> ApiError:
    """The refusal of what is to be done with a hold that has ended."""
    verb = _HOLD_VERBS[kind]
    return ApiError(ErrorReason.HOLD_ENDED, f"The hold is {state} and cannot be {verb.participle}.", metadata={"state": state, "verb": verb.name})


def _end_hold(wallet: Wallet, hold: Hold | None, instruction: Instruction, now: datetime | None) -> WalletChange:
    if hold is None:
        raise not_found_error("hold", instruction.cause, "hold_id")
    state = HOLD_TRANSITIONS.get((hold.state, instruction.kind))
    if state is None:
        raise hold_ended_error(hold.state, instruction.kind)
    if instruction.kind is not EntryKind.HOLD_EXPIRED and _is_expired(hold.expire_time, now):  # whether the expiry job has run or not
        raise hold_ended_error(HoldState.EXPIRED, instruction.kind)
    captured_amount = instruction.amount if instruction.kind is EntryKind.HOLD_CAPTURED else 0
    if captured_amount > hold.amount:
        raise ApiError(ErrorReason.HOLD_EXCEEDED, "More is to be captured than the hold holds.", field="amount")
    after = repay_then_add_available(replace(wallet.balances, held=wallet.balances.held - hold.amount), hold.amount - captured_amount)
    amount = captured_amount if instruction.kind is EntryKind.HOLD_CAPTURED else hold.amount
    return WalletChange(_with_balances(wallet, after), amount, replace(hold, state=state, captured_amount=captured_amount))
