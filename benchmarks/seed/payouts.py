"""Clones payouts with their operations, holds and wallet entries. Needs the table `new_payout`."""

from __future__ import annotations

from benchmarks.seed.clone import CloneSource, RowCloner, template_table
from benchmarks.seed.fingerprints import fingerprint_sql, wallet_entry_fingerprint_sql
from benchmarks.seed.templates import PAYOUT_AMOUNTS, template_id

_REFERENCE_SQL = "case t.provider_reference when '' then '' else 'seed-p-' || s.number end"
_NEXT_POLL_SQL = "clock_timestamp() + interval '1 day' + s.number * interval '10 ms'"
"""No poll is due while the seeded database is measured."""
_HOLD_ID_SQL = "'payouts/' || s.payout_id"


def clone_payouts(cloner: RowCloner, state: str) -> None:
    payout_id = template_id(state)
    source = CloneSource(
        f"(select * from new_payout where state = '{state}' order by number)",
        f"select create_time from {template_table('payout.payout')} "
        f"where payout_id = '{payout_id}'",
    )
    _clone_payout_rows(cloner, payout_id, source)
    _clone_operations(cloner, payout_id, source)
    _clone_holds(cloner, payout_id, source)
    _clone_hold_entries(cloner, payout_id, source, PAYOUT_AMOUNTS[state])
    _update_wallets(cloner)


def _clone_payout_rows(cloner: RowCloner, template_payout_id: str, source: CloneSource) -> None:
    payout_filter = f"t.payout_id = '{template_payout_id}'"
    cloner.insert_rows(
        "payout.payout",
        payout_filter,
        source,
        payout_id="s.payout_id",
        seller_account="s.seller",
        payout_destination_id="'d-' || s.seller",
        payout_batch_id="s.batch",
        provider_reference=_REFERENCE_SQL,
        requested_destination="'d-' || s.seller",
        fingerprint=fingerprint_sql(
            "s.payout_id",
            "t.owner",
            "s.seller",
            "coalesce(t.requested_amount::text, '')",
            "t.currency",
            "'d-' || s.seller",
        ),
    )
    cloner.insert_rows("payout.payout_history", payout_filter, source, payout_id="s.payout_id")
    cloner.insert_rows(
        "payout.transfer",
        payout_filter,
        source,
        payout_id="s.payout_id",
        source_id="s.payout_id",
        provider_reference=_REFERENCE_SQL,
    )
    cloner.insert_rows(
        "payout.completed_payout_poll",
        payout_filter,
        source,
        payout_id="s.payout_id",
        next_poll_time=_NEXT_POLL_SQL,
    )
    cloner.insert_rows("payout.payout_in_state", payout_filter, source, payout_id="s.payout_id")


def _clone_operations(cloner: RowCloner, template_payout_id: str, source: CloneSource) -> None:
    operation_filter = f"t.kind = 'payout' and t.operation_id = '{template_payout_id}'"
    cloner.insert_rows(
        "payout.attempt",
        operation_filter,
        source,
        operation_id="s.payout_id",
        provider_key="replace(t.provider_key, t.operation_id, s.payout_id)",
        provider_reference=_REFERENCE_SQL,
    )
    cloner.insert_rows(
        "payout.operation",
        operation_filter,
        source,
        operation_id="s.payout_id",
        payout_destination_id="'d-' || s.seller",
    )


def _clone_holds(cloner: RowCloner, template_payout_id: str, source: CloneSource) -> None:
    cloner.insert_rows(
        "wallet.hold",
        f"t.hold_id = 'payouts/{template_payout_id}'",
        source,
        hold_id=_HOLD_ID_SQL,
        seller_account="s.seller",
    )


def _clone_hold_entries(
    cloner: RowCloner, template_payout_id: str, source: CloneSource, amount: int
) -> None:
    """Clones the entry that places the hold, and the one that captures or releases it, if any."""
    placed_fingerprint = wallet_entry_fingerprint_sql(
        _HOLD_ID_SQL, "s.seller", "t.currency", "t.amount::text", purpose="PAYOUT"
    )
    ended_fingerprint = wallet_entry_fingerprint_sql(
        _HOLD_ID_SQL,
        "''",
        "''",
        "case t.kind when 'HOLD_CAPTURED' then t.amount::text else '0' end",
    )
    cloner.insert_rows(
        "wallet.wallet_entry",
        f"t.source_id = 'payouts/{template_payout_id}' and t.kind like 'HOLD\\_%'",
        source,
        source_id=_HOLD_ID_SQL,
        seller_account="s.seller",
        number="s.entry_number + (t.kind <> 'HOLD_PLACED')::int",
        available_after=f"s.available + case t.kind when 'HOLD_RELEASED' then {amount} else 0 end",
        held_after=f"case t.kind when 'HOLD_PLACED' then {amount} else 0 end",
        fingerprint=(
            f"case t.kind when 'HOLD_PLACED' then {placed_fingerprint} else {ended_fingerprint} end"
        ),
    )


def _update_wallets(cloner: RowCloner) -> None:
    """Sets each wallet to the balances of its last entry."""
    cloner.connection.execute("""
        update wallet.wallet w set version = e.number, available = e.available_after,
            held = e.held_after, balance = e.available_after + e.held_after,
            update_time = e.create_time
        from (select distinct on (seller_account, currency) * from wallet.wallet_entry
            where seller_account like 's-%' order by seller_account, currency, number desc) e
        where w.seller_account = e.seller_account and w.currency = e.currency
    """)
