"""Polling of failed charges that may have been sent, and of attempts that a fallback replaced.

If the provider charged the buyer after all, the money becomes an unapplied charge.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from math import inf

from tallystick_core.errors import ApiError
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_server.observability import names
from tallystick_server.operations.operation import NO_LEASE
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_server.payment.unapplied_charges import record_conflicts
from tallystick_server.providers.gateway import NotCalled
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.payment import charges as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

_MAX_POLLED = 200

# A poll only looks up, so it needs no lease; its charges get one that never ends.
_NO_CLAIM_TIME = 0.0
_ENDLESS_LEASE_SECONDS = inf


def schedule_polls(
    connection: Connection, retry_policies: RetryPolicies, charges: Iterable[Charge]
) -> None:
    """Schedules polls for the attempts of charges that have just failed although they may have been
    sent, or that a fallback has just replaced.
    """
    next_polls = [_next_poll(retry_policies, charge, 0) for charge in charges]
    if next_polls:
        store.schedule_polls(connection, next_polls)


def _next_poll(retry_policies: RetryPolicies, charge: Charge, poll_count: int) -> store.NextPoll:
    """The poll that follows `poll_count` answered ones."""
    policy = retry_policies.policy_for(charge.provider, RetryReason.POST_COMPLETION_POLL)
    delay_seconds = policy.delay_seconds(poll_count + 1, charge.charge_id)
    return store.NextPoll(charge.charge_id, charge.attempt_number, delay_seconds, poll_count)


class FailedChargePoller:
    """Polls attempts at the intervals of the `POST_COMPLETION_POLL` retry policy.

    A lookup charges nothing and may be repeated, so it needs no lease. `try_acquire_leadership`
    acquires or renews the leader lease, and returns whether this process holds it.
    """

    def __init__(
        self,
        database: Database,
        look_up: Callable[[Charge, NextAction], Awaitable[ProviderOutcome | NotCalled]],
        retry_policies: RetryPolicies,
        providers: Collection[str],
        record_outcome: Callable[[Charge, ChargeOutcome], Awaitable[object]],
        try_acquire_leadership: Callable[[Connection], bool],
    ) -> None:
        self._database = database
        self._look_up = look_up
        self._retry_policies = retry_policies
        self._providers = sorted(providers)
        self._record_outcome = record_outcome
        self._try_acquire_leadership = try_acquire_leadership

    async def run_once(self) -> None:
        """Polls each charge that is due once, if this process is the leader."""

        def load(connection: Connection) -> list[tuple[Charge, int]]:
            poll_counts = {
                (row.charge_id, row.attempt_number): row.poll_count
                for row in store.list_pollable(connection, self._providers, _MAX_POLLED)
            }
            attempts = [store.AttemptSelector(*key) for key in poll_counts]
            rows = store.find_charges(connection, attempts) if attempts else ()
            return [
                (charge, poll_counts[charge.charge_id, charge.attempt_number])
                for charge in charges_from_rows(
                    rows,
                    dict.fromkeys((id_ for id_, _ in poll_counts), NO_LEASE),
                    _NO_CLAIM_TIME,
                    _ENDLESS_LEASE_SECONDS,
                )
            ]

        charges = await self._database.load(load)
        if not charges or not await self._database.transact(self._try_acquire_leadership):
            return
        next_polls = await asyncio.gather(
            *(self._try_poll(charge, poll_count) for charge, poll_count in charges)
        )
        await self._database.transact(
            lambda connection: store.schedule_polls(connection, next_polls)
        )

    async def _try_poll(self, charge: Charge, poll_count: int) -> store.NextPoll:
        """Like `_poll`, but an unexpected error of one charge does not block the others."""
        try:
            return await self._poll(charge, poll_count)
        except Exception:  # an error of one charge does not block the others
            log.exception(
                "%s: lookup failed; it is polled again",
                charge.resource_name,
                extra=names.POLL_FAILED.extra,
            )
            return _next_poll(self._retry_policies, charge, poll_count)

    async def _poll(self, charge: Charge, poll_count: int) -> store.NextPoll:
        """The next poll time and the number of polls. Polls without an answer are not counted."""
        outcome = await self._look_up(charge, NextAction.LOOK_UP)
        match outcome:
            case Succeeded():
                try:
                    await self._record_outcome(charge, outcome)
                except ApiError:  # the database is unavailable; this run reports it at its end
                    return store.NextPoll(charge.charge_id, charge.attempt_number, 0.0, poll_count)
                except ConstraintViolation as error:
                    await self._database.transact(
                        lambda connection: record_conflicts(connection, [(charge, outcome)])
                    )
                    log.error(  # noqa: TRY400 - the traceback adds nothing
                        "%s: the late charge cannot be stored: %s",
                        charge.resource_name,
                        error,
                        extra=names.OUTCOME_NOT_STORED.extra,
                    )
                else:
                    return store.NextPoll(charge.charge_id, charge.attempt_number, None, poll_count)
            case NotCalled() | NotSent() | Unknown():
                return _next_poll(self._retry_policies, charge, poll_count)
            case _:  # says nothing about money
                pass
        return _next_poll(self._retry_policies, charge, poll_count + 1)
