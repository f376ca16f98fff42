"""The effect of a provider's word on a charge: one pure fold, whatever its source and order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tallystick_core.payment.charge import decline_if_mismatched, trigger_for
from tallystick_core.payment.state import TERMINAL_STATUSES, OrderStatus, transition
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    Pending,
    PendingReason,
    Succeeded,
)


class UnappliedCause(StrEnum):
    """Why money that a provider took fits no order. The names are those of
    `tallystick.payment.v1.UnappliedCause`.
    """

    MISMATCH = "MISMATCH"
    LATE = "LATE"
    DUPLICATE_CHARGE = "DUPLICATE_CHARGE"


@dataclass(frozen=True, slots=True)
class ChargeSnapshot:
    """A charge when an outcome is applied. Amounts in minor units."""

    amount: int
    currency: str
    status: OrderStatus
    """The status of its orders, which change together."""
    recorded: Succeeded | Declined | None = None
    """The first final outcome of its attempt. It decides about the orders."""
    pending: Pending | None = None
    """What the orders wait for."""
    unapplied: Mapping[str, Succeeded] = field(default_factory=dict)
    """Money that fits no order, as it was first reported, by reference."""
    has_page: bool = False
    """The buyer pays on a page of the provider."""
    is_replaced: bool = False
    """The outcome is that of an attempt that a fallback has replaced: its money fits no order."""


@dataclass(frozen=True, slots=True)
class ChargeEffect:
    """The effect of an outcome on a charge."""

    snapshot: ChargeSnapshot
    """The charge after it."""
    order_outcome: ChargeOutcome | None = None
    """The outcome that the orders follow, in a new version. None: they do not change."""
    unapplied: Succeeded | None = None
    """Money that fits no order."""
    unapplied_cause: UnappliedCause | None = None
    is_conflicting: bool = False
    """The outcome contradicts an earlier one and needs an operator: known money has another amount,
    or a successful charge is declined.
    """


def apply(charge: ChargeSnapshot, outcome: ChargeOutcome) -> ChargeEffect:
    """The effect of an outcome. A repeat has no effect, and money that was taken is either that of
    the orders or unapplied, in any order of arrival. An attempt that was replaced changes no order.
    """
    if charge.is_replaced:
        effect = ChargeEffect(charge)
        return _with_money(effect, outcome) if isinstance(outcome, Succeeded) else effect
    if charge.recorded is None and isinstance(outcome, Succeeded | Declined):
        charge = replace(charge, recorded=outcome)
    effect = _follow(charge, outcome)
    match outcome:
        case Succeeded():
            return _with_money(effect, outcome)
        case Declined():
            return replace(effect, is_conflicting=isinstance(charge.recorded, Succeeded))
        case _:
            return effect


def _follow(charge: ChargeSnapshot, outcome: ChargeOutcome) -> ChargeEffect:
    """The orders follow the recorded outcome. Until there is one, they show the last report."""
    if charge.status in TERMINAL_STATUSES or charge.status is OrderStatus.NOT_STARTED:
        return ChargeEffect(charge)
    followed = decline_if_mismatched(charge.recorded or outcome, charge.amount, charge.currency)
    status = transition(charge.status, trigger_for(followed))
    if not isinstance(followed, Pending):
        if status is charge.status:
            return ChargeEffect(charge)
        return ChargeEffect(replace(charge, status=status, pending=None), followed)
    if charge.pending is not None and not _is_news(charge.pending, followed, charge.has_page):
        return ChargeEffect(charge)
    return ChargeEffect(replace(charge, status=status, pending=followed), followed)


def _is_news(previous: Pending, pending: Pending, has_page: bool) -> bool:
    """Whether the pending reason, the place of the buyer action or the reference has changed. A
    page keeps its URL, and its buyer has nothing more to do once the provider reviews the payment:
    such a report is older.
    """
    if has_page and pending.reference == previous.reference:
        return (previous.reason, pending.reason) == (
            PendingReason.BUYER_ACTION,
            PendingReason.PROVIDER_REVIEW,
        )
    return (previous.reason, previous.next_action_url) != (
        pending.reason,
        pending.next_action_url,
    ) or pending.reference not in ("", previous.reference)


def _with_money(effect: ChargeEffect, outcome: Succeeded) -> ChargeEffect:
    """Adds the reported money to the effect, unless it is that of the orders or known already."""
    charge = effect.snapshot
    money = (outcome.amount, outcome.currency)
    first = charge.unapplied.get(outcome.reference) or charge.recorded
    if isinstance(first, Succeeded) and first.reference == outcome.reference:
        if money != (first.amount, first.currency):
            return replace(effect, is_conflicting=True)
        if outcome.reference in charge.unapplied or _belongs_to_orders(charge, outcome):
            return effect
    cause = _unapplied_cause(charge, outcome)
    snapshot = replace(charge, unapplied={**charge.unapplied, outcome.reference: outcome})
    return replace(effect, snapshot=snapshot, unapplied=outcome, unapplied_cause=cause)


def _belongs_to_orders(charge: ChargeSnapshot, outcome: Succeeded) -> bool:
    """Whether money of the recorded reference pays the orders, now or once they can change."""
    return charge.status is not OrderStatus.FAILED and (outcome.amount, outcome.currency) == (
        charge.amount,
        charge.currency,
    )


def _unapplied_cause(charge: ChargeSnapshot, outcome: Succeeded) -> UnappliedCause:
    if (outcome.amount, outcome.currency) != (charge.amount, charge.currency):
        return UnappliedCause.MISMATCH
    if charge.status is OrderStatus.FAILED or isinstance(charge.recorded, Declined):
        return UnappliedCause.LATE
    return UnappliedCause.DUPLICATE_CHARGE
