"""Wallet instructions: credits, releases, debits and holds.

Each instruction is decided under the lock of its wallet; one statement writes each batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
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
from tallystick_server.wallet import events
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tallystick_storage.wallet import queries
from tallystick_storage.wallet import wallets as store

_HOLD_END_KINDS = frozenset(
    {EntryKind.HOLD_CAPTURED, EntryKind.HOLD_RELEASED, EntryKind.HOLD_EXPIRED}
)
_HOLD_KINDS = _HOLD_END_KINDS | {EntryKind.HOLD_PLACED}
_RESOLVED_KINDS = _HOLD_END_KINDS | {EntryKind.RELEASE}
"""Kinds whose wallet is found by their source id alone."""
_NO_WALLET: store.WalletKey = ("", "")
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

    wallet: queries.WalletRow | None
    hold: store.HoldRow | None
    replayed: bool


@dataclass(frozen=True, slots=True)
class _BatchKeys:
    """The rows that a batch needs. Lists are sorted."""

    to_open: set[store.WalletKey]
    """Wallets that the batch may open."""
    to_lock: list[store.WalletKey]
    requested: list[store.WalletKey]
    """Wallets that callers requested."""
    hold_ids: list[str]
    release_source_ids: list[str]
    """Source ids of the credits to release."""
    resolved_wallets: dict[str, store.WalletKey]
    """By source id, the wallets of holds that end and of credits to release."""


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
        keys = await self._prepare(requests)

        def apply_batch(connection: Connection) -> list[InstructionResult | Exception]:
            missing = sorted(keys.to_open - self._existing_wallets)
            if missing:  # they are inserted in the order of locks, and before any lock
                store.open_wallets(connection, missing, self._release_delay_seconds)
            batch = _lock_batch(connection, requests, keys)
            decisions = [batch.decide(request) for request in requests]
            if batch.changes:
                _write_changes(connection, batch.changes, batch.change_time)
            return _load_results(connection, requests, decisions, keys)

        try:
            results = await self._database.transact(apply_batch, idempotent=True)
        except _WalletsMissing:
            self._existing_wallets.clear()
            results = await self._database.transact(apply_batch, idempotent=True)
        if len(self._existing_wallets) > _MAX_CACHED_WALLETS:
            self._existing_wallets.clear()
        self._existing_wallets.update(keys.to_open)
        return results

    async def _prepare(self, requests: Sequence[InstructionRequest]) -> _BatchKeys:
        """Stores missing tombstones, and finds the wallets to open and to lock."""
        instructions = [request.instruction for request in requests]
        to_open = {
            _wallet_key(instruction, {})
            for instruction in instructions
            if can_open_wallet(instruction)
        }
        await self._tombstone_unknown_holds(
            _source_ids(instructions, frozenset({EntryKind.HOLD_RELEASED}))
        )
        release_source_ids = _source_ids(instructions, frozenset({EntryKind.RELEASE}))
        resolved_wallets = await self._resolve_wallets(
            _source_ids(instructions, _HOLD_END_KINDS), release_source_ids
        )

        def existing_keys(batch: Iterable[InstructionRequest]) -> list[store.WalletKey]:
            wallet_keys = {_wallet_key(request.instruction, resolved_wallets) for request in batch}
            return sorted(wallet_keys - {_NO_WALLET})

        return _BatchKeys(
            to_open,
            existing_keys(requests),
            existing_keys(request for request in requests if request.include_wallet),
            _source_ids(instructions, _HOLD_KINDS),
            release_source_ids,
            resolved_wallets,
        )

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
                lambda connection: store.add_tombstones(connection, missing_ids, "wallet"),
                idempotent=True,
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
            targets: dict[str, store.HoldRow | Credit] = {
                **store.find_holds(connection, hold_ids),
                **store.find_credits(connection, source_ids),
            }
            return {
                source_id: (target.seller_account, target.currency)
                for source_id, target in targets.items()
            }

        return await self._database.load(resolve)


def _wallet_key(
    instruction: Instruction, resolved_wallets: Mapping[str, store.WalletKey]
) -> store.WalletKey:
    """The wallet of an instruction; if a hold ends or a credit is released, its wallet.

    _NO_WALLET if it does not exist.
    """
    if instruction.kind in _RESOLVED_KINDS:
        return resolved_wallets.get(instruction.source_id, _NO_WALLET)
    return (instruction.seller_account, instruction.currency)


def _source_ids(instructions: Sequence[Instruction], kinds: frozenset[EntryKind]) -> list[str]:
    """The source ids of the instructions of these kinds, sorted."""
    return sorted(
        {instruction.source_id for instruction in instructions if instruction.kind in kinds}
    )


def _lock_batch(
    connection: Connection, requests: Sequence[InstructionRequest], keys: _BatchKeys
) -> _InstructionBatch:
    """Locks the wallets and reads what the decisions need. Raises _WalletsMissing."""
    wallets = store.lock_wallets(connection, keys.to_lock)
    if not keys.to_open <= wallets.keys():
        raise _WalletsMissing
    existing_entries = store.find_entries(
        connection,
        [(request.instruction.kind, request.instruction.source_id) for request in requests],
    )
    holds = store.find_holds(connection, keys.hold_ids) if keys.hold_ids else {}
    credits_by_source_id = (
        store.find_credits(connection, keys.release_source_ids) if keys.release_source_ids else {}
    )
    tombstones = (
        store.find_tombstones(connection, keys.hold_ids)
        if len(holds) < len(keys.hold_ids)
        else set()
    )
    return _InstructionBatch(
        wallets,
        {hold_id: store.as_hold(row) for hold_id, row in holds.items()},
        tombstones,
        credits_by_source_id,
        existing_entries,
        keys.resolved_wallets,
        clock.now(connection),  # after the locks
    )


def _load_results(
    connection: Connection,
    requests: Sequence[InstructionRequest],
    decisions: Sequence[bool | ApiError],
    keys: _BatchKeys,
) -> list[InstructionResult | Exception]:
    """The results, in the order of the requests, from the rows as they are after the changes."""
    wallets = queries.find_wallets(connection, keys.requested) if keys.requested else {}
    holds = store.find_holds(connection, keys.hold_ids) if keys.hold_ids else {}
    return [
        decision
        if isinstance(decision, Exception)
        else InstructionResult(
            wallets.get(_wallet_key(request.instruction, keys.resolved_wallets)),
            holds.get(request.instruction.source_id),
            replayed=decision,
        )
        for request, decision in zip(requests, decisions, strict=True)
    ]


class _InstructionBatch:
    """One batch under its locks: each instruction sees the effect of the previous ones."""

    def __init__(
        self,
        wallets: dict[store.WalletKey, Wallet],
        holds: dict[str, Hold],
        tombstones: set[str],
        credits_by_source_id: dict[str, Credit],
        existing_entries: dict[tuple[str, str], StoredInstruction],
        resolved_wallets: dict[str, store.WalletKey],
        change_time: datetime,
    ) -> None:
        self._wallets = wallets
        self._holds = holds
        self._tombstones = tombstones
        self._credits = credits_by_source_id
        self._existing_entries = existing_entries
        self._resolved_wallets = resolved_wallets
        self.change_time = change_time
        self.changes: list[store.DecidedInstruction] = []

    def decide(self, request: InstructionRequest) -> bool | ApiError:
        """Returns whether the instruction was applied before, or why it is rejected."""
        try:
            replayed = self._is_replay(request.instruction)
            if not replayed:
                self._add_change(request)
        except ApiError as error:
            return error
        return replayed

    def _add_change(self, request: InstructionRequest) -> None:
        """Adds the instruction to the changes. Raises ApiError if it is rejected."""
        instruction = request.instruction
        key = _wallet_key(instruction, self._resolved_wallets)
        wallet = self._wallets.get(key) or Wallet(*key)  # a missing one is empty
        change = apply_instruction(
            wallet,
            self._holds.get(instruction.source_id),
            instruction,
            self._credits.get(instruction.source_id),
            now=self.change_time,
        )
        if key not in self._wallets:
            raise not_found_error("wallet", f"of seller {key[0]} in {key[1]}", "seller_account")
        self._wallets[key] = change.wallet
        if change.hold is not None:
            self._holds[change.hold.hold_id] = change.hold
        self.changes.append(store.DecidedInstruction(instruction, change, request.traceparent))

    def _is_replay(self, instruction: Instruction) -> bool:
        """Whether the instruction was applied before. Raises ApiError if it can never be applied,
        whatever the wallet holds.
        """
        kind, source_id = instruction.kind, instruction.source_id
        entry = self._existing_entries.get((kind, source_id))
        if entry is not None:
            if entry.fingerprint != instruction.fingerprint:
                hold = self._holds.get(source_id)
                raise key_reused_error(first_difference(instruction, entry, hold))
            return True
        if source_id in self._tombstones and kind in _HOLD_KINDS:
            if kind is not EntryKind.HOLD_RELEASED:
                raise hold_ended_error(HoldState.RELEASED, kind)
            return True
        if is_already_released(self._credits.get(source_id), instruction):
            return True
        if (
            kind is EntryKind.RELEASE
            and _wallet_key(instruction, self._resolved_wallets) not in self._wallets
        ):  # a credit of a concurrent transaction counts as not found too
            raise not_found_error("credit", source_id, "source_id")
        return False


def _write_changes(
    connection: Connection, changes: Sequence[store.DecidedInstruction], change_time: datetime
) -> None:
    """Writes the changes and their events."""
    publish_request = BatchPublishRequest()
    for change in changes:
        events.add_wallet_changed(publish_request, change, change_time)
    store.write(connection, changes, change_time, publish_request.SerializeToString())
