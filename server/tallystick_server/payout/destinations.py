"""Payout destinations: stores or finds destinations, approves and disables them."""

from __future__ import annotations

from tallystick_core.approval import require_second_approver
from tallystick_core.errors import id_taken_error, key_reused_error, seller_taken_error
from tallystick_core.payout.destination import (
    DestinationState,
    DestinationTrigger,
    NewDestination,
    require_approvable,
)
from tallystick_core.payout.quote import WalletBalance
from tallystick_server.operations.operation import FIRST_LEASE_TOKEN
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_server.payout.destination_verification import (
    end_destinations,
    verifications_from_rows,
)
from tallystick_server.payout.payouts import Payouts
from tallystick_storage.database import Database
from tallystick_storage.payout import destinations as store
from tallystick_storage.sql import Connection

_COMPARED_FIELDS = ("seller_account", "currency", "bank_account_token", "description")


class DestinationRegistry:
    """Stores destinations and starts their verification."""

    def __init__(self, database: Database, payouts: Payouts) -> None:
        self._database = database
        self._payouts = payouts

    async def create(
        self, new: NewDestination, traceparent: str
    ) -> tuple[store.DestinationRow, bool]:
        """Returns the destination, and whether it existed before.

        Raises ALREADY_EXISTS, IDEMPOTENCY_KEY_REUSED, DEPENDENCY_UNAVAILABLE.
        """
        existing_rows = await self._database.read(
            lambda connection: store.find(connection, [new.payout_destination_id])
        )
        if new.payout_destination_id in existing_rows:
            return _replay_or_conflict(new, existing_rows[new.payout_destination_id]), True
        awaits_approval = await self._needs_approval(new)
        self._payouts.worker.reject_overload()
        # Claim last, after every other check that may reject the destination.
        owners = await self._payouts.seller_owners.claim([(new.seller_account, new.owner, 0)])
        if owners.get(new.seller_account) != new.owner:
            raise seller_taken_error("seller_account")
        new_row = _to_row(
            new, self._payouts.settings.provider, traceparent, awaits_approval=awaits_approval
        )
        cooldown_seconds, lease_seconds = (
            self._payouts.settings.destination_cooldown_seconds,
            self._payouts.worker.lease_seconds,
        )
        lease_deadline = self._payouts.creator.lease_deadline()

        def create(connection: Connection) -> store.InsertedDestinationRow | None:
            row = store.insert(connection, new_row, cooldown_seconds, lease_seconds)
            if row is not None:
                with record_events(connection, [row]) as publish_request:
                    events.add_destination_changed(
                        publish_request, convert.destination(row), traceparent
                    )
            return row

        async def commit_and_start() -> store.InsertedDestinationRow | None:
            row = await self._database.transact(create)
            if row is not None:
                (item,) = verifications_from_rows(
                    [row],
                    {row.payout_destination_id: FIRST_LEASE_TOKEN},
                    lease_deadline,
                )
                self._payouts.worker.start_operation(item)
            return row

        row = await self._payouts.worker.run_detached(commit_and_start, is_team_call=True)
        if row is None:
            stored_rows = await self._database.load(
                lambda connection: store.find(connection, [new.payout_destination_id])
            )
            return _replay_or_conflict(new, stored_rows[new.payout_destination_id]), True
        return row, False

    async def _needs_approval(self, new: NewDestination) -> bool:
        """Whether the seller's available funds require a second person to approve the destination.

        Raises DEPENDENCY_UNAVAILABLE.
        """
        threshold = self._payouts.settings.destination_approval_thresholds.get(new.currency)
        if threshold is None:
            return False
        key = (new.seller_account, new.currency)
        return (await self._payouts.wallet_reader.read_balances([key])).get(
            key, WalletBalance()
        ).available > threshold

    async def approve(self, payout_destination_id: str, caller: str, reason: str) -> bool:
        """Returns True if it is approved now, False if the same person did so before with the same
        reason.

        Raises INVALID_STATE, SECOND_APPROVER_REQUIRED.
        """

        def approve(connection: Connection) -> bool:
            row = store.lock(connection, [payout_destination_id])[payout_destination_id]
            if (row.approved_by, row.approve_reason) == (caller, reason):
                return False
            require_approvable(DestinationState(row.state), awaits_approval=row.awaits_approval)
            require_second_approver(caller, row.caller)
            updated_row = store.approve(connection, payout_destination_id, caller, reason)
            with record_events(connection, [updated_row]) as publish_request:
                events.add_destination_changed(
                    publish_request, convert.destination(updated_row), updated_row.traceparent
                )
            return True

        return await self._database.transact(approve)

    async def disable(self, payout_destination_id: str, caller: str, reason: str) -> bool:
        """Returns True if it is disabled now, False if it was before.

        Raises INVALID_STATE, IDEMPOTENCY_KEY_REUSED.
        """

        def disable(connection: Connection) -> bool:
            row = store.lock(connection, [payout_destination_id])[payout_destination_id]
            if row.disabled_by:
                if row.disable_reason != reason:
                    raise key_reused_error("reason")
                return False
            end_destinations(
                connection,
                [payout_destination_id],
                DestinationTrigger.DISABLED,
                actor=caller,
                reason=reason,
            )
            return True

        return await self._database.transact(disable)


def _to_row(
    new: NewDestination, provider: str, traceparent: str, *, awaits_approval: bool
) -> store.NewDestinationRow:
    return store.NewDestinationRow(
        payout_destination_id=new.payout_destination_id,
        caller=new.caller,
        owner=new.owner,
        fingerprint=new.fingerprint().hex(),
        seller_account=new.seller_account,
        currency=new.currency,
        bank_account_token=new.bank_account_token,
        description=new.description,
        provider=provider,
        traceparent=traceparent,
        awaits_approval=awaits_approval,
    )


def _replay_or_conflict(
    requested: NewDestination, row: store.DestinationAccountRow
) -> store.DestinationRow:
    """The result for an existing id: the destination, or the conflict."""
    if row.owner != requested.owner:
        raise id_taken_error("payout_destination_id")
    if row.fingerprint != requested.fingerprint():
        raise key_reused_error(
            next(
                name for name in _COMPARED_FIELDS if getattr(requested, name) != getattr(row, name)
            )
        )
    return row
