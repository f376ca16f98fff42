"""The platform's fee rates."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_core.money import apply_rate
from tallystick_core.payment.checkout import Order


@dataclass(frozen=True, slots=True)
class FeeRates:
    """The platform's fee rates in parts per million (ppm), for orders without their own fee."""

    default_ppm: int
    ppm_by_seller: dict[str, int]

    def compute_fee(self, order: Order) -> int:
        """The order's own fee, or the configured rate of its amount. The seller always gets at
        least one minor unit.
        """
        if order.platform_fee is not None:
            return order.platform_fee
        return min(
            apply_rate(
                order.amount, self.ppm_by_seller.get(order.seller_account, self.default_ppm)
            ),
            order.amount - 1,
        )
