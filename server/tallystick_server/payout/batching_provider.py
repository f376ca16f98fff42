"""Batching payout provider: accepts one payout at a time and submits concurrent ones together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tallystick_core.provider.outcome import PayoutOutcome, Unknown, VerificationOutcome
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_server.observability import names
from tallystick_server.operations.batcher import Batcher
from tallystick_server.providers.request_ids import (
    NotedRequestIds,
    collect_request_ids_for,
    current_request_ids,
)

log = logging.getLogger(__name__)

# A submission that hangs delays later ones only if this many hang.
_MAX_CONCURRENT_SUBMISSIONS = 8


@dataclass(frozen=True, slots=True)
class _Submission:
    """A payout to submit. `request_ids`: of the call that waits for it, also if it leaves first."""

    request: PayoutRequest
    request_ids: Sequence[NotedRequestIds]


class BatchingPayoutProvider:
    """Batches concurrent payouts into submissions.

    A submission takes at most `timeout_seconds` seconds; then its slot is free again.
    """

    def __init__(self, provider: PayoutProvider, timeout_seconds: float) -> None:
        self.key_window = provider.key_window
        self.look_up = provider.look_up
        self._provider = provider
        self._timeout_seconds = timeout_seconds
        # Abandoned payouts are not submitted, since their lease may have expired. The limits of
        # `ProviderGateway` bound the queue.
        self._batcher: Batcher[_Submission, PayoutOutcome] = Batcher(
            f"payout.submit.{provider.name}",
            self._submit_batch,
            max_batch=provider.max_batch_size,
            concurrency=_MAX_CONCURRENT_SUBMISSIONS,
            drop_abandoned=True,
        )

    def start(self) -> None:
        self._batcher.start()

    async def stop(self) -> None:
        await self._batcher.stop()

    async def send(self, request: PayoutRequest) -> PayoutOutcome:
        """Sends the payout, or finds the earlier one under the same idempotency key."""
        return await self._batcher.submit(_Submission(request, current_request_ids()))

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        """Whether the provider can pay to the account in the currency."""
        return await self._provider.verify(bank_account_token, currency)

    async def _submit_batch(self, submissions: Sequence[_Submission]) -> Sequence[PayoutOutcome]:
        """Submits once. Without a result for each payout, the outcome of all is unknown."""
        name = self._provider.name
        requests = [submission.request for submission in submissions]
        request_ids = [noted for submission in submissions for noted in submission.request_ids]
        try:
            with collect_request_ids_for(request_ids):
                async with asyncio.timeout(self._timeout_seconds):
                    outcomes = await self._provider.submit(requests)
        except TimeoutError:
            return [Unknown("the provider did not answer in time")] * len(requests)
        if len(outcomes) != len(requests):
            log.error(
                "The adapter of the payout provider %s returned %d results for %d payouts.",
                name,
                len(outcomes),
                len(requests),
                extra=names.ADAPTER_FAILED.extra,
            )
            return [
                Unknown(
                    f"the adapter of {name} returned {len(outcomes)} results for {len(requests)} "
                    "payouts"
                )
            ] * len(requests)
        return outcomes
