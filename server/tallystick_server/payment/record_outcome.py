"""Recording of charge outcomes: stores provider outcomes in one transaction for each batch.

Every outcome is recorded here, regardless of its source.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment.charge import decline_if_mismatched, trigger_for
from tallystick_core.payment.state import TERMINAL_STATUSES, PaymentTransitionReason, transition
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    Pending,
    PendingReason,
    Succeeded,
)
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import resolve_and_requeue
from tallystick_server.operations.operation import OperationResult, attempt_result
from tallystick_server.payment.charge import Charge, OrderInCharge, outcome_from_attempt
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.payment.unapplied_charges import record_unapplied
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payment import orders as store
from tallystick_storage.sql import Connection


class PaymentOutcomeRecorder:
    """Records outcomes. An attempt's outcome is stored regardless of the lease; orders change state
    only under the lease.
    """

    def __init__(self, database: Database, resolve_within: Mapping[PendingReason, float]) -> None:
        self._database = database
        self._resolve_within = resolve_within

    async def run(
        self, items: Sequence[OperationResult[Charge, ChargeOutcome]]
    ) -> Sequence[Charge | Exception]:
        """Returns each charge after its outcome was recorded."""
        return await bisect_on_error(self._record_batch, items)

    async def _record_batch(
        self, items: Sequence[OperationResult[Charge, ChargeOutcome]]
    ) -> Sequence[Charge | Exception]:
        attempts = [
            attempt_result(item.operation, trigger_for(item.outcome), item.outcome)
            for item in items
        ]

        def record(connection: Connection) -> TransitionResult:
            final_results = operation_store.record_attempt_results(connection, attempts)
            authoritative_items = [
                _authoritative_outcome(item, attempt, final_results)
                for item, attempt in zip(items, attempts, strict=True)
            ]
            result = transition_orders(
                connection,
                [
                    order_transition
                    for item in authoritative_items
                    for order_transition in _transitions_for(item, self._resolve_within)
                ],
            )
            _record_remainder(
                connection,
                [
                    item
                    for item, authoritative_item in zip(items, authoritative_items, strict=True)
                    if authoritative_item is not item or not _is_fully_applied(item, result)
                ],
            )
            return result

        result = await self._database.transact(record)
        now = asyncio.get_running_loop().time()
        return [result.apply_to(item.operation, now) for item in items]


def _authoritative_outcome(
    item: OperationResult[Charge, ChargeOutcome],
    attempt: operation_store.AttemptResult,
    final_results: Mapping[tuple[str, int], operation_store.AttemptResult],
) -> OperationResult[Charge, ChargeOutcome]:
    """The charge with its authoritative outcome: the first final one recorded, by any process."""
    stored_result = final_results.get((attempt.operation_id, attempt.attempt_number), attempt)
    outcome = item.outcome if stored_result is attempt else outcome_from_attempt(stored_result)
    return item if outcome in (None, item.outcome) else replace(item, outcome=outcome)


def _is_fully_applied(
    item: OperationResult[Charge, ChargeOutcome], result: TransitionResult
) -> bool:
    """Whether the transitions cover the outcome completely. An outcome that is not final says
    nothing about money.
    """
    if not isinstance(item.outcome, Succeeded | Declined):
        return True
    return (
        _checked_outcome(item) is item.outcome
        and item.operation.orders[0].payment_order_id in result.orders
    )


def _record_remainder(
    connection: Connection, items: Sequence[OperationResult[Charge, ChargeOutcome]]
) -> None:
    """Records outcomes that the transitions do not cover, in three cases:

    - another outcome of the attempt was recorded first;
    - the amount or currency differs from the charge's, so its orders failed;
    - the outcome is final and changed no order: the lease was lost, or the orders are final.

    Money that fits no order becomes an unapplied charge; dead letters are resolved and requeued.
    """
    if not items:
        return
    record_unapplied(
        connection,
        [(item.operation, item.outcome) for item in items if isinstance(item.outcome, Succeeded)],
    )
    resolve_and_requeue(connection, [item.operation for item in items])


def _checked_outcome(item: OperationResult[Charge, ChargeOutcome]) -> ChargeOutcome:
    return decline_if_mismatched(item.outcome, item.operation.amount, item.operation.currency)


def _transitions_for(
    item: OperationResult[Charge, ChargeOutcome], resolve_within: Mapping[PendingReason, float]
) -> list[OrderTransition]:
    outcome = _checked_outcome(item)
    fields = _order_fields(outcome, resolve_within)
    charge = item.operation
    transitions = []
    for order in charge.orders:
        if order.status in TERMINAL_STATUSES:  # later money does not belong to this order.
            continue
        status = transition(order.status, trigger_for(outcome))
        if status != order.status or (
            isinstance(outcome, Pending) and _has_pending_change(order, outcome)
        ):
            update = store.OrderTransitionRow(
                order.payment_order_id,
                charge.charge_id,
                charge.lease_token,
                order.version,
                status,
                PaymentTransitionReason.PROVIDER_OUTCOME,
                **fields,
            )
            transitions.append(OrderTransition(charge, order, update))
    return transitions


def _has_pending_change(order: OrderInCharge, outcome: Pending) -> bool:
    """Whether the pending reason or the place of the buyer action has changed. A repeated report
    changes nothing.
    """
    message, reason = (
        order.message,
        payment_pb2.PendingReason.Value(f"PENDING_REASON_{outcome.reason}"),
    )
    return (message.pending_reason, message.next_action_url) != (
        reason,
        outcome.next_action_url,
    ) or outcome.reference not in (
        "",
        message.provider_reference,
    )


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
