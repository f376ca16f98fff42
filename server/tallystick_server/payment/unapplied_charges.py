"""Unapplied charges: stores and books money that a provider took and that fits no order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tallystick.event.v1 import event_pb2
from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.errors import ApiError, ErrorReason, key_reused_error, not_found_error
from tallystick_core.ledger.posting_rules import PostingKind, unapplied_lines
from tallystick_core.payment.charge import derive_unapplied_charge_id
from tallystick_core.payment.charge_update import UnappliedCause
from tallystick_core.provider.outcome import Declined, Succeeded
from tallystick_server.observability import names
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.outbox.events import add_event, record_events
from tallystick_server.payment import convert
from tallystick_server.payment.charge import Charge
from tallystick_server.rpc.batch import (
    ItemRejected,
    item_errors,
    raise_if_unavailable,
    split_results,
)
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.payment import conflicts
from tallystick_storage.payment import unapplied_charges as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

_MAX_BOOKINGS = 100
_RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class UnappliedMoney:
    """Money that a provider reports for a charge and that fits no order."""

    charge: Charge
    outcome: Succeeded
    cause: UnappliedCause


def record_unapplied(connection: Connection, money: Sequence[UnappliedMoney]) -> None:
    """Stores money that fits no order, unless it is stored already. Money of another charge stays
    with that charge. The attempts must be locked.
    """
    rows = [
        store.NewUnappliedCharge(
            unapplied_charge_id=derive_unapplied_charge_id(
                item.charge.provider, item.outcome.reference
            ),
            charge_id=item.charge.charge_id,
            checkout_id=item.charge.checkout_id,
            caller=item.charge.caller,
            traceparent=item.charge.traceparent,
            provider=item.charge.provider,
            provider_reference=item.outcome.reference,
            amount=item.outcome.amount,
            currency=item.outcome.currency,
            cause=item.cause,
        )
        for item in money
    ]
    _emit_changed(connection, store.insert(connection, rows))


def record_conflicts(
    connection: Connection, reports: Sequence[tuple[Charge, Succeeded | Declined]]
) -> None:
    """Stores the reports that contradict what is stored, for an operator: a decline of a charge
    that succeeded, money of another charge, and known money with another amount.
    """
    money = [
        conflicts.MoneyReport(
            charge.charge_id, charge.provider, outcome.reference, outcome.amount, outcome.currency
        )
        for charge, outcome in reports
        if isinstance(outcome, Succeeded)
    ]
    declined = [
        conflicts.ChargeReport(
            charge.charge_id, f"Declined {outcome.reason}, reported before as succeeded"
        )
        for charge, outcome in reports
        if isinstance(outcome, Declined)
    ]
    if money:
        conflicts.insert_money_reports(connection, money)
    if declined:
        conflicts.insert_reports(connection, declined)


class UnappliedChargeBooking:
    """Posts unapplied charges to the ledger. Posting is idempotent, so several processes may do it,
    and repeat it.
    """

    def __init__(
        self, database: Database, service_client: ServiceClient, ledger_address: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._ledger = service_client.stub(
            ledger_service_pb2_grpc.LedgerServiceStub, ledger_address
        )

    async def run_once(self) -> None:
        """Books the unapplied charges that are due.

        A posting that the ledger rejects is delayed longer each time. Raises
        DEPENDENCY_UNAVAILABLE.
        """
        rows = await self._database.load(
            lambda connection: store.list_unbooked(connection, _MAX_BOOKINGS)
        )
        if not rows:
            return
        results = await bisect_on_error(self._post, rows)
        posted_ids, rejections = split_results([row.unapplied_charge_id for row in rows], results)

        def record_results(connection: Connection) -> list[str]:
            _emit_changed(connection, store.mark_booked(connection, posted_ids))
            return store.mark_booking_rejected(connection, rejections)

        for id_ in await self._database.transact(record_results):
            log.warning(
                "LedgerService rejects unapplied charge %s: %s",
                id_,
                rejections[id_],
                extra=names.BOOKING_REJECTED.extra,
            )
        raise_if_unavailable(results)

    async def _post(
        self, rows: Sequence[store.UnappliedChargeRow]
    ) -> Sequence[ItemRejected | None]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for row in rows:
            lines = unapplied_lines(row.provider, row.currency, row.amount)
            add_posting(
                request,
                PostingKind.UNAPPLIED,
                row.unapplied_charge_id,
                row.caller,
                lines,
                row.provider_reference,
                to_timestamp(row.create_time),
            )
        return item_errors(
            (await self._service_client.call(self._ledger.BatchPost, request)).results
        )


async def acknowledge(
    database: Database, unapplied_charge_id: str, operator: str, reason: str
) -> tuple[store.UnappliedChargeRow, bool]:
    """Ends the alert of an unapplied charge with a reason. Returns the current row, and whether it
    was acknowledged before.

    Raises NOT_FOUND, CONFLICT, IDEMPOTENCY_KEY_REUSED.
    """

    def acknowledge(connection: Connection) -> tuple[store.UnappliedChargeRow | None, bool]:
        rows = store.acknowledge(connection, unapplied_charge_id, operator, reason)
        _emit_changed(connection, rows)
        return store.find(connection, unapplied_charge_id), not rows

    row, replayed = await database.transact(acknowledge)
    if row is None:
        raise not_found_error("unapplied charge", unapplied_charge_id)
    if not row.acknowledged_by:
        raise ApiError(
            ErrorReason.CONFLICT,
            "The unapplied charge is not booked yet; retry.",
            retry_after=_RETRY_AFTER_SECONDS,
        )
    if row.acknowledge_reason != reason:
        raise key_reused_error("reason")
    return row, replayed


async def acknowledge_report(
    database: Database, charge_id: str, number: int, operator: str, reason: str
) -> tuple[conflicts.ChargeReportRow, bool]:
    """Ends the alert of a conflicting report with a reason. Returns the current row, and whether it
    was acknowledged before.

    Raises NOT_FOUND, IDEMPOTENCY_KEY_REUSED.
    """

    def acknowledge(connection: Connection) -> tuple[conflicts.ChargeReportRow | None, bool]:
        is_new = conflicts.acknowledge(connection, charge_id, number, operator, reason)
        reports = conflicts.list_reports(connection, charge_id)
        return next((row for row in reports if row.number == number), None), not is_new

    row, replayed = await database.transact(acknowledge)
    if row is None:
        raise not_found_error("conflicting report", f"{number} of charge {charge_id}")
    if row.acknowledge_reason != reason:
        raise key_reused_error("reason")
    return row, replayed


def _emit_changed(connection: Connection, rows: Sequence[store.ChangedUnappliedChargeRow]) -> None:
    with record_events(connection, rows) as publish_request:
        for row in rows:
            charge, aggregate = (
                convert.unapplied_charge(row),
                f"unappliedCharges/{row.unapplied_charge_id}",
            )
            type_ = event_pb2.EVENT_TYPE_UNAPPLIED_CHARGE_CHANGED
            add_event(
                publish_request,
                type_,
                aggregate,
                row.version,
                charge.update_time,
                row.caller,
                row.traceparent,
                unapplied_charge=charge,
            )
