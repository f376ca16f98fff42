"""Submit: a payout provider as demands are made on it, one at a time; those that come together go out together."""

from __future__ import annotations

from tallystick_core.provider import PayoutDemand, PayoutOutcome, PayoutProvider, Verification
from tallystick_server.runtime.stage import Stage

_LANES = 8  # a submission that hangs holds up the next ones no sooner than this


class Port:
    """A payout provider whose submissions form by themselves."""

    def __init__(self, provider: PayoutProvider) -> None:
        self.key_window = provider.key_window
        self.look_up = provider.look_up
        self._provider = provider
        self._submit: Stage[PayoutDemand, PayoutOutcome] = Stage(
            f"payout.submit.{provider.name}", provider.submit, most=provider.most_at_once, lanes=_LANES
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
