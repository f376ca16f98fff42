"""Routing rules: total, deterministic, in order, and fair shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.checkout import (
    ChargeMode,
    CheckoutRequest,
    MethodType,
    Order,
    PartialFailurePolicy,
)
from tallystick_core.payment.routing import (
    ChargeFacts,
    RoutingRule,
    RoutingTable,
    covering_rule,
    may_fall_back,
)
from tallystick_core.provider.outcome import RetryReason

FACTS = ChargeFacts("co-1", "shop", "EUR", 5000, "DE", MethodType.CARD, frozenset({"seller-1"}))

_currencies = st.sampled_from(["EUR", "USD", "JPY"])
_countries = st.sampled_from(["", "DE", "US"])
_sellers = st.sampled_from(["seller-1", "seller-2", "seller-3"])
_callers = st.sampled_from(["shop", "market"])
_methods = st.sampled_from(MethodType)
facts_strategy = st.builds(
    ChargeFacts,
    st.uuids().map(str),
    _callers,
    _currencies,
    st.integers(1, 10_000),
    _countries,
    _methods,
    st.frozensets(_sellers, min_size=1),
)
rule_strategy = st.builds(
    RoutingRule,
    name=st.sampled_from(["one", "two", "three", "four"]),
    provider=st.sampled_from(["a", "b", "c"]),
    fallback=st.sampled_from(["", "d"]),
    currencies=st.frozensets(_currencies, max_size=2),
    countries=st.frozensets(st.sampled_from(["DE", "US"]), max_size=1),
    payment_method_types=st.frozensets(_methods, max_size=2),
    min_amount=st.none() | st.integers(1, 5000),
    max_amount=st.none() | st.integers(5000, 10_000),
    sellers=st.frozensets(_sellers, max_size=2),
    callers=st.frozensets(_callers, max_size=1),
    share=st.sampled_from([1, 30, 50, 100]),
)
rules_strategy = st.lists(rule_strategy, max_size=5)


@given(rules_strategy, facts_strategy)
def test_every_charge_has_one_provider(rules: list[RoutingRule], facts: ChargeFacts) -> None:
    """Routing is total and deterministic: the answer is that of the first rule that alone matches,
    else the default. Every earlier rule has a reason.
    """
    table = RoutingTable(rules, "default")
    decision = table.route(facts)
    assert decision == table.route(facts)
    alone = [bool(RoutingTable([rule], "default").route(facts).rule) for rule in rules]
    index = alone.index(True) if any(alone) else None
    if index is None:
        assert (decision.provider, decision.fallback, decision.rule) == ("default", "", "")
        assert bool(decision.reason) == bool(rules)
    else:
        rule = rules[index]
        assert (decision.provider, decision.fallback) == (rule.provider, rule.fallback)
        assert decision.rule == rule.name
        assert decision.reason
    expected_skipped = rules[:index] if index is not None else rules
    assert [skipped.rule for skipped in decision.skipped] == [
        rule.name for rule in expected_skipped
    ]
    assert all(skipped.reason for skipped in decision.skipped)


@given(rules_strategy, rules_strategy, facts_strategy)
def test_a_later_rule_never_changes_an_earlier_match(
    rules: list[RoutingRule], later_rules: list[RoutingRule], facts: ChargeFacts
) -> None:
    """What a list of rules decides stays, whatever rules are added after it."""
    decision = RoutingTable(rules, "default").route(facts)
    if decision.rule:
        assert RoutingTable([*rules, *later_rules], "other").route(facts) == decision


@given(rules_strategy, facts_strategy)
def test_a_covered_rule_never_matches(rules: list[RoutingRule], facts: ChargeFacts) -> None:
    """A rule that is reported to be covered by an earlier one matches nothing by itself that the
    earlier one does not match.
    """
    for index, rule in enumerate(rules):
        covering = covering_rule(rules, index)
        if covering is not None and RoutingTable([rule], "default").route(facts).rule:
            assert RoutingTable([covering], "default").route(facts).rule


@pytest.mark.parametrize(
    ("earlier", "later", "is_covered"),
    [
        ({}, {"currencies": {"EUR"}}, True),
        ({"currencies": {"EUR", "USD"}}, {"currencies": {"EUR"}}, True),
        ({"currencies": {"EUR"}}, {}, False),
        ({"currencies": {"EUR"}}, {"currencies": {"EUR", "USD"}}, False),
        ({"share": 99}, {"currencies": {"EUR"}}, False),
        ({"min_amount": 100}, {"min_amount": 200}, True),
        ({"min_amount": 200}, {"min_amount": 100}, False),
        ({"max_amount": 100}, {}, False),
        ({"max_amount": 100}, {"max_amount": 100}, True),
    ],
)
def test_a_rule_covers_another(
    earlier: dict[str, object], later: dict[str, object], is_covered: bool
) -> None:
    """A rule covers a later one if each of its conditions is at most as narrow."""
    rules = [build_rule("earlier", earlier), build_rule("later", later)]
    assert (covering_rule(rules, 1) is rules[0]) == is_covered
    assert covering_rule(rules, 0) is None


def build_rule(name: str, conditions: dict[str, object]) -> RoutingRule:
    values = {key: frozenset(v) if isinstance(v, set) else v for key, v in conditions.items()}
    return RoutingRule(name=name, provider="a", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"currencies": {"USD", "CHF"}}, "currency EUR is not among CHF, USD"),
        ({"countries": {"US"}}, "country DE is not among US"),
        (
            {"payment_method_types": {MethodType.CASH}},
            "payment method CARD is not among CASH",
        ),
        ({"callers": {"market"}}, "caller shop is not among market"),
        ({"sellers": {"seller-2"}}, "seller seller-1 is not among those of the rule"),
        ({"min_amount": 5001}, "amount 50.00 is less than 50.01"),
        ({"max_amount": 4999}, "amount 50.00 is more than 49.99"),
    ],
)
def test_each_condition_has_its_reason(conditions: dict[str, object], reason: str) -> None:
    """A charge that differs from a rule in one condition does not match, and the reason names it;
    the bounds of an amount belong to its range.
    """
    rule = build_rule("one", conditions)
    decision = RoutingTable([rule], "default").route(FACTS)
    assert (decision.provider, [item.reason for item in decision.skipped]) == ("default", [reason])
    bounds = build_rule("bounds", {"min_amount": 5000, "max_amount": 5000})
    assert RoutingTable([bounds], "default").route(FACTS).reason == "amount 50.00"


def test_shares_are_kept_over_many_checkouts() -> None:
    """Over 10,000 checkouts each rule gets its share of those that reach it, within two percent of
    all, and the shares of rules are independent.
    """
    rules = [
        RoutingRule(name="half", provider="a", share=50),
        RoutingRule(name="rest", provider="b", share=60),
    ]
    table = RoutingTable(rules, "c")
    counts = Counter(
        table.route(replace(FACTS, checkout_id=f"co-{number}")).provider for number in range(10_000)
    )
    expected = {"a": 5000, "b": 3000, "c": 2000}
    assert all(abs(counts[name] - count) < 200 for name, count in expected.items()), counts


def checkout(mode: ChargeMode) -> CheckoutRequest:
    orders = tuple(
        Order(f"o-{number}", "buyer", f"seller-{number}", amount, "EUR", None)
        for number, amount in enumerate((100, 900))
    )
    return CheckoutRequest(
        "co-1",
        "shop",
        "shop",
        "",
        "",
        "DE",
        "tok",
        MethodType.CARD,
        mode,
        PartialFailurePolicy.KEEP_SUCCEEDED,
        orders,
    )


def test_a_combined_charge_is_one_decision() -> None:
    """The orders of a combined charge are routed by their sum; separate charges by their own
    amounts, but the checkout's share is the same for all.
    """
    rules = [RoutingRule(name="big", provider="big", min_amount=901)]
    table = RoutingTable(rules, "small")
    combined = checkout(ChargeMode.COMBINED)
    decisions = table.route_charges(combined, combined.orders)
    assert {id_: one.provider for id_, one in decisions.items()} == {"c-co-1": "big"}
    separate = checkout(ChargeMode.PER_ORDER)
    decisions = table.route_charges(separate, separate.orders)
    assert {id_: one.provider for id_, one in decisions.items()} == {
        "o-o-0": "small",
        "o-o-1": "small",
    }
    shared = RoutingTable([RoutingRule(name="half", provider="a", share=50)], "b")
    for number in range(50):
        request = replace(separate, checkout_id=f"co-{number}")
        providers = {one.provider for one in shared.route_charges(request, request.orders).values()}
        assert len(providers) == 1


@pytest.mark.parametrize("action", NextAction)
@pytest.mark.parametrize("retry_reason", RetryReason)
def test_a_fallback_follows_only_what_certainly_sent_nothing(
    action: NextAction, retry_reason: RetryReason
) -> None:
    """A send that was not sent, and an open circuit, allow a fallback, unless the attempt may have
    been sent before. No other outcome does: neither an unknown one, nor a full queue of the
    provider.
    """
    for unavailable in (False, True):
        assert not may_fall_back(
            action, retry_reason, provider_unavailable=unavailable, maybe_sent=True
        )
        is_allowed = action is NextAction.SEND and (
            retry_reason is RetryReason.NOT_SENT
            or (retry_reason is RetryReason.CIRCUIT_OPEN and unavailable)
        )
        assert is_allowed == may_fall_back(
            action, retry_reason, provider_unavailable=unavailable, maybe_sent=False
        )
