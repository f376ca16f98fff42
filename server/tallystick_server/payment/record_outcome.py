"""Recording of charge outcomes: stores provider outcomes in one transaction for each batch.

Every outcome is recorded here, whatever its source: a response, a poll or an operator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tallystick.payment.v1 import payment_pb2
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.charge import trigger_for
from tallystick_core.payment.charge_update import ChargeSnapshot, UnappliedCause, apply
from tallystick_core.payment.state import PaymentTransitionReason, PaymentTrigger, transition
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    Pending,
    PendingReason,
    Succeeded,
)
from tallystick_server.observability import metrics
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import resolve_and_requeue
from tallystick_server.operations.operation import NO_LEASE, OperationResult, attempt_result
from tallystick_server.payment.charge import Charge, charges_from_rows, outcome_from_attempt
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.payment.unapplied_charges import (
    UnappliedMoney,
    record_conflicts,
    record_unapplied,
)
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.sql import Connection

_Result = OperationResult[Charge, ChargeOutcome]


class PaymentOutcomeRecorder:
    """Records outcomes. An outcome counts whichever process holds the lease: the version of an
    order protects it from concurrent changes.
    """

    def __init__(self, database: Database, resolve_within: Mapping[PendingReason, float]) -> None:
        self._database = database
        self._resolve_within = resolve_within

    async def run(self, results: Sequence[_Result]) -> Sequence[Charge | Exception]:
        """Returns each charge after its outcome was recorded."""
        return await bisect_on_error(self._record_batch, results)

    async def _record_batch(self, results: Sequence[_Result]) -> Sequence[Charge | Exception]:
        transitioned = await self._database.transact(
            lambda connection: self._record(connection, results)
        )
        _count_completed(results, transitioned)
        now = asyncio.get_running_loop().time()
        return [transitioned.apply_to(result.operation, now) for result in results]

    def _record(self, connection: Connection, results: Sequence[_Result]) -> TransitionResult:
        attempts = [
            attempt_result(result.operation, trigger_for(result.outcome), result.outcome)
            for result in results
        ]
        final_results = operation_store.record_attempt_results(connection, attempts)
        updates = _group(results, final_results)
        unleased = {
            update.charge.key for update in updates if update.charge.lease_token == NO_LEASE
        }
        if unleased:  # lock order: operations before orders
            operation_store.lock(connection, unleased)
        transitioned = self._apply(connection, updates)
        missed = [update for update in updates if update.has_missed(transitioned)]
        if missed:  # the orders have changed since they were loaded
            reloaded = _reload(connection, missed)
            transitioned.add(self._apply(connection, reloaded.values()))
            updates = [
                update
                if update.snapshot.is_replaced
                else reloaded.get(update.charge.charge_id, update)
                for update in updates
            ]
        transitioned.add_known(
            update.charge for update in updates if not update.snapshot.is_replaced
        )
        _record_remainder(connection, updates, transitioned)
        return transitioned

    def _apply(self, connection: Connection, updates: Iterable[_ChargeUpdate]) -> TransitionResult:
        """Folds the outcomes of each charge into its snapshot, and changes the orders."""
        transitions = []
        for update in updates:
            update.fold()
            transitions += update.transitions(self._resolve_within)
        return transition_orders(connection, transitions)


def _count_completed(results: Sequence[_Result], transitioned: TransitionResult) -> None:
    """Counts the charges that the outcomes of a batch completed, each once."""
    outcomes = {
        result.operation.charge_id: result
        for result in results
        if isinstance(result.outcome, Succeeded | Declined)
        and transitioned.changed(result.operation)
    }
    for result in outcomes.values():
        charge = result.operation
        metrics.CHARGES_COMPLETED.add(
            1,
            charge.provider,
            charge.payment_method_type,
            charge.currency,
            type(result.outcome).__name__,
        )


@dataclass(slots=True)
class _ChargeUpdate:
    """One attempt of a charge with all its outcomes in the batch, in order."""

    charge: Charge
    snapshot: ChargeSnapshot
    outcomes: list[ChargeOutcome]
    order_outcome: ChargeOutcome | None = None
    """The last outcome that the orders follow; None: they do not change."""
    unapplied: dict[str, tuple[Succeeded, UnappliedCause]] = field(default_factory=dict)
    conflicts: list[Succeeded | Declined] = field(default_factory=list)

    def fold(self) -> None:
        for outcome in self.outcomes:
            effect = apply(self.snapshot, outcome)
            self.snapshot = effect.snapshot
            self.order_outcome = effect.order_outcome or self.order_outcome
            if effect.unapplied is not None and effect.unapplied_cause is not None:
                self.unapplied[effect.unapplied.reference] = (
                    effect.unapplied,
                    effect.unapplied_cause,
                )
            if effect.is_conflicting and isinstance(outcome, Succeeded | Declined):
                self.conflicts.append(outcome)

    def transitions(self, resolve_within: Mapping[PendingReason, float]) -> list[OrderTransition]:
        """The transitions of the orders."""
        if self.order_outcome is None:
            return []
        fields = _order_fields(self.order_outcome, resolve_within)
        trigger = trigger_for(self.order_outcome)
        return [
            OrderTransition(
                self.charge,
                order,
                transition(order.status, trigger),
                PaymentTransitionReason.PROVIDER_OUTCOME,
                **fields,
            )
            for order in self.charge.orders
        ]

    def has_missed(self, transitioned: TransitionResult) -> bool:
        """Whether the orders were to change and did not, because they have another version now."""
        return self.order_outcome is not None and not transitioned.changed(self.charge)

    @property
    def is_final(self) -> bool:
        """Whether an outcome is final, and so needs no decision of an operator any more. That of an
        attempt that was replaced says nothing about the charge.
        """
        return not self.snapshot.is_replaced and any(
            isinstance(outcome, Succeeded | Declined) for outcome in self.outcomes
        )


def _group(
    results: Sequence[_Result],
    final_results: Mapping[tuple[str, str, int], operation_store.AttemptResult],
) -> list[_ChargeUpdate]:
    """The attempts of a batch, by their first final outcomes that are stored, by any process."""
    updates: dict[tuple[str, int], _ChargeUpdate] = {}
    for result in results:
        charge = result.operation
        stored = final_results.get((*charge.key, charge.attempt_number))
        snapshot = _snapshot_of(
            charge,
            (stored and outcome_from_attempt(stored)) or charge.recorded_outcome,
            # an attempt ends as not sent only when a fallback replaces it
            is_replaced=stored is not None and stored.outcome == PaymentTrigger.NOT_SENT,
        )
        key = (charge.charge_id, charge.attempt_number)
        update = updates.get(key)
        if update is None:
            updates[key] = _ChargeUpdate(charge, snapshot, [result.outcome])
            continue
        update.outcomes.append(result.outcome)
        if charge.orders[0].version > update.charge.orders[0].version:
            update.charge, update.snapshot = charge, snapshot
    return list(updates.values())


def _snapshot_of(charge: Charge, recorded: object, *, is_replaced: bool = False) -> ChargeSnapshot:
    """The charge as it is loaded, and the outcome that is stored of the attempt. `is_replaced`: a
    fallback has replaced it.
    """
    order = charge.orders[0]
    return ChargeSnapshot(
        charge.amount,
        charge.currency,
        order.status,
        recorded if isinstance(recorded, Succeeded | Declined) else None,
        _pending_of(order.message),
        has_page=charge.page is not None,
        is_replaced=is_replaced,
    )


def _pending_of(message: payment_pb2.PaymentOrder) -> Pending | None:
    """What an order waits for; None: it is not pending."""
    if message.pending_reason == payment_pb2.PENDING_REASON_UNSPECIFIED:
        return None
    name = payment_pb2.PendingReason.Name(message.pending_reason)
    return Pending(
        PendingReason(name.removeprefix("PENDING_REASON_")),
        message.provider_reference,
        message.next_action_url,
    )


def _reload(connection: Connection, updates: Sequence[_ChargeUpdate]) -> dict[str, _ChargeUpdate]:
    """The charges as they are now, locked, by id: the same outcomes are folded again."""
    by_id = {update.charge.charge_id: update for update in updates}
    operation_store.lock(connection, [update.charge.key for update in updates])
    rows = charge_store.lock_charges(connection, sorted(by_id))
    tokens = {id_: update.charge.lease_token for id_, update in by_id.items()}
    return {
        charge.charge_id: _ChargeUpdate(
            charge,
            _snapshot_of(charge, by_id[charge.charge_id].snapshot.recorded),
            by_id[charge.charge_id].outcomes,
        )
        for charge in charges_from_rows(rows, tokens, 0.0, 0.0)
    }


def _record_remainder(
    connection: Connection, updates: Sequence[_ChargeUpdate], transitioned: TransitionResult
) -> None:
    """Records what the transitions do not cover: money that fits no order, contradictions, and the
    operations of charges whose lease another process holds, or that are dead letters.
    """
    money = [
        UnappliedMoney(update.charge, outcome, cause)
        for update in updates
        for outcome, cause in update.unapplied.values()
    ]
    conflicting = [(update.charge, outcome) for update in updates for outcome in update.conflicts]
    if conflicting:
        record_conflicts(connection, conflicting)
    if money:
        record_conflicts(connection, [(item.charge, item.outcome) for item in money])
        record_unapplied(connection, money)
    not_held = [
        update.charge
        for update in updates
        if update.is_final and not transitioned.holds_lease(update.charge)
    ]
    if not_held:
        # Another process books them as soon as it can: this one may not.
        operation_store.make_due(
            connection,
            KindName.CHARGE,
            [charge.charge_id for charge in not_held if transitioned.changed(charge)],
        )
        resolve_and_requeue(connection, not_held)


def _order_fields(
    outcome: ChargeOutcome, resolve_within: Mapping[PendingReason, float]
) -> dict[str, Any]:
    """The order fields that an outcome sets, for each order of its charge."""
    match outcome:
        case Succeeded():
            return {"provider_reference": outcome.reference}
        case Declined():
            return {
                "failure_reason": outcome.reason,
                "decline_code": outcome.code,
                "provider_reference": outcome.reference,
            }
        case Pending():
            return {
                "pending_reason": outcome.reason,
                "next_action_url": outcome.next_action_url,
                "provider_reference": outcome.reference,
                "resolve_within_seconds": resolve_within.get(outcome.reason),
            }
        case _:
            return {}
