"""The rules of wallets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.refusal import Reason, Refused
from tallystick_core.wallet import HOLD_MOVES, Balances, EntryKind, Hold, HoldState, Instruction, Wallet, apply

_AMOUNTS = st.integers(1, 50)
_STEPS = st.one_of(
    st.builds(lambda a, p: ("credit", a, p), _AMOUNTS, st.booleans()),
    st.builds(lambda a, f: ("debit", a, f), _AMOUNTS, st.booleans()),
    st.builds(lambda a, _: ("hold", a, None), _AMOUNTS, st.none()),
    st.builds(lambda a, n: ("capture", a, n), _AMOUNTS, st.integers(0, 5)),
    st.builds(lambda k, n: (k, 0, n), st.sampled_from(["release", "expire"]), st.integers(0, 5)),
)


@given(st.lists(_STEPS, max_size=40), st.sampled_from([0, 60]))
def test_no_sequence_of_changes_breaks_a_wallet(steps: list[tuple[str, int, object]], delay: int) -> None:
    """W2, W3: whatever is asked in whatever order, parts stay at least 0, owed only without available, and held is the sum of open holds."""
    wallet, holds, total = Wallet("s", "EUR", release_delay=delay), dict[str, Hold](), 0
    for number, (what, amount, how) in enumerate(steps):
        instruction = _instruction(what, amount, how, number)
        try:
            change = apply(wallet, holds.get(instruction.cause), instruction)
        except Refused as refused:
            assert refused.reason in {Reason.INSUFFICIENT_FUNDS, Reason.NOT_FOUND, Reason.HOLD_ENDED, Reason.HOLD_EXCEEDED}
            continue
        total += {"credit": amount, "debit": -amount, "capture": -amount}.get(what, 0)
        wallet = change.wallet
        if change.hold is not None:
            holds[change.hold.hold_id] = change.hold
        b = wallet.balances
        assert min(b.pending, b.available, b.held, b.owed) >= 0
        assert b.owed == 0 or b.available == 0
        assert b.balance == total
        assert b.held == sum(h.amount for h in holds.values() if h.state is HoldState.OPEN)


def _instruction(what: str, amount: int, how: object, number: int) -> Instruction:
    if what == "credit":
        return Instruction(EntryKind.CREDIT, f"PAY_IN/{number}", "c", "s", "EUR", amount, pending=bool(how))
    if what == "debit":
        return Instruction(EntryKind.DEBIT, f"REFUND/{number}", "c", "s", "EUR", amount, as_fact=bool(how))
    if what == "hold":
        return Instruction(EntryKind.HOLD_PLACED, f"h{number}", "c", "s", "EUR", amount, purpose="PAYOUT")
    kinds = {"capture": EntryKind.HOLD_CAPTURED, "release": EntryKind.HOLD_RELEASED, "expire": EntryKind.HOLD_EXPIRED}
    return Instruction(kinds[what], f"h{how}", "c", amount=amount)


@pytest.mark.parametrize(
    ("state", "kind"), list(itertools.product(HoldState, [k for k in EntryKind if k.name.startswith("HOLD_") and k.name != "HOLD_PLACED"]))
)
def test_a_hold_ends_once(state: HoldState, kind: EntryKind) -> None:
    """W3: only an open hold ends; every other pair is HOLD_ENDED."""
    wallet = Wallet("s", "EUR", Balances(held=10))
    hold = Hold("h", "s", "EUR", 10, "PAYOUT", "c", state=state)
    instruction = Instruction(kind, "h", "c", amount=4)
    if (state, kind) in HOLD_MOVES:
        assert apply(wallet, hold, instruction).hold.state is HOLD_MOVES[state, kind]  # type: ignore[union-attr]
        return
    with pytest.raises(Refused) as refused:
        apply(wallet, hold, instruction)
    assert refused.value.reason is Reason.HOLD_ENDED


def test_facts_always_post_and_credits_repay_what_is_owed() -> None:
    """A fact takes what is available and owes the rest; later credits repay first."""
    wallet = Wallet("s", "EUR", Balances(available=30))
    wallet = apply(wallet, None, Instruction(EntryKind.DEBIT, "CHARGEBACK/1", "c", "s", "EUR", 100, as_fact=True)).wallet
    assert wallet.balances == Balances(owed=70)
    wallet = apply(wallet, None, Instruction(EntryKind.CREDIT, "PAY_IN/1", "c", "s", "EUR", 90)).wallet
    assert wallet.balances == Balances(available=20)


def test_a_frozen_wallet_takes_credits_and_facts_only() -> None:
    """Freezing refuses requests, never facts."""
    wallet = Wallet("s", "EUR", Balances(available=30), frozen=True)
    apply(wallet, None, Instruction(EntryKind.CREDIT, "PAY_IN/1", "c", "s", "EUR", 1))
    apply(wallet, None, Instruction(EntryKind.DEBIT, "REFUND/1", "c", "s", "EUR", 1, as_fact=True))
    for instruction in (
        Instruction(EntryKind.DEBIT, "REFUND/2", "c", "s", "EUR", 1),
        Instruction(EntryKind.HOLD_PLACED, "h", "c", "s", "EUR", 1, purpose="PAYOUT"),
    ):
        with pytest.raises(Refused) as refused:
            apply(wallet, None, instruction)
        assert refused.value.reason is Reason.STATE_FORBIDS
