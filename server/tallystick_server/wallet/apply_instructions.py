"""Wallet instructions: credits, releases, debits and holds.

Each instruction is decided under the lock of its wallet; one statement writes each batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.errors import ApiError, key_reused_error, not_found_error
from tallystick_core.wallet.balances import (
    Wallet,
    apply_instruction,
    can_open_wallet,
    is_already_released,
)
from tallystick_core.wallet.holds import Hold, hold_ended_error
from tallystick_core.wallet.instructions import (
    Credit,
    Instruction,
    StoredInstruction,
    first_difference,
)
from tallystick_core.wallet.state import EntryKind, HoldState
from tallystick_server.operations.batcher import deduplicate_by_key, run_flattened
from tallystick_server.outbox.events import record_events
from tallystick_server.wallet import events
from tallystick_storage.database import Database
from tallystick_storage.wallet import wallets as store

_HOLD_END_KINDS = frozenset(
    {EntryKind.HOLD_CAPTURED, EntryKind.HOLD_RELEASED, EntryKind.HOLD_EXPIRED}
)
_HOLD_KINDS = _HOLD_END_KINDS | {EntryKind.HOLD_PLACED}
_RESOLVED_KINDS = _HOLD_END_KINDS | {EntryKind.RELEASE}
"""Kinds whose wallet is found by their source id alone."""
_MAX_CACHED_WALLETS = 200_000


@dataclass(frozen=True, slots=True)
class InstructionRequest:
    """An instruction with the trace context of its call. `include_wallet`: the caller requested the
    wallet.
    """

    instruction: Instruction
    traceparent: str
    include_wallet: bool = True


@dataclass(frozen=True, slots=True)
class InstructionResult:
    """The wallet, if requested, and the hold, both as of the end of the batch.

    `replayed`: the instruction was applied before.
    """

    wallet: Row[Any] | None
    hold: Row[Any] | None
    replayed: bool


class _WalletsMissing(Exception):
    """Wallets that this process had cached no longer exist: the database was restored to an earlier
    state.
    """


class WalletInstructions:
    """Applies batches of instructions."""

    def __init__(self, database: Database, release_delay_seconds: int) -> None:
        self._database = database
        self._release_delay_seconds = release_delay_seconds
        self._existing_wallets: set[store.WalletKey] = set()  # wallets known to exist

    async def apply_groups(
        self, groups: Sequence[Sequence[InstructionRequest]]
    ) -> Sequence[Sequence[InstructionResult | Exception] | Exception]:
        """Returns one list of results for each list of instructions."""

        def key(request: InstructionRequest) -> tuple[Hashable, bytes]:
            return (
                request.instruction.kind,
                request.instruction.source_id,
            ), request.instruction.fingerprint + bytes([request.include_wallet])

        return await run_flattened(groups, lambda flat: deduplicate_by_key(flat, key, self._apply))

    async def _apply(
        self, requests: Sequence[InstructionRequest]
    ) -> Sequence[InstructionResult | Exception]:
        to_open = {
            _wallet_key(a.instruction, {}) for a in requests if can_open_wallet(a.instruction)
        }
        await self._ensure_wallets(to_open)
        await self._tombstone_unknown_holds(
            sorted(
                {
                    a.instruction.source_id
                    for a in requests
                    if a.instruction.kind is EntryKind.HOLD_RELEASED
                }
            )
        )
        hold_ids = sorted(
            {a.instruction.source_id for a in requests if a.instruction.kind in _HOLD_KINDS}
        )
        release_source_ids = sorted(
            {a.instruction.source_id for a in requests if a.instruction.kind is EntryKind.RELEASE}
        )
        wallet_keys = await self._resolve_wallets(
            sorted(
                {a.instruction.source_id for a in requests if a.instruction.kind in _HOLD_END_KINDS}
            ),
            release_source_ids,
        )
        keys = sorted({_wallet_key(a.instruction, wallet_keys) for a in requests} - {("", "")})
        included_keys = sorted(
            {_wallet_key(a.instruction, wallet_keys) for a in requests if a.include_wallet}
            - {("", "")}
        )

        def apply_batch(connection: Connection) -> list[InstructionResult | Exception]:
            wallets = store.lock_wallets(connection, keys)
            if not to_open <= wallets.keys():
                raise _WalletsMissing
            existing_entries = store.find_entries(
                connection, [(a.instruction.kind, a.instruction.source_id) for a in requests]
            )
            holds = store.find_holds(connection, hold_ids) if hold_ids else {}
            credits_by_source_id = (
                store.find_credits(connection, release_source_ids) if release_source_ids else {}
            )
            tombstones = (
                store.find_tombstones(connection, hold_ids) if len(holds) < len(hold_ids) else set()
            )
            needs_time = any(a.instruction.expire_time for a in requests) or any(
                row.expire_time for row in holds.values()
            )
            now = store.now(connection) if needs_time else None
            batch = _InstructionBatch(
                wallets,
                {hold_id: store.as_hold(row) for hold_id, row in holds.items()},
                tombstones,
                credits_by_source_id,
                existing_entries,
                wallet_keys,
                now,
            )
            decisions = [batch.decide(request) for request in requests]
            if batch.changes:
                _write_changes(connection, batch.changes)
            wallets_after = store.find_wallets(connection, included_keys) if included_keys else {}
            holds_after = store.find_holds(connection, hold_ids) if hold_ids else {}
            return [
                decision
                if isinstance(decision, Exception)
                else InstructionResult(
                    wallets_after.get(_wallet_key(a.instruction, wallet_keys)),
                    holds_after.get(a.instruction.source_id),
                    replayed=decision,
                )
                for a, decision in zip(requests, decisions, strict=True)
            ]

        try:
            return await self._database.transact(apply_batch)
        except _WalletsMissing:
            self._existing_wallets.clear()
            await self._ensure_wallets(to_open)
            return await self._database.transact(apply_batch)

    async def _ensure_wallets(self, keys: set[store.WalletKey]) -> None:
        """Opens missing wallets in a separate transaction."""
        missing = sorted(keys - self._existing_wallets)
        if not missing:
            return

        def open_wallets(connection: Connection) -> None:
            store.open_wallets(connection, missing, self._release_delay_seconds)

        await self._database.transact(open_wallets)
        if len(self._existing_wallets) > _MAX_CACHED_WALLETS:
            self._existing_wallets.clear()
        self._existing_wallets.update(missing)

    async def _tombstone_unknown_holds(self, hold_ids: list[str]) -> None:
        """Stores tombstones for holds that are released but do not exist, in a separate
        transaction.

        A tombstone prevents a late placement, because no second release would follow.
        """
        existing = (
            await self._database.load(lambda connection: store.find_holds(connection, hold_ids))
            if hold_ids
            else {}
        )
        missing_ids = [hold_id for hold_id in hold_ids if hold_id not in existing]
        if missing_ids:
            await self._database.transact(
                lambda connection: store.add_tombstones(connection, missing_ids, "wallet")
            )

    async def _resolve_wallets(
        self, hold_ids: list[str], source_ids: list[str]
    ) -> dict[str, store.WalletKey]:
        """The wallets of holds that end and of credits that are released. Neither ever changes its
        wallet.
        """
        if not hold_ids and not source_ids:
            return {}

        def resolve(connection: Connection) -> dict[str, store.WalletKey]:
            targets: dict[str, Any] = {
                **store.find_holds(connection, hold_ids),
                **store.find_credits(connection, source_ids),
            }
            return {
                source_id: (target.seller_account, target.currency)
                for source_id, target in targets.items()
            }

        return await self._database.load(resolve)


def _wallet_key(
    instruction: Instruction, wallet_keys: Mapping[str, store.WalletKey]
) -> store.WalletKey:
    """The wallet of an instruction; if a hold ends or a credit is released, its wallet.

    ("", "") if it does not exist.
    """
    if instruction.kind in _RESOLVED_KINDS:
        return wallet_keys.get(instruction.source_id, ("", ""))
    return (instruction.seller_account, instruction.currency)


class _InstructionBatch:
    """One batch under its locks: each instruction sees the effect of the previous ones."""

    def __init__(
        self,
        wallets: dict[store.WalletKey, Wallet],
        holds: dict[str, Hold],
        tombstones: set[str],
        credits_by_source_id: dict[str, Credit],
        existing_entries: dict[tuple[str, str], StoredInstruction],
        wallet_keys: dict[str, store.WalletKey],
        now: datetime | None,
    ) -> None:
        self._wallets = wallets
        self._holds = holds
        self._tombstones = tombstones
        self._credits = credits_by_source_id
        self._existing_entries = existing_entries
        self._wallet_keys = wallet_keys
        self._now = now
        self.changes: list[store.DecidedInstruction] = []

    def decide(self, request: InstructionRequest) -> bool | ApiError:
        """Returns whether the instruction was applied before, or why it is rejected.

        Otherwise it is added to the changes.
        """
        instruction = request.instruction
        replay = self._find_replay(instruction)
        if replay is not None:
            return replay
        key = _wallet_key(instruction, self._wallet_keys)
        wallet = self._wallets.get(key) or Wallet(*key)  # a missing one is empty
        try:
            change = apply_instruction(
                wallet,
                self._holds.get(instruction.source_id),
                instruction,
                self._credits.get(instruction.source_id),
                now=self._now,
            )
        except ApiError as refused:
            return refused
        if key not in self._wallets:
            return not_found_error("wallet", f"of seller {key[0]} in {key[1]}", "seller_account")
        self._wallets[key] = change.wallet
        if change.hold is not None:
            self._holds[change.hold.hold_id] = change.hold
        self.changes.append(store.DecidedInstruction(instruction, change, request.traceparent))
        return False

    def _key_reused_error(self, instruction: Instruction, entry: StoredInstruction) -> ApiError:
        return key_reused_error(
            first_difference(instruction, entry, self._holds.get(instruction.source_id))
        )

    def _find_replay(self, instruction: Instruction) -> bool | ApiError | None:
        """The result that does not depend on the wallet: a replay, or an instruction that can never
        be applied.
        """
        kind, source_id = instruction.kind, instruction.source_id
        entry = self._existing_entries.get((kind, source_id))
        if entry is not None:
            return (
                True
                if entry.fingerprint == instruction.fingerprint
                else self._key_reused_error(instruction, entry)
            )
        if source_id in self._tombstones and kind in _HOLD_KINDS:
            return kind is EntryKind.HOLD_RELEASED or hold_ended_error(HoldState.RELEASED, kind)
        if is_already_released(self._credits.get(source_id), instruction):
            return True
        if (
            kind is EntryKind.RELEASE
            and _wallet_key(instruction, self._wallet_keys) not in self._wallets
        ):  # a credit of a concurrent transaction counts as not found too
            return not_found_error("credit", source_id, "source_id")
        return None


def _write_changes(connection: Connection, changes: Sequence[store.DecidedInstruction]) -> None:
    """Writes the changes and their events."""
    row = store.write(connection, changes)
    with record_events(connection, [row]) as event_batch:
        for change in changes:
            events.add_wallet_changed(event_batch, change, row.create_time)
