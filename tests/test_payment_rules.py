"""The rules of pay-in: states, fingerprints, outcomes, risk."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.identifier import refuse_card_number
from tallystick_core.payment import (
    FINAL,
    MOVES,
    VERBS,
    Charging,
    Happening,
    MethodType,
    OnPartial,
    Order,
    PaymentEvent,
    Status,
    first_difference,
    judge,
    move,
    normalised,
    refuse_siblings,
    unapplied_charge_id,
)
from tallystick_core.provider import Declined, FailureReason, NotSent, Pending, PendingReason, Succeeded, Unknown
from tallystick_core.refusal import Reason, Refused
from tallystick_core.risk import BuiltInRisk, RiskRules

ORDERS = tuple(Order(f"o-{n}", "buyer", f"seller-{n}", 1000 + n, "EUR", None, n) for n in range(3))
EVENT = PaymentEvent("c-1", "dev", "shop", "b", "s", "GB", "tok", MethodType.CARD, Charging.PER_ORDER, OnPartial.KEEP, ORDERS)


@pytest.mark.parametrize(("status", "happening"), list(itertools.product(Status, Happening)))
def test_every_pair_is_in_the_table_or_refused_by_name(status: Status, happening: Happening) -> None:
    """The table is total: what is not in it is STATE_FORBIDS with state and verb."""
    if (status, happening) in MOVES:
        assert move(status, happening) is MOVES[status, happening]
        return
    with pytest.raises(Refused) as refused:
        move(status, happening)
    assert refused.value.reason is Reason.STATE_FORBIDS
    assert refused.value.metadata == {"state": status, "verb": VERBS[happening].name}
    assert refused.value.message == f"The order is {status} and cannot be {VERBS[happening].participle}."


def test_terminal_states_never_move_and_unknown_never_fails() -> None:
    """P3: nothing leaves SUCCESS or FAILED; an unknown outcome is never a decline."""
    assert [pair for pair in MOVES if pair[0] in FINAL] == [(Status.SUCCESS, Happening.SETTLED), (Status.SUCCESS, Happening.DELIVERED)]
    assert {MOVES[status, Happening.UNKNOWN] for status, happening in MOVES if happening is Happening.UNKNOWN} == {Status.EXECUTING, Status.PENDING}


@given(st.permutations(ORDERS))
def test_the_order_of_orders_makes_no_difference(orders: list[Order]) -> None:
    """K1: the same orders in another order are the same payment."""
    assert normalised(replace(EVENT, orders=tuple(orders))).fingerprint() == EVENT.fingerprint()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("buyer_info", "x", "buyer_info"),
        ("payment_token", "x", "credit_card_info"),
        ("charging", "TOGETHER", "charging"),
        ("orders", ORDERS[:2], "payment_orders"),
        ("orders", (*ORDERS[:2], replace(ORDERS[2], amount=1)), "payment_orders[2].amount"),
        ("orders", (replace(ORDERS[0], platform_fee=0), *ORDERS[1:]), "payment_orders[0].platform_fee"),
    ],
)
def test_another_value_is_another_fingerprint_and_is_named(field: str, value: object, named: str) -> None:
    """K1: any other value changes the fingerprint, and the first that differs is named."""
    other = replace(EVENT, **{field: value})  # type: ignore[arg-type]
    assert other.fingerprint() != EVENT.fingerprint()
    assert first_difference(other, EVENT) == named


@pytest.mark.parametrize("outcome", [Succeeded("r", 999, "EUR"), Succeeded("r", 1000, "USD")])
def test_a_charge_of_another_amount_is_no_success(outcome: Succeeded) -> None:
    """P2: money that fits no order never makes one a SUCCESS."""
    assert judge(outcome, 1000, "EUR") == Declined(FailureReason.PROVIDER_MISMATCH, reference="r")


@pytest.mark.parametrize(
    "outcome",
    [Succeeded("r", 1000, "EUR"), Declined(FailureReason.PROVIDER_DECLINED), Pending(PendingReason.PROVIDER_REVIEW), NotSent("x"), Unknown("x")],
)
def test_other_outcomes_stand(outcome: object) -> None:
    """Judging changes nothing else."""
    assert judge(outcome, 1000, "EUR") is outcome  # type: ignore[arg-type]


def _risk(**rules: object) -> dict[str, FailureReason]:
    return BuiltInRisk(RiskRules(**rules)).check(EVENT, {})  # type: ignore[arg-type]


def test_each_risk_rule_refuses_with_its_own_reason() -> None:
    """Each rule refuses just the orders it is about."""
    assert _risk() == {}
    assert _risk(amount_limits={"EUR": 1001}) == {"o-2": "RISK_AMOUNT_LIMIT"}
    assert _risk(velocity_limit=2) == {"o-2": "RISK_VELOCITY"}
    assert _risk(blocked_accounts=frozenset({"seller-1"})) == {"o-1": "RISK_BLOCKED_ACCOUNT"}
    assert set(_risk(blocked_countries=frozenset({"GB"})).values()) == {"RISK_BLOCKED_COUNTRY"}
    assert BuiltInRisk(RiskRules(velocity_limit=3)).check(EVENT, {"buyer": 1}) == {"o-2": "RISK_VELOCITY"}


def test_all_or_nothing_fails_the_siblings() -> None:
    """One refused order takes the others with it, and only then."""
    together = replace(EVENT, charging=Charging.TOGETHER, on_partial=OnPartial.ALL_OR_NOTHING)
    assert refuse_siblings(together, {}) == {}
    assert refuse_siblings(together, {"o-1": FailureReason.RISK_VELOCITY}) == {
        "o-0": "SIBLING_FAILED",
        "o-1": "RISK_VELOCITY",
        "o-2": "SIBLING_FAILED",
    }
    assert refuse_siblings(EVENT, {"o-1": FailureReason.RISK_VELOCITY}) == {"o-1": "RISK_VELOCITY"}


def test_no_id_that_we_make_looks_like_a_card_number() -> None:
    """The ledger takes the id of an unapplied charge for a cause; whatever the provider's reference, it is not refused as a card number."""
    for number in range(50_000):
        made = unapplied_charge_id("sandbox", f"ref-{number}")
        refuse_card_number(made, "cause_id")
        assert len(made) == 34
