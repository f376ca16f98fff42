"""ExplainPayout: gathers what is stored about a payout, here and in other services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf

from tallystick.history.v1 import explanation_pb2
from tallystick_core.errors import not_found_error
from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_core.money import format_amount
from tallystick_core.operations.alert import AlertKind
from tallystick_core.operations.explanation import OperationFacts, ReportFacts
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.explanation import (
    PayoutFacts,
    PayoutTransitionFacts,
    TransferFacts,
    explain,
)
from tallystick_core.payout.reported_transfer import Transfer, TransferMatch
from tallystick_core.payout.state import PayoutState, PayoutTransitionReason
from tallystick_core.provider.outcome import PayoutFailure
from tallystick_server.operations.explanations import (
    MAX_ROWS,
    MAX_TRANSITIONS,
    alert_facts,
    attempt_facts,
    dead_letter_facts,
    failed_try_facts,
    limit_rows,
    operation_facts,
    to_message,
    trace_id_of,
    webhook_facts,
)
from tallystick_server.operations.other_services import Elsewhere, OtherServices
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_storage import explanations as operation_store
from tallystick_storage import failed_tries as failed_try_store
from tallystick_storage.database import Database, read_snapshot
from tallystick_storage.payout import explanations as store
from tallystick_storage.payout import payouts as payout_store
from tallystick_storage.sql import Connection

_ALERT_KINDS = (
    AlertKind.PAYOUT_STUCK,
    AlertKind.APPROVAL_OVERDUE,
    AlertKind.DEAD_LETTER,
    AlertKind.UNMATCHED_TRANSFER,
    AlertKind.PAYOUT_STATUS_CONFLICT,
)


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What PayoutService has stored, the source ids of its postings, and what is left out, as
    sentences.
    """

    facts: PayoutFacts
    source_ids: tuple[str, ...]
    omissions: tuple[str, ...]
    time: datetime


class PayoutExplainer:
    """Explains payouts. `next_action_of`: the next action of a payout at a loop time."""

    def __init__(
        self,
        database: Database,
        other_services: OtherServices,
        next_action_of: Callable[[PayoutOperation, float], NextAction],
        retry_policies: RetryPolicies,
    ) -> None:
        self._database = database
        self._other_services = other_services
        self._next_action_of = next_action_of
        self._retry_policies = retry_policies

    async def explain(
        self, id_: str, owner: str | None, *, for_operator: bool
    ) -> explanation_pb2.Explanation:
        """The payout that an id names, among those of an owner (None: of all). Raises NOT_FOUND.

        `for_operator`: with what only operators may read by other calls.
        """
        loop_time = asyncio.get_running_loop().time()

        def read(connection: Connection) -> _Gathered | None:
            with read_snapshot(connection):
                row = store.find_payout(connection, id_, owner)
                return row and self._gather(connection, row, loop_time, for_operator)

        gathered = await self._database.read(read)
        if gathered is None:
            raise not_found_error("payout with the id", id_)
        explanation = await self._other_services.add_to(
            explain(gathered.facts, gathered.time),
            gathered.omissions,
            _elsewhere(gathered, for_operator=for_operator),
        )
        return to_message(explanation, gathered.time)

    async def find_name(self, id_: str, owner: str | None) -> str:
        """The resource name of the payout that an id names, as `explain`. Raises NOT_FOUND."""
        row = await self._database.read(
            lambda connection: store.find_payout(connection, id_, owner)
        )
        if row is None:
            raise not_found_error("payout with the id", id_)
        return f"payouts/{row.payout_id}"

    def _gather(
        self,
        connection: Connection,
        row: store.ExplainedPayoutRow,
        loop_time: float,
        for_operator: bool,
    ) -> _Gathered:
        omissions: list[str] = []
        payout_id = row.payout_id
        transitions = limit_rows(
            store.list_transitions(connection, payout_id, MAX_TRANSITIONS),
            "transitions",
            omissions,
            MAX_TRANSITIONS,
        )
        attempts = operation_store.list_attempts(connection, KindName.PAYOUT, [payout_id], MAX_ROWS)
        transfers = limit_rows(
            store.list_transfers(connection, payout_id, MAX_ROWS), "transfers", omissions
        )
        reports = limit_rows(
            store.list_reports(connection, payout_id, MAX_ROWS), "conflicting reports", omissions
        )
        dead_letters = limit_rows(
            operation_store.list_dead_letters(connection, KindName.PAYOUT, [payout_id], MAX_ROWS),
            "dead letters",
            omissions,
        )
        failed_tries = failed_try_store.list_latest(
            connection, KindName.PAYOUT, [payout_id], MAX_ROWS
        )
        facts = PayoutFacts(
            row.payout_id,
            row.caller,
            row.seller_account,
            format_amount(row.amount, row.currency),
            format_amount(row.fee, row.currency),
            format_amount(row.net_amount, row.currency),
            row.currency,
            row.provider,
            PayoutState(row.state),
            row.booked,
            row.payout_destination_id,
            row.create_time,
            row.payout_batch_id,
            PayoutFailure(row.failure_reason) if row.failure_reason else None,
            row.decline_code,
            trace_id_of(row.traceparent),
            tuple(map(_transition_facts, reversed(transitions))),
            tuple(attempt_facts(item, with_details=for_operator) for item in attempts),
            tuple(map(_transfer_facts, reversed(transfers))),
            self._gather_operation(
                connection, payout_id, row.now, loop_time, for_operator=for_operator
            ),
            tuple(dead_letter_facts(item, with_details=for_operator) for item in dead_letters),
            tuple(ReportFacts(*item[1:]) for item in reports),
            row.next_poll_time,
            row.poll_count or 0,
            failed_tries=tuple(
                failed_try_facts(item, with_details=for_operator) for item in reversed(failed_tries)
            ),
        )
        if for_operator:
            facts = _with_operator_facts(connection, facts, omissions)
        source_ids = tuple(dict.fromkeys([payout_id, *(item.source_id for item in transfers)]))
        return _Gathered(facts, source_ids, tuple(omissions), row.now)

    def _gather_operation(
        self,
        connection: Connection,
        payout_id: str,
        now: datetime,
        loop_time: float,
        *,
        for_operator: bool,
    ) -> OperationFacts | None:
        operations = operation_store.list_operations(connection, KindName.PAYOUT, [payout_id])
        if payout_id not in operations:
            return None
        operation = operations[payout_id]
        rows = payout_store.load_operations(connection, [payout_id])
        (payout,) = operations_from_rows(rows, {}, "", inf)
        wait_seconds = max(((operation.next_try_time or now) - now).total_seconds(), 0.0)
        at_next_try = replace(payout, age_seconds=payout.age_seconds + wait_seconds)
        return operation_facts(
            operation,
            self._next_action_of(at_next_try, loop_time + wait_seconds),
            self._retry_policies,
            with_details=for_operator,
        )


