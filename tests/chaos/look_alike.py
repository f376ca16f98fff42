"""The control of the Stripe look-alike: its balance, and the faults of its webhooks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx

API_KEY = "sk_test_chaos_run"
_Form = Mapping[str, int | str]
_WEBHOOK_FAULTS: _Form = {
    "duplicate_percent": 15,
    "forged_percent": 5,
    "delayed_percent": 15,
    "delay_seconds": 4,
    "reversed": "true",
}
_TOP_UP: _Form = {"amount": 99_999_999, "currency": "eur"}
_START_SECONDS = 60.0
_SWITCH_SECONDS = 1.0


class LookAlike:
    """Calls the look-alike at a URL."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}, trust_env=False
        )

    async def fund(self) -> None:
        """Tops the balance up, so that it has money for the first payouts. Waits for the start of
        the look-alike, and raises TimeoutError after a minute.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not await self._post("/v1/topups", _TOP_UP, key="top-up"):
            if time.monotonic() > deadline:
                raise TimeoutError("the Stripe look-alike does not answer")
            await asyncio.sleep(0.3)

    async def keep_webhook_faults(self) -> None:
        """Switches the faults of webhooks on again and again: they end with each process."""
        while True:
            await self._post("/sandbox/webhook_faults", _WEBHOOK_FAULTS)
            await asyncio.sleep(_SWITCH_SECONDS)

    async def _post(self, path: str, form: _Form, key: str = "") -> bool:
        """Whether the call succeeded."""
        headers = {"Idempotency-Key": key} if key else {}
        try:
            response = await self._client.post(path, data=form, headers=headers)
        except httpx.TransportError:  # it was killed, or is frozen
            return False
        return response.is_success

    async def close(self) -> None:
        await self._client.aclose()
