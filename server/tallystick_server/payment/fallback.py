"""Fallback: the next attempt of a charge goes to another provider, if certainly nothing was sent.

One transaction for each batch ends the old attempts as NOT_SENT, which is final, and begins the new
ones under new leases. So no holder of an earlier lease sends an attempt that was replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tallystick_core.operations.idempotency_key import format_provider_key
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.routing import MAX_REASON_LENGTH, may_fall_back
from tallystick_core.payment.state import PaymentTransitionReason, PaymentTrigger, transition
from tallystick_server.observability import names
from tallystick_server.operations.batcher import Batcher, bisect_on_error
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.reschedule import sanitize_detail
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.poll_failed import schedule_polls
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage.database import Database
from tallystick_storage.payment import fallbacks as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Fallback:
    """A charge as it was not sent, and why."""

    charge: Charge
    reason: str


class ChargeFallback:
    """Begins the next attempts of charges at their fallback providers.

    `environment`: prefix of the idempotency keys.
    """

    def __init__(
        self,
        database: Database,
        retry_policies: RetryPolicies,
        environment: str,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._retry_policies = retry_policies
        self._environment = environment
        self._lease_seconds = lease_seconds
        self.batcher: Batcher[_Fallback, Charge | None] = Batcher(
            "payment.fall_back",
            self._run,
            max_batch=MAX_ITEMS,
            size_of=lambda fallback: fallback.charge.weight,
        )

    async def fall_back(
        self, failed_step: FailedStep[Charge], is_available: Callable[[str], bool]
    ) -> Charge | None:
        """Returns the charge with its next attempt, leased again. None: it stays as it is, because
        it may have been sent, has no fallback, or its fallback does not answer either.
        """
        charge = failed_step.operation
        if (
            not charge.fallback_provider
            or not is_available(charge.fallback_provider)
            or not may_fall_back(
                failed_step.action,
                failed_step.retry_reason,
                provider_unavailable=failed_step.provider_unavailable,
                maybe_sent=charge.maybe_sent,
            )
        ):
            return None
        detail = sanitize_detail(failed_step.detail)
        reason = f"fallback: nothing was sent to {charge.provider}: {detail}"[:MAX_REASON_LENGTH]
        successor = await self.batcher.submit(_Fallback(charge, reason), charge.context)
        if successor is not None:
            log.info(
                "%s: %s; the next attempt goes to %s",
                charge.resource_name,
                reason,
                successor.provider,
                extra=names.FALLBACK_STARTED.extra,
            )
        return successor

    async def _run(self, items: Sequence[_Fallback]) -> Sequence[Charge | Exception | None]:
        return await bisect_on_error(self._replace_attempts, items)

    async def _replace_attempts(self, items: Sequence[_Fallback]) -> Sequence[Charge | None]:
        now = asyncio.get_running_loop().time()

        def replace_attempts(connection: Connection) -> TransitionResult:
            charges = [item.charge for item in items]
            unsent_ids = store.lock_unsent(
                connection,
                [
                    store.LeasedAttempt(charge.charge_id, charge.attempt_number, charge.lease_token)
                    for charge in charges
                ],
            )
            changed = transition_orders(
                connection,
                [
                    order_transition
                    for charge in charges
                    if charge.charge_id in unsent_ids
                    for order_transition in _transitions_for(charge)
                ],
            )
            replaced = [item for item in items if changed.changed(item.charge)]
            if replaced:
                attempts = [self._next_attempt(item) for item in replaced]
                store.replace(connection, attempts, self._lease_seconds)
                schedule_polls(connection, self._retry_policies, [item.charge for item in replaced])
            return changed

        changed = await self._database.transact(replace_attempts)
        return [
            self._successor(item.charge, changed, now) if changed.changed(item.charge) else None
            for item in items
        ]

    def _next_attempt(self, item: _Fallback) -> store.FallbackAttempt:
        charge = item.charge
        return store.FallbackAttempt(
            charge.charge_id,
            charge.attempt_number,
            charge.lease_token,
            charge.fallback_provider,
            self._provider_key(charge),
            charge.routing_rule,
            item.reason,
        )

    def _provider_key(self, charge: Charge) -> str:
        """The idempotency key of the next attempt."""
        return format_provider_key(
            self._environment, KindName.CHARGE, charge.charge_id, charge.attempt_number + 1
        )

    def _successor(self, charge: Charge, changed: TransitionResult, now: float) -> Charge:
        """The charge as it is stored with its next attempt, which was leased at loop time `now`."""
        return replace(
            changed.apply_to(charge, now),
            attempt_number=charge.attempt_number + 1,
            provider=charge.fallback_provider,
            provider_key=self._provider_key(charge),
            provider_reference="",
            fallback_provider="",
            lease_token=charge.lease_token + 1,
            lease_deadline=now + self._lease_seconds,
            age_seconds=0.0,
            recorded_outcome=None,
            lookup_only=False,
            seconds_since_sent=None,
            not_found_count=0,
            # the payment expires when it did before
            end_deadline=charge.end_deadline,
        )


def _transitions_for(charge: Charge) -> list[OrderTransition]:
    """The new versions of the orders of a charge, with the provider of its next attempt."""
    return [
        OrderTransition(
            charge,
            order,
            transition(order.status, PaymentTrigger.FALLBACK),
            PaymentTransitionReason.FALLBACK,
            provider=charge.fallback_provider,
        )
        for order in charge.orders
    ]
