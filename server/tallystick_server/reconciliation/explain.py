"""Explain: the explanation of a payment or a payout, with what statements have of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from tallystick.history.v1 import explanation_pb2
from tallystick.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2, payout_service_pb2_grpc
from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.ledger.identifiers import TransactionId, parse_transaction_id
from tallystick_core.money import format_amount
from tallystick_core.operations.explanation import ExplanationSource
from tallystick_core.reconciliation.breaks import BreakClass, BreakKind, BreakState, Resolution
from tallystick_core.reconciliation.explanation import (
    BreakFacts,
    LineFacts,
    ReconciliationFacts,
    reconciliation_entries,
    reconciliation_steps,
    summarize,
)
from tallystick_server.operations.explanations import (
    MAX_ROWS,
    add_to_message,
    limit_rows,
    references_of,
)
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient
from tallystick_storage.database import Database, read_snapshot
from tallystick_storage.reconciliation import explanations as store
from tallystick_storage.reconciliation.breaks import BreakRow
from tallystick_storage.sql import Connection


class _Service(NamedTuple):
    """A service that explains, and its call."""

    name: str
    method: Callable[..., Awaitable[Any]]
    request: type[Any]


class Explainer:
    """Explains whatever an id names: a payment or a payout."""

    def __init__(
        self, database: Database, service_client: ServiceClient, payment: str, payout: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        payments = service_client.stub(payment_service_pb2_grpc.PaymentServiceStub, payment)
        payouts = service_client.stub(payout_service_pb2_grpc.PayoutServiceStub, payout)
        self._services = (
            _Service(
                "PaymentService",
                payments.ExplainPayment,
                payment_service_pb2.ExplainPaymentRequest,
            ),
            _Service(
                "PayoutService", payouts.ExplainPayout, payout_service_pb2.ExplainPayoutRequest
            ),
        )

    async def explain(self, id_: str) -> explanation_pb2.Explanation:
        """The payment or payout that an id names. Raises NOT_FOUND, and DEPENDENCY_UNAVAILABLE if
        it was not found and a service did not answer.
        """
        explanation = await self._find(id_)
        transactions = [
            parse_transaction_id(text)
            for text in references_of(explanation, ExplanationSource.LEDGER)
        ]
        references = references_of(explanation, ExplanationSource.PROVIDER)

        def read(connection: Connection) -> tuple[ReconciliationFacts, list[str]]:
            with read_snapshot(connection):
                return _gather(connection, transactions, references)

        facts, omissions = await self._database.read(read)
        add_to_message(
            explanation,
            summarize(facts),
            reconciliation_steps(facts.breaks),
            reconciliation_entries(facts),
            omissions,
        )
        return explanation

    async def _find(self, id_: str) -> explanation_pb2.Explanation:
        """The explanation of the first service that knows the id."""
        unavailable = ""
        for service in self._services:
            try:
                response = await self._service_client.call_or_unavailable(
                    service.method, service.request(id=id_)
                )
            except ServiceCallRejected as error:
                if error.status != "NOT_FOUND":
                    raise
            except ApiError as error:
                if error.reason is not ErrorReason.DEPENDENCY_UNAVAILABLE:
                    raise
                unavailable = service.name
            else:
                explanation: explanation_pb2.Explanation = response.explanation
                return explanation
        if unavailable:
            raise ApiError(
                ErrorReason.DEPENDENCY_UNAVAILABLE,
                f"{unavailable} does not answer, and no other service knows the id.",
                retry_after=1.0,
            )
        raise not_found_error("payment or payout with the id", id_)


def _gather(
    connection: Connection,
    transactions: Sequence[TransactionId],
    references: Sequence[str],
) -> tuple[ReconciliationFacts, list[str]]:
    """What is stored, and what is left out, as sentences."""
    omissions: list[str] = []
    items = limit_rows(
        store.list_items(connection, transactions, MAX_ROWS), "ledger entries", omissions
    )
    lines = limit_rows(
        store.list_lines(connection, items, references, MAX_ROWS), "statement lines", omissions
    )
    break_ids = {row.break_id: None for row in (*items, *lines) if row.break_id is not None}
    facts = ReconciliationFacts(
        tuple(map(_line_facts, lines)),
        tuple(map(_break_facts, store.list_breaks(connection, list(break_ids)))),
        tuple(item.account for item in items if item.is_open),
    )
    return facts, omissions


def _line_facts(row: store.ExplainedLineRow) -> LineFacts:
    return LineFacts(
        row.statement_file_id,
        row.line_number,
        row.line_type,
        f"{format_amount(row.amount, row.currency)} {row.currency}",
        f"{format_amount(row.fee, row.currency)} {row.currency}" if row.fee else "",
        row.reference,
        row.match_rule,
        row.break_id or "",
        row.reconcile_time,
    )


def _break_facts(row: BreakRow) -> BreakFacts:
    return BreakFacts(
        row.break_id,
        BreakKind(row.kind),
        BreakClass(row.break_class),
        BreakState(row.state),
        row.account,
        f"{format_amount(int(row.difference), row.currency)} {row.currency}",
        row.detail,
        row.assignee,
        row.proposed_by,
        Resolution(row.resolution) if row.resolution else None,
        row.create_time,
        row.update_time,
    )
