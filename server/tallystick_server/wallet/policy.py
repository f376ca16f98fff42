"""Policies: whether a wallet is frozen, and how long its sales stay pending."""

from __future__ import annotations

from sqlalchemy import Connection

from tallystick_core.refusal import version_mismatch
from tallystick_server.runtime.relay import telling
from tallystick_server.wallet import events
from tallystick_storage import wallet as store
from tallystick_storage.database import Database


class Policies:
    """Sets them. A wallet that is not there yet is opened, with `release_delay` in seconds as whoever sets nothing has it."""

    def __init__(self, database: Database, release_delay: int) -> None:
        self._database = database
        self._release_delay = release_delay

    async def set(
        self, key: store.WalletKey, *, frozen: bool | None, release_delay: int | None, expected_version: int | None, caller: str, traceparent: str
    ) -> bool:
        """Has a policy hold from now on, of which None stays as it is; equal values held before, if not.

        Raises VERSION_MISMATCH where another version would be replaced.
        """

        def open_(connection: Connection) -> None:
            store.open_wallets(connection, [key], self._release_delay)

        def set_(connection: Connection) -> bool:
            wallet = store.set_policy(
                connection,
                key,
                frozen=frozen,
                release_delay=release_delay,
                expected_version=expected_version,
                caller=caller,
                traceparent=traceparent,
            )
            if wallet is not None:
                with telling(connection, [wallet]) as told:
                    events.policy_set(told, wallet, caller, traceparent)
            elif expected_version is not None:
                holds = store.wallets(connection, [key]).get(key)
                if holds is None or frozen not in (None, holds.frozen) or release_delay not in (None, holds.release_delay):
                    raise version_mismatch(0 if holds is None else holds.policy_version)
            return wallet is not None

        if not expected_version:  # a wallet that has a policy is there
            await self._database.transact(open_)
        return await self._database.transact(set_)
