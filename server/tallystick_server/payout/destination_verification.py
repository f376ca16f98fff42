"""Destination verification: the provider verifies payout destinations. Ending a destination also
cancels its unsent payouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tallystick_core.operations.kind import KindName
from tallystick_core.payout.destination import (
    DESTINATION_TRIGGERS,
    DestinationState,
    DestinationTrigger,
    transition_destination,
)
from tallystick_core.payout.snapshot import PayoutTransition
from tallystick_core.payout.state import HELD_UNSENT_STATES, PayoutTransitionReason, PayoutTrigger
from tallystick_core.provider.outcome import Declined, VerificationOutcome
from tallystick_server.observability.tracing import parse_traceparent
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import resolve, resolve_and_requeue
from tallystick_server.operations.operation import LeasedOperation, OperationResult, parse_tries
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_server.payout.operation import operations_from_rows
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.payout import destinations as store
from tallystick_storage.payout import payouts as payout_store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationVerification(LeasedOperation):
    """The verification of a destination by its provider. Repeating it is harmless."""

    kind: KindName = KindName.DESTINATION_VERIFICATION
    currency: str
    bank_account_token: str
    state: DestinationState

    @property
    def payout_destination_id(self) -> str:
        return self.operation_id


def verifications_from_rows(
    rows: Iterable[store.VerificationRow], tokens: Mapping[str, int], lease_deadline: float
) -> list[DestinationVerification]:
    """Converts stored rows to verifications, claimed under `tokens` until `lease_deadline` (loop
    time).
    """
    return [
        DestinationVerification(
            operation_id=row.payout_destination_id,
            caller=row.caller,
            attempt_number=1,
            provider=row.provider,
            provider_key="",
            lease_token=tokens[row.payout_destination_id],
            lease_deadline=lease_deadline,
            traceparent=row.traceparent,
            context=parse_traceparent(row.traceparent),
            maybe_sent=True,  # so that it never fails because there is no answer
            lookup_only=row.lookup_only,
            tries=parse_tries(row.retry_counts),
            currency=row.currency,
            bank_account_token=row.bank_account_token,
            state=DestinationState(row.state),
        )
        for row in rows
    ]


class VerificationRecorder:
    """Records the provider's verification outcomes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(
        self, results: Sequence[OperationResult[DestinationVerification, VerificationOutcome]]
    ) -> Sequence[DestinationVerification | Exception]:
        """Returns each destination after its outcome was recorded."""
        return await bisect_on_error(self._record_outcomes, results)

    async def _record_outcomes(
        self, results: Sequence[OperationResult[DestinationVerification, VerificationOutcome]]
    ) -> Sequence[DestinationVerification | Exception]:
        new_states: dict[str, DestinationState] = {}

        def record(connection: Connection) -> None:
            new_states.clear()
            rows = store.lock(
                connection, sorted({result.operation.payout_destination_id for result in results})
            )
            transitions = {}
            for result in results:
                id_, trigger = (
                    result.operation.payout_destination_id,
                    DESTINATION_TRIGGERS[type(result.outcome)],
                )
                current_state = DestinationState(rows[id_].state)
                if current_state is not DestinationState.PENDING_VERIFICATION:
                    continue  # a destination that has ended or is verified stays so
                new_state = transition_destination(current_state, trigger)
                if new_state is current_state:
                    continue
                code = result.outcome.code if isinstance(result.outcome, Declined) else ""
                transitions[id_] = store.DestinationTransitionRow(id_, new_state, code)
                new_states[id_] = new_state
            transition_destinations(connection, list(transitions.values()))
            resolve_and_requeue(
                connection,
                [
                    result.operation
                    for result in results
                    if result.operation.payout_destination_id in new_states
                ],
            )

        await self._database.transact(record)
        return [
            replace(
                result.operation,
                state=new_states.get(
                    result.operation.payout_destination_id, result.operation.state
                ),
            )
            for result in results
        ]


def transition_destinations(
    connection: Connection, transitions: Sequence[store.DestinationTransitionRow]
) -> Sequence[store.ChangedDestinationRow]:
    """Applies transitions to locked destinations and records their events."""
    rows = store.transition(connection, transitions) if transitions else ()
    with record_events(connection, rows) as publish_request:
        for row in rows:
            events.add_destination_changed(
                publish_request, convert.destination(row), row.traceparent
            )
    return rows


def end_destinations(
    connection: Connection,
    destination_ids: Sequence[str],
    trigger: DestinationTrigger,
    *,
    actor: str = "",
    reason: str = "",
    other_payout_ids: Sequence[str] = (),
) -> None:
    """Ends destinations and the dead letters of their verifications.

    Cancels the payouts whose funds are held for them; a scan of the operation queue books these.

    `other_payout_ids`: payouts whose queue rows the transaction locks later. All rows are locked
    here, in one pass. Raises INVALID_STATE.
    """
    transitions = []
    rows = store.lock(connection, sorted(destination_ids))
    for id_, row in rows.items():
        current_state = DestinationState(row.state)
        new_state = transition_destination(current_state, trigger)
        if new_state is not current_state:
            transitions.append(
                store.DestinationTransitionRow(
                    id_, new_state, disabled_by=actor, disable_reason=reason
                )
            )
    ended_rows = {
        transition.payout_destination_id: rows[transition.payout_destination_id]
        for transition in transitions
    }
    # No payout can be added now: placing a hold locks the destination first.
    unsent_ids = [
        payout_id for id_ in ended_rows for payout_id in payout_store.list_unsent(connection, id_)
    ]
    operation_store.lock(
        connection,
        {
            *(OperationKey(KindName.DESTINATION_VERIFICATION, id_) for id_ in ended_rows),
            *(OperationKey(KindName.PAYOUT, id_) for id_ in (*unsent_ids, *other_payout_ids)),
        },
    )
    transition_destinations(connection, transitions)
    resolve(
        connection,
        {
            OperationKey(KindName.DESTINATION_VERIFICATION, id_): (
                actor or row.caller,
                row.traceparent,
            )
            for id_, row in ended_rows.items()
        },
    )
    _cancel_unsent(connection, unsent_ids)


def _cancel_unsent(connection: Connection, payout_ids: Sequence[str]) -> None:
    tokens = (
        operation_store.force_claim(connection, KindName.PAYOUT, payout_ids, 0.0)
        if payout_ids
        else {}
    )
    if tokens:
        payouts = operations_from_rows(
            payout_store.load_operations(connection, list(tokens)), tokens, ""
        )
        # Skip payouts that were decided after they were listed.
        unsent_payouts = [payout for payout in payouts if payout.state in HELD_UNSENT_STATES]
        resolve(
            connection,
            {payout.key: (payout.caller, payout.traceparent) for payout in unsent_payouts},
        )
        transition_payouts(
            connection,
            [
                PayoutChange(
                    payout,
                    (
                        PayoutTransition(
                            payout.snapshot.apply(PayoutTrigger.DESTINATION_ENDED),
                            PayoutTransitionReason.DESTINATION_ENDED,
                        ),
                    ),
                )
                for payout in unsent_payouts
            ],
        )
