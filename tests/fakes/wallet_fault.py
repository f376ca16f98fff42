"""WalletService with faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tallystick_server.wallet.handlers import WalletHandlers


@dataclass
class WalletFault:
    """Fails a call to WalletService before its handler runs, as a bug of WalletService would."""

    poison: str = ""
    """A call with an item of this seller, source id or hold fails with INTERNAL."""
    method: str = ""
    """The only method that poison applies to; "": all."""
    error: Exception | None = None
    """The error of every call."""
    calls: list[int] = field(default_factory=list)
    """The number of items of each call."""


def inject_wallet_fault(monkeypatch: pytest.MonkeyPatch) -> WalletFault:
    """Faults in WalletService's own handlers; the service clients are real."""
    fault = WalletFault()

    def break_handler(name: str, items: Callable[[Any], Any]) -> None:
        original = getattr(WalletHandlers, name)

        async def handler(self: WalletHandlers, request: Any, call: Any) -> Any:
            fault.calls.append(len(items(request)))
            if fault.error is not None:
                raise fault.error
            if (
                fault.poison
                and fault.method in ("", name)
                and any(fault.poison in str(item) for item in items(request))
            ):
                raise ValueError("a bug that one item triggers")
            return await original(self, request, call)

        monkeypatch.setattr(WalletHandlers, name, handler)

    break_handler("BatchCredit", lambda request: request.credits)
    break_handler("BatchRelease", lambda request: request.releases)
    break_handler("BatchPlaceHold", lambda request: request.holds)
    break_handler("BatchCaptureHold", lambda request: request.captures)
    return fault
