"""The operation kind "destination_verification": a payout provider is asked whether it can pay to
a bank account.

The file reads in the order of the lifecycle: load, next action, perform, record, close. There is
nothing to book, and a verification never fails for exhausted tries: repeating it is harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.payout.destination import (
    DestinationState,
    DestinationTrigger,
    transition_destination,
)
from tallystick_core.provider.outcome import VerificationOutcome
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import NO_LEASE, OperationResult
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_server.payout.destination_verification import (
    DestinationVerification,
    VerificationRecorder,
    transition_destinations,
    verifications_from_rows,
)
from tallystick_storage.payout import destinations as store
from tallystick_storage.sql import Connection


def next_action(
    verification: DestinationVerification,
    _now: float,
    _key_window_seconds: float,
    _lease_seconds: float,
) -> NextAction:
    """The next action of a verification."""
    if verification.state is not DestinationState.PENDING_VERIFICATION:
        return NextAction.WAIT
    return NextAction.LOOK_UP if verification.lookup_only else NextAction.SEND


def perform(
    provider: BatchingPayoutProvider, verification: DestinationVerification, _action: NextAction
) -> Awaitable[VerificationOutcome]:
    """Asks the provider, whatever the action: there is nothing to look up or to cancel."""
    return provider.verify(verification.bank_account_token, verification.currency)


def circuit(_action: NextAction) -> Circuit:
    """Verifications have their own circuit, so accounts that cannot be verified hold up nothing."""
    return Circuit.VERIFICATIONS


class VerificationOperations:
    """The functions of the kind that need the database."""

    def __init__(self, recorder: VerificationRecorder, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._batcher: Batcher[
            OperationResult[DestinationVerification, VerificationOutcome], DestinationVerification
        ] = Batcher("payout.verify", recorder.run)

    def kind(self) -> OperationKind[DestinationVerification]:
        return OperationKind(
            name=KindName.DESTINATION_VERIFICATION,
            load=self.load,
            find=self.find,
            next_action=next_action,
            perform=perform,
            circuit=circuit,
            record=self.record,
            lock_unresolved=lock_unresolved,
            is_locked_after_queue=False,
            fail=fail,
            close=close,
            notify=lambda _: None,
            phase=lambda _: "VERIFYING",
            batchers=[self._batcher],
        )

    def load(
        self, connection: Connection, tokens: Mapping[str, int], now: float
    ) -> Sequence[DestinationVerification]:
        return verifications_from_rows(
            store.load_operations(connection, list(tokens)), tokens, now + self._lease_seconds
        )

    def find(
        self, connection: Connection, destination_id: str, now: float
    ) -> DestinationVerification | None:
        """Loads a verification in any state, without its lease."""
        rows = store.load_operations(connection, [destination_id])
        tokens = {destination_id: NO_LEASE}
        return next(iter(verifications_from_rows(rows, tokens, now + self._lease_seconds)), None)

    async def record(
        self, verification: DestinationVerification, outcome: VerificationOutcome
    ) -> DestinationVerification:
        return await self._batcher.submit(
            OperationResult(verification, outcome), verification.context
        )


def lock_unresolved(connection: Connection, destination_ids: list[str]) -> set[str]:
    """Locks destinations. Returns those that the provider has not decided on."""
    return store.lock_unresolved(connection, destination_ids)


def fail(
    _connection: Connection, _failures: Sequence[FailedStep[DestinationVerification]]
) -> Sequence[DestinationVerification]:
    """Never called with a verification: it counts as maybe sent, so its tries do not end."""
    return []


def close(
    connection: Connection, verification: DestinationVerification, _operator: str, _reason: str
) -> None:
    """Ends the destination as an operator decided; the dead letter keeps the operator."""
    new_state = transition_destination(verification.state, DestinationTrigger.CLOSED)
    transition_destinations(
        connection,
        [store.DestinationTransitionRow(verification.payout_destination_id, new_state)],
    )
