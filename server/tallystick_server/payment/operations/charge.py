"""The operation kind "charge": what a payment provider is asked for, for the orders of one charge.

The file reads in the order of the lifecycle: load, next action, perform, record, book, fail, close.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tallystick.payment.v1 import payment_pb2
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.charge import next_action as charge_next_action
from tallystick_core.payment.state import (
    OrderStatus,
    PaymentTransitionReason,
    PaymentTrigger,
    transition,
)
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    FailureReason,
    Succeeded,
)
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import NO_LEASE, OperationResult
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.operations.webhook_events import EventSubjects, ReportedOperation
from tallystick_server.operations.worker import DOWNSTREAM_CONCURRENCY
from tallystick_server.payment.booking import PaymentBooking
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_server.payment.fallback import ChargeFallback
from tallystick_server.payment.poll_failed import schedule_polls
from tallystick_server.payment.record_outcome import PaymentOutcomeRecorder
from tallystick_server.payment.risk_check import RiskStep
from tallystick_server.payment.transitions import OrderTransition, transition_orders
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_storage import operations as operation_store
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.sql import Connection

_NO_TIME = 0.0  # a failed charge has no deadline
_UNDECIDED_STATUSES = frozenset({OrderStatus.NOT_STARTED, OrderStatus.EXECUTING})


def next_action(
    charge: Charge, now: float, key_window_seconds: float, lease_seconds: float
) -> NextAction:
    """The next action of a charge at loop time `now`."""
    order = charge.orders[0]
    if order.status is OrderStatus.FAILED or order.message.ledger_updated:
        return NextAction.WAIT
    return charge_next_action(
        (order.status for order in charge.orders),
        attempt_ended=charge.recorded_outcome is not None,
        must_end=failure_if_not_sent(charge, now) is not None,
        maybe_sent=charge.maybe_sent,
        lookup_only=charge.lookup_only,
        key_honored=charge.is_key_honored(key_window_seconds, lease_seconds),
    )


def failure_if_not_sent(charge: Charge, now: float) -> FailureReason | None:
    """Why the charge must end at loop time `now`: it was cancelled or has expired. None: it must
    not.
    """
    if charge.cancelled:
        return FailureReason.CALLER_CANCELLED
    is_expired = now >= charge.expires_at and charge.orders[0].status in _UNDECIDED_STATUSES
    if not (is_expired or charge.buyer_timed_out):
        return None
    return FailureReason.EXPIRED if charge.page is None else FailureReason.PAGE_EXPIRED


def to_request(charge: Charge) -> ChargeRequest:
    """The request to the provider."""
    return ChargeRequest(
        charge.provider_key,
        charge.charge_id,
        charge.amount,
        charge.currency,
        charge.payment_token,
        charge.payment_method_type,
        charge.provider_reference,
        charge.page,
    )


def perform(
    provider: PaymentProvider, charge: Charge, action: NextAction
) -> Awaitable[ChargeLookupOutcome]:
    """Calls the provider for an action."""
    match action:
        case NextAction.SEND:
            return provider.send(to_request(charge))
        case NextAction.CANCEL:
            return provider.cancel(to_request(charge))
        case _:
            return provider.look_up(to_request(charge))


def phase(charge: Charge) -> str:
    """What the charge waits for, as the monitor names it."""
    order = charge.orders[0]
    if order.status in _UNDECIDED_STATUSES:
        return ""
    if (
        order.status is OrderStatus.PENDING
        and order.message.pending_reason != payment_pb2.PENDING_REASON_BUYER_ACTION
    ):
        return "REVIEW"
    return order.status


def awaits_provider(charge: Charge) -> bool:
    """Whether the provider has the charge and reports the result later."""
    return any(order.status is OrderStatus.PENDING for order in charge.orders)


class ChargeOperations:
    """The functions of the kind that need the database, other services or waiting calls."""

    def __init__(
        self,
        recorder: PaymentOutcomeRecorder,
        booking: PaymentBooking,
        notifier: ChangeNotifier[payment_pb2.Payment],
        retry_policies: RetryPolicies,
        lease_seconds: float,
        fallback: ChargeFallback,
        risk: RiskStep | None = None,
    ) -> None:
        self._notifier = notifier
        self._risk = risk
        self._fallback = fallback
        self._retry_policies = retry_policies
        self._lease_seconds = lease_seconds
        self._record_batcher: Batcher[OperationResult[Charge, ChargeOutcome], Charge] = Batcher(
            "payment.record",
            recorder.run,
            max_batch=MAX_ITEMS,
            size_of=lambda result: result.operation.weight,
        )
        self._booking_batcher: Batcher[Charge, Charge] = Batcher(
            "payment.book",
            booking.run,
            max_batch=MAX_ITEMS,
            size_of=lambda charge: charge.weight,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )

    def kind(self) -> OperationKind[Charge]:
        return OperationKind(
            name=KindName.CHARGE,
            load=self.load,
            find=self.find,
            next_action=next_action,
            failure_if_not_sent=failure_if_not_sent,
            prepare={NextAction.RISK: partial(self.check_risk, self._risk)} if self._risk else {},
            perform=perform,
            record=self.record,
            fall_back=self._fallback.fall_back,
            book=self.book,
            lock_unresolved=lock_unresolved,
            is_locked_after_queue=False,
            fail=self.fail,
            close=self.close,
            notify=self.notify,
            phase=phase,
            awaits_provider=awaits_provider,
            batchers=[
                self._record_batcher,
                self._fallback.batcher,
                self._booking_batcher,
                *([self._risk.batcher] if self._risk else ()),
            ],
        )

    def load(
        self, connection: Connection, tokens: Mapping[str, int], now: float
    ) -> Sequence[Charge]:
        return charges_from_rows(
            charge_store.load_charges(connection, list(tokens)), tokens, now, self._lease_seconds
        )

    def find(self, connection: Connection, charge_id: str, now: float) -> Charge | None:
        """Loads a charge in any state, without its lease, with its last attempt."""
        attempts = [charge_store.AttemptSelector(charge_id)]
        return next(iter(self._find(connection, attempts, now)), None)

    def find_reported(
        self, connection: Connection, reported: Sequence[ReportedOperation], now: float
    ) -> Sequence[Charge]:
        """Loads charges in any state, without their leases, each with its attempt at the provider
        that reports it.
        """
        attempts = [
            charge_store.AttemptSelector(item.operation_id, provider=item.provider)
            for item in reported
        ]
        return self._find(connection, attempts, now)

    def _find(
        self, connection: Connection, attempts: Sequence[charge_store.AttemptSelector], now: float
    ) -> Sequence[Charge]:
        rows = charge_store.find_charges(connection, attempts)
        tokens = dict.fromkeys((attempt.charge_id for attempt in attempts), NO_LEASE)
        return charges_from_rows(rows, tokens, now, self._lease_seconds)

    async def check_risk(self, risk: RiskStep, charge: Charge) -> Charge | None:
        """Returns the charge if it may be sent. None: it was declined, or its lease was lost."""
        checked = await risk.check(charge)
        self.notify(checked)
        return checked if checked.orders[0].status is OrderStatus.EXECUTING else None

    async def record(self, charge: Charge, outcome: ChargeOutcome) -> Charge:
        recorded = await self._record_batcher.submit(
            OperationResult(charge, outcome), charge.context
        )
        self.notify(recorded)
        return recorded

    async def book(self, charge: Charge) -> None:
        booked = await self._booking_batcher.submit(charge, charge.context)
        self._notifier.notify(charge.checkout_id, has_result=True, final=booked.final_payment)

    def fail(
        self, connection: Connection, failures: Sequence[FailedStep[Charge]]
    ) -> Sequence[Charge]:
        transitions = [
            order_transition
            for failure in failures
            for order_transition in _failure_transitions(
                failure.operation,
                PaymentTrigger.GIVEN_UP,
                PaymentTransitionReason.GIVEN_UP,
                failure.failure_reason or _exhausted_reason(failure.action),
            )
        ]
        return self._fail_and_poll(
            connection, transitions, [failure.operation for failure in failures]
        )

    def close(
        self, connection: Connection, charge: Charge, _operator: str, _reason: str
    ) -> Charge | None:  # the dead letter keeps the operator and the reason
        transitions = _failure_transitions(
            charge,
            PaymentTrigger.CLOSED,
            PaymentTransitionReason.CLOSED_BY_OPERATOR,
            FailureReason.CLOSED_BY_OPERATOR,
        )
        return next(iter(self._fail_and_poll(connection, transitions, [charge])), None)

    def _fail_and_poll(
        self,
        connection: Connection,
        transitions: Sequence[OrderTransition],
        charges: Sequence[Charge],
    ) -> list[Charge]:
        """Fails charges; those that may have been charged all the same are polled."""
        result = transition_orders(connection, transitions)
        failed = [result.apply_to(charge, _NO_TIME) for charge in charges if result.changed(charge)]
        maybe_sent = [charge for charge in failed if charge.maybe_sent]
        schedule_polls(connection, self._retry_policies, maybe_sent)
        return failed

    def notify(self, charge: Charge) -> None:
        """Wakes the calls that wait for the payment of a charge that may have changed."""
        has_result = charge.final_payment is not None or charge.orders[0].status in (
            OrderStatus.PENDING,
            OrderStatus.FAILED,
        )
        self._notifier.notify(charge.checkout_id, has_result=has_result, final=charge.final_payment)

    def event_subjects(
        self, record: Callable[[Charge, Any], Awaitable[object]]
    ) -> EventSubjects[Charge]:
        """The charges that webhook events are about."""
        return EventSubjects(
            charge_store.find_reported, self.find_reported, perform, record, known_success
        )


def known_success(charge: Charge, reference: str) -> Succeeded | None:
    """The success of a charge whose orders have it, and whose fee is known. None: the provider may
    have more to tell, such as its fee, or that a declined charge succeeded after all.
    """
    recorded = charge.recorded_outcome
    if (
        isinstance(recorded, Succeeded)
        and recorded.reference == reference
        and recorded.fee is not None
        and charge.orders[0].status is OrderStatus.SUCCESS
    ):
        return recorded
    return None


def lock_unresolved(connection: Connection, charge_ids: list[str]) -> set[str]:
    """Locks the open attempts of charges. Returns the charges that have one."""
    return operation_store.lock_open_attempts(connection, KindName.CHARGE, charge_ids)


def _exhausted_reason(action: NextAction) -> FailureReason:
    """Why a charge fails that was certainly not sent, and whose tries are exhausted."""
    if action is NextAction.RISK:
        return FailureReason.RISK_PROVIDER
    return FailureReason.PROVIDER_UNREACHABLE


def _failure_transitions(
    charge: Charge,
    trigger: PaymentTrigger,
    transition_reason: PaymentTransitionReason,
    failure_reason: FailureReason,
) -> list[OrderTransition]:
    """The transitions that fail the orders of a charge."""
    return [
        OrderTransition(
            charge,
            order,
            transition(order.status, trigger),
            transition_reason,
            failure_reason=failure_reason,
        )
        for order in charge.orders
    ]
