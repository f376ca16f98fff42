"""Stored rows of PaymentService as the facts of an explanation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tallystick_core.money import format_amount
from tallystick_core.payment.explanation_facts import (
    OrderFacts,
    OrderTransitionFacts,
    UnappliedFacts,
)
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_core.provider.outcome import FailureReason, PendingReason
from tallystick_server.operations.explanations import trace_id_of
from tallystick_storage.payment import explanations as store
from tallystick_storage.payment.unapplied_charges import UnappliedChargeRow


def order_facts(row: store.ExplainedOrderRow) -> OrderFacts:
    return OrderFacts(
        row.payment_order_id,
        row.charge_id,
        row.seller_account,
        format_amount(row.amount, row.currency),
        row.currency,
        format_amount(row.platform_fee, row.currency),
        OrderStatus(row.status),
        row.ledger_updated,
        _optional(PendingReason, row.pending_reason),
        row.resolve_by_time,
        _optional(FailureReason, row.failure_reason),
        row.decline_code,
        row.delivery_confirmed_time,
        row.release_time,
        row.release_rejection or "",
    )


def transition_facts(row: store.OrderTransitionRow) -> OrderTransitionFacts:
    return OrderTransitionFacts(
        row.payment_order_id,
        OrderStatus(row.to_status),
        PaymentTransitionReason(row.transition_reason),
        row.create_time,
        _optional(PendingReason, row.pending_reason),
        row.resolve_by_time,
        _optional(FailureReason, row.failure_reason),
        row.decline_code,
        row.provider_reference,
    )


def unapplied_facts(row: UnappliedChargeRow, *, with_details: bool) -> UnappliedFacts:
    """`with_details`: who acknowledged it, and why."""
    return UnappliedFacts(
        row.unapplied_charge_id,
        row.charge_id,
        row.provider,
        row.provider_reference,
        format_amount(row.amount, row.currency),
        row.currency,
        row.cause,
        row.ledger_updated,
        row.create_time,
        trace_id_of(row.traceparent),
        row.acknowledged_by if with_details else "",
        row.acknowledge_reason if with_details else "",
        row.acknowledge_time,
    )


def _optional(enum: Callable[[str], Any], name: str) -> Any:
    """The value of a name; None for ""."""
    return enum(name) if name else None