def _with_operator_facts(
    connection: Connection, facts: PayoutFacts, omissions: list[str]
) -> PayoutFacts:
    """Adds what only operators may read: webhook events and alerts."""
    references = {
        reference: None
        for reference in (
            *(attempt.provider_reference for attempt in facts.attempts),
            *(transfer.reference for transfer in facts.transfers),
        )
        if reference
    }
    webhooks = limit_rows(
        operation_store.list_webhook_events(
            connection, list(references), [facts.payout_id], MAX_ROWS
        ),
        "webhook events",
        omissions,
    )
    subjects = [facts.name, *(f"deadLetters/{item.dead_letter_id}" for item in facts.dead_letters)]
    alerts = limit_rows(
        operation_store.list_alerts(connection, _ALERT_KINDS, subjects, MAX_ROWS),
        "alerts",
        omissions,
    )
    return replace(
        facts,
        webhooks=tuple(map(webhook_facts, webhooks)),
        alerts=tuple(map(alert_facts, alerts)),
    )


def _elsewhere(gathered: _Gathered, *, for_operator: bool) -> Elsewhere:
    """What other services are asked for. Teams may read events only."""
    facts = gathered.facts
    if not for_operator:
        return Elsewhere((), (), [facts.name])
    movements = [
        f"{kind}/{source_id}"
        for kind in (PostingKind.PAYOUT, PostingKind.PAYOUT_RETURN)
        for source_id in gathered.source_ids
    ]
    return Elsewhere(
        gathered.source_ids,
        [facts.name, *movements],
        [facts.name],
    )


def _transition_facts(row: store.PayoutTransitionRow) -> PayoutTransitionFacts:
    return PayoutTransitionFacts(
        row.from_state or "",
        PayoutState(row.to_state),
        PayoutTransitionReason(row.transition_reason),
        row.create_time,
        row.actor,
        row.reason,
    )


def _transfer_facts(row: store.ExplainedTransferRow) -> TransferFacts:
    transfer = Transfer(
        row.provider_reference,
        row.amount,
        row.currency,
        TransferMatch(row.match),
        row.returned_amount,
        row.returned_currency,
    )
    returned = (
        ""
        if row.returned_amount is None
        else f"{format_amount(row.returned_amount, row.returned_currency)} {row.returned_currency}"
    )
    return TransferFacts(
        row.provider,
        row.provider_reference,
        transfer.match,
        f"{format_amount(row.amount, row.currency)} {row.currency}",
        row.create_time,
        not transfer.needs_no_operator and not row.acknowledged_by,
        returned,
        row.return_time,
    )
