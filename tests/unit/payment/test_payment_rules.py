"""The rules of pay-in: states, fingerprints, outcomes, risk."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payment.charge import decline_if_mismatched, derive_unapplied_charge_id
from tallystick_core.payment.checkout import (
    ChargeMode,
    CheckoutRequest,
    MethodType,
    Order,
    PartialFailurePolicy,
    first_difference,
    normalize,
    reject_siblings,
)
from tallystick_core.payment.risk import BuiltInRiskCheck, RiskRules
from tallystick_core.payment.state import (
    TERMINAL_STATUSES,
    TRANSITIONS,
    VERBS,
    OrderStatus,
    PaymentTrigger,
    transition,
)
from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    NotSent,
    Pending,
    PendingReason,
    Succeeded,
    Unknown,
)
from tallystick_core.validation import reject_card_number

ORDERS = tuple(Order(f"o-{n}", "buyer", f"seller-{n}", 1000 + n, "EUR", None, n) for n in range(3))
PAYMENT_EVENT = CheckoutRequest(
    "c-1",
    "dev",
    "shop",
    "b",
    "s",
    "GB",
    "tok",
    MethodType.CARD,
    ChargeMode.PER_ORDER,
    PartialFailurePolicy.KEEP_SUCCEEDED,
    ORDERS,
)


@pytest.mark.parametrize(
    ("status", "trigger"), list(itertools.product(OrderStatus, PaymentTrigger))
)
def test_every_pair_is_in_the_table_or_rejected_by_name(
    status: OrderStatus, trigger: PaymentTrigger
) -> None:
    """The table is total: every other trigger is INVALID_STATE with state and verb."""
    if (status, trigger) in TRANSITIONS:
        assert transition(status, trigger) is TRANSITIONS[status, trigger]
        return
    with pytest.raises(ApiError) as error:
        transition(status, trigger)
    assert error.value.reason is ErrorReason.INVALID_STATE
    assert error.value.metadata == {"state": status, "verb": VERBS[trigger].name}
    assert (
        error.value.message == f"The order is {status} and cannot be {VERBS[trigger].participle}."
    )


def test_final_states_never_change_and_unknown_never_fails() -> None:
    """P3: nothing leaves SUCCESS or FAILED; an unknown outcome is never a decline."""
    assert [pair for pair in TRANSITIONS if pair[0] in TERMINAL_STATUSES] == [
        (OrderStatus.SUCCESS, PaymentTrigger.BOOKED),
        (OrderStatus.SUCCESS, PaymentTrigger.DELIVERED),
    ]
    assert {
        TRANSITIONS[status, PaymentTrigger.UNKNOWN]
        for status, trigger in TRANSITIONS
        if trigger is PaymentTrigger.UNKNOWN
    } == {
        OrderStatus.EXECUTING,
        OrderStatus.PENDING,
    }


@given(st.permutations(ORDERS))
def test_the_sequence_of_orders_makes_no_difference(orders: list[Order]) -> None:
    """K1: the same orders in another sequence are the same payment."""
    assert (
        normalize(replace(PAYMENT_EVENT, orders=tuple(orders))).fingerprint()
        == PAYMENT_EVENT.fingerprint()
    )


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("buyer_info", "x", "buyer_info"),
        ("payment_token", "x", "credit_card_info"),
        ("charge_mode", "COMBINED", "charge_mode"),
        ("orders", ORDERS[:2], "payment_orders"),
        ("orders", (*ORDERS[:2], replace(ORDERS[2], amount=1)), "payment_orders[2].amount"),
        (
            "orders",
            (replace(ORDERS[0], platform_fee=0), *ORDERS[1:]),
            "payment_orders[0].platform_fee",
        ),
    ],
)
def test_another_value_is_another_fingerprint_and_is_named(
    field: str, value: object, named: str
) -> None:
    """K1: any other value changes the fingerprint, and the first that differs is named."""
    changed = replace(PAYMENT_EVENT, **{field: value})  # type: ignore[arg-type]
    assert changed.fingerprint() != PAYMENT_EVENT.fingerprint()
    assert first_difference(changed, PAYMENT_EVENT) == named


@pytest.mark.parametrize("outcome", [Succeeded("r", 999, "EUR"), Succeeded("r", 1000, "USD")])
def test_a_charge_of_another_amount_is_not_a_success(outcome: Succeeded) -> None:
    """P2: an unapplied charge never makes an order SUCCESS."""
    assert decline_if_mismatched(outcome, 1000, "EUR") == Declined(
        FailureReason.PROVIDER_MISMATCH, reference="r"
    )


@pytest.mark.parametrize(
    "outcome",
    [
        Succeeded("r", 1000, "EUR"),
        Declined(FailureReason.PROVIDER_DECLINED),
        Pending(PendingReason.PROVIDER_REVIEW),
        NotSent("x"),
        Unknown("x"),
    ],
)
def test_the_risk_check_changes_no_other_outcome(outcome: object) -> None:
    """The risk check changes nothing else."""
    assert decline_if_mismatched(outcome, 1000, "EUR") is outcome  # type: ignore[arg-type]


def _check_risk(**rules: object) -> dict[str, FailureReason]:
    return BuiltInRiskCheck(RiskRules(**rules)).check(PAYMENT_EVENT, {})  # type: ignore[arg-type]


def test_each_risk_rule_rejects_with_its_own_reason() -> None:
    """Each rule rejects exactly the orders that it applies to."""
    assert _check_risk() == {}
    assert _check_risk(amount_limits={"EUR": 1001}) == {"o-2": "RISK_AMOUNT_LIMIT"}
    assert _check_risk(velocity_limit=2) == {"o-2": "RISK_VELOCITY"}
    assert _check_risk(blocked_accounts=frozenset({"seller-1"})) == {"o-1": "RISK_BLOCKED_ACCOUNT"}
    assert set(_check_risk(blocked_countries=frozenset({"GB"})).values()) == {
        "RISK_BLOCKED_COUNTRY"
    }
    assert BuiltInRiskCheck(RiskRules(velocity_limit=3)).check(PAYMENT_EVENT, {"buyer": 1}) == {
        "o-2": "RISK_VELOCITY"
    }


def test_all_or_nothing_fails_the_siblings() -> None:
    """ALL_OR_NOTHING: one rejected order makes the others fail, and only then."""
    together = replace(
        PAYMENT_EVENT,
        charge_mode=ChargeMode.COMBINED,
        partial_failure_policy=PartialFailurePolicy.ALL_OR_NOTHING,
    )
    assert reject_siblings(together, {}) == {}
    assert reject_siblings(together, {"o-1": FailureReason.RISK_VELOCITY}) == {
        "o-0": "SIBLING_FAILED",
        "o-1": "RISK_VELOCITY",
        "o-2": "SIBLING_FAILED",
    }
    assert reject_siblings(PAYMENT_EVENT, {"o-1": FailureReason.RISK_VELOCITY}) == {
        "o-1": "RISK_VELOCITY"
    }


def test_no_generated_id_looks_like_a_card_number() -> None:
    """The id of an unapplied charge has no digits, so the ledger accepts it as a source id whatever
    the provider's reference is.
    """
    for number in range(1_000):
        charge_id = derive_unapplied_charge_id("sandbox", f"ref-{number}")
        reject_card_number(charge_id, "source_id")
        assert len(charge_id) == 34
        assert not any(map(str.isdigit, charge_id))
