"""What operators do in a run while everything goes wrong: they acknowledge what fits no order or payout, and have dead letters tried again in bulk."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import Message

from tallystick import AsyncClient
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2

from .cluster import OPERATOR, Cluster
from .insist import insist, refused
from .loop import Node
from .world import World

_LAST = 10.0
"""Seconds after healing in which they go on."""
_REASON = "dealt with by hand"
_NO_RETRY_HELPS = ("REJECTED", "MISDIRECTED")
"""Causes that they have tried again. Others are left alone: they must end without them, or be noticed."""
_ALLOWED = frozenset({"STATE_FORBIDS"})


class OperatorLoad:
    """One operator, who does everything twice at once."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self._tasks: list[asyncio.Task[None]] = []
        self._running = False
        self._charges: set[str] = set()
        self._reports: set[tuple[str, int]] = set()
        self._wrong: list[str] = []

    def start(self) -> None:
        self._running = True
        self._world.loop.deliver(Node("caller-operator"), 0.5, lambda: self._tasks.append(asyncio.ensure_future(self._live())))

    @property
    def idle(self) -> bool:
        return not self._running

    async def _live(self) -> None:
        world, client, turn, end = self._world, self._cluster.client("the operator at work", OPERATOR), 0, float("inf")
        while world.loop.now < end:
            turn += 1
            await asyncio.sleep(world.chance.between(f"operator rests {turn}", 0.5, 6.0))
            await self._acknowledge_charges(client)
            await self._acknowledge_payouts(client)
            await self._retry(client)
            if world.faults.healed:
                end = min(end, world.loop.now + _LAST)
        self._running = False

    async def _ask(self, method: Any, request: Message, name: str) -> Any:
        return await insist(lambda: method(request), name, self._wrong, _ALLOWED)

    async def _twice(self, method: Any, request: Message, name: str) -> bool:
        """Whether a call that is made twice at once got through, both times alike."""
        answers = await asyncio.gather(*(self._ask(method, request, name) for _ in range(2)))
        if (answers[0] is None) != (answers[1] is None):
            self._wrong.append(f"{name}: one of two equal calls was refused")
        return all(answer is not None for answer in answers)

    async def _acknowledge_charges(self, client: AsyncClient) -> None:
        page = await self._ask(client.payment.ListUnappliedCharges, payment_service_pb2.ListUnappliedChargesRequest(), "unapplied charges")
        acknowledge = client.payment.AcknowledgeUnappliedCharge
        for one in page.unapplied_charges if page else ():
            name = one.unapplied_charge_id
            request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(unapplied_charge_id=name, reason=_REASON)
            if self._world.chance.number(f"acknowledges {name}") < 0.7 and await self._twice(acknowledge, request, name):
                self._charges.add(name)
                other = payment_service_pb2.AcknowledgeUnappliedChargeRequest(unapplied_charge_id=name, reason="another reason")
                await self._refused(acknowledge, other, name)

    async def _refused(self, method: Any, request: Message, name: str) -> None:
        await refused(lambda: method(request), name, self._wrong, "KEY_REUSED")

    async def _acknowledge_payouts(self, client: AsyncClient) -> None:
        page = await self._ask(client.payout.ListAlerts, payout_service_pb2.ListAlertsRequest(), "alerts")
        kinds = {"STRAY_TRANSFER", "PAYOUT_CONTRADICTED"}
        for payout_id in {alert.subject.partition("/")[2]: None for alert in (page.alerts if page else ()) if alert.kind in kinds}:
            story = await self._ask(client.payout.GetPayout, payout_service_pb2.GetPayoutRequest(payout_id=payout_id), payout_id)
            for transfer in story.transfers if story else ():
                reference = transfer.provider_reference
                by_reference = payout_service_pb2.AcknowledgePayoutRequest(payout_id=payout_id, provider_reference=reference, reason=_REASON)
                await self._twice(client.payout.AcknowledgePayout, by_reference, f"{payout_id} {reference}")
            for report in story.conflicting_reports if story else ():
                by_number = payout_service_pb2.AcknowledgePayoutRequest(payout_id=payout_id, report_number=report.number, reason=_REASON)
                if await self._twice(client.payout.AcknowledgePayout, by_number, f"{payout_id} {report.number}"):
                    self._reports.add((payout_id, report.number))

    async def _retry(self, client: AsyncClient) -> None:
        for cause in _NO_RETRY_HELPS:
            only = recovery_pb2.DeadLetterFilter(cause=cause)
            payment = payment_service_pb2.RetryDeadLettersRequest(filter=only, reason="once more")
            await self._ask(client.payment.RetryDeadLetters, payment, f"retry {cause}")
            payout = payout_service_pb2.RetryDeadLettersRequest(filter=only, reason="once more")
            await self._ask(client.payout.RetryDeadLetters, payout, f"retry {cause}")

    async def audit(self, operator: AsyncClient) -> list[str]:
        """What is wrong: refusals that must not be, and acknowledgements that were confirmed and are not there."""
        wrong = list(self._wrong)
        request = payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
        charges = [one async for one in operator.pages(operator.payment.ListUnappliedCharges, request, "unapplied_charges")]
        known = {one.unapplied_charge_id for one in charges if (one.acknowledged_by, one.acknowledge_reason) == (OPERATOR, _REASON)}
        wrong += [f"unapplied charge {name} was acknowledged, and is not" for name in sorted(self._charges - known)]
        for payout_id, number in sorted(self._reports):
            story = await operator.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id=payout_id))
            if _REASON not in [one.acknowledge_reason for one in story.conflicting_reports if one.number == number]:
                wrong.append(f"report {number} of {payout_id} was acknowledged, and is not")
        return wrong


async def in_bulk(operator: AsyncClient, service: Any, pb: Any, *, retry: bool) -> None:
    """Has all open dead letters of a service tried again, or closes them, after a dry run."""
    if retry:
        call, request = service.RetryDeadLetters, pb.RetryDeadLettersRequest(all=True, reason="once more")
    else:
        call, request = service.CloseDeadLetters, pb.CloseDeadLettersRequest(all=True, reason="no money moved", evidence="the provider's log")
    request.dry_run = True
    await call(request)
    request.dry_run = False
    while True:
        answer = await call(request)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return
