"""Register: destinations are stored, or found, and disabled."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payable import DestinationHappening, DestinationState, Funds, require_approvable
from tallystick_core.payout import NewDestination, destination_demand, require_second_person
from tallystick_core.refusal import id_taken, key_reused, seller_taken
from tallystick_server.payout import encode, events
from tallystick_server.payout.destination import end_destinations, unverified
from tallystick_server.payout.flow import PayOut
from tallystick_server.runtime.relay import telling
from tallystick_storage.database import Database
from tallystick_storage.payout import destination as store

_FIRST_TOKEN = 1
_FIELDS = ("seller_account", "currency", "bank_account_token", "description")


class Register:
    """Stores destinations, and hands them on to be verified."""

    def __init__(self, database: Database, flow: PayOut) -> None:
        self._database = database
        self._flow = flow

    async def create(self, new: NewDestination, traceparent: str) -> tuple[Row[Any], bool]:
        """The destination as it stands, and whether it was there before. Raises ID_TAKEN, KEY_REUSED, DEPENDENCY_UNAVAILABLE."""
        known = await self._database.read(lambda connection: store.find(connection, [new.payout_destination_id]))
        if new.payout_destination_id in known:
            return _repeat(new, known[new.payout_destination_id]), True
        awaits_approval = await self._needs_approval(new)
        self._flow.refuse_overload()
        owners = await self._flow.sellers.claim([(new.seller_account, new.owner, 0)])  # last of what may refuse it
        if owners.get(new.seller_account) != new.owner:
            raise seller_taken("seller_account")
        to_store = _to_store(new, self._flow.settings.provider, traceparent, awaits_approval=awaits_approval)
        wait, lease = self._flow.settings.waiting_period, self._flow.lease
        deadline = self._flow.accept.deadline()

        def create(connection: Connection) -> Row[Any] | None:
            row = store.insert(connection, to_store, wait, lease)
            if row is not None:
                with telling(connection, [row]) as told:
                    events.destination_changed(told, encode.destination(row), traceparent)
            return row

        async def hand_over() -> Row[Any] | None:
            row = await self._database.transact(create)
            if row is not None:
                (item,) = unverified([row], {destination_demand(row.payout_destination_id): _FIRST_TOKEN}, deadline)
                self._flow.take(item)
            return row

        row = await self._flow.apart(hand_over, of_team=True)
        if row is None:
            found = await self._database.load(lambda connection: store.find(connection, [new.payout_destination_id]))
            return _repeat(new, found[new.payout_destination_id]), True
        return row, False

    async def _needs_approval(self, new: NewDestination) -> bool:
        """Whether so much money lies there that a second person has to approve the destination. Raises DEPENDENCY_UNAVAILABLE."""
        above = self._flow.settings.destination_approve_above.get(new.currency)
        if above is None:
            return False
        key = (new.seller_account, new.currency)
        return (await self._flow.funding.of([key])).get(key, Funds()).available > above

    async def approve(self, payout_destination_id: str, caller: str, reason: str) -> bool:
        """Whether it was approved now; the same person did so before for the same reason, if not. Raises STATE_FORBIDS, SECOND_PERSON_REQUIRED."""

        def approve(connection: Connection) -> bool:
            row = store.lock(connection, [payout_destination_id])[payout_destination_id]
            if (row.approved_by, row.approve_reason) == (caller, reason):
                return False
            require_approvable(DestinationState(row.state), awaits_approval=row.awaits_approval)
            require_second_person(caller, row.caller)
            approved = store.approve(connection, payout_destination_id, caller, reason)
            with telling(connection, [approved]) as told:
                events.destination_changed(told, encode.destination(approved), approved.traceparent)
            return True

        return await self._database.transact(approve)

    async def disable(self, payout_destination_id: str, caller: str, reason: str) -> bool:
        """Whether it was disabled now; it was before, if not. Raises STATE_FORBIDS, KEY_REUSED."""

        def disable(connection: Connection) -> bool:
            row = store.lock(connection, [payout_destination_id])[payout_destination_id]
            if row.disabled_by:
                if row.disable_reason != reason:
                    raise key_reused("reason")
                return False
            end_destinations(connection, [payout_destination_id], DestinationHappening.DISABLED, actor=caller, reason=reason)
            return True

        return await self._database.transact(disable)


def _to_store(new: NewDestination, provider: str, traceparent: str, *, awaits_approval: bool) -> store.NewDestination:
    return store.NewDestination(
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


def _repeat(sent: NewDestination, row: Row[Any]) -> Row[Any]:
    """The answer to an id that exists: the destination, or why not."""
    if row.owner != sent.owner:
        raise id_taken("payout_destination_id")
    if bytes(row.fingerprint) != sent.fingerprint():
        raise key_reused(next(name for name in _FIELDS if getattr(sent, name) != getattr(row, name)))
    return row
