"""The decisions of operators about dead letters: retry and close, singly or many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from tallystick_core.errors import ApiError, ErrorReason, not_found_error, state_error
from tallystick_core.operations.dead_letter import DeadLetterState
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    Declined,
    LookedUp,
    NotFound,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Returned,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_core.state_machine import Verb, invalid_state_error
from tallystick_server.operations import dead_letters
from tallystick_server.operations.dead_letters import key_of
from tallystick_server.operations.failed_step import is_duplicate_reference
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.reschedule import lock_unresolved
from tallystick_server.operations.worker import OperationWorker
from tallystick_server.providers.gateway import NotCalled
from tallystick_storage import clock
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage import operations as operation_store
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.dead_letters import DeadLetterRow, OpenDeadLetterCount
from tallystick_storage.pagination import PageKey
from tallystick_storage.sql import Connection

_RETRY, _CLOSE = Verb("RETRY", "retried"), Verb("CLOSE", "closed")
_RETRY_AFTER_SECONDS = 1.0
_MAX_RETRIED = 500
_MAX_CLOSED = 20
_MAX_CONCURRENT_CLOSES = 5  # each of them calls a provider
_SAMPLE_SIZE = 20


class DeadLetters:
    """The commands of operators for dead letters. Only a late provider outcome resolves one without
    an operator.
    """

    def __init__(self, database: Database, worker: OperationWorker) -> None:
        self._database = database
        self._worker = worker

    async def find(self, dead_letter_id: str, *, changed: bool = False) -> DeadLetterRow:
        """Reads the dead letter; `changed` as in `Database.read`. Raises NOT_FOUND."""
        row = await self._database.read(
            lambda connection: dead_letter_store.find(connection, dead_letter_id), changed=changed
        )
        if row is None:
            raise not_found_error("dead letter", dead_letter_id)
        return row

    async def retry(
        self, dead_letter_id: str, operator: str, reason: str
    ) -> tuple[DeadLetterRow, bool]:
        """Requeues the operation. Returns the current dead letter, and whether the call is a
        repeat.

        Raises NOT_FOUND, INVALID_STATE.
        """
        ending = _Ending(DeadLetterState.RETRIED, operator, reason)
        row = await self.find(dead_letter_id)

        def retry(connection: Connection) -> None:
            operation_store.lock(connection, [key_of(row)])
            ending.apply(connection, row)
            operation_store.requeue(connection, [key_of(row)])

        is_applied = False
        with suppress(_ConcurrentChange):
            await self._database.transact(retry)
            is_applied = True
        return await self._read_ended(dead_letter_id, _RETRY, ending), not is_applied

    async def retry_many(
        self,
        filters: dead_letter_store.DeadLetterFilter,
        cursor: PageKey | None,
        operator: str,
        reason: str,
    ) -> tuple[Sequence[DeadLetterRow], set[str], bool]:
        """Requeues the operations of the next dead letters that match. Returns those, the ids of
        those that were still open, and whether there are more.
        """
        ending = _Ending(DeadLetterState.RETRIED, operator, reason)

        def retry(connection: Connection) -> tuple[Sequence[DeadLetterRow], set[str], bool]:
            rows = dead_letter_store.list_open_after(connection, filters, cursor, _MAX_RETRIED + 1)
            page = rows[:_MAX_RETRIED]
            operation_store.lock(connection, [key_of(row) for row in page])
            retried_rows = ending.apply_all(connection, page)
            operation_store.requeue(connection, [key_of(row) for row in retried_rows])
            return page, {row.dead_letter_id for row in retried_rows}, len(rows) > len(page)

        return await self._database.transact(retry)

    async def close_many(
        self,
        filters: dead_letter_store.DeadLetterFilter,
        cursor: PageKey | None,
        operator: str,
        reason: str,
        evidence: str,
    ) -> tuple[Sequence[DeadLetterRow], Sequence[DeadLetterRow | ApiError], bool]:
        """Closes the next dead letters that match, as `close` does. Returns those, the result of
        each, and whether there are more.
        """
        rows = await self._database.read(
            lambda connection: dead_letter_store.list_open_after(
                connection, filters, cursor, _MAX_CLOSED + 1
            )
        )
        page = rows[:_MAX_CLOSED]
        semaphore = asyncio.Semaphore(_MAX_CONCURRENT_CLOSES)

        async def close_one(row: DeadLetterRow) -> DeadLetterRow | ApiError:
            async with semaphore:
                try:
                    return (
                        await self.close(
                            row.dead_letter_id,
                            operator,
                            reason,
                            evidence,
                            evidence_is_specific=False,
                        )
                    )[0]
                except ApiError as error:
                    return error

        return page, await asyncio.gather(*(close_one(row) for row in page)), len(rows) > len(page)

    async def preview(
        self, filters: dead_letter_store.DeadLetterFilter
    ) -> tuple[Sequence[OpenDeadLetterCount], list[str]]:
        """The number of matching open dead letters by cause and provider, and the first ids."""

        def load(connection: Connection) -> tuple[Sequence[OpenDeadLetterCount], list[str]]:
            sample = dead_letter_store.list_open_after(connection, filters, None, _SAMPLE_SIZE)
            return dead_letter_store.count_open(connection, filters), [
                row.dead_letter_id for row in sample
            ]

        return await self._database.read(load)

    async def now(self) -> datetime:
        """The database's time. A bulk call excludes dead letters created after its start."""
        return await self._database.read(clock.now)

    async def close(
        self,
        dead_letter_id: str,
        operator: str,
        reason: str,
        evidence: str,
        *,
        evidence_is_specific: bool = True,
    ) -> tuple[DeadLetterRow, bool]:
        """Fails the operation, unless the provider reports a definite outcome. Returns the current
        dead letter, and whether it was closed before.

        Raises NOT_FOUND, INVALID_STATE.

        `evidence_is_specific`: the evidence is about this dead letter alone. This is required if
        the provider's answer belongs to another operation.
        """
        ending = _Ending(DeadLetterState.CLOSED, operator, reason, evidence)
        row = await self.find(dead_letter_id)
        if row.state != DeadLetterState.OPEN:  # already ended: the provider need not be called
            return await self._read_ended(dead_letter_id, _CLOSE, ending), True
        operation, outcome = await self._call_provider(row)
        match outcome:
            case Succeeded() | Declined() | Returned() | Verified() | LookedUp():
                try:
                    await self._worker.record(operation, outcome)  # resolves the dead letter
                except ConstraintViolation as error:
                    _reject_unstorable(error, evidence_is_specific=evidence_is_specific)
                else:
                    return await self.find(dead_letter_id), False
            case Unknown(retry_reason=RetryReason.MISMATCHED_OPERATION):
                _require_specific_evidence(evidence_is_specific=evidence_is_specific)
            case NotSent() | Unknown() | NotFound():
                pass
            case _:
                raise _close_error(
                    "The provider still processes the operation; retry the dead letter, and wait.",
                    "PENDING",
                )

        def close(connection: Connection) -> LeasedOperation | None:
            leased_operation = self._claim(connection, operation)
            kind = self._worker.kinds[operation.kind]
            closed: LeasedOperation | None = kind.close(
                connection, leased_operation, operator, reason
            )
            ending.apply(connection, row)
            return closed

        async def commit_close() -> None:
            closed = await self._database.transact(close)
            if closed is not None:
                self._worker.continue_failed(closed)

        is_applied = False
        with suppress(_ConcurrentChange):
            await self._worker.run_detached(commit_close)
            is_applied = True
        return await self._read_ended(dead_letter_id, _CLOSE, ending), not is_applied

    async def _call_provider(self, row: DeadLetterRow) -> tuple[LeasedOperation, ProviderOutcome]:
        """Looks up the operation at its provider. Raises PROVIDER_UNAVAILABLE, INVALID_STATE."""
        operation = await self._worker.find(*key_of(row))
        action = NextAction.WAIT if operation is None else self._worker.next_action(operation)
        if operation is None or action is NextAction.WAIT:
            raise _close_error(
                "The operation has completed in the meantime; reload the dead letter.", "RESOLVED"
            )
        if action in (NextAction.PLACE_HOLD, NextAction.BOOK):
            raise _close_error(
                "The operation waits for the wallet or the ledger, not for its provider; retry the "
                "dead letter.",
                "BOOKING_UNAVAILABLE",
            )
        if action is NextAction.APPLY_RECORDED:
            raise _close_error(
                "The provider's outcome is stored and cannot be applied; remove the cause, then "
                "retry the dead letter.",
                "UNAPPLIED_ANSWER",
            )
        # without the provider, the operator's evidence decides
        if not self._worker.gateway.is_configured(operation.provider):
            return operation, Unknown(f"the provider {operation.provider} is not configured")
        outcome = await self._worker.call_provider(operation, NextAction.LOOK_UP)
        if isinstance(outcome, NotCalled):
            retry_after = outcome.retry_after or _RETRY_AFTER_SECONDS
            raise ApiError(
                ErrorReason.PROVIDER_UNAVAILABLE,
                "The provider does not answer. Closing requires a lookup; retry later.",
                retry_after=retry_after,
            )
        return operation, outcome

    def _claim(self, connection: Connection, operation: LeasedOperation) -> LeasedOperation:
        """Leases the operation. Raises _ConcurrentChange if it has progressed since."""
        token = (
            operation_store.claim_dead_lettered(
                connection, operation.key, self._worker.lease_seconds
            )
            if lock_unresolved(connection, self._worker.kinds, [operation])
            else None
        )
        if token is None:
            raise _ConcurrentChange
        (claimed,) = self._worker.load(connection, {operation.key: token}, 0.0)
        return claimed

    async def _read_ended(self, dead_letter_id: str, verb: Verb, ending: _Ending) -> DeadLetterRow:
        """Reads the current dead letter. Raises INVALID_STATE if it ended in another way."""
        row = await self.find(dead_letter_id, changed=True)
        if not ending.matches(row):
            if row.state != DeadLetterState.OPEN:
                raise invalid_state_error("dead letter", row.state, verb)
            raise state_error(
                "Another operator or process works on the dead letter; reload it.",
                row.state,
                verb.name,
            )
        return row


