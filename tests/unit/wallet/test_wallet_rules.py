"""The rules of wallets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_core.wallet.balances import (
    Balances,
    Wallet,
    WalletChange,
    can_open_wallet,
    is_already_released,
    repay_then_add_available,
)
from tallystick_core.wallet.balances import apply_instruction as apply_at
from tallystick_core.wallet.holds import Hold
from tallystick_core.wallet.instructions import Credit, Instruction
from tallystick_core.wallet.seller_ownership import SellerClaim, grant_claims
from tallystick_core.wallet.state import HOLD_TRANSITIONS, EntryKind, HoldState

_NOW = datetime(2030, 1, 1, tzinfo=UTC)

_AMOUNTS = st.integers(1, 50)


def apply_now(
    wallet: Wallet, hold: Hold | None, instruction: Instruction, credit: Credit | None = None
) -> WalletChange:
    return apply_at(wallet, hold, instruction, credit, now=_NOW)


_STEPS = st.one_of(
    st.builds(lambda a, p: ("credit", a, p), _AMOUNTS, st.booleans()),
    st.builds(lambda a, f: ("debit", a, f), _AMOUNTS, st.booleans()),
    st.builds(lambda a, k: ("hold", a, k), _AMOUNTS, st.integers(0, 20)),
    st.builds(lambda n: ("free", 0, n), st.integers(0, 5)),
    st.builds(lambda a, n: ("capture", a, n), _AMOUNTS, st.integers(0, 5)),
    st.builds(lambda k, n: (k, 0, n), st.sampled_from(["release", "expire"]), st.integers(0, 5)),
)


@given(st.lists(_STEPS, max_size=40), st.sampled_from([0, 60]))
def test_no_sequence_of_changes_breaks_a_wallet(
    steps: list[tuple[str, int, object]], delay: int
) -> None:
    """W2, W3: after any sequence of changes, parts are at least 0 and money is owed only if none is
    available. Held and pending are the sums of open holds and credits.
    """
    wallet, holds, credits_, total = (
        Wallet("s", "EUR", release_delay=delay),
        dict[str, Hold](),
        dict[str, Credit](),
        0,
    )
    for number, (what, amount, how) in enumerate(steps):
        instruction = _instruction(what, amount, how, number if what == "hold" else len(credits_))
        credit = credits_.get(instruction.source_id)
        if is_already_released(credit, instruction):
            continue
        try:
            change = apply_now(wallet, holds.get(instruction.source_id), instruction, credit)
        except ApiError as error:
            assert error.reason in {
                ErrorReason.INSUFFICIENT_FUNDS,
                ErrorReason.NOT_FOUND,
                ErrorReason.HOLD_ENDED,
                ErrorReason.HOLD_EXCEEDED,
            }
            continue
        if what == "credit":
            credits_[instruction.source_id] = Credit(
                "s", "EUR", amount, is_pending=bool(how) and delay > 0
            )
        elif what == "free":
            # By its key, it is released once.
            credits_[instruction.source_id] = replace(
                credits_[instruction.source_id], is_pending=False
            )
        elif what == "hold":
            assert change.wallet.balances.available >= instruction.minimum_remaining
        total += {"credit": amount, "debit": -amount, "capture": -amount}.get(what, 0)
        wallet = change.wallet
        if change.hold is not None:
            holds[change.hold.hold_id] = change.hold
        b = wallet.balances
        assert min(b.pending, b.available, b.held, b.owed) >= 0
        assert b.owed == 0 or b.available == 0
        assert b.balance == total
        assert b.held == sum(h.amount for h in holds.values() if h.state is HoldState.OPEN)
        assert b.pending == sum(credit.amount for credit in credits_.values() if credit.is_pending)


def _instruction(kind: str, amount: int, argument: object, number: int) -> Instruction:
    if kind == "credit":
        return Instruction(
            EntryKind.CREDIT, f"PAY_IN/{number}", "c", "s", "EUR", amount, is_pending=bool(argument)
        )
    if kind == "debit":
        return Instruction(
            EntryKind.DEBIT, f"REFUND/{number}", "c", "s", "EUR", amount, allow_owed=bool(argument)
        )
    if kind == "hold":
        return Instruction(
            EntryKind.HOLD_PLACED,
            f"h{number}",
            "c",
            "s",
            "EUR",
            amount,
            purpose="PAYOUT",
            minimum_remaining=int(str(argument)),
        )
    if kind == "free":
        return Instruction(EntryKind.RELEASE, f"PAY_IN/{argument}", "c")
    kinds = {
        "capture": EntryKind.HOLD_CAPTURED,
        "release": EntryKind.HOLD_RELEASED,
        "expire": EntryKind.HOLD_EXPIRED,
    }
    return Instruction(kinds[kind], f"h{argument}", "c", amount=amount)


@pytest.mark.parametrize(
    ("state", "kind"),
    list(
        itertools.product(
            HoldState,
            [k for k in EntryKind if k.name.startswith("HOLD_") and k.name != "HOLD_PLACED"],
        )
    ),
)
def test_a_hold_ends_once(state: HoldState, kind: EntryKind) -> None:
    """W3: only an open hold can end; every other pair is HOLD_ENDED."""
    wallet = Wallet("s", "EUR", Balances(held=10))
    hold = Hold("h", "s", "EUR", 10, "PAYOUT", "c", state=state)
    instruction = Instruction(kind, "h", "c", amount=4)
    if (state, kind) in HOLD_TRANSITIONS:
        assert apply_now(wallet, hold, instruction).hold.state is HOLD_TRANSITIONS[state, kind]  # type: ignore[union-attr]
        return
    with pytest.raises(ApiError) as error:
        apply_now(wallet, hold, instruction)
    assert error.value.reason is ErrorReason.HOLD_ENDED


def test_unconditional_debits_always_post_and_credits_repay_owed() -> None:
    """An unconditional debit takes the available amount and owes the remainder; later credits repay
    it first.
    """
    wallet = Wallet("s", "EUR", Balances(available=30))
    wallet = apply_now(
        wallet,
        None,
        Instruction(EntryKind.DEBIT, "CHARGEBACK/1", "c", "s", "EUR", 100, allow_owed=True),
    ).wallet
    assert wallet.balances == Balances(owed=70)
    wallet = apply_now(
        wallet, None, Instruction(EntryKind.CREDIT, "PAY_IN/1", "c", "s", "EUR", 90)
    ).wallet
    assert wallet.balances == Balances(available=20)


@given(
    st.integers(1, 100),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 100),
    st.booleans(),
)
def test_a_release_repays_owed_first(
    amount: int, others: int, available: int, owed: int, frozen: bool
) -> None:
    """A release removes its credit from pending, repays the owed amount, and makes the remainder
    available. Balance and held amount do not change.
    """
    before = Balances(amount + others, 0 if owed else available, held=7, owed=owed)
    change = apply_now(
        Wallet("s", "EUR", before, frozen=frozen),
        None,
        Instruction(EntryKind.RELEASE, "PAY_IN/1", "c"),
        Credit("s", "EUR", amount, is_pending=True),
    )
    after = change.wallet.balances
    assert after == repay_then_add_available(Balances(others, before.available, 7, owed), amount)
    assert (after.balance, after.held, change.amount, change.wallet.version) == (
        before.balance,
        7,
        amount,
        1,
    )


def test_an_available_credit_is_not_released_again() -> None:
    """A credit that was immediately available has nothing to release, and a missing one is
    NOT_FOUND: neither creates money.
    """
    wallet, release = (
        Wallet("s", "EUR", Balances(pending=5, available=5)),
        Instruction(EntryKind.RELEASE, "PAY_IN/1", "c"),
    )
    at_once = Credit("s", "EUR", 5, is_pending=False)
    assert is_already_released(at_once, release)
    assert not is_already_released(at_once, Instruction(EntryKind.CREDIT, "PAY_IN/1", "c"))
    assert not is_already_released(None, release)
    with pytest.raises(ApiError) as error:
        apply_now(wallet, None, release, None)
    assert error.value.reason is ErrorReason.NOT_FOUND


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 100))
def test_a_hold_requires_its_amount_and_the_remainder(
    amount: int, keep: int, available: int
) -> None:
    """A hold is placed exactly if its amount and the required remainder are available, and it holds
    only its amount.
    """
    placed = Instruction(
        EntryKind.HOLD_PLACED,
        "h",
        "c",
        "s",
        "EUR",
        amount,
        purpose="PAYOUT",
        minimum_remaining=keep,
    )
    try:
        after = apply_now(
            Wallet("s", "EUR", Balances(available=available)), None, placed
        ).wallet.balances
    except ApiError as error:
        assert error.reason is ErrorReason.INSUFFICIENT_FUNDS
        assert available < amount + keep
        return
    assert after == Balances(available=available - amount, held=amount)
    assert after.available >= keep


def test_a_hold_without_required_remainder_keeps_its_fingerprint() -> None:
    """K1: the required available amount is part of a hold's values, and earlier holds without it
    keep their fingerprint.
    """
    placed = Instruction(EntryKind.HOLD_PLACED, "h", "c", "s", "EUR", 5, purpose="PAYOUT")
    assert placed.fingerprint == fingerprint("HOLD_PLACED", "h", "s", "EUR", 5, 0, 0, "PAYOUT", "")
    assert replace(placed, minimum_remaining=1).fingerprint not in {
        placed.fingerprint,
        replace(placed, minimum_remaining=2).fingerprint,
    }


def test_a_frozen_wallet_accepts_only_unconditional_changes() -> None:
    """Freezing rejects conditional changes, never unconditional ones."""
    wallet = Wallet("s", "EUR", Balances(available=30), frozen=True)
    apply_now(wallet, None, Instruction(EntryKind.CREDIT, "PAY_IN/1", "c", "s", "EUR", 1))
    apply_now(
        wallet, None, Instruction(EntryKind.DEBIT, "REFUND/1", "c", "s", "EUR", 1, allow_owed=True)
    )
    for instruction in (
        Instruction(EntryKind.DEBIT, "REFUND/2", "c", "s", "EUR", 1),
        Instruction(EntryKind.HOLD_PLACED, "h", "c", "s", "EUR", 1, purpose="PAYOUT"),
    ):
        with pytest.raises(ApiError) as error:
            apply_now(wallet, None, instruction)
        assert error.value.reason is ErrorReason.INVALID_STATE


_INSTANTS = st.integers(0, 20)


@given(
    st.integers(1, 20),
    st.lists(st.tuples(_INSTANTS, st.sampled_from(["capture", "release", "expire"])), max_size=6),
)
def test_an_expired_hold_cannot_be_captured_or_released(
    expires: int, steps: list[tuple[int, str]]
) -> None:
    """W3: from its expire_time on a hold is neither captured nor released, and its whole amount is
    returned, however late the expiry job runs.
    """
    wallet, current_time = Wallet("s", "EUR", Balances(available=10)), _NOW
    placed = Instruction(
        EntryKind.HOLD_PLACED,
        "h",
        "c",
        "s",
        "EUR",
        10,
        purpose="RESERVE",
        expire_time=_NOW + timedelta(seconds=expires),
    )
    change = apply_at(wallet, None, placed, now=current_time)
    for seconds, what in steps:
        current_time += timedelta(seconds=seconds)
        is_open = change.hold is not None and change.hold.state is HoldState.OPEN
        expired = current_time >= _NOW + timedelta(seconds=expires)
        if what == "expire" and not expired:
            continue  # the job selects only expired holds
        allowed = is_open and (what == "expire") == expired
        try:
            change = apply_at(change.wallet, change.hold, _end_instruction(what), now=current_time)
        except ApiError as error:
            assert error.reason is ErrorReason.HOLD_ENDED
            assert not allowed
            continue
        assert allowed
        assert change.wallet.balances == Balances(available=6 if what == "capture" else 10)


def _end_instruction(kind: str) -> Instruction:
    kinds = {
        "capture": EntryKind.HOLD_CAPTURED,
        "release": EntryKind.HOLD_RELEASED,
        "expire": EntryKind.HOLD_EXPIRED,
    }
    return Instruction(kinds[kind], "h", "c", amount=4)


@given(st.integers(-5, 5))
def test_a_hold_is_placed_only_with_an_expire_time_in_the_future(seconds: int) -> None:
    """An expire_time must be in the future."""
    placed = Instruction(
        EntryKind.HOLD_PLACED,
        "h",
        "c",
        "s",
        "EUR",
        5,
        purpose="RESERVE",
        expire_time=_NOW + timedelta(seconds=seconds),
    )
    try:
        change = apply_at(Wallet("s", "EUR", Balances(available=5)), None, placed, now=_NOW)
    except ApiError as error:
        assert (error.reason, error.field) == (ErrorReason.FIELD_INVALID, "expire_time")
        assert seconds <= 0
    else:
        assert seconds > 0
        assert change.wallet.balances == Balances(held=5)


_NAMES, _OWNERS = st.sampled_from("abcd"), st.sampled_from(["x", "y"])


@given(
    claims=st.lists(
        st.builds(SellerClaim, _NAMES, st.sampled_from(["", "x", "y"]), st.integers(0, 3)),
        max_size=8,
    ),
    owners=st.dictionaries(_NAMES, _OWNERS),
)
def test_a_group_of_claims_is_atomic(claims: list[SellerClaim], owners: dict[str, str]) -> None:
    """Only sellers without an owner are claimed. Afterwards each group has all of its sellers, or
    has claimed none; a group without conflicts has all.
    """
    granted = grant_claims(claims, owners)
    assert not granted.keys() & owners.keys()
    after, justified = owners | granted, set()
    groups = [
        [claim for claim in claims if claim.owner and claim.group == group] for group in (1, 2, 3)
    ]
    groups += [[claim] for claim in claims if claim.owner and not claim.group]
    for group in groups:
        if all(after.get(claim.seller_account) == claim.owner for claim in group):
            justified |= {claim.seller_account for claim in group}
        assert (
            any(after.get(claim.seller_account, claim.owner) != claim.owner for claim in group)
            or granted.keys()
            >= {claim.seller_account for claim in group if claim.seller_account not in owners}
            or len({claim.owner for claim in group}) > 1
        )
    assert granted.keys() <= justified


def test_credits_and_unconditional_debits_open_a_missing_wallet() -> None:
    """Credits and unconditional debits open a wallet; no other change does."""
    assert {
        (kind, allow_owed)
        for kind in EntryKind
        for allow_owed in (False, True)
        if can_open_wallet(Instruction(kind, "x", allow_owed=allow_owed))
    } == {
        (EntryKind.CREDIT, False),
        (EntryKind.CREDIT, True),
        (EntryKind.DEBIT, True),
    }
