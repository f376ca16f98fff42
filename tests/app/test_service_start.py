"""Services start in one process: the settings that they need, and what a failed start leaves."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from tallystick_core.access import Caller, Role
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import HTTP_SERVER, find_spec, service_names
from tests.support.platform import free_address

PAYOUTS_TOKEN, WALLETS_TOKEN = "0123456789-of-payouts", "0123456789-of-wallets"
EACH_A_TOKEN = Settings().replace(
    authentication="tokens",
    callers={
        PAYOUTS_TOKEN: Caller("payouts", frozenset({Role.SERVICE})),
        WALLETS_TOKEN: Caller("wallets", frozenset({Role.SERVICE})),
        "0123456789-of-shop": Caller("shop", frozenset({Role.TEAM})),
    },
)


@pytest.mark.parametrize(
    ("names", "token", "payout_service", "expected"),
    [
        (
            ("wallet",),
            WALLETS_TOKEN,
            "",
            (
                "must say which caller PayoutService is, among those with the role service: "
                "payouts, wallets"
            ),
        ),
        (
            ("wallet", "ledger", "payment", "event"),
            PAYOUTS_TOKEN,
            "",
            "must say which caller PayoutService is",
        ),
        (
            ("payout",),
            PAYOUTS_TOKEN,
            "wallets",
            "must be payouts, the caller of this PayoutService's service_token, or empty",
        ),
        (
            service_names(),
            WALLETS_TOKEN,
            "payouts",
            "must be wallets, the caller of this PayoutService's service_token, or empty",
        ),
    ],
)
def test_serve_rejects_an_unknown_payout_service_caller(
    database: DatabaseUrls, names: tuple[str, ...], token: str, payout_service: str, expected: str
) -> None:
    """If services have tokens of their own, a process does not start when WalletService would
    reject PayoutService's calls; the error names the setting.
    """
    settings = EACH_A_TOKEN.replace(
        server__listen=free_address(),
        service_addresses=dict.fromkeys(service_names(), "127.0.0.1:1"),
        service_token=token,
        payout_service=payout_service,
    )
    with pytest.raises(StartupError) as failure:
        asyncio.run(serve.start(names, settings, database.all()))
    assert f"payout_service (TALLYSTICK_PAYOUT_SERVICE) {expected}" in str(failure.value)


@pytest.mark.parametrize(
    ("names", "token", "payout_service"),
    [
        (("wallet",), WALLETS_TOKEN, "payouts"),
        (service_names(), WALLETS_TOKEN, ""),
        (service_names(), WALLETS_TOKEN, "wallets"),
        (("wallet", "payout"), PAYOUTS_TOKEN, ""),
    ],
)
def test_services_start_if_the_payout_service_caller_is_set(
    database: DatabaseUrls, names: tuple[str, ...], token: str, payout_service: str
) -> None:
    """WalletService starts if PayoutService's caller is set, or PayoutService is served by the same
    process.
    """
    settings = EACH_A_TOKEN.replace(
        server__listen=free_address(),
        service_addresses=dict.fromkeys(service_names(), "127.0.0.1:1"),
        service_token=token,
        payout_service=payout_service,
    )

    async def start_and_stop() -> None:
        server = await serve.start(names, settings, database.all())
        await server.stop(1.0)

    asyncio.run(start_and_stop())


@pytest.mark.parametrize(
    "service", [name for name in service_names() if find_spec(name).dependencies]
)
def test_a_single_service_requires_the_addresses_of_the_others(
    database: DatabaseUrls, service: str
) -> None:
    """A service that is served alone, without the addresses of the others, reports which address is
    missing.
    """
    first = find_spec(service).dependencies[0]
    with pytest.raises(
        StartupError, match=f"TALLYSTICK_SERVICE_ADDRESSES must say where {service} reaches {first}"
    ):
        asyncio.run(
            serve.start(
                (service,), Settings().replace(server__listen=free_address()), database.all()
            )
        )


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("payment", "wallet"), "payout_service"),
        (("payment", HTTP_SERVER), "TALLYSTICK_SERVICE_ADDRESSES"),
        (("event", HTTP_SERVER), "TALLYSTICK_SERVICE_ADDRESSES"),
    ],
)
def test_a_failed_start_leaves_no_folder(
    database: DatabaseUrls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    missing: str,
) -> None:
    """The folder of the sockets is removed whichever step of the start fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = EACH_A_TOKEN.replace(
        server__listen=free_address(), http__listen=free_address(), service_token=PAYOUTS_TOKEN
    )
    with pytest.raises(StartupError, match=missing):
        asyncio.run(serve.start(names, settings, database.all()))
    assert list(tmp_path.iterdir()) == []
