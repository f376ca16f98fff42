"""Sends what reconciliation has decided to the ledger."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_server.observability import names
from tallystick_server.reconciliation.ledger_reader import LedgerReader
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import postings as store

log = logging.getLogger(__name__)
_PAGE = 200


class PostingSender:
    """Posts, and then reads the ledger: what it has is posted. A repeat posts nothing, because the
    ledger has one transaction for each kind and source id.
    """

    def __init__(
        self,
        database: Database,
        service_client: ServiceClient,
        ledger: str,
        reader: LedgerReader,
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._stub = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._reader = reader

    async def run_once(self) -> None:
        """Posts all that is due, and reads the ledger. Raises DEPENDENCY_UNAVAILABLE."""
        await self._reader.catch_up()
        after, is_any_new = store.BEFORE_ALL, False
        while due := await self._database.load(partial(store.list_due, after=after, limit=_PAGE)):
            is_any_new |= await self._post(due)
            after = due[-1].key
        if is_any_new:
            await self._reader.catch_up()

    async def _post(self, due: Sequence[store.PostingRow]) -> bool:
        """Posts a page. Returns whether the ledger accepted any that it did not have."""
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for row in due:
            lines = [
                JournalLine(entry["account"], row.currency, entry["amount"])
                for entry in row.entries
            ]
            add_posting(
                request,
                PostingKind(row.kind),
                row.source_id,
                row.caller,
                lines,
                row.external_reference,
                to_timestamp(row.effective_time),
                description=row.reason,
            )
        response = await self._service_client.call(self._stub.BatchPost, request)
        rejected = [result for result in response.results if result.HasField("error")]
        if rejected:
            log.warning(
                "the ledger rejects %d postings: %s",
                len(rejected),
                rejected[0].error.message,
                extra=names.BOOKING_REJECTED.extra,
            )
        return any(
            not result.HasField("error") and not result.replayed for result in response.results
        )
