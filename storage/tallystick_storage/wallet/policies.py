"""Changes of wallet policies: whether a wallet is frozen, and how long its sales stay pending."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, columns
from tallystick_storage.wallet.queries import WalletRow
from tallystick_storage.wallet.wallets import WalletKey

_POLICY_RESOURCE_NAME = "'walletPolicies/' || seller_account || '/' || currency"


@dataclass(frozen=True, slots=True)
class ChangedWalletRow(WalletRow):
    """A wallet with a new policy, and the outbox row in which the policy is to be recorded."""

    outbox_sequence: int


_SET_POLICY = Query(
    ChangedWalletRow,
    f"""
    with l as materialized (
        select seller_account, currency from wallet where seller_account = :seller_account
            and currency = :currency
            and (frozen is distinct from coalesce(cast(:frozen as boolean), frozen)
                or release_delay is distinct
                    from coalesce(cast(:release_delay as int), release_delay))
            and (cast(:expected_version as bigint) is null
                or policy_version = cast(:expected_version as bigint)) for update),
    w as (
        update wallet w set frozen = coalesce(cast(:frozen as boolean), w.frozen),
            release_delay = coalesce(cast(:release_delay as int), w.release_delay),
            policy_version = w.policy_version + 1,
            update_time = greatest(w.update_time, clock())
        from l where w.seller_account = l.seller_account and w.currency = l.currency returning w.*),
    p as (
        insert into wallet_policy
        select seller_account, currency, policy_version, frozen, release_delay, :caller,
            :traceparent, update_time from w),
    {insert_into_outbox("w", _POLICY_RESOURCE_NAME, "policy_version")}
    select {columns(WalletRow, "w")}, sequence as outbox_sequence from w, outbox_sequence
    """,
)


def set_policy(
    connection: Connection,
    key: WalletKey,
    *,
    frozen: bool | None,
    release_delay_seconds: int | None,
    expected_version: int | None,
    caller: str,
    traceparent: str,
) -> ChangedWalletRow | None:
    """Sets a wallet's policy; fields that are None keep their value.

    Changes nothing if the policy is the same, or if the current version is not the expected one;
    None expects any version.

    Returns None if nothing changed.
    """
    return _SET_POLICY.one_or_none(
        connection,
        seller_account=key[0],
        currency=key[1],
        frozen=frozen,
        release_delay=release_delay_seconds,
        expected_version=expected_version,
        caller=caller,
        traceparent=traceparent,
    )
