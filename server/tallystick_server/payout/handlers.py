"""The RPCs of PayoutService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import astuple
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.caller import Role
from tallystick_core.identifier import parse_id, parse_words
from tallystick_core.money import parse_currency
from tallystick_core.payout import AT_REST, Cause, NewPayout, payout_demand
from tallystick_core.refusal import Reason, Refused
from tallystick_server.payout import decode, encode
from tallystick_server.payout.accept import Arrival
from tallystick_server.payout.batches import Batches
from tallystick_server.payout.decide import Decision
from tallystick_server.payout.flow import PayOut
from tallystick_server.payout.grounds import owner_of_seller
from tallystick_server.payout.operator import OperatorHandlers
from tallystick_server.payout.preview import Preview
from tallystick_server.payout.register import Register
from tallystick_server.payout.schedules import Schedules
from tallystick_server.runtime import operator
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, page_size
from tallystick_server.runtime.stage import Stage
from tallystick_server.runtime.telemetry import current_context, traceparent
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgement
from tallystick_storage.payout import batch as batch_store
from tallystick_storage.payout import destination as destinations
from tallystick_storage.payout import reads as store
from tallystick_storage.payout import transfer as transfers

_OPERATOR = frozenset({Role.OPERATOR})
_PAYOUTS = frozenset({Role.PAYOUTS})
_BOTH = _PAYOUTS | _OPERATOR
_READ = frozenset({Role.TEAM, Role.PAYOUTS, Role.OPERATOR})
ACCESS: Access = {
    "CreatePayoutDestination": _PAYOUTS,
    "GetPayoutDestination": _READ,
    "ListPayoutDestinations": _READ,
    "DisablePayoutDestination": _BOTH,
    "ApprovePayoutDestination": _OPERATOR,
    "PreviewPayout": _READ,
    "CreatePayout": _PAYOUTS,
    "GetPayout": _READ,
    "ListPayouts": _READ,
    "WatchPayout": _READ,
    "CancelPayout": _BOTH,
    "RetryPayout": _BOTH,
    "ApprovePayout": _OPERATOR,
    "RejectPayout": _OPERATOR,
    "AcknowledgePayout": _OPERATOR,
    "CreatePayoutBatch": _BOTH,
    "GetPayoutBatch": _READ,
    "SetPayoutSchedule": _BOTH,
    "GetPayoutSchedule": _READ,
    **operator.ACCESS,
}

_AT_REST = frozenset(encode.STATES.number(state) for state in AT_REST)


class PayoutHandlers(OperatorHandlers):
    """Handlers only decode, await and encode: a call that is cancelled changes nothing."""

    def __init__(self, database: Database, flow: PayOut) -> None:
        super().__init__(database, flow)
        self._register = Register(database, flow)
        self._preview = Preview(database, flow.funding, flow.sellers)
        self._schedules = Schedules(database)
        self._batches = Batches(database)
        # no limit of its own: calls read after their commit as well, when "nothing was stored" would be false; the slots of the door bound them
        self._reads: Stage[str, payout_pb2.Payout | None] = Stage("payout.read", self._read, lanes=2, for_callers=True)

    def start(self) -> None:
        self._reads.start()

    async def stop(self) -> None:
        await self._reads.stop()

    async def CreatePayoutDestination(self, request: pb.CreatePayoutDestinationRequest, call: Call) -> pb.CreatePayoutDestinationResponse:
        row, replayed = await self._register.create(decode.new_destination(request, call.caller), traceparent())
        if replayed:
            call.replayed()
        return pb.CreatePayoutDestinationResponse(payout_destination=encode.destination(row))

    async def GetPayoutDestination(self, request: pb.GetPayoutDestinationRequest, call: Call) -> pb.GetPayoutDestinationResponse:
        return pb.GetPayoutDestinationResponse(payout_destination=encode.destination(await self._destination(request.payout_destination_id, call)))

    async def ListPayoutDestinations(self, request: pb.ListPayoutDestinationsRequest, call: Call) -> pb.ListPayoutDestinationsResponse:
        size = page_size(request.page_size)
        filters = {
            "owner": decode.owner_of(call.caller),
            "seller_account": decode.optional_id(request.seller_account, "seller_account"),
            "currency": parse_currency(request.currency) if request.currency else "",
            "state": encode.DESTINATION_STATES.parse(request.state, "state", ""),
        }
        token = PageToken("ListPayoutDestinations", *filters.values())
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: destinations.list_(connection, filters, before, size + 1))
        shown, following = token.page(rows, size, encode.destination, lambda row: (row.create_time.isoformat(), row.payout_destination_id))
        return pb.ListPayoutDestinationsResponse(payout_destinations=shown, next_page_token=following)

    async def DisablePayoutDestination(self, request: pb.DisablePayoutDestinationRequest, call: Call) -> pb.DisablePayoutDestinationResponse:
        reason = parse_words(request.reason, "reason")
        row = await self._destination(request.payout_destination_id, call)
        if not await self._register.disable(row.payout_destination_id, call.caller.name, reason):
            call.replayed()
        disabled = await self._destination(request.payout_destination_id, call, changed=True)
        return pb.DisablePayoutDestinationResponse(payout_destination=encode.destination(disabled))

    async def ApprovePayoutDestination(self, request: pb.ApprovePayoutDestinationRequest, call: Call) -> pb.ApprovePayoutDestinationResponse:
        reason = parse_words(request.reason, "reason")
        row = await self._destination(request.payout_destination_id, call)
        if not await self._register.approve(row.payout_destination_id, call.caller.name, reason):
            call.replayed()
        approved = await self._destination(request.payout_destination_id, call, changed=True)
        return pb.ApprovePayoutDestinationResponse(payout_destination=encode.destination(approved))

    async def PreviewPayout(self, request: pb.PreviewPayoutRequest, call: Call) -> pb.PreviewPayoutResponse:
        seller, currency = parse_id(request.seller_account, "seller_account"), parse_currency(request.currency)
        named = request.payout_destination_id
        if named:
            await self._destination(named, call)
        return await self._preview.show(NewPayout("", call.caller.name, decode.owner_of(call.caller), seller, None, currency, named))

    async def CreatePayout(self, request: pb.CreatePayoutRequest, call: Call) -> pb.CreatePayoutResponse:
        payout = decode.new_payout(request, call.caller)
        payout_id = payout.payout_id
        with self._flow.changes.of(payout_id) as waiter:
            accepted = await self._flow.pay(Arrival(payout, traceparent(), current_context()))
            if accepted.replayed:
                call.replayed()
            del request, payout  # a wait keeps no body
            with call.waiting() as waits:
                held = await waiter.outlast(_is_new, lambda: self._payout(payout_id), call.answers_by if waits else 0.0)
            return pb.CreatePayoutResponse(payout=held)

    async def GetPayout(self, request: pb.GetPayoutRequest, call: Call) -> pb.GetPayoutResponse:
        payout = await self._visible(request.payout_id, call)

        def story(connection: Connection) -> tuple[Any, Any, Any, Any]:
            known = transfers.of(connection, [payout.payout_id]).get(payout.payout_id, ())
            reports = acknowledgement.reports(connection, [payout.payout_id]).get(payout.payout_id, ())
            return store.history(connection, payout.payout_id), due.attempts(connection, payout_demand(payout.payout_id)), known, reports

        history, attempts, told, reports = await self._database.read(story)
        return pb.GetPayoutResponse(
            payout=payout,
            history=encode.transitions(history),
            attempts=encode.attempts(attempts),
            transfers=encode.transfers(told),
            conflicting_reports=encode.conflicting_reports(reports),
        )

    async def ListPayouts(self, request: pb.ListPayoutsRequest, call: Call) -> pb.ListPayoutsResponse:
        size = page_size(request.page_size)
        wanted = decode.payout_filter(request, decode.owner_of(call.caller) or None)
        token = PageToken("ListPayouts", *("" if value is None else str(value) for value in astuple(wanted)))
        before = token.before(request.page_token)
        rows, low = await self._database.read(lambda connection: store.list_(connection, wanted, before, size + 1))
        shown, following = token.page(rows, size, encode.shown_payout, lambda row: (row.create_time.isoformat(), row.payout_id))
        return pb.ListPayoutsResponse(payouts=shown, next_page_token=following or token.below(low))

    async def WatchPayout(self, request: pb.WatchPayoutRequest, call: Call) -> AsyncIterator[pb.WatchPayoutResponse]:
        payout_id, after, moved = request.payout_id, request.after_version, self._flow.changes.versions
        del request  # a stream keeps no body
        async with aclosing(moved(payout_id, lambda: self._visible(payout_id, call), after, _moves)) as payouts:
            async for payout in payouts:
                yield pb.WatchPayoutResponse(payout=payout)

    async def CancelPayout(self, request: pb.CancelPayoutRequest, call: Call) -> pb.CancelPayoutResponse:
        return pb.CancelPayoutResponse(payout=await self._decided(request, Cause.CANCELLED, call))

    async def ApprovePayout(self, request: pb.ApprovePayoutRequest, call: Call) -> pb.ApprovePayoutResponse:
        return pb.ApprovePayoutResponse(payout=await self._decided(request, Cause.APPROVED, call))

    async def RejectPayout(self, request: pb.RejectPayoutRequest, call: Call) -> pb.RejectPayoutResponse:
        return pb.RejectPayoutResponse(payout=await self._decided(request, Cause.REJECTED, call))

    async def RetryPayout(self, request: pb.RetryPayoutRequest, call: Call) -> pb.RetryPayoutResponse:
        reason, request_id = parse_words(request.reason, "reason"), parse_id(request.request_id, "request_id")
        payout = await self._visible(request.payout_id, call)
        if not await self._flow.decide.retry(payout.payout_id, request_id, call.caller.name, reason):
            call.replayed()
        return pb.RetryPayoutResponse(payout=await self._visible(request.payout_id, call))

    async def CreatePayoutBatch(self, request: pb.CreatePayoutBatchRequest, call: Call) -> pb.CreatePayoutBatchResponse:
        new = decode.new_batch(request, call.caller)
        if not new.payouts and not new.seller_account:
            _operators_only(call, "A run of the default schedule is for operators; name a seller_account.")
        if new.seller_account:
            await self._seller_owner(new.seller_account, call)
        if not await self._batches.create(new, traceparent()):
            call.replayed()
        self._flow.collecting.wake()
        row = await self._batch(new.payout_batch_id, call, changed=True)
        return pb.CreatePayoutBatchResponse(payout_batch=encode.batch(row, await self._totals(row, changed=True)))

    async def GetPayoutBatch(self, request: pb.GetPayoutBatchRequest, call: Call) -> pb.GetPayoutBatchResponse:
        size = page_size(request.page_size)
        state = encode.STATES.parse(request.payout_state, "payout_state", "")
        row = await self._batch(request.payout_batch_id, call)
        token = PageToken("GetPayoutBatch", row.payout_batch_id, state, int(request.refused))
        place = token.parse(request.page_token, str)
        after = str(place[0]) if place else ""

        def report(connection: Connection) -> tuple[list[payout_pb2.PayoutBatchItem], str | None]:
            found, looked_at = batch_store.report(connection, row.payout_batch_id, after, state, size + 1, refused=request.refused)
            return encode.batch_items(found, store.shown(connection, [item.payout_id for item in found])), looked_at

        lines, looked_at = await self._database.read(report)
        shown, following = token.page(lines, size, lambda line: line, lambda line: (line.payout_id,))
        if not following and looked_at is not None:
            following = token.make(looked_at)
        # They are counted from all its payouts, so a reader of all pages counts them once.
        totals = [] if place else await self._totals(row)
        return pb.GetPayoutBatchResponse(payout_batch=encode.batch(row, totals), items=shown, next_page_token=following)

    async def SetPayoutSchedule(self, request: pb.SetPayoutScheduleRequest, call: Call) -> pb.SetPayoutScheduleResponse:
        wanted = decode.wanted_schedule(request, call.caller, traceparent())
        if not wanted.seller_account:
            _operators_only(call, "The default schedule is for operators to set; name a seller_account.")
        owner = await self._seller_owner(wanted.seller_account, call) if wanted.seller_account else ""
        if not await self._schedules.set(wanted, owner):
            call.replayed()
        return pb.SetPayoutScheduleResponse(payout_schedule=await self._schedules.get(wanted.seller_account, wanted.currency, changed=True))

    async def GetPayoutSchedule(self, request: pb.GetPayoutScheduleRequest, call: Call) -> pb.GetPayoutScheduleResponse:
        seller = decode.optional_id(request.seller_account, "seller_account")
        if seller:
            await self._seller_owner(seller, call)
        return pb.GetPayoutScheduleResponse(payout_schedule=await self._schedules.get(seller, parse_currency(request.currency)))

    async def _decided(
        self, request: pb.CancelPayoutRequest | pb.ApprovePayoutRequest | pb.RejectPayoutRequest, cause: Cause, call: Call
    ) -> payout_pb2.Payout:
        """The payout after a decision."""
        reason = parse_words(request.reason, "reason")
        payout = await self._visible(request.payout_id, call)
        of_team = Role.PAYOUTS in call.caller.roles
        decision = Decision(cause, call.caller.name, reason, second_person=cause is Cause.APPROVED, of_team=of_team)
        if not await self._flow.decide.decide(payout.payout_id, decision):
            call.replayed()
        return await self._visible(request.payout_id, call)

    async def _seller_owner(self, seller_account: str, call: Call) -> str:
        """Whom a seller belongs to, if the caller may see it; "" for an operator and nobody's. Raises NOT_FOUND for another's, and for nobody's."""
        owners = await self._flow.sellers.of([seller_account])
        return owners.get(seller_account, "") if call.caller.sees_all else owner_of_seller(seller_account, call.caller.owner, owners)

    async def _destination(self, payout_destination_id: str, call: Call, *, changed: bool = False) -> Row[Any]:
        """The destination, if the caller may see it; `changed` as in `Database.read`. Raises NOT_FOUND for another's as well."""
        id_ = parse_id(payout_destination_id, "payout_destination_id")
        found = await self._database.read(lambda connection: destinations.find(connection, [id_]), changed=changed)
        return call.visible(found.get(id_), "payout destination", id_)

    async def _batch(self, payout_batch_id: str, call: Call, *, changed: bool = False) -> Row[Any]:
        """The batch, if the caller may see it; `changed` as in `Database.read`. Raises NOT_FOUND for another's as well."""
        id_ = parse_id(payout_batch_id, "payout_batch_id")
        return call.visible(await self._database.read(lambda connection: batch_store.find(connection, id_), changed=changed), "payout batch", id_)

    async def _totals(self, batch: Row[Any], *, changed: bool = False) -> Sequence[Row[Any]]:
        """The totals of a batch; `changed` as in `Database.read`."""
        return await self._database.read(lambda connection: batch_store.totals(connection, batch.payout_batch_id), changed=changed)

    async def _visible(self, payout_id: str, call: Call) -> payout_pb2.Payout:
        """The payout, if the caller may see it. Raises NOT_FOUND for another's as well."""
        return call.visible(await self._payout(parse_id(payout_id, "payout_id")), "payout", payout_id)

    async def _payout(self, payout_id: str) -> payout_pb2.Payout | None:
        return await self._reads.submit(payout_id)

    async def _read(self, payout_ids: Sequence[str]) -> Sequence[payout_pb2.Payout | None]:
        # calls read their own changes so, beside others
        rows = await self._database.read(lambda connection: store.shown(connection, sorted(set(payout_ids))), changed=True)
        payouts = {payout_id: encode.shown_payout(row) for payout_id, row in rows.items()}
        return [payouts.get(payout_id) for payout_id in payout_ids]


def _is_new(payout: payout_pb2.Payout) -> bool:
    """Whether its money is not held yet."""
    return payout.payout_state == payout_pb2.PAYOUT_STATE_CREATED


def _moves(payout: payout_pb2.Payout) -> bool:
    return payout.payout_state not in _AT_REST or not payout.ledger_updated


def _operators_only(call: Call, message: str) -> None:
    """Raises METHOD_FORBIDDEN for who is no operator."""
    if Role.OPERATOR not in call.caller.roles:
        raise Refused(Reason.METHOD_FORBIDDEN, message)
