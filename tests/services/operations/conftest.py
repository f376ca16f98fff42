"""Fixtures of the tests of failing operations."""

from __future__ import annotations

import pytest

from tests.fakes.wallet_fault import WalletFault, inject_wallet_fault


@pytest.fixture
def wallet_fault(monkeypatch: pytest.MonkeyPatch) -> WalletFault:
    return inject_wallet_fault(monkeypatch)
