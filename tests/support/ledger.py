"""Helpers for tests of the ledger."""

from __future__ import annotations

from typing import Any

from tallystick import Client
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2


def list_by_reference(
    client: Client, reference: str, **filters: Any
) -> list[ledger_pb2.Transaction]:
    """The transactions of a provider's or bank's reference, newest first."""
    request = ledger_service_pb2.ListTransactionsRequest(external_reference=reference, **filters)
    return list(client.ledger.ListTransactions(request).transactions)
