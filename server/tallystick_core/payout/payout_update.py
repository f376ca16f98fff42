"""The effect of a provider's word on a payout: one pure fold, whatever its source and order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tallystick_core.payout.reported_transfer import (
    OutcomeEffect,
    PayoutRecord,
    Transfer,
    apply_outcome,
)
from tallystick_core.payout.snapshot import PayoutSnapshot, PayoutTransition
from tallystick_core.payout.state import PayoutTransitionReason, PayoutTrigger
from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
)

MAX_REPORT_LENGTH = 255
_TRANSITION_REASONS = {PayoutTrigger.UNMATCHED_TRANSFER: PayoutTransitionReason.UNMATCHED_TRANSFER}


@dataclass(frozen=True, slots=True)
class PayoutUpdate:
    """A payout with what the outcomes that were applied to it so far have changed."""

    snapshot: PayoutSnapshot
    net_amount: int
    """Minor units: what is requested from the provider."""
    currency: str
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    """All transfers of the payout, by reference."""
    transitions: tuple[PayoutTransition, ...] = ()
    """The new versions, in order."""
    changed_transfers: Mapping[str, Transfer] = field(default_factory=dict)
    """The new or returned transfers, by reference."""
    conflicts: tuple[str, ...] = ()
    """The reports that contradict earlier ones and need an operator."""
    is_conclusive: bool = False
    """Whether an outcome was conclusive; then a dead letter of the payout is requeued."""


def apply(payout: PayoutUpdate, outcome: PayoutOutcome) -> PayoutUpdate:
    """The payout after an outcome. A repeat has no effect, and money that moved is booked once, in
    any order of arrival.
    """
    effect = apply_outcome(
        PayoutRecord(payout.snapshot.state, payout.net_amount, payout.currency, payout.transfers),
        outcome,
    )
    reported = {transfer.reference: transfer for transfer in effect.transfers}
    payout = replace(
        payout,
        transfers={**payout.transfers, **reported},
        changed_transfers={**payout.changed_transfers, **reported},
        is_conclusive=payout.is_conclusive
        or isinstance(outcome, Submitted | InTransit | Succeeded | Returned | Declined),
    )
    for trigger in effect.triggers:
        payout = _transition(payout, trigger, outcome, effect)
    if effect.is_conflicting:
        payout = replace(payout, conflicts=(*payout.conflicts, describe_report(outcome)))
    return payout


def _transition(
    payout: PayoutUpdate, trigger: PayoutTrigger, outcome: PayoutOutcome, effect: OutcomeEffect
) -> PayoutUpdate:
    snapshot = payout.snapshot.apply(trigger, **_changes(payout, trigger, outcome, effect))
    if trigger is not PayoutTrigger.UNMATCHED_TRANSFER and snapshot.state is payout.snapshot.state:
        return payout  # unchanged
    reason = _TRANSITION_REASONS.get(trigger, PayoutTransitionReason.PROVIDER_OUTCOME)
    return _with_version(payout, snapshot, reason)


def _with_version(
    payout: PayoutUpdate, snapshot: PayoutSnapshot, reason: PayoutTransitionReason
) -> PayoutUpdate:
    return replace(
        payout,
        snapshot=snapshot,
        transitions=(*payout.transitions, PayoutTransition(snapshot, reason)),
    )


def _changes(
    payout: PayoutUpdate, trigger: PayoutTrigger, outcome: PayoutOutcome, effect: OutcomeEffect
) -> dict[str, Any]:
    """The payout fields besides the state that an outcome sets."""
    changes: dict[str, Any] = {}
    if reference := getattr(outcome, "reference", ""):
        changes["provider_reference"] = payout.snapshot.provider_reference or reference
    if code := getattr(outcome, "code", ""):
        changes["decline_code"] = code
    if trigger is PayoutTrigger.DECLINED:
        changes["failure_reason"] = effect.failure
    in_currency = [
        transfer for transfer in payout.transfers.values() if transfer.currency == payout.currency
    ]
    changes["paid_amount"] = sum(transfer.amount for transfer in in_currency)
    if trigger in (PayoutTrigger.RETURNED, PayoutTrigger.UNMATCHED_TRANSFER):
        changes["returned_amount"] = sum(
            transfer.returned_amount or 0
            for transfer in in_currency
            if transfer.returned_currency == payout.currency
        )
    return changes


def add_reported_conflicts(payout: PayoutUpdate, report_count: int) -> PayoutUpdate:
    """The payout with one version for each report that is stored for an operator. The money stays
    where the first report put it.
    """
    for _ in range(report_count):
        snapshot = payout.snapshot.apply(PayoutTrigger.UNMATCHED_TRANSFER)
        payout = _with_version(payout, snapshot, PayoutTransitionReason.UNMATCHED_TRANSFER)
    return payout


def describe_report(outcome: PayoutOutcome) -> str:
    """Describes a report in one line; equal reports give equal text."""
    parts = (
        str(getattr(outcome, name, "")) for name in ("reference", "amount", "currency", "code")
    )
    return " ".join([type(outcome).__name__, *filter(None, parts)])[:MAX_REPORT_LENGTH]
