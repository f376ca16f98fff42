"""Wallet policies: whether a wallet is frozen, and how long its sales stay pending."""

from __future__ import annotations

from tallystick_core.errors import version_mismatch_error
from tallystick_server.outbox.events import record_events
from tallystick_server.wallet import events
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tallystick_storage.wallet import policies, queries
from tallystick_storage.wallet import wallets as store


class WalletPolicies:
    """Sets wallet policies.

    A missing wallet is opened with `default_release_delay_seconds`, in seconds, unless the policy
    sets its own delay.
    """

    def __init__(self, database: Database, default_release_delay_seconds: int) -> None:
        self._database = database
        self._default_release_delay_seconds = default_release_delay_seconds

    async def set(
        self,
        key: store.WalletKey,
        *,
        frozen: bool | None,
        release_delay_seconds: int | None,
        expected_version: int | None,
        caller: str,
        traceparent: str,
    ) -> bool:
        """Sets a policy; None leaves a value unchanged. Returns False if equal values were set
        before.

        Raises VERSION_MISMATCH if another version would be replaced.
        """

        def open_wallet(connection: Connection) -> None:
            store.open_wallets(connection, [key], self._default_release_delay_seconds)

        def set_policy(connection: Connection) -> bool:
            wallet = policies.set_policy(
                connection,
                key,
                frozen=frozen,
                release_delay_seconds=release_delay_seconds,
                expected_version=expected_version,
                caller=caller,
                traceparent=traceparent,
            )
            if wallet is not None:
                with record_events(connection, [wallet]) as publish_request:
                    events.add_policy_changed(publish_request, wallet, caller, traceparent)
            elif expected_version is not None:
                current = queries.find_wallets(connection, [key]).get(key)
                if (
                    current is None
                    or frozen not in (None, current.frozen)
                    or release_delay_seconds not in (None, current.release_delay)
                ):
                    raise version_mismatch_error(0 if current is None else current.policy_version)
            return wallet is not None

        if not expected_version:  # a wallet with a policy exists
            await self._database.transact(open_wallet)
        return await self._database.transact(set_policy)
