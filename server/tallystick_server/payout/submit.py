"""Submit: a payout provider as demands are made on it, one at a time; those that come together go out together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tallystick_core.provider import PayoutDemand, PayoutOutcome, PayoutProvider, Unknown, Verification
from tallystick_server.runtime.stage import Stage

log = logging.getLogger(__name__)

_LANES = 8  # a submission that hangs holds up the next ones no sooner than this


class Port:
    """A payout provider whose submissions form by themselves. A submission takes at most `timeout` seconds, then its lane is free again."""

    def __init__(self, provider: PayoutProvider, timeout: float) -> None:
        self.key_window = provider.key_window
        self.look_up = provider.look_up
        self._provider = provider
        self._timeout = timeout
        # a holder that gave up may have lost its lease, so its payout is not submitted any more; those that wait are bounded by `Execute`
        self._submit: Stage[PayoutDemand, PayoutOutcome] = Stage(
            f"payout.submit.{provider.name}", self._submit_all, most=provider.most_at_once, lanes=_LANES, for_callers=True
        )

    def start(self) -> None:
        self._submit.start()

    async def stop(self) -> None:
        await self._submit.stop()

    @property
    def idle(self) -> bool:
        return self._submit.idle

    async def send(self, demand: PayoutDemand) -> PayoutOutcome:
        """Has it paid, or finds what was paid before under the same key."""
        return await self._submit.submit(demand)

    async def verify(self, bank_account_token: str, currency: str) -> Verification:
        """Whether it can pay to the account in the currency."""
        return await self._provider.verify(bank_account_token, currency)

    async def _submit_all(self, demands: Sequence[PayoutDemand]) -> Sequence[PayoutOutcome]:
        """One submission; without a result for each payout it is not known what became of any."""
        name = self._provider.name
        try:
            async with asyncio.timeout(self._timeout):
                outcomes = await self._provider.submit(demands)
        except TimeoutError:
            return [Unknown("the provider did not answer in time")] * len(demands)
        if len(outcomes) != len(demands):
            log.error("The adapter of the payout provider %s returned %d results for %d payouts.", name, len(outcomes), len(demands))
            return [Unknown(f"the adapter of {name} returned {len(outcomes)} results for {len(demands)} payouts")] * len(demands)
        return outcomes
