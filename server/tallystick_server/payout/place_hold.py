"""Payout holds: holds the payout's funds in the seller's wallet, then begins its attempt.

A payout that requires approval waits for a second person before the attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.approval import needs_approval
from tallystick_core.errors import ApiError
from tallystick_core.money import format_amount
from tallystick_core.payout.destination import TERMINAL_DESTINATION_STATES, DestinationState
from tallystick_core.payout.request import classify_hold_failure, format_payout_hold_id
from tallystick_core.payout.snapshot import PayoutTransition
from tallystick_core.payout.state import (
    HELD_UNSENT_STATES,
    PayoutState,
    PayoutTransitionReason,
    PayoutTrigger,
)
from tallystick_core.provider.outcome import PayoutFailure
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.failed_step import BookingRejected
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_server.rpc.batch import errors_by_key
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database
from tallystick_storage.payout import destinations
from tallystick_storage.sql import Connection


class HoldPlacer:
    """Places holds and begins attempts.

    `approval_thresholds`: by currency, the amount in minor units above which a second person must
    approve.
    """

    def __init__(
        self,
        database: Database,
        service_client: ServiceClient,
        wallet_address: str,
        approval_thresholds: Mapping[str, int],
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._wallet = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )
        self._approval_thresholds = approval_thresholds

    async def run(
        self, payouts: Sequence[PayoutOperation]
    ) -> Sequence[PayoutOperation | Exception]:
        """Returns each payout after its hold, or BookingRejected.

        Raises DEPENDENCY_UNAVAILABLE for the whole batch.
        """
        return await bisect_on_error(self._place_holds, payouts)

    async def _place_holds(
        self, payouts: Sequence[PayoutOperation]
    ) -> Sequence[PayoutOperation | Exception]:
        rejections = await self._request_holds(
            [payout for payout in payouts if payout.state is PayoutState.CREATED]
        )
        failures = {
            payout_id: classify_hold_failure(error.reason)
            for payout_id, error in rejections.items()
        }
        booking_errors = {
            id_: BookingRejected(f"the hold of {id_}: {rejections[id_].message}")
            for id_, failure in failures.items()
            if failure is None
        }
        eligible_payouts = [payout for payout in payouts if payout.payout_id not in booking_errors]

        def apply_results(connection: Connection) -> dict[str, PayoutOperation]:
            states = destinations.lock_states(
                connection, sorted({payout.payout_destination_id for payout in eligible_payouts})
            )
            changes = [
                plan_change(
                    payout,
                    failures.get(payout.payout_id),
                    states[payout.payout_destination_id],
                    self._approval_thresholds,
                )
                for payout in eligible_payouts
            ]
            return transition_payouts(connection, changes)

        changed_payouts = await self._database.transact(apply_results) if eligible_payouts else {}
        return [
            booking_errors.get(payout.payout_id) or changed_payouts.get(payout.payout_id, payout)
            for payout in payouts
        ]

    async def _request_holds(self, payouts: Sequence[PayoutOperation]) -> dict[str, ApiError]:
        """Places the holds; returns the wallet's rejections by payout id."""
        if not payouts:
            return {}
        holds = [
            wallet_service_pb2.NewHold(
                hold_id=format_payout_hold_id(payout.payout_id),
                caller=payout.caller,
                seller_account=payout.seller_account,
                amount=format_amount(payout.amount, payout.currency),
                currency=payout.currency,
                purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
                minimum_remaining=format_amount(payout.reserve, payout.currency),
            )
            for payout in payouts
        ]
        response = await self._service_client.call(
            self._wallet.BatchPlaceHold, wallet_service_pb2.BatchPlaceHoldRequest(holds=holds)
        )
        return errors_by_key([payout.payout_id for payout in payouts], response.results)


def plan_change(
    payout: PayoutOperation,
    failure: PayoutFailure | None,
    destination_state: DestinationState,
    approval_thresholds: Mapping[str, int],
) -> PayoutChange:
    """The next transitions of a payout in CREATED, with the wallet's result, or in READY.

    The attempt is committed before it is sent, and begins only if nothing prevents it.
    """
    transitions: list[PayoutTransition] = []
    snapshot = payout.snapshot
    if snapshot.state is PayoutState.CREATED:
        transitions.append(_hold_transition(payout, failure, approval_thresholds))
        snapshot = transitions[-1].snapshot
    # The destination has ended, so nothing can be paid to it.
    if snapshot.state in HELD_UNSENT_STATES and destination_state in TERMINAL_DESTINATION_STATES:
        transitions.append(
            PayoutTransition(
                snapshot.apply(PayoutTrigger.DESTINATION_ENDED),
                PayoutTransitionReason.DESTINATION_ENDED,
            )
        )
    elif snapshot.state is PayoutState.READY:
        transitions.append(
            PayoutTransition(
                snapshot.apply(PayoutTrigger.SENDING, attempt_count=snapshot.attempt_count + 1),
                PayoutTransitionReason.SENDING,
            )
        )
    return PayoutChange(
        payout,
        tuple(transitions),
        awaits_approval=transitions[-1].snapshot.state is PayoutState.AWAITING_APPROVAL,
    )


def _hold_transition(
    payout: PayoutOperation, failure: PayoutFailure | None, approval_thresholds: Mapping[str, int]
) -> PayoutTransition:
    """The transition for the wallet's result."""
    if failure is not None:
        return PayoutTransition(
            payout.snapshot.apply(PayoutTrigger.HOLD_REJECTED, failure_reason=failure),
            PayoutTransitionReason.HOLD_REJECTED,
        )
    approval_required = needs_approval(payout.amount, payout.currency, approval_thresholds)
    return PayoutTransition(
        payout.snapshot.apply(
            PayoutTrigger.HELD_FOR_APPROVAL if approval_required else PayoutTrigger.FUNDS_HELD
        ),
        PayoutTransitionReason.FUNDS_HELD,
    )
