"""Creates payouts page by page, each page in one transaction. One process at a time does so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

from tallystick_core.payout.batch import derive_payout_id
from tallystick_core.payout.quote import WalletBalance
from tallystick_core.payout.request import NewPayout
from tallystick_server.observability.tracing import parse_traceparent
from tallystick_server.operations.tasks import DetachedRunner
from tallystick_server.payout.create_payout import (
    CreatedPayouts,
    CreatePayoutCommand,
    PayoutCreationPlan,
    PayoutCreator,
)
from tallystick_storage import leader_lease
from tallystick_storage.database import Database
from tallystick_storage.payout.batches import BatchRow
from tallystick_storage.payout.schedules import DueScheduleRow
from tallystick_storage.sql import Connection

T = TypeVar("T")

# Seconds after which another process takes over; two at a time would do no harm.
_LEADER_LEASE_SECONDS = 5.0
_MAX_IN_FLIGHT = 4000  # payouts in flight in this process, above which it creates no more
_POLL_SECONDS = 0.05


class PayoutPageCreator:
    """Creates a page of payouts in one transaction, if this process is the leader.

    `holder_id`: identifies this process. `in_flight_count`: its current number of operations.
    `run_detached`: runs work to its end even if the calling task is cancelled.
    """

    def __init__(
        self,
        database: Database,
        creator: PayoutCreator,
        holder_id: UUID,
        in_flight_count: Callable[[], int],
        run_detached: DetachedRunner,
    ) -> None:
        self._database = database
        self._creator = creator
        self._holder_id = holder_id
        self._in_flight_count = in_flight_count
        self._run_detached = run_detached

    def try_acquire_leadership(self, connection: Connection) -> bool:
        """Acquires or renews the leader lease if it can. Returns whether this process holds it."""
        return leader_lease.try_acquire_lease(
            connection, "generate_batches", self._holder_id, _LEADER_LEASE_SECONDS
        )

    async def wait_for_capacity(self) -> None:
        """Waits until the number of payouts in flight is below the limit."""
        # payouts become final in many ways
        while self._in_flight_count() >= _MAX_IN_FLIGHT:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    async def create(
        self,
        commands: Sequence[CreatePayoutCommand],
        insert_payouts: Callable[[Connection, PayoutCreationPlan, float], tuple[CreatedPayouts, T]],
    ) -> T | None:
        """Creates payouts with `insert_payouts` in one transaction and returns its result.

        None: another process has taken over.
        """
        plan = await self._creator.plan_creation(commands)
        lease_deadline = self._creator.lease_deadline()

        async def commit_and_start() -> T | None:
            commit_result = await self._database.transact(
                lambda connection: (
                    insert_payouts(connection, plan, lease_deadline)
                    if self.try_acquire_leadership(connection)
                    else None
                )
            )
            if commit_result is None:
                return None
            created_payouts, result = commit_result
            self._creator.start_operations(created_payouts.operations)
            return result

        return await self._run_detached(commit_and_start)


def build_seller_command(
    row: BatchRow | DueScheduleRow,
    seller: str,
    *,
    run_id: str,
    batch_id: str,
    owner: str,
    balance: WalletBalance | None,
) -> CreatePayoutCommand:
    """The payout of all available funds of a seller, for a schedule or a batch of its run.

    `owner`: the required owner of the seller; "": any.
    """
    payout_id = derive_payout_id(run_id, seller)
    payout = NewPayout(payout_id, row.caller, owner, seller, None, row.currency)
    return CreatePayoutCommand(
        payout, row.traceparent, parse_traceparent(row.traceparent), balance, batch_id
    )
