"""Unapplied charges: money that fits no order is found beside the answer that tells of it, and booked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.booking import Kind, unapplied
from tallystick_core.payment import unapplied_charge_id
from tallystick_core.provider import Succeeded
from tallystick_core.refusal import Reason, Refused, key_reused, not_found
from tallystick_server.payment import encode
from tallystick_server.payment.charge import Charge
from tallystick_server.runtime.items import ItemRefused, outcomes, raise_unavailable, refused_items
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.postings import add_posting
from tallystick_server.runtime.relay import tell, telling
from tallystick_server.runtime.stage import by_halves
from tallystick_storage.database import Database
from tallystick_storage.payment import conflict
from tallystick_storage.payment import unapplied as store

log = logging.getLogger(__name__)

_MOST_BOOKED = 100
_BOOKED_WITHIN = 1.0  # seconds


def find_unapplied(connection: Connection, told_of: Sequence[tuple[Charge, Succeeded]]) -> None:
    """Stores what fits no order of charges that a provider told of, and what conflicts with what is stored; their attempts must be locked."""
    charged = _charged(told_of)
    conflict.report(connection, charged)
    _tell(connection, store.insert(connection, charged))


def note_conflicts(connection: Connection, told_of: Sequence[tuple[Charge, Succeeded]]) -> None:
    """Stores for an operator what conflicts with what is stored, where the answer itself cannot be."""
    conflict.report(connection, _charged(told_of))


def _charged(told_of: Sequence[tuple[Charge, Succeeded]]) -> list[store.Charged]:
    return [
        store.Charged(
            unapplied_charge_id=unapplied_charge_id(charge.provider, outcome.reference),
            charge_id=charge.charge_id,
            checkout_id=charge.checkout_id,
            caller=charge.caller,
            traceparent=charge.traceparent,
            provider=charge.provider,
            provider_reference=outcome.reference,
            amount=outcome.amount,
            currency=outcome.currency,
            mismatch=(outcome.amount, outcome.currency) != (charge.amount, charge.currency),
        )
        for charge, outcome in told_of
    ]


class BookUnapplied:
    """Posts what was found to the ledger. Posting is idempotent, so any number of processes may do it, and each may do it again."""

    def __init__(self, database: Database, peers: Peers, ledger_address: str) -> None:
        self._database = database
        self._peers = peers
        self._ledger: Any = peers.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger_address)

    async def turn(self) -> None:
        """Books what is due. What the ledger refuses waits longer each time. Raises DEPENDENCY_UNAVAILABLE."""
        rows = await self._database.load(lambda connection: store.to_book(connection, _MOST_BOOKED))
        if not rows:
            return
        results = await by_halves(self._post, rows)
        posted = [row.unapplied_charge_id for row, result in zip(rows, results, strict=True) if result is None]
        refused = refused_items([row.unapplied_charge_id for row in rows], results)

        def note(connection: Connection) -> list[str]:
            _tell(connection, store.booked(connection, posted))
            return store.refused(connection, refused) if refused else []

        for id_ in await self._database.transact(note):
            log.warning("the ledger refuses unapplied charge %s: %s", id_, refused[id_])
        raise_unavailable(results)

    async def _post(self, rows: Sequence[Row[Any]]) -> Sequence[ItemRefused | None]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for row in rows:
            lines = unapplied(row.provider, row.currency, row.amount)
            add_posting(request, Kind.UNAPPLIED, row.unapplied_charge_id, row.caller, lines)
        return outcomes((await self._peers.call(self._ledger.BatchPost, request)).results)


async def acknowledge(database: Database, unapplied_charge_id: str, operator: str, reason: str) -> tuple[Row[Any], bool]:
    """Ends its alert for this reason; it as it is now, and whether it was acknowledged before. Raises NOT_FOUND, CONFLICT, KEY_REUSED."""

    def acknowledge(connection: Connection) -> tuple[Row[Any] | None, bool]:
        acknowledged = store.acknowledge(connection, unapplied_charge_id, operator, reason)
        _tell(connection, acknowledged)
        return store.find(connection, unapplied_charge_id), not acknowledged

    row, replayed = await database.transact(acknowledge)
    if row is None:
        raise not_found("unapplied charge", unapplied_charge_id)
    if not row.acknowledged_by:
        raise Refused(Reason.CONFLICT, "The unapplied charge is not in the ledger yet; acknowledge it once it is.", retry_after=_BOOKED_WITHIN)
    if row.acknowledge_reason != reason:
        raise key_reused("reason")
    return row, replayed


async def acknowledge_report(database: Database, charge_id: str, number: int, operator: str, reason: str) -> tuple[Row[Any], bool]:
    """Ends the alert about a conflicting report for this reason; it as it is now, and whether it was acknowledged before.

    Raises NOT_FOUND, KEY_REUSED.
    """

    def acknowledge(connection: Connection) -> tuple[Row[Any] | None, bool]:
        acknowledged = conflict.acknowledge(connection, charge_id, number, operator, reason)
        found = conflict.reports(connection, charge_id)
        return next((row for row in found if row.number == number), None), not acknowledged

    row, replayed = await database.transact(acknowledge)
    if row is None:
        raise not_found("conflicting report", f"{number} of charge {charge_id}")
    if row.acknowledge_reason != reason:
        raise key_reused("reason")
    return row, replayed


def _tell(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    with telling(connection, rows) as told:
        for row in rows:
            charge, aggregate = encode.unapplied_charge(row), f"unappliedCharges/{row.unapplied_charge_id}"
            type_ = event_pb2.EVENT_TYPE_UNAPPLIED_CHARGE_CHANGED
            tell(told, type_, aggregate, row.version, charge.update_time, row.caller, row.traceparent, unapplied_charge=charge)