class _ConcurrentChange(Exception):
    """Another process changed the dead letter first; nothing is stored."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a dead letter ends, by whom and why."""

    state: DeadLetterState
    operator: str
    reason: str
    evidence: str = ""

    def matches(self, row: DeadLetterRow) -> bool:
        """Whether the row ended in this way."""
        return (row.state, row.operator, row.reason, row.evidence) == (
            self.state,
            self.operator,
            self.reason,
            self.evidence,
        )

    def apply(self, connection: Connection, row: DeadLetterRow) -> None:
        """Ends an open dead letter and records the event. Raises _ConcurrentChange if it has ended
        already.
        """
        if not self.apply_all(connection, [row]):
            raise _ConcurrentChange

    def apply_all(
        self, connection: Connection, rows: Sequence[DeadLetterRow]
    ) -> Sequence[DeadLetterRow]:
        """Ends the open ones among the dead letters and records the events. Returns their rows."""
        return dead_letters.end(
            connection,
            [key_of(row) for row in rows],
            self.state,
            self.operator,
            self.reason,
            self.evidence,
            ids=[row.dead_letter_id for row in rows],
        )


def _reject_unstorable(error: ConstraintViolation, *, evidence_is_specific: bool) -> None:
    """Raises INVALID_STATE unless the provider reference belongs to another operation. That answer
    proves nothing about this one, so the operator's evidence decides.
    """
    if not is_duplicate_reference(error):
        raise _close_error(
            "The provider's answer cannot be stored; the provider must correct it first.",
            "UNSTORABLE",
        ) from None
    _require_specific_evidence(evidence_is_specific=evidence_is_specific)


def _require_specific_evidence(*, evidence_is_specific: bool) -> None:
    """Raises INVALID_STATE if evidence that is not specific to this dead letter would overrule an
    answer about another operation.
    """
    if not evidence_is_specific:
        message = (
            "The provider's answer belongs to another operation; close the dead letter with "
            "CloseDeadLetter, with evidence about it alone."
        )
        raise _close_error(message, "MISMATCHED_OPERATION") from None


def _close_error(message: str, state: str) -> ApiError:
    return state_error(message, state, _CLOSE.name)
