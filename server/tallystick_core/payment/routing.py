"""Routing: which provider is asked for a charge. Rules are values in an order; the first that
matches decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tallystick_core.fingerprint import fingerprint
from tallystick_core.money import format_amount
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.charge import format_charge_id
from tallystick_core.payment.checkout import CheckoutRequest, MethodType, Order
from tallystick_core.provider.outcome import RetryReason

MAX_RULES = 200
MAX_REASON_LENGTH = 255
_ALL_PERCENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """A rule. Each condition that is set must hold; an empty set and None are no condition."""

    name: str
    provider: str
    fallback: str = ""
    """The provider of the next attempt if certainly nothing was sent to `provider`; "": none."""
    currencies: frozenset[str] = frozenset()
    countries: frozenset[str] = frozenset()
    """Countries of buyers."""
    payment_method_types: frozenset[MethodType] = frozenset()
    min_amount: int | None = None
    """Minor units of the one currency that the rule then has; inclusive."""
    max_amount: int | None = None
    sellers: frozenset[str] = frozenset()
    """All sellers of the charge must be among them."""
    callers: frozenset[str] = frozenset()
    share: int = _ALL_PERCENT
    """Percent of the checkouts for which the other conditions hold."""


@dataclass(frozen=True, slots=True)
class ChargeFacts:
    """The facts of a charge that rules look at."""

    checkout_id: str
    caller: str
    currency: str
    amount: int
    """Minor units; the sum of its orders."""
    buyer_country: str
    """ "": not given; no rule with countries matches."""
    payment_method_type: MethodType
    sellers: frozenset[str]


@dataclass(frozen=True, slots=True)
class SkippedRule:
    """A rule that did not match, and the first condition that does not hold."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The provider of a charge, and why. It is stored with the attempt, and never made again."""

    provider: str
    fallback: str = ""
    rule: str = ""
    """The name of the rule; "": none matched."""
    reason: str = ""
    skipped: tuple[SkippedRule, ...] = ()
    """The earlier rules, in their order."""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The rules in their order, and the provider of charges that no rule matches."""

    rules: Sequence[RoutingRule]
    default_provider: str
    page_providers: frozenset[str] = frozenset()
    """The providers that host pages: no other is the fallback of a payment with a hosted page."""

    def route(self, facts: ChargeFacts) -> RoutingDecision:
        """The decision of the first rule that matches, else the default without a fallback."""
        skipped: list[SkippedRule] = []
        for rule in self.rules:
            mismatch = _mismatch(rule, facts)
            if not mismatch:
                reason = _match_text(rule, facts)[:MAX_REASON_LENGTH]
                return RoutingDecision(
                    rule.provider, rule.fallback, rule.name, reason, tuple(skipped)
                )
            skipped.append(SkippedRule(rule.name, mismatch))
        reason = "no rule matches" if skipped else ""
        return RoutingDecision(self.default_provider, reason=reason, skipped=tuple(skipped))

    def route_charges(
        self, checkout: CheckoutRequest, orders: Iterable[Order]
    ) -> dict[str, RoutingDecision]:
        """The decision for each charge of these orders of a checkout, by charge id."""
        by_charge: dict[str, list[Order]] = {}
        for order in orders:
            by_charge.setdefault(format_charge_id(checkout, order), []).append(order)
        decisions = {
            charge_id: self.route(_facts_of(checkout, charge_orders))
            for charge_id, charge_orders in by_charge.items()
        }
        if checkout.page is None:
            return decisions
        return {
            charge_id: decision
            if decision.fallback in self.page_providers
            else replace(decision, fallback="")
            for charge_id, decision in decisions.items()
        }


def may_fall_back(
    action: NextAction,
    retry_reason: RetryReason,
    *,
    provider_unavailable: bool,
    maybe_sent: bool,
) -> bool:
    """Whether a step certainly sent nothing, now and before, so that another provider may be asked.

    `provider_unavailable`: the provider was not called, because its circuit is open or it is not
    configured. `maybe_sent`: the attempt may have been sent before.
    """
    if maybe_sent or action is not NextAction.SEND:
        return False
    return retry_reason is RetryReason.NOT_SENT or (
        retry_reason is RetryReason.CIRCUIT_OPEN and provider_unavailable
    )


def covering_rule(rules: Sequence[RoutingRule], index: int) -> RoutingRule | None:
    """An earlier rule that matches whatever the rule at `index` matches; None: there is none."""
    return next((rule for rule in rules[:index] if _covers(rule, rules[index])), None)


def share_bucket(rule_name: str, checkout_id: str) -> int:
    """The percent from 0 to 99 of a checkout for a rule; 0 without an id. Rules with different
    names divide the checkouts independently.
    """
    if not checkout_id:
        return 0
    digest = fingerprint("routing share", rule_name, checkout_id)
    return int.from_bytes(digest[:8]) % _ALL_PERCENT


def _facts_of(checkout: CheckoutRequest, orders: Sequence[Order]) -> ChargeFacts:
    return ChargeFacts(
        checkout.checkout_id,
        checkout.caller,
        orders[0].currency,
        sum(order.amount for order in orders),
        checkout.buyer_country,
        checkout.payment_method_type,
        frozenset(order.seller_account for order in orders),
    )


def _value_conditions(
    rule: RoutingRule, facts: ChargeFacts
) -> tuple[tuple[str, frozenset[str], str], ...]:
    """The conditions on one value: its name, the values that are allowed (empty: all), and that of
    the charge.
    """
    return (
        ("currency", rule.currencies, facts.currency),
        ("country", rule.countries, facts.buyer_country),
        ("payment method", rule.payment_method_types, facts.payment_method_type),
        ("caller", rule.callers, facts.caller),
    )


def _mismatch(rule: RoutingRule, facts: ChargeFacts) -> str:
    """The first condition that does not hold, as text; "": all hold."""
    for name, allowed, value in _value_conditions(rule, facts):
        if allowed and value not in allowed:
            return f"{name} {value or 'not given'} is not among {_join(allowed)}"
    if rule.sellers and not facts.sellers:
        return "seller not given"
    if rule.sellers and not facts.sellers <= rule.sellers:
        return f"seller {min(facts.sellers - rule.sellers)} is not among those of the rule"
    return _amount_mismatch(rule, facts) or _share_mismatch(rule, facts)


def _amount_mismatch(rule: RoutingRule, facts: ChargeFacts) -> str:
    if rule.min_amount is not None and facts.amount < rule.min_amount:
        return f"amount {_format(facts)} is less than {_format(facts, rule.min_amount)}"
    if rule.max_amount is not None and facts.amount > rule.max_amount:
        return f"amount {_format(facts)} is more than {_format(facts, rule.max_amount)}"
    return ""


def _share_mismatch(rule: RoutingRule, facts: ChargeFacts) -> str:
    bucket = share_bucket(rule.name, facts.checkout_id) if rule.share < _ALL_PERCENT else 0
    if bucket >= rule.share:
        return f"the checkout is at {bucket}, outside the share of {rule.share} percent"
    return ""


def _match_text(rule: RoutingRule, facts: ChargeFacts) -> str:
    """The conditions that hold, as text."""
    return ", ".join(_matches(rule, facts)) or "the rule has no condition"


def _matches(rule: RoutingRule, facts: ChargeFacts) -> Iterator[str]:
    for name, allowed, value in _value_conditions(rule, facts):
        if allowed:
            yield f"{name} {value}"
    if rule.sellers:
        yield "seller"
    if rule.min_amount is not None or rule.max_amount is not None:
        yield f"amount {_format(facts)}"
    if rule.share < _ALL_PERCENT:
        bucket = share_bucket(rule.name, facts.checkout_id)
        yield f"the checkout is at {bucket}, within the share of {rule.share} percent"


def _format(facts: ChargeFacts, amount: int | None = None) -> str:
    return format_amount(facts.amount if amount is None else amount, facts.currency)


def _join(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))


def _covers(earlier: RoutingRule, later: RoutingRule) -> bool:
    """Whether the earlier rule matches every charge that the later one matches."""
    sets: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
        name: (getattr(earlier, name), getattr(later, name))
        for name in ("currencies", "countries", "payment_method_types", "sellers", "callers")
    }
    return (
        earlier.share == _ALL_PERCENT
        and all(not wide or (narrow and narrow <= wide) for wide, narrow in sets.values())
        and _is_no_higher(earlier.min_amount, later.min_amount)
        and (
            earlier.max_amount is None
            or (later.max_amount is not None and later.max_amount <= earlier.max_amount)
        )
    )


def _is_no_higher(earlier_min: int | None, later_min: int | None) -> bool:
    return earlier_min is None or (later_min is not None and earlier_min <= later_min)
