"""Seller ownership: a seller belongs to the owner that names it first, until two operators assign
it to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick_core.errors import ApiError, ErrorReason, not_found_error, state_error
from tallystick_core.wallet.seller_ownership import (
    AssignmentState,
    NewAssignment,
    SellerClaim,
    decide_assignment,
    grant_claims,
    require_new_owner,
    require_same_assignment,
    require_unchanged_owner,
)
from tallystick_server.outbox.events import record_events
from tallystick_server.wallet import events
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tallystick_storage.wallet import seller_ownership as store

_MAX_ASSIGNMENTS = 50


class Sellers:
    """Claims and assigns sellers. `caller`: the caller on whose behalf."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, claims: Sequence[SellerClaim], caller: str, traceparent: str
    ) -> Sequence[store.SellerRow]:
        """Returns the owned sellers, by id, after the claims.

        A transaction is needed only if a seller is unowned.
        """
        names = sorted({claim.seller_account for claim in claims})
        while True:  # every round but the last finds at least one more seller owned
            owner_rows = await self._database.load(
                lambda connection: store.find_owners(connection, names)
            )
            new = grant_claims(claims, {row.seller_account: row.owner for row in owner_rows})
            if not new:
                return owner_rows
            with suppress(_ConcurrentClaim):
                claimed_rows = await self._claim_unowned(new, caller, traceparent)
                return sorted([*owner_rows, *claimed_rows], key=lambda row: row.seller_account)

    async def _claim_unowned(
        self, owners: Mapping[str, str], caller: str, traceparent: str
    ) -> Sequence[store.SellerRow]:
        return await self._database.transact(
            lambda connection: _claim(connection, owners, caller, traceparent), idempotent=True
        )

    async def get(
        self, seller_account: str
    ) -> tuple[store.SellerRow | None, Sequence[store.AssignmentRow]]:
        """Returns a seller (None if unowned) and its last assignments."""

        def load_seller(
            connection: Connection,
        ) -> tuple[store.SellerRow | None, Sequence[store.AssignmentRow]]:
            rows = store.find_owners(connection, [seller_account])
            return next(iter(rows), None), store.list_assignments(
                connection, seller_account, _MAX_ASSIGNMENTS
            )

        return await self._database.read(load_seller)

    async def request(
        self, new: NewAssignment, traceparent: str
    ) -> tuple[store.AssignmentRow, bool]:
        """Returns the assignment, and whether it existed before.

        Raises IDEMPOTENCY_KEY_REUSED, FIELD_INVALID, INVALID_STATE.
        """

        def request_assignment(connection: Connection) -> tuple[store.AssignmentRow, bool]:
            stored = store.find_assignment(connection, new.seller_assignment_id)
            if stored is None:
                seller = store.lock(connection, new.seller_account)
                previous_owner = "" if seller is None else seller.owner
                require_new_owner(new.owner, previous_owner)
                row = store.insert_assignment(
                    connection,
                    store.NewAssignmentRow(
                        new.seller_assignment_id,
                        new.seller_account,
                        new.owner,
                        previous_owner,
                        new.requested_by,
                        new.reason,
                    ),
                )
                if row is not None:
                    with record_events(connection, [row]) as publish_request:
                        events.add_assignment_changed(
                            publish_request, row, new.requested_by, traceparent
                        )
                    return row, False
                # a concurrent duplicate of this call stored it
                stored = store.find_assignment(connection, new.seller_assignment_id)
            if stored is None:
                message = "The seller has an open assignment; approve or reject that first."
                raise state_error(message, AssignmentState.REQUESTED, "REQUEST")
            require_same_assignment(
                new,
                NewAssignment(
                    stored.seller_assignment_id,
                    stored.seller_account,
                    stored.owner,
                    stored.requested_by,
                    stored.reason,
                ),
            )
            return stored, True

        return await self._database.transact(request_assignment)

    async def decide(
        self,
        assignment_id: str,
        decision: AssignmentState,
        caller: str,
        reason: str,
        traceparent: str,
    ) -> tuple[store.AssignmentRow, bool]:
        """Returns the assignment, and whether the same decision was made before.

        Raises NOT_FOUND, INVALID_STATE, SECOND_APPROVER_REQUIRED.
        """

        def apply_decision(connection: Connection) -> tuple[store.AssignmentRow, bool]:
            row = store.find_assignment(connection, assignment_id, for_update=True)
            if row is None:
                raise not_found_error("seller assignment", assignment_id)
            if not decide_assignment(
                AssignmentState(row.state), decision, row.requested_by, caller
            ):
                return row, True
            is_approved = decision is AssignmentState.APPROVED
            seller = store.lock(connection, row.seller_account) if is_approved else None
            if is_approved:  # the second person approves the owner that the assignment shows
                require_unchanged_owner(row.previous_owner, "" if seller is None else seller.owner)
            version = (1 if seller is None else seller.version + 1) if is_approved else None
            decided_row = store.record_decision(
                connection, assignment_id, decision, caller, reason, version
            )
            with record_events(connection, [decided_row]) as publish_request:
                events.add_assignment_changed(publish_request, decided_row, caller, traceparent)
            if version is not None:
                _change_owner(
                    connection, row.seller_account, row.owner, version, caller, traceparent
                )
            return decided_row, False

        return await self._database.transact(apply_decision)


class _ConcurrentClaim(Exception):
    """A concurrent claim came first; nothing is stored."""


def _claim(
    connection: Connection, owners: Mapping[str, str], caller: str, traceparent: str
) -> Sequence[store.SellerRow]:
    """Claims sellers, given with their owners, and returns them. Sellers that already have these
    owners are returned too: a claim whose COMMIT was lost is repeated.

    It raises _ConcurrentClaim if only some could be claimed, so that a group of claims is never
    stored in part.
    """
    rows = [
        store.SellerRow(seller, owner, 1, connection.begin_time)
        for seller, owner in sorted(owners.items())
    ]
    publish_request = BatchPublishRequest()
    for row in rows:
        events.add_seller_changed(publish_request, row, caller, traceparent)
    claimed_count = store.claim(connection, rows, publish_request.SerializeToString())
    if claimed_count == len(rows):
        return rows
    stored_rows = store.find_owners(connection, sorted(owners))
    if claimed_count or {row.seller_account: row.owner for row in stored_rows} != owners:
        raise _ConcurrentClaim
    return stored_rows


def _change_owner(
    connection: Connection,
    seller_account: str,
    owner: str,
    version: int,
    caller: str,
    traceparent: str,
) -> None:
    """Assigns the seller to the owner, at the given version.

    Raises CONFLICT if it was claimed since it was read.
    """
    if version > 1:
        row = store.change_owner(connection, seller_account, owner, version)
        with record_events(connection, [row]) as publish_request:
            events.add_seller_changed(publish_request, row, caller, traceparent)
        return
    try:
        _claim(connection, {seller_account: owner}, caller, traceparent)
    except _ConcurrentClaim:
        raise ApiError(
            ErrorReason.CONFLICT,
            "The seller was claimed concurrently; retry.",
            retry_after=0.2,
        ) from None
