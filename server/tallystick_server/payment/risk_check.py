"""The risk check by a third party: a step of a charge, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.payment.state import (
    OrderStatus,
    PaymentTransitionReason,
    PaymentTrigger,
    transition,
)
from tallystick_core.provider.outcome import (
    Approved,
    Declined,
    FailureReason,
    RetryReason,
    RiskOutcome,
)
from tallystick_core.provider.risk_provider import RiskProvider, RiskRequest
from tallystick_server.operations.batcher import Batcher, bisect_on_error
from tallystick_server.operations.failed_step import FailedStep, StepFailed, classify_not_called
from tallystick_server.operations.operation import OperationResult
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.providers.gateway import NotCalled, ProviderGateway, changed_before_call
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

RiskDecision = Approved | Declined


class RiskStep:
    """Asks a risk provider about charges, and records its decisions. Until it has decided, nothing
    is sent to the payment provider.

    `gateway` calls the risk provider named `provider`. `is_still_leased`: whether this process
    still leases a charge, and no cancellation has changed it.
    """

    def __init__(
        self,
        database: Database,
        gateway: ProviderGateway,
        provider: str,
        is_still_leased: Callable[[Charge], Awaitable[bool]],
    ) -> None:
        self._database = database
        self._is_still_leased = is_still_leased
        self._gateway = gateway
        self._provider = provider
        self.batcher: Batcher[OperationResult[Charge, RiskDecision], Charge] = Batcher(
            "payment.risk_check",
            self._record,
            max_batch=MAX_ITEMS,
            size_of=lambda result: result.operation.weight,
        )

    async def check(self, charge: Charge) -> Charge:
        """Returns the charge after the decision; unchanged if its lease was lost. Raises StepFailed
        if there is no decision: certainly nothing was sent, so the charge is checked again.
        """
        outcome = await self._gateway.call(
            replace(charge, provider=self._provider), NextAction.RISK, Circuit.RISK_CHECKS, _perform
        )
        match outcome:
            case Approved() | Declined():
                checked = await self.batcher.submit(
                    OperationResult(charge, outcome), charge.context
                )
                if _is_approved(checked) and not await self._is_still_leased(checked):
                    outcome = changed_before_call("changed before it was sent")
                    raise StepFailed(classify_not_called(checked, outcome, NextAction.RISK))
                return checked
            case NotCalled():
                raise StepFailed(classify_not_called(charge, outcome, NextAction.RISK))
            case _:
                detail = getattr(outcome, "detail", type(outcome).__name__)
                raise StepFailed(
                    FailedStep(
                        charge,
                        RetryReason.NOT_SENT,
                        f"the risk check has not decided: {detail}",
                        NextAction.RISK,
                        getattr(outcome, "retry_after", 0.0),
                        request_id=getattr(outcome, "request_id", ""),
                    )
                )

    async def _record(
        self, results: Sequence[OperationResult[Charge, RiskDecision]]
    ) -> Sequence[Charge | Exception]:
        return await bisect_on_error(self._record_decisions, results)

    async def _record_decisions(
        self, results: Sequence[OperationResult[Charge, RiskDecision]]
    ) -> Sequence[Charge]:
        transitions = [
            order_transition for result in results for order_transition in _transitions_for(result)
        ]

        def record_decisions(connection: Connection) -> TransitionResult:
            return transition_orders(connection, transitions)

        changed = await self._database.transact(record_decisions)
        now = asyncio.get_running_loop().time()
        return [
            # The payment expires when it did before.
            replace(
                changed.apply_to(result.operation, now), end_deadline=result.operation.end_deadline
            )
            for result in results
        ]


def _is_approved(charge: Charge) -> bool:
    return charge.orders[0].status is OrderStatus.EXECUTING


def _perform(provider: RiskProvider, charge: Charge, _action: NextAction) -> Awaitable[RiskOutcome]:
    return provider.check(
        RiskRequest(
            charge_id=charge.charge_id,
            checkout_id=charge.checkout_id,
            buyer_accounts=tuple(sorted({order.buyer_account for order in charge.orders})),
            buyer_country=charge.buyer_country,
            amount=charge.amount,
            currency=charge.currency,
            payment_token=charge.payment_token,
            method=charge.payment_method_type,
        )
    )


def _transitions_for(result: OperationResult[Charge, RiskDecision]) -> list[OrderTransition]:
    """The transitions of the orders of a charge that was approved or declined."""
    charge, outcome = result.operation, result.outcome
    if isinstance(outcome, Declined):
        trigger, reason = PaymentTrigger.RISK_REJECTED, PaymentTransitionReason.RISK_REJECTED
        failure_reason, decline_code = str(FailureReason.RISK_PROVIDER), outcome.code
    else:
        trigger, reason = PaymentTrigger.RISK_PASSED, PaymentTransitionReason.RISK_PASSED
        failure_reason = decline_code = ""
    return [
        OrderTransition(
            charge,
            order,
            transition(order.status, trigger),
            reason,
            failure_reason=failure_reason,
            decline_code=decline_code,
        )
        for order in charge.orders
    ]
