"""Rejects payments whose charges a provider never makes, before anything is stored."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payment.charge import format_charge_id
from tallystick_core.payment.checkout import ChargeMode, CheckoutRequest
from tallystick_core.payment.routing import RoutingTable
from tallystick_core.provider.payment_provider import PaymentProvider


def reject_amounts(
    request: CheckoutRequest, routing: RoutingTable, providers: Mapping[str, PaymentProvider]
) -> ApiError | None:
    """The error of the first charge whose amount a provider rejects to which it may be sent: the
    one of its routing decision, or its fallback. None: there is none. The orders of a combined
    charge are one amount.
    """
    decisions = routing.route_charges(request, request.orders)
    method = request.payment_method_type
    for order in sorted(request.orders, key=lambda order: order.index):
        decision = decisions[format_charge_id(request, order)]
        field, amount, subject = f"payment_orders[{order.index}].amount", order.amount, ""
        if request.charge_mode is ChargeMode.COMBINED:
            field, amount = "payment_orders", sum(item.amount for item in request.orders)
            subject = "The sum of the amounts"
        for name in (decision.provider, decision.fallback):
            provider = providers.get(name)
            rule = provider.reject_amount(amount, order.currency, method) if provider else None
            if rule is not None:
                message = f"{subject or field} {rule}."
                return ApiError(ErrorReason.AMOUNT_OUT_OF_RANGE, message, field=field)
    return None
