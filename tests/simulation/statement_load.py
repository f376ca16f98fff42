"""The reconciliation job of a run: it sends files of what the providers have charged and paid,
while faults are injected and once more at the end, when everything must agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from google.protobuf.message import Message

from tallystick import AsyncClient
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.money import format_amount
from tests.simulation.auditor import ChargeLogEntry
from tests.simulation.call_until_success import call_until_success
from tests.simulation.cluster import OPERATOR, Cluster
from tests.simulation.loop import Node
from tests.simulation.payout_auditor import TransferLogEntry
from tests.simulation.world import World

_PAYOUT_PROVIDER = "sandbox"
_CHUNK = 20
_MAX_POLLS = 60
_RESOLVED = reconciliation_pb2.BREAK_STATE_RESOLVED

Lines = dict[str, list[reconciliation_pb2.StatementLine]]
"""By provider."""


class StatementLoad:
    """The job, with the same file twice at a time. `charge_log` and `transfer_log` read what the
    providers have done.
    """

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        charge_log: Callable[[], Sequence[ChargeLogEntry]],
        transfer_log: Callable[[], Sequence[TransferLogEntry]],
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._charge_log = charge_log
        self._transfer_log = transfer_log
        self._tasks: list[asyncio.Task[None]] = []
        self._running = 0
        self.violations: list[str] = []

    def start(self, start_seconds: float | None, span_seconds: float) -> None:
        """Sends files at a time; None: at a random one of the span."""
        self._running += 1
        start = start_seconds or self._world.seeded_random.uniform(
            "statement", span_seconds / 2, span_seconds
        )
        self._world.loop.deliver(
            Node("caller-statements"),
            start,
            lambda: self._tasks.append(asyncio.ensure_future(self._run_job())),
        )

    @property
    def is_idle(self) -> bool:
        """Whether the job has ended."""
        return not self._running

    async def _run_job(self) -> None:
        client = self._cluster.client("the reconciliation job", OPERATOR)
        for provider, lines in self._lines().items():
            await asyncio.gather(*(self._send(client, provider, lines) for _ in range(2)))
        self._running -= 1

    async def audit(self, operator: AsyncClient) -> list[str]:
        """Sends the last files, which have everything, and waits until it is posted. Returns the
        violations: whatever does not agree, though nothing is in progress.
        """
        for provider, lines in self._lines().items():
            await self._send(operator, provider, lines)
        accounts: Sequence[reconciliation_pb2.ClearingAccount] = ()
        breaks: list[reconciliation_pb2.Break] = []
        for _ in range(_MAX_POLLS):
            response = await operator.reconciliation.GetClearingReport(
                pb.GetClearingReportRequest()
            )
            accounts = response.accounts
            pages = operator.pages(
                operator.reconciliation.ListBreaks, pb.ListBreaksRequest(), "breaks"
            )
            breaks = [item async for item in pages if item.state != _RESOLVED]
            if not breaks and not any(_is_nonzero(account.unposted) for account in accounts):
                break
            await asyncio.sleep(2.0)
        violations = list(self.violations)
        for item in breaks:
            kind = reconciliation_pb2.BreakKind.Name(item.kind)
            violations.append(f"{item.break_id} of {item.account} is open: {kind}")
        for account in accounts:
            name = f"{account.account} in {account.currency}"
            if _is_nonzero(account.unexplained):
                violations.append(f"{name} has {account.unexplained} that nothing explains")
            if _is_nonzero(account.unposted):
                violations.append(f"{name} has {account.unposted} that is not posted")
            if account.expected:
                violations.append(f"{name} has entries that no file has: {account.expected}")
        return violations

    async def _send(
        self,
        client: AsyncClient,
        provider: str,
        lines: Sequence[reconciliation_pb2.StatementLine],
    ) -> None:
        items = _statements(lines)
        content = b"".join(item.SerializeToString(deterministic=True) for item in items)
        digest = sha256(provider.encode() + content).hexdigest()
        file = pb.CreateStatementFileRequest(
            statement_file_id=digest[:32],
            file_name=f"{digest[:12]}.csv",
            content_sha256=digest,
            format="simulated",
            account=f"psp/{provider}/clearing",
        )
        service = client.reconciliation
        name = f"statement of {provider}"

        async def call(method: Any, request: Message) -> Any:
            return await call_until_success(
                lambda: method(request), name, self.violations, frozenset({"INVALID_STATE"})
            )

        await call(service.CreateStatementFile, file)
        for first in range(0, len(items), _CHUNK):
            await call(
                service.BatchAddStatementItems,
                pb.BatchAddStatementItemsRequest(
                    statement_file_id=file.statement_file_id,
                    first_item=first,
                    items=items[first : first + _CHUNK],
                ),
            )
        await call(
            service.ReconcileStatementFile,
            pb.ReconcileStatementFileRequest(
                statement_file_id=file.statement_file_id, item_count=len(items)
            ),
        )

    def _lines(self) -> Lines:
        """What each provider has moved so far."""
        lines: Lines = {}
        for charge in self._charge_log():
            if charge.state == "SUCCEEDED":
                lines.setdefault(charge.provider, []).append(
                    _line(
                        reconciliation_pb2.LINE_TYPE_CHARGE,
                        charge.amount,
                        charge.currency,
                        charge.reference,
                        charge.charge_id,
                    )
                )
        for transfer in self._transfer_log():
            found = lines.setdefault(_PAYOUT_PROVIDER, [])
            # a transfer that was declined is there as well, if it was made and taken back
            if transfer.is_paid or transfer.returned_amount:
                found.append(
                    _line(
                        reconciliation_pb2.LINE_TYPE_PAYOUT,
                        -transfer.amount,
                        transfer.currency,
                        transfer.reference,
                        transfer.payout_id,
                    )
                )
            if transfer.returned_amount:
                found.append(
                    _line(
                        reconciliation_pb2.LINE_TYPE_PAYOUT_RETURN,
                        transfer.returned_amount,
                        transfer.currency,
                        transfer.reference,
                        transfer.payout_id,
                    )
                )
        return lines


def _line(
    line_type: reconciliation_pb2.LineType.ValueType,
    amount: int,
    currency: str,
    reference: str,
    client_reference: str,
) -> reconciliation_pb2.StatementLine:
    return reconciliation_pb2.StatementLine(
        line_type=line_type,
        code="simulated",
        amount=format_amount(amount, currency),
        currency=currency,
        reference=f"line-{reference}",
        charge_reference=reference,
        client_reference=client_reference,
    )


def _statements(lines: Sequence[reconciliation_pb2.StatementLine]) -> list[pb.StatementItem]:
    """The items of a file with one statement for each currency."""
    items = []
    number = 1
    for currency in sorted({line.currency for line in lines}):
        found = [line for line in lines if line.currency == currency]
        start = reconciliation_pb2.StatementStart(line_number=number, currency=currency)
        items.append(pb.StatementItem(start=start))
        for line in found:
            number += 1
            line.line_number = number
            items.append(pb.StatementItem(line=line))
        total = sum(_minor(line.amount, currency) for line in found)
        end = reconciliation_pb2.StatementEnd(
            line_number=number, line_count=len(found), total=format_amount(total, currency)
        )
        items.append(pb.StatementItem(end=end))
        number += 1
    return items


def _minor(text: str, currency: str) -> int:
    sign = -1 if text.startswith("-") else 1
    amount = sign * int(text.lstrip("-").replace(".", ""))
    if format_amount(amount, currency) != text:
        raise ValueError(f"{text} is no amount of {currency}")
    return amount


def _is_nonzero(amount: str) -> bool:
    return bool(amount.strip("-0."))
