"""The risk check: a port, and the built-in rules. A rule refuses an order with its
FailureReason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tallystick_core.payment.checkout import CheckoutRequest, Order
from tallystick_core.provider.outcome import FailureReason


@dataclass(frozen=True, slots=True)
class RiskRules:
    """What the built-in rules refuse. Empty or None: the rule is off."""

    amount_limits: Mapping[str, int] = field(default_factory=dict)
    """Currency to the largest amount of one order, in minor units."""
    velocity_limit: int | None = None
    """The most orders one buyer may have within the window."""
    velocity_window: float = 3600.0
    """Seconds."""
    blocked_accounts: frozenset[str] = frozenset()
    blocked_countries: frozenset[str] = frozenset()


class RiskCheck(Protocol):
    """A check that needs only our own data, run while a payment is accepted."""

    velocity_window: float | None
    """Seconds over which a buyer's orders are counted; None: they need not be."""

    def check(
        self, checkout: CheckoutRequest, recent_counts: Mapping[str, int]
    ) -> dict[str, FailureReason]:
        """The refused orders: payment_order_id to FailureReason. `recent_counts`: each buyer's
        number of orders within the window.
        """
        ...


class BuiltInRiskCheck:
    """The rules, in the order in which they are asked; the first that refuses names the reason."""

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
