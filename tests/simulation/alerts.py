"""What people are to know of once everything is quiet: each thing that is still open has its alert, and nothing that has ended has one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tallystick import AsyncClient
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2

_LOOKS = 60
"""How often the alerts are looked at, a second apart; by then a monitor has looked as well, also one that takes over from a dead one."""
_OPEN = """
    select 'payment', 'DEAD_LETTER', 'deadLetters/' || dead_letter_id from payment.dead_letter where state = 'OPEN'
    union select 'payment', 'UNAPPLIED_CHARGE', 'unappliedCharges/' || unapplied_charge_id from payment.unapplied_charge where acknowledged_by = ''
    union select 'payment', 'CHARGE_CONTRADICTED', 'charges/' || charge_id from payment.conflicting_report where acknowledged_by = ''
    union select 'payout', 'DEAD_LETTER', 'deadLetters/' || dead_letter_id from payout.dead_letter where state = 'OPEN'
    union select 'payout', 'PAYOUT_CONTRADICTED', 'payouts/' || payout_id from payout.conflicting_report where acknowledged_by = ''
    union select 'payout', 'STRAY_TRANSFER', 'payouts/' || payout_id from payout.transfer
        where acknowledged_by = '' and (fit <> 'AS_ASKED' or returned_amount > amount or returned_currency not in ('', currency))
"""
"""Service, kind and subject of each alert that is to be open: at rest nothing waits for time, for a provider or for another service."""
_MAY_WAIT = frozenset({"APPROVAL_OVERDUE"})
"""What at rest may still wait, for a person."""

Alert = tuple[str, str, str]


async def audit_alerts(operator: AsyncClient, query: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    """What is wrong with the open alerts, after the monitors have had the time to look. `query` reads the database."""
    wrong: list[str] = []
    for _ in range(_LOOKS):
        wrong = await _compare(operator, query)
        if not wrong:
            break
        await asyncio.sleep(1.0)
    return wrong


async def _compare(operator: AsyncClient, query: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    must = {(service, kind, subject) for service, kind, subject in query(_OPEN)}
    found: set[Alert] = set()
    services: tuple[tuple[str, Any, Any], ...] = (
        ("payment", operator.payment, payment_service_pb2), ("payout", operator.payout, payout_service_pb2),
        ("wallet", operator.wallet, wallet_service_pb2), ("ledger", operator.ledger, ledger_service_pb2),
    )  # fmt: skip
    for name, service, pb in services:
        async for alert in operator.pages(service.ListAlerts, pb.ListAlertsRequest(page_size=200), "alerts"):
            found.add((name, alert.kind, alert.subject))
    wrong = [f"{name} has no alert {kind} for {subject}, which is open" for name, kind, subject in sorted(must - found)]
    return wrong + [
        f"{name}'s alert {kind} for {subject} is open, and what it tells of is not"
        for name, kind, subject in sorted(found - must)
        if kind not in _MAY_WAIT
    ]
