"""The operation kind "payout": a payout provider is asked to pay a seller.

The file reads in the order of the lifecycle: load, next action, place the hold, perform, record,
book, fail, close.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tallystick.payout.v1 import payout_pb2
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.snapshot import PayoutTransition
from tallystick_core.payout.state import (
    TERMINAL_STATES,
    PayoutState,
    PayoutTransitionReason,
    PayoutTrigger,
)
from tallystick_core.provider.outcome import PayoutFailure, PayoutLookupOutcome, PayoutOutcome
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import OperationResult
from tallystick_server.operations.webhook_events import EventSubjects, ReportedOperation
from tallystick_server.operations.worker import DOWNSTREAM_CONCURRENCY
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_server.payout.booking import PayoutBooking
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_server.payout.place_hold import HoldPlacer
from tallystick_server.payout.record_outcome import PayoutOutcomeRecorder
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout import transfers as transfer_store
from tallystick_storage.sql import Connection

_WITHOUT_ATTEMPT = frozenset({PayoutState.CREATED, PayoutState.READY})


def next_action(
    payout: PayoutOperation, _now: float, key_window_seconds: float, lease_seconds: float
) -> NextAction:
    """The next action of a payout."""
    if payout.state in _WITHOUT_ATTEMPT:
        return NextAction.PLACE_HOLD
    if payout.state is PayoutState.AWAITING_APPROVAL or payout.snapshot.booked:
        return NextAction.WAIT
    if payout.state in TERMINAL_STATES:
        return NextAction.BOOK
    may_send = (
        payout.state is PayoutState.SUBMITTING
        and not payout.lookup_only
        and payout.is_key_honored(key_window_seconds, lease_seconds)
    )
    return NextAction.SEND if may_send else NextAction.LOOK_UP


def to_request(payout: PayoutOperation) -> PayoutRequest:
    """The request to the provider."""
    return PayoutRequest(
        payout.provider_key,
        payout.payout_id,
        payout.net_amount,
        payout.currency,
        payout.bank_account_token,
        payout.provider_reference,
    )


def perform(
    provider: BatchingPayoutProvider, payout: PayoutOperation, action: NextAction
) -> Awaitable[PayoutLookupOutcome]:
    """Calls the provider for an action."""
    if action is NextAction.SEND:
        return provider.send(to_request(payout))
    return provider.look_up(to_request(payout))


def awaits_provider(payout: PayoutOperation) -> bool:
    """Whether the provider has the payout and reports the result later."""
    return payout.state in (PayoutState.SUBMITTED, PayoutState.IN_TRANSIT)


def phase(payout: PayoutOperation) -> str:
    """What the payout waits for, as the monitor names it."""
    return payout.state if awaits_provider(payout) else ""


class PayoutOperations:
    """The functions of the kind that need the database, other services or waiting calls."""

    def __init__(
        self,
        hold_placer: HoldPlacer,
        recorder: PayoutOutcomeRecorder,
        booking: PayoutBooking,
        notifier: ChangeNotifier[payout_pb2.Payout],
        environment: str,
        lease_seconds: float,
    ) -> None:
        self._notifier = notifier
        self._environment = environment
        self._lease_seconds = lease_seconds
        self._hold_batcher: Batcher[PayoutOperation, PayoutOperation] = Batcher(
            "payout.place_hold",
            hold_placer.run,
            max_batch=MAX_ITEMS,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )
        self._record_batcher: Batcher[
            OperationResult[PayoutOperation, PayoutOutcome], PayoutOperation
        ] = Batcher("payout.record", recorder.run, max_batch=MAX_ITEMS)
        self._booking_batcher: Batcher[PayoutOperation, PayoutOperation] = Batcher(
            "payout.book",
            booking.run,
            max_batch=MAX_ITEMS,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )

    def kind(self) -> OperationKind[PayoutOperation]:
        return OperationKind(
            name=KindName.PAYOUT,
            load=self.load,
            find=self.find,
            next_action=next_action,
            prepare={NextAction.PLACE_HOLD: self.place_hold},
            perform=perform,
            record=self.record,
            book=self.book,
            lock_unresolved=lock_unresolved,
            is_locked_after_queue=True,
            fail=fail,
            close=close,
            notify=self.notify,
            phase=phase,
            awaits_provider=awaits_provider,
            batchers=[self._hold_batcher, self._record_batcher, self._booking_batcher],
        )

    def load(
        self, connection: Connection, tokens: Mapping[str, int], now: float
    ) -> Sequence[PayoutOperation]:
        return operations_from_rows(
            store.load_operations(connection, list(tokens)),
            tokens,
            self._environment,
            now + self._lease_seconds,
        )

    def find(self, connection: Connection, payout_id: str, now: float) -> PayoutOperation | None:
        """Loads a payout in any state, without its lease."""
        return next(iter(self.find_many(connection, [payout_id], now)), None)

    def find_many(
        self, connection: Connection, payout_ids: Sequence[str], now: float
    ) -> Sequence[PayoutOperation]:
        """Loads payouts in any state, without their leases."""
        rows = store.load_operations(connection, list(payout_ids))
        return operations_from_rows(rows, {}, self._environment, now + self._lease_seconds)

    def find_reported(
        self, connection: Connection, reported: Sequence[ReportedOperation], now: float
    ) -> Sequence[PayoutOperation]:
        """Loads payouts in any state, without their leases. Each has one attempt."""
        return self.find_many(connection, [item.operation_id for item in reported], now)

    async def place_hold(self, payout: PayoutOperation) -> PayoutOperation | None:
        """Holds the money and begins the attempt, or waits for approval."""
        held = await self._hold_batcher.submit(payout, payout.context)
        if held.snapshot == payout.snapshot:  # the lease was lost
            return None
        self.notify(held)
        return held

    async def record(self, payout: PayoutOperation, outcome: PayoutOutcome) -> PayoutOperation:
        recorded = await self._record_batcher.submit(
            OperationResult(payout, outcome), payout.context
        )
        self.notify(recorded)
        return recorded

    async def book(self, payout: PayoutOperation) -> None:
        self.notify(await self._booking_batcher.submit(payout, payout.context))

    def notify(self, payout: PayoutOperation) -> None:
        """Wakes the calls that wait for a payout."""
        self._notifier.notify(payout.payout_id, has_result=True)

    def event_subjects(
        self, record: Callable[[PayoutOperation, Any], Awaitable[object]]
    ) -> EventSubjects[PayoutOperation]:
        """The payouts that webhook events are about."""
        return EventSubjects(transfer_store.find_reported, self.find_reported, perform, record)


def lock_unresolved(connection: Connection, payout_ids: list[str]) -> set[str]:
    """Locks payouts. Returns those that the provider has not answered."""
    return store.lock_unresolved(connection, payout_ids)


def fail(
    connection: Connection, failures: Sequence[FailedStep[PayoutOperation]]
) -> Sequence[PayoutOperation]:
    """Fails payouts that were certainly not sent."""
    return _fail_payouts(
        connection,
        [
            PayoutChange(
                failure.operation,
                (
                    PayoutTransition(
                        failure.operation.snapshot.apply(
                            PayoutTrigger.GIVEN_UP,
                            failure_reason=PayoutFailure.PROVIDER_UNREACHABLE,
                        ),
                        PayoutTransitionReason.GIVEN_UP,
                    ),
                ),
            )
            for failure in failures
        ],
    )


def close(
    connection: Connection, payout: PayoutOperation, operator: str, reason: str
) -> PayoutOperation | None:
    """Fails a payout as an operator decided."""
    snapshot = payout.snapshot.apply(
        PayoutTrigger.CLOSED, failure_reason=PayoutFailure.CLOSED_BY_OPERATOR
    )
    transition = PayoutTransition(
        snapshot, PayoutTransitionReason.CLOSED_BY_OPERATOR, operator, reason
    )
    return next(iter(_fail_payouts(connection, [PayoutChange(payout, (transition,))])), None)


def _fail_payouts(connection: Connection, changes: Sequence[PayoutChange]) -> list[PayoutOperation]:
    return list(transition_payouts(connection, changes).values())
