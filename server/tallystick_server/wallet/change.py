"""Change: credits, releases, debits and holds, decided one by one under their wallets' locks, written by one statement for each batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.refusal import Refused, key_reused, not_found
from tallystick_core.wallet import (
    Credit,
    EntryKind,
    Hold,
    HoldState,
    Instruction,
    Made,
    Wallet,
    apply,
    first_difference,
    hold_ended,
    opens,
    released_before,
)
from tallystick_server.runtime.relay import telling
from tallystick_server.runtime.stage import in_groups, once_per_key
from tallystick_server.wallet import events
from tallystick_storage import wallet as store
from tallystick_storage.database import Database

_ENDINGS = frozenset({EntryKind.HOLD_CAPTURED, EntryKind.HOLD_RELEASED, EntryKind.HOLD_EXPIRED})
_HOLDING = _ENDINGS | {EntryKind.HOLD_PLACED}
_OWNED = _ENDINGS | {EntryKind.RELEASE}
"""What is about a wallet that only its cause names."""
_MOST_KNOWN = 200_000


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction, with the trace context of the call it came with. `shown`: whether the caller wants to see its wallet."""

    instruction: Instruction
    traceparent: str
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Changed:
    """The wallet, if it is shown, and the hold, as they stand after the batch. `replayed`: the change was made before."""

    wallet: Row[Any] | None
    hold: Row[Any] | None
    replayed: bool


class _WalletsMissing(Exception):
    """Wallets that this process knew to exist do not: the database has been set back."""


class ChangeWallets:
    """The change stage's work."""

    def __init__(self, database: Database, release_delay: int) -> None:
        self._database = database
        self._release_delay = release_delay
        self._opened: set[store.WalletKey] = set()  # wallets that are known to exist

    async def run(self, groups: Sequence[Sequence[Asked]]) -> Sequence[Sequence[Changed | Exception] | Exception]:
        """One list of results for each list of instructions."""

        def key(asked: Asked) -> tuple[Hashable, bytes]:
            return (asked.instruction.kind, asked.instruction.cause), asked.instruction.fingerprint + bytes([asked.shown])

        return await in_groups(groups, lambda flat: once_per_key(flat, key, self._change))

    async def _change(self, asked: Sequence[Asked]) -> Sequence[Changed | Exception]:
        opened = {_wallet_key(a.instruction, {}) for a in asked if opens(a.instruction)}
        await self._open(opened)
        await self._seal(sorted({a.instruction.cause for a in asked if a.instruction.kind is EntryKind.HOLD_RELEASED}))
        hold_ids = sorted({a.instruction.cause for a in asked if a.instruction.kind in _HOLDING})
        releases = sorted({a.instruction.cause for a in asked if a.instruction.kind is EntryKind.RELEASE})
        owners = await self._owners(sorted({a.instruction.cause for a in asked if a.instruction.kind in _ENDINGS}), releases)
        keys = sorted({_wallet_key(a.instruction, owners) for a in asked} - {("", "")})
        shown = sorted({_wallet_key(a.instruction, owners) for a in asked if a.shown} - {("", "")})

        def change(connection: Connection) -> list[Changed | Exception]:
            wallets = store.lock_wallets(connection, keys)
            if not opened <= wallets.keys():
                raise _WalletsMissing
            before = store.made(connection, [(a.instruction.kind, a.instruction.cause) for a in asked])
            holds = store.holds(connection, hold_ids) if hold_ids else {}
            credited = store.credits(connection, releases) if releases else {}
            sealed = store.sealed(connection, hold_ids) if len(holds) < len(hold_ids) else set()
            timed = any(a.instruction.expire_time for a in asked) or any(row.expire_time for row in holds.values())
            now = store.now(connection) if timed else None
            batch = _Batch(wallets, {hold_id: store.as_hold(row) for hold_id, row in holds.items()}, sealed, credited, before, owners, now)
            outcome = [batch.decide(one) for one in asked]
            if batch.changes:
                _write(connection, batch.changes)
            after = store.wallets(connection, shown) if shown else {}
            holds_after = store.holds(connection, hold_ids) if hold_ids else {}
            return [
                decided
                if isinstance(decided, Exception)
                else Changed(after.get(_wallet_key(a.instruction, owners)), holds_after.get(a.instruction.cause), replayed=decided)
                for a, decided in zip(asked, outcome, strict=True)
            ]

        try:
            return await self._database.transact(change)
        except _WalletsMissing:
            self._opened.clear()
            await self._open(opened)
            return await self._database.transact(change)

    async def _open(self, keys: set[store.WalletKey]) -> None:
        """Opens wallets that are missing, in a transaction of its own."""
        missing = sorted(keys - self._opened)
        if not missing:
            return

        def open_wallets(connection: Connection) -> None:
            store.open_wallets(connection, missing, self._release_delay)

        await self._database.transact(open_wallets)
        if len(self._opened) > _MOST_KNOWN:
            self._opened.clear()
        self._opened.update(missing)

    async def _seal(self, hold_ids: list[str]) -> None:
        """What is released and does not exist must not be placed afterwards, since nobody would release it then; in a transaction of its own."""
        known = await self._database.load(lambda connection: store.holds(connection, hold_ids)) if hold_ids else {}
        unknown = [hold_id for hold_id in hold_ids if hold_id not in known]
        if unknown:
            await self._database.transact(lambda connection: store.seal(connection, unknown, "wallet"))

    async def _owners(self, hold_ids: list[str], causes: list[str]) -> dict[str, store.WalletKey]:
        """The wallets of holds that are to end, and of credits that are to be released; neither ever changes its wallet."""
        if not hold_ids and not causes:
            return {}

        def read(connection: Connection) -> dict[str, store.WalletKey]:
            found: dict[str, Any] = {**store.holds(connection, hold_ids), **store.credits(connection, causes)}
            return {cause: (one.seller_account, one.currency) for cause, one in found.items()}

        return await self._database.load(read)


