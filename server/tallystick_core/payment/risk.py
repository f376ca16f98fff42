"""The risk check: its interface and the built-in rules. A rule rejects an order with a
FailureReason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tallystick_core.payment.checkout import CheckoutRequest, Order
from tallystick_core.payment.state import (
    OrderStatus,
    PaymentTransitionReason,
    PaymentTrigger,
    transition,
)
from tallystick_core.provider.outcome import FailureReason


@dataclass(frozen=True, slots=True)
class RiskRules:
    """The limits of the built-in rules. Empty or None: the rule is off."""

    amount_limits: Mapping[str, int] = field(default_factory=dict)
    """Currency to the maximum amount of one order, in minor units."""
    velocity_limit: int | None = None
    """The maximum number of orders of one buyer within the window."""
    velocity_window: float = 3600.0
    """Seconds."""
    blocked_accounts: frozenset[str] = frozenset()
    blocked_countries: frozenset[str] = frozenset()


class RiskCheck(Protocol):
    """A check that needs only the platform's own data. It runs when a payment is created."""

    velocity_window: float | None
    """Seconds over which a buyer's orders are counted; None: no count is needed."""

    def check(
        self, checkout: CheckoutRequest, recent_counts: Mapping[str, int]
    ) -> dict[str, FailureReason]:
        """Returns the rejected orders: payment_order_id to FailureReason. `recent_counts`: each
        buyer's number of orders within the window.
        """
        ...


def decide_new_order(
    failure_reason: FailureReason | None, *, has_risk_provider: bool
) -> tuple[OrderStatus, PaymentTransitionReason]:
    """The status of a new order, and why it has it. An order that no rule rejects waits for the
    risk provider, if there is one.
    """
    status = OrderStatus.NOT_STARTED
    if failure_reason is not None:
        rejected = transition(status, PaymentTrigger.RISK_REJECTED)
        return rejected, PaymentTransitionReason.RISK_REJECTED
    if has_risk_provider:
        return status, PaymentTransitionReason.CREATED
    return transition(status, PaymentTrigger.RISK_PASSED), PaymentTransitionReason.RISK_PASSED


class BuiltInRiskCheck:
    """The built-in rules, in order of evaluation. The first rule that rejects gives the reason."""

    def __init__(self, rules: RiskRules) -> None:
        self._rules = rules
        self.velocity_window = rules.velocity_window if rules.velocity_limit is not None else None
        self._checks: tuple[
            tuple[FailureReason, Callable[[CheckoutRequest, Order, int], bool]], ...
        ] = (
            (FailureReason.RISK_BLOCKED_ACCOUNT, self._is_blocked_account),
            (FailureReason.RISK_BLOCKED_COUNTRY, self._is_blocked_country),
            (FailureReason.RISK_AMOUNT_LIMIT, self._is_above_limit),
            (FailureReason.RISK_VELOCITY, self._has_too_many_orders),
        )

    def check(
        self, checkout: CheckoutRequest, recent_counts: Mapping[str, int]
    ) -> dict[str, FailureReason]:
        rejections: dict[str, FailureReason] = {}
        order_counts: Counter[str] = Counter(recent_counts)
        for order in checkout.orders:
            order_counts[order.buyer_account] += 1
            reason = next(
                (
                    name
                    for name, rule in self._checks
                    if rule(checkout, order, order_counts[order.buyer_account])
                ),
                None,
            )
            if reason is not None:
                rejections[order.payment_order_id] = reason
        return rejections

    def _is_blocked_account(
        self, _checkout: CheckoutRequest, order: Order, _order_count: int
    ) -> bool:
        return not self._rules.blocked_accounts.isdisjoint(
            (order.buyer_account, order.seller_account)
        )

    def _is_blocked_country(
        self, checkout: CheckoutRequest, _order: Order, _order_count: int
    ) -> bool:
        return checkout.buyer_country in self._rules.blocked_countries

    def _is_above_limit(self, _checkout: CheckoutRequest, order: Order, _order_count: int) -> bool:
        limit = self._rules.amount_limits.get(order.currency)
        return limit is not None and order.amount > limit

    def _has_too_many_orders(
        self, _checkout: CheckoutRequest, _order: Order, order_count: int
    ) -> bool:
        return self._rules.velocity_limit is not None and order_count > self._rules.velocity_limit
