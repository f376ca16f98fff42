"""Whom sellers belong to: to the owner that first names them, until two operators assign them to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_core.seller import (
    AssignmentState,
    NewAssignment,
    SellerClaim,
    decide_assignment,
    first_difference,
    granted_claims,
    require_move,
    require_unmoved,
)
from tallystick_server.runtime.relay import telling
from tallystick_server.wallet import events
from tallystick_storage import seller as store
from tallystick_storage.database import Database

_MAX_ASSIGNMENTS = 50


class Sellers:
    """Claims and assigns sellers. `caller`: on whose behalf."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, claims: Sequence[SellerClaim], caller: str, traceparent: str) -> Sequence[Row[Any]]:
        """The sellers that belong to somebody, by id, after the claims. Only a seller that belongs to nobody costs a transaction."""
        names = sorted({claim.seller_account for claim in claims})
        while True:  # each round finds one more of the sellers owned, or is the last
            owned = await self._database.load(lambda connection: store.owners(connection, names))
            new = granted_claims(claims, {row.seller_account: row.owner for row in owned})
            if not new:
                return owned
            with suppress(_Overtaken):
                await self._database.transact(_claim([store.NewSeller(*one) for one in sorted(new.items())], caller, traceparent))

    async def get(self, seller_account: str) -> tuple[Row[Any] | None, Sequence[Row[Any]]]:
        """A seller, None if it belongs to nobody, and its last assignments."""

        def get(connection: Connection) -> tuple[Row[Any] | None, Sequence[Row[Any]]]:
            found = store.owners(connection, [seller_account])
            return next(iter(found), None), store.assignments(connection, seller_account, _MAX_ASSIGNMENTS)

        return await self._database.read(get)

    async def request(self, new: NewAssignment, traceparent: str) -> tuple[Row[Any], bool]:
        """The assignment as it stands, and whether it was there before. Raises KEY_REUSED, FIELD_INVALID, STATE_FORBIDS."""

        def request(connection: Connection) -> tuple[Row[Any], bool]:
            known = store.assignment(connection, new.seller_assignment_id)
            if known is None:
                seller = store.lock(connection, new.seller_account)
                previous = "" if seller is None else str(seller.owner)
                require_move(new.owner, previous)
                row = store.request(
                    connection,
                    store.NewAssignment(new.seller_assignment_id, new.seller_account, new.owner, previous, new.requested_by, new.reason),
                )
                if row is not None:
                    with telling(connection, [row]) as told:
                        events.assignment_changed(told, row, new.requested_by, traceparent)
                    return row, False
                known = store.assignment(connection, new.seller_assignment_id)  # stored meanwhile by the same call
            if known is None:
                message = "The seller has an open assignment; approve or reject that first."
                raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": AssignmentState.REQUESTED, "verb": "REQUEST"})
            first_difference(new, NewAssignment(known.seller_assignment_id, known.seller_account, known.owner, known.requested_by, known.reason))
            return known, True

        return await self._database.transact(request)

    async def decide(self, assignment_id: str, decision: AssignmentState, caller: str, reason: str, traceparent: str) -> tuple[Row[Any], bool]:
        """The assignment as it stands, and whether it was decided so before. Raises NOT_FOUND, STATE_FORBIDS, SECOND_PERSON_REQUIRED."""

        def decide(connection: Connection) -> tuple[Row[Any], bool]:
            row = store.assignment(connection, assignment_id, locked=True)
            if row is None:
                raise not_found("seller assignment", assignment_id)
            if not decide_assignment(AssignmentState(row.state), decision, row.requested_by, caller):
                return row, True
            approved = decision is AssignmentState.APPROVED
            seller = store.lock(connection, row.seller_account) if approved else None
            if approved:  # the second person approves what the assignment shows
                require_unmoved(row.previous_owner, "" if seller is None else seller.owner)
            version = (1 if seller is None else seller.version + 1) if approved else None
            decided = store.decide(connection, assignment_id, decision, caller, reason, version)
            with telling(connection, [decided]) as told:
                events.assignment_changed(told, decided, caller, traceparent)
            if version is not None:
                moved = _move(connection, row.seller_account, row.owner, version)
                with telling(connection, [moved]) as told:
                    events.seller_changed(told, moved, caller, traceparent)
            return decided, False

        return await self._database.transact(decide)


class _Overtaken(Exception):
    """Somebody else was faster; nothing is stored."""


def _claim(new: Sequence[store.NewSeller], caller: str, traceparent: str) -> Callable[[Connection], None]:
    """What claims all of the sellers. It raises _Overtaken where one was claimed meanwhile, so that no group of claims is made in part."""

    def claim(connection: Connection) -> None:
        rows = store.claim(connection, new)
        if len(rows) < len(new):
            raise _Overtaken
        with telling(connection, rows) as told:
            for row in rows:
                events.seller_changed(told, row, caller, traceparent)

    return claim


def _move(connection: Connection, seller_account: str, owner: str, version: int) -> Row[Any]:
    """Has the seller belong to the owner, as its given version. Raises CONFLICT where it was claimed since it was looked at."""
    if version > 1:
        return store.move(connection, seller_account, owner, version)
    claimed = store.claim(connection, [store.NewSeller(seller_account, owner)])
    if not claimed:
        raise Refused(Reason.CONFLICT, "The seller was claimed at the same moment; retry.", retry_after=0.2)
    return claimed[0]