def _wallet_key(instruction: Instruction, owners: Mapping[str, store.WalletKey]) -> store.WalletKey:
    """The wallet it is about: of a hold that is to end, or a credit that is to be released, theirs; ("", "") if there is none."""
    if instruction.kind in _OWNED:
        return owners.get(instruction.cause, ("", ""))
    return (instruction.seller_account, instruction.currency)


class _Batch:
    """One batch under its locks: each instruction sees what those before it did."""

    def __init__(
        self,
        wallets: dict[store.WalletKey, Wallet],
        holds: dict[str, Hold],
        sealed: set[str],
        credited: dict[str, Credit],
        before: dict[tuple[str, str], Made],
        owners: dict[str, store.WalletKey],
        now: datetime | None,
    ) -> None:
        self._wallets = wallets
        self._holds = holds
        self._sealed = sealed
        self._credited = credited
        self._before = before
        self._owners = owners
        self._now = now
        self.changes: list[store.Decided] = []

    def decide(self, asked: Asked) -> bool | Refused:
        """Whether the change had been made before, or why it is refused; otherwise it is among the changes."""
        instruction = asked.instruction
        known = self._known(instruction)
        if known is not None:
            return known
        key = _wallet_key(instruction, self._owners)
        wallet = self._wallets.get(key) or Wallet(*key)  # a missing one is empty
        try:
            change = apply(wallet, self._holds.get(instruction.cause), instruction, self._credited.get(instruction.cause), now=self._now)
        except Refused as refused:
            return refused
        if key not in self._wallets:
            return not_found("wallet", f"of seller {key[0]} in {key[1]}", "seller_account")
        self._wallets[key] = change.wallet
        if change.hold is not None:
            self._holds[change.hold.hold_id] = change.hold
        self.changes.append(store.Decided(instruction, change, asked.traceparent))
        return False

    def _reused(self, instruction: Instruction, made: Made) -> Refused:
        return key_reused(first_difference(instruction, made, self._holds.get(instruction.cause)))

    def _known(self, instruction: Instruction) -> bool | Refused | None:
        """The answer that does not depend on the wallet: to what was made before, or can never be made."""
        kind, cause = instruction.kind, instruction.cause
        before = self._before.get((kind, cause))
        if before is not None:
            return True if before.fingerprint == instruction.fingerprint else self._reused(instruction, before)
        if cause in self._sealed and kind in _HOLDING:
            return kind is EntryKind.HOLD_RELEASED or hold_ended(HoldState.RELEASED, kind)
        if released_before(self._credited.get(cause), instruction):
            return True
        if kind is EntryKind.RELEASE and _wallet_key(instruction, self._owners) not in self._wallets:  # a credit made meanwhile is not found either
            return not_found("credit", cause, "cause")
        return None


def _write(connection: Connection, changes: Sequence[store.Decided]) -> None:
    """Writes changes down, and tells of them."""
    written = store.write(connection, changes)
    with telling(connection, [written]) as told:
        for change in changes:
            events.entry_made(told, change, written.create_time)
