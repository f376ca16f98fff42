"""Unapplied charges: money that fits no order is found beside the answer that tells of it, and booked."""

from __future__ import annotations

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
from tallystick_server.runtime.items import refusals
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.postings import add_posting
from tallystick_server.runtime.relay import tell, telling
from tallystick_storage.database import Database
from tallystick_storage.payment import unapplied as store

_MOST_BOOKED = 100
_BOOKED_WITHIN = 1.0  # seconds


def find_unapplied(connection: Connection, told_of: Sequence[tuple[Charge, Succeeded]]) -> None:
    """Stores what fits no order of charges that a provider told of; their attempts must be locked."""
    charged = [
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
    _tell(connection, store.insert(connection, charged))


class BookUnapplied:
    """Posts what was found to the ledger. Posting is idempotent, so any number of processes may do it, and each may do it again."""

    def __init__(self, database: Database, peers: Peers, ledger_address: str) -> None:
        self._database = database
        self._peers = peers
        self._ledger: Any = peers.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger_address)

    async def turn(self) -> None:
        """Books once. Raises DEPENDENCY_UNAVAILABLE."""
        rows = await self._database.load(lambda connection: store.to_book(connection, _MOST_BOOKED))
        if not rows:
            return
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for row in rows:
            lines = unapplied(row.provider, row.currency, row.amount)
            add_posting(request, Kind.UNAPPLIED, row.unapplied_charge_id, row.caller, lines)
        results = (await self._peers.call(self._ledger.BatchPost, request)).results
        ids = [row.unapplied_charge_id for row in rows]
        refused = refusals(ids, results)
        posted = [id_ for id_ in ids if id_ not in refused]
        await self._database.transact(lambda connection: _tell(connection, store.booked(connection, posted)))
        if refused:
            raise RuntimeError(f"unapplied charges were refused by the ledger: {next(iter(refused.values())).message}")


async def acknowledge(database: Database, unapplied_charge_id: str, operator: str, reason: str) -> tuple[Row[Any], bool]:
    """Ends its alert for this reason; it as it is now, and whether it was acknowledged before. Raises NOT_FOUND, CONFLICT, KEY_REUSED."""

    def acknowledge(connection: Connection) -> tuple[Row[Any] | None, bool]:
        acknowledged = store.acknowledge(connection, unapplied_charge_id, operator, reason)
        _tell(connection, acknowledged)
        return store.find(connection, unapplied_charge_id), not acknowledged

    row, replayed = await database.transact(acknowledge)
    if row is None:
        raise not_found("unapplied charge")
    if not row.acknowledged_by:
        raise Refused(Reason.CONFLICT, "The unapplied charge is not in the ledger yet; acknowledge it once it is.", retry_after=_BOOKED_WITHIN)
    if row.acknowledge_reason != reason:
        raise key_reused("reason")
    return row, replayed


def _tell(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    with telling(connection, rows) as told:
        for row in rows:
            charge, aggregate = encode.unapplied_charge(row), f"unappliedCharges/{row.unapplied_charge_id}"
            type_ = event_pb2.EVENT_TYPE_UNAPPLIED_CHARGE_CHANGED
            tell(told, type_, aggregate, row.version, charge.update_time, row.caller, row.traceparent, unapplied_charge=charge)
