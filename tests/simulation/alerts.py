"""The alerts that must be open when nothing is in progress: one for each unresolved condition, and
none for a condition that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tallystick import AsyncClient
from tallystick.operator.v1 import operator_pb2
from tallystick_server.app.services import SERVICES

_MAX_POLLS = 60
"""How many times the alerts are read, a second apart. Within that time every monitor has run,
including one that takes over from a crashed process.
"""
_EXPECTED_ALERTS_SQL = """
    select 'payment', 'DEAD_LETTER', 'deadLetters/' || dead_letter_id from payment.dead_letter
        where state = 'OPEN'
    union select 'payment', 'UNAPPLIED_CHARGE', 'unappliedCharges/' || unapplied_charge_id
        from payment.unapplied_charge where acknowledged_by = ''
    union select 'payment', 'CHARGE_STATUS_CONFLICT', 'charges/' || charge_id
        from payment.conflicting_report where acknowledged_by = ''
    union select 'payout', 'DEAD_LETTER', 'deadLetters/' || dead_letter_id from payout.dead_letter
        where state = 'OPEN'
    union select 'payout', 'PAYOUT_STATUS_CONFLICT', 'payouts/' || payout_id
        from payout.conflicting_report where acknowledged_by = ''
    union select 'payout', 'UNMATCHED_TRANSFER', 'payouts/' || payout_id from payout.transfer
        where acknowledged_by = ''
            and (match <> 'EXACT' or returned_amount > amount
            or returned_currency not in ('', currency))
"""
"""Service, kind and resource of each alert that must be open. When nothing is in progress, no
operation waits for time, for a provider or for another service.
"""
_IGNORED_KINDS = frozenset({"APPROVAL_OVERDUE"})
"""The conditions that may remain when nothing is in progress, because they wait for an operator."""

AlertKey = tuple[str, str, str]


async def audit_alerts(
    operator: AsyncClient, query: Callable[[str], list[tuple[Any, ...]]]
) -> list[str]:
    """Violations of the open alerts, after the monitors have had time to run. `query` reads the
    database.
    """
    violations: list[str] = []
    for _ in range(_MAX_POLLS):
        violations = await _compare_alerts(operator, query)
        if not violations:
            break
        await asyncio.sleep(1.0)
    return violations


async def _compare_alerts(
    operator: AsyncClient, query: Callable[[str], list[tuple[Any, ...]]]
) -> list[str]:
    expected = {(service, kind, subject) for service, kind, subject in query(_EXPECTED_ALERTS_SQL)}
    actual: set[AlertKey] = set()
    request = operator_pb2.ListAlertsRequest(page_size=200)
    for name in (spec.name for spec in SERVICES if spec.publishes_events):
        async for alert in operator.pages(getattr(operator, name).ListAlerts, request, "alerts"):
            kind = operator_pb2.AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_")
            actual.add((name, kind, alert.resource_name))
    violations = [
        f"{name} has no alert {kind} for {subject}, which is open"
        for name, kind, subject in sorted(expected - actual)
    ]
    return violations + [
        f"{name}'s alert {kind} for {subject} is open, and its condition is not"
        for name, kind, subject in sorted(actual - expected)
        if kind not in _IGNORED_KINDS
    ]
