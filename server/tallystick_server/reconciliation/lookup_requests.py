"""Asks PaymentService and PayoutService to look up what a statement has and the ledger lacks.

They take it as they take a webhook event: the provider is asked before anything changes, and its
answer is applied by the one path for all reports. Once it is booked, the break ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2_grpc
from tallystick_core.errors import ApiError
from tallystick_core.reconciliation.statement import LineType
from tallystick_core.validation import parse_token
from tallystick_server.observability import names
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import lookups as store

log = logging.getLogger(__name__)
_EVENT_TYPE = "reconciliation.statement_line"
_BEGINNING = (datetime(1970, 1, 1, tzinfo=UTC), "")
_MAX_COMMIT_TIME = timedelta(minutes=10)
"""A break that is found earlier than another may be committed later, up to so long."""

_Events = Sequence[operator_pb2.ReceivedWebhookEvent]


class LookupRequests:
    """Asks about each break once a day until it ends: the services store each request once."""

    def __init__(
        self, database: Database, service_client: ServiceClient, payment: str, payout: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._payments = service_client.stub(payment_service_pb2_grpc.PaymentServiceStub, payment)
        self._payouts = service_client.stub(payout_service_pb2_grpc.PayoutServiceStub, payout)
        self._day: date | None = None
        self._after = _BEGINNING
        """All breaks up to this one were asked about on this day."""
        self._requested: set[str] = set()
        """Those after it that were, too."""

    async def run_once(self) -> None:
        """Asks about all open breaks that a lookup may end, and that were not asked about today.
        Raises DEPENDENCY_UNAVAILABLE.
        """
        now = await self._database.load(clock.now)
        day = now.astimezone(UTC).date()
        if day != self._day:
            self._day, self._after, self._requested = day, _BEGINNING, set()
        after = self._after
        while rows := await self._database.load(partial(store.list_open, after=after)):
            new = [row for row in rows if row.client_reference]
            await self._ask([row for row in new if row.break_id not in self._requested], day)
            after = (rows[-1].create_time, rows[-1].break_id)
            break_ids = {row.break_id for row in rows}
            if rows[-1].create_time < now - _MAX_COMMIT_TIME:
                self._after = after
                self._requested -= break_ids
            else:
                self._requested |= break_ids

    async def _ask(self, rows: Sequence[store.LookupRow], day: date) -> None:
        events: dict[bool, list[operator_pb2.ReceivedWebhookEvent]] = {True: [], False: []}
        for row in rows:
            events[row.line_type == LineType.CHARGE].append(_to_event(row, day))
        await self._send(self._payments.BatchReceiveWebhookEvents, events[True])
        await self._send(self._payouts.BatchReceiveWebhookEvents, events[False])

    async def _send(self, method: Callable[..., Awaitable[Any]], events: _Events) -> None:
        """Sends events. One that the service rejects is left out: it must not hold up others."""
        if not events:
            return
        request = operator_pb2.BatchReceiveWebhookEventsRequest(events=events)
        try:
            await self._service_client.call(method, request)
        except ServiceCallRejected as error:
            if error.rejects_caller:
                raise
            if len(events) > 1:
                half = len(events) // 2
                await self._send(method, events[:half])
                await self._send(method, events[half:])
            else:
                log.warning(
                    "the lookup %s is rejected: %s",
                    events[0].event_id,
                    error.message,
                    extra=names.LOOKUP_REJECTED.extra,
                )


def _to_event(row: store.LookupRow, day: date) -> operator_pb2.ReceivedWebhookEvent:
    is_charge = row.line_type == LineType.CHARGE
    return operator_pb2.ReceivedWebhookEvent(
        provider=row.account.split("/")[1],
        event_id=f"break-{row.break_id}-{day}",
        event_type=_EVENT_TYPE,
        subject=operator_pb2.WEBHOOK_SUBJECT_CHARGE
        if is_charge
        else operator_pb2.WEBHOOK_SUBJECT_PAYOUT,
        reference=_token(row.charge_reference) or _token(row.reference),
        client_reference=_token(row.client_reference),
        provider_time=to_timestamp(row.create_time),
    )


def _token(text: str) -> str:
    """A reference, if it has the form of one: a statement may have any text."""
    try:
        return parse_token(text, "reference")
    except ApiError:
        return ""
