"""What operators do while faults are injected: they acknowledge unapplied charges and conflicting
reports, and requeue dead letters in bulk.
"""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import Message

from tallystick import AsyncClient
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tests.simulation.call_until_success import call_until_success, expect_rejection
from tests.simulation.cluster import OPERATOR, Cluster
from tests.simulation.loop import Node
from tests.simulation.world import World

_EXTRA_SECONDS = 10.0
"""Seconds after healing during which they continue."""
_REASON = "dealt with by hand"
_RETRIED_CAUSES = ("REJECTED", "MISMATCHED_OPERATION")
"""Causes that operators requeue. Other dead letters must end without an operator, or have an
alert.
"""
_ALLOWED_REASONS = frozenset({"INVALID_STATE"})


class OperatorLoad:
    """One operator, who sends every call twice concurrently."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        self._cluster = cluster
        self._tasks: list[asyncio.Task[None]] = []
        self._running = False
        self._acknowledged_charges: set[str] = set()
        self._acknowledged_reports: set[tuple[str, int]] = set()
        self._violations: list[str] = []

    def start(self) -> None:
        self._running = True
        self._world.loop.deliver(
            Node("caller-operator"),
            0.5,
            lambda: self._tasks.append(asyncio.ensure_future(self._run_operator())),
        )

    @property
    def is_idle(self) -> bool:
        return not self._running

    async def _run_operator(self) -> None:
        world, client, round_number, end_time = (
            self._world,
            self._cluster.client("the operator at work", OPERATOR),
            0,
            float("inf"),
        )
        while world.loop.now < end_time:
            round_number += 1
            await asyncio.sleep(
                world.seeded_random.uniform(f"operator rests {round_number}", 0.5, 6.0)
            )
            await self._acknowledge_charges(client)
            await self._acknowledge_payouts(client)
            await self._retry_dead_letters(client)
            if world.faults.healed:
                end_time = min(end_time, world.loop.now + _EXTRA_SECONDS)
        self._running = False

    async def _call(self, method: Any, request: Message, name: str) -> Any:
        return await call_until_success(
            lambda: method(request), name, self._violations, _ALLOWED_REASONS
        )

    async def _call_twice(self, method: Any, request: Message, name: str) -> bool:
        """Whether both of two concurrent identical calls succeeded with the same answer."""
        responses = await asyncio.gather(*(self._call(method, request, name) for _ in range(2)))
        if (responses[0] is None) != (responses[1] is None):
            self._violations.append(f"{name}: one of two equal calls was rejected")
        return all(response is not None for response in responses)

    async def _acknowledge_charges(self, client: AsyncClient) -> None:
        page = await self._call(
            client.payment.ListUnappliedCharges,
            payment_service_pb2.ListUnappliedChargesRequest(),
            "unapplied charges",
        )
        acknowledge = client.payment.AcknowledgeUnappliedCharge
        for charge in page.unapplied_charges if page else ():
            name = charge.unapplied_charge_id
            request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(
                unapplied_charge_id=name, reason=_REASON
            )
            if self._world.seeded_random.number(
                f"acknowledges {name}"
            ) < 0.7 and await self._call_twice(acknowledge, request, name):
                self._acknowledged_charges.add(name)
                changed_request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(
                    unapplied_charge_id=name, reason="another reason"
                )
                await self._expect_rejection(acknowledge, changed_request, name)

    async def _expect_rejection(self, method: Any, request: Message, name: str) -> None:
        await expect_rejection(
            lambda: method(request), name, self._violations, "IDEMPOTENCY_KEY_REUSED"
        )

    async def _acknowledge_payouts(self, client: AsyncClient) -> None:
        page = await self._call(
            client.payout.ListAlerts, operator_pb2.ListAlertsRequest(), "alerts"
        )
        kinds = {
            operator_pb2.ALERT_KIND_UNMATCHED_TRANSFER,
            operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT,
        }
        for payout_id in {
            alert.resource_name.partition("/")[2]: None
            for alert in (page.alerts if page else ())
            if alert.kind in kinds
        }:
            payout_details = await self._call(
                client.payout.GetPayout,
                payout_service_pb2.GetPayoutRequest(payout_id=payout_id),
                payout_id,
            )
            for transfer in payout_details.transfers if payout_details else ():
                reference = transfer.provider_reference
                by_reference = payout_service_pb2.AcknowledgePayoutRequest(
                    payout_id=payout_id, provider_reference=reference, reason=_REASON
                )
                await self._call_twice(
                    client.payout.AcknowledgePayout, by_reference, f"{payout_id} {reference}"
                )
            for report in payout_details.conflicting_reports if payout_details else ():
                by_number = payout_service_pb2.AcknowledgePayoutRequest(
                    payout_id=payout_id, report_number=report.number, reason=_REASON
                )
                if await self._call_twice(
                    client.payout.AcknowledgePayout, by_number, f"{payout_id} {report.number}"
                ):
                    self._acknowledged_reports.add((payout_id, report.number))

    async def _retry_dead_letters(self, client: AsyncClient) -> None:
        for cause in _RETRIED_CAUSES:
            cause_filter = operator_pb2.DeadLetterFilter(
                cause=operator_pb2.DeadLetterCause.Value(f"DEAD_LETTER_CAUSE_{cause}")
            )
            request = operator_pb2.RetryDeadLettersRequest(filter=cause_filter, reason="once more")
            for service in (client.payment, client.payout):
                await self._call(service.RetryDeadLetters, request, f"retry {cause}")

    async def audit(self, operator: AsyncClient) -> list[str]:
        """Violations: unexpected rejections, and acknowledgements that were confirmed and are not
        stored.
        """
        violations = list(self._violations)
        request = payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
        charges = [
            charge
            async for charge in operator.pages(
                operator.payment.ListUnappliedCharges, request, "unapplied_charges"
            )
        ]
        acknowledged = {
            charge.unapplied_charge_id
            for charge in charges
            if (charge.acknowledged_by, charge.acknowledge_reason) == (OPERATOR, _REASON)
        }
        violations += [
            f"unapplied charge {name} was acknowledged, and is not"
            for name in sorted(self._acknowledged_charges - acknowledged)
        ]
        for payout_id, number in sorted(self._acknowledged_reports):
            payout_details = await operator.payout.GetPayout(
                payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
            )
            if _REASON not in [
                charge.acknowledge_reason
                for charge in payout_details.conflicting_reports
                if charge.number == number
            ]:
                violations.append(f"report {number} of {payout_id} was acknowledged, and is not")
        return violations


async def resolve_in_bulk(operator: AsyncClient, service: Any, *, retry: bool) -> None:
    """Requeues or closes all open dead letters of a service, after a dry run."""
    call = service.RetryDeadLetters if retry else service.CloseDeadLetters
    request: Any = (
        operator_pb2.RetryDeadLettersRequest(all=True, reason="once more")
        if retry
        else operator_pb2.CloseDeadLettersRequest(
            all=True, reason="no money moved", evidence="the provider's log"
        )
    )
    request.dry_run = True
    await call(request)
    request.dry_run = False
    while True:
        response = await call(request)
        request.page_token = response.next_page_token
        if not request.page_token:
            return
