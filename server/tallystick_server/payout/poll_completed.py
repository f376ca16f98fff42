"""Polling of completed payouts: a provider may report days later that a bank returned the money."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tallystick_core.errors import ApiError
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.state import POLLED_AFTER_COMPLETION
from tallystick_core.provider.outcome import (
    NotFound,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Unknown,
)
from tallystick_server.observability import names
from tallystick_server.operations.failed_step import is_duplicate_reference
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_server.providers.gateway import NotCalled
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.payout import payouts as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

_MAX_POLLED = 200


def _is_conclusive(outcome: ProviderOutcome | NotCalled) -> bool:
    """Whether the provider gave a conclusive answer, including 'unknown payout'."""
    match outcome:
        case NotCalled() | NotSent():
            return False
        case Unknown():
            return outcome.retry_reason is RetryReason.REJECTED
        case _:
            return True


class CompletedPayoutPoller:
    """Polls completed payouts at the intervals of the `POST_COMPLETION_POLL` retry policy.

    A lookup pays nothing and may be repeated, so it needs no lease. `try_acquire_leadership`
    acquires or renews the leader lease, and returns whether this process holds it.
    """

    def __init__(
        self,
        database: Database,
        look_up: Callable[[PayoutOperation, NextAction], Awaitable[ProviderOutcome | NotCalled]],
        retry_policies: RetryPolicies,
        record_outcome: Callable[[PayoutOperation, Any], Awaitable[object]],
        record_misdirected: Callable[[PayoutOperation, Any], Awaitable[object]],
        try_acquire_leadership: Callable[[Connection], bool],
    ) -> None:
        self._database = database
        self._look_up = look_up
        self._retry_policies = retry_policies
        self._record_outcome = record_outcome
        self._record_misdirected = record_misdirected
        self._try_acquire_leadership = try_acquire_leadership

    async def run_once(self) -> None:
        """Polls each payout that is due once, if this process is the leader."""

        def load(connection: Connection) -> list[tuple[PayoutOperation, int]]:
            poll_counts = store.list_pollable(connection, _MAX_POLLED)
            payouts = (
                operations_from_rows(store.load_operations(connection, list(poll_counts)), {}, "")
                if poll_counts
                else ()
            )
            return [(payout, poll_counts[payout.payout_id]) for payout in payouts]

        due_payouts = await self._database.load(load)
        if not due_payouts or not await self._database.transact(self._try_acquire_leadership):
            return
        next_polls = await asyncio.gather(
            *(self.poll(payout, poll_count) for payout, poll_count in due_payouts)
        )

        def store_polls(connection: Connection) -> None:
            store.schedule_polls(connection, next_polls)

        await self._database.transact(store_polls)

    async def poll(  # noqa: PLR0911 - one for each result
        self, payout: PayoutOperation, poll_count: int
    ) -> store.NextPayoutPoll:
        """The next poll time and the number of polls. Polls without an answer are not counted."""
        if payout.state not in POLLED_AFTER_COMPLETION:
            return store.NextPayoutPoll(payout.payout_id, None, poll_count)
        try:
            outcome = await self._look_up(payout, NextAction.LOOK_UP)
        except Exception:  # an error of one payout does not block the others
            log.exception(
                "%s: lookup failed; it is polled again",
                payout.resource_name,
                extra=names.POLL_FAILED.extra,
            )
            return self._next_poll(payout, poll_count)
        if not _is_conclusive(outcome):
            return self._next_poll(payout, poll_count)
        if isinstance(outcome, NotFound):  # says nothing about its money
            return self._next_poll(payout, poll_count + 1)
        try:
            await self._record_or_report(payout, outcome)
        except Exception as error:  # an error of one payout does not block the others
            # The database is unavailable; this run reports it at its end.
            if isinstance(error, ApiError) and error.retry_after is not None:
                return store.NextPayoutPoll(payout.payout_id, 0.0, poll_count)
            log.exception(
                "%s: the outcome cannot be recorded; it is polled again",
                payout.resource_name,
                extra=names.OUTCOME_NOT_STORED.extra,
            )
            return self._next_poll(payout, poll_count)
        return self._next_poll(payout, poll_count + 1)

    def _next_poll(self, payout: PayoutOperation, poll_count: int) -> store.NextPayoutPoll:
        """The poll that follows `poll_count` answered ones."""
        policy = self._retry_policies.policy_for(payout.provider, RetryReason.POST_COMPLETION_POLL)
        delay_seconds = policy.delay_seconds(poll_count + 1, payout.operation_id)
        return store.NextPayoutPoll(payout.payout_id, delay_seconds, poll_count)

    async def _record_or_report(
        self, payout: PayoutOperation, outcome: ProviderOutcome | NotCalled
    ) -> None:
        """Records an outcome.

        If its reference belongs to another payout's transfer, stores that for an operator instead.
        """
        try:
            await self._record_outcome(payout, outcome)
        except ConstraintViolation as error:
            if not is_duplicate_reference(error):
                raise
            await self._record_misdirected(payout, outcome)
