"""Idempotency keys as a real provider honours them, whatever is demanded under them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from sqlalchemy import Connection

from tallystick_sandbox import rules
from tallystick_sandbox.rules import Behaviour, Fault, Reply, Stored
from tallystick_server.runtime.stage import Stage
from tallystick_storage.database import Database
from tallystick_storage.sandbox import Entry, Log


class Keys:
    """What each key got, in a durable log: replayed for `window` seconds, then forgotten, so that what comes again is done again."""

    def __init__(self, log: Log, database: Database, reply: Callable[[Stored], Reply], window: float) -> None:
        self._log = log
        self._database = database
        self._reply = reply
        self._window = window
        self._in_hand: set[str] = set()
        self._befell: Counter[str] = Counter()  # how often a fault that does not last has befallen each key
        self._stage: Stage[Entry, Reply] = Stage("sandbox.log", self._store)

    def start(self) -> None:
        self._stage.start()

    async def stop(self) -> None:
        await self._stage.stop()

    async def use(self, entry: Entry, chosen: Behaviour, latency: float) -> Reply:
        """Does what is demanded, or replays what the key got before; `latency` in seconds."""
        if entry.key in self._in_hand:
            return rules.KEY_IN_USE
        self._in_hand.add(entry.key)
        try:
            if latency + chosen.delay:
                await asyncio.sleep(latency + chosen.delay)
            return self.befalls(rules.EARLY, entry.key, chosen) or await self._do(entry, chosen)
        finally:
            self._in_hand.discard(entry.key)

    async def _do(self, entry: Entry, chosen: Behaviour) -> Reply:
        answer = await self._stage.submit(entry)
        return self.befalls(rules.LATE, entry.key, chosen) or answer

    def befalls(self, faults: Mapping[Fault, Reply], key: str, chosen: Behaviour) -> Reply | None:
        """What comes instead of the truth, if one of these faults befalls the key now."""
        if chosen.fault not in faults:
            return None
        if chosen.fault in rules.PASSING:
            if self._befell[key] >= chosen.times:
                return None
            self._befell[key] += 1
        return faults[chosen.fault]

    async def _store(self, entries: Sequence[Entry]) -> Sequence[Reply]:
        by_key = {entry.key: entry for entry in entries}

        def insert(connection: Connection) -> dict[str, Reply]:
            fresh = self._log.insert(connection, list(by_key.values()))
            replies = {key: self._reply(by_key[key]) for key in fresh}
            known = self._log.find(connection, sorted(by_key.keys() - fresh), self._window) if len(fresh) < len(by_key) else {}
            for key, row in known.items():
                if row.forgotten:
                    again = generation(by_key[key], row.generation + 1)
                    self._log.insert(connection, [again])
                    replies[key] = self._reply(again)
                elif bytes(row.fingerprint).hex() != by_key[key].fingerprint:
                    replies[key] = rules.KEY_MISMATCH
                else:
                    replies[key] = self._reply(row)
            return replies

        replies = await self._database.transact(insert)
        return [replies[entry.key] for entry in entries]


def reference(key: str, number: int = 1) -> str:
    """The provider's name for what was done under a key the n-th time."""
    return f"sb_{sha256((key if number == 1 else f'{key}/{number}').encode()).hexdigest()[:24]}"


def generation(entry: Entry, number: int) -> Entry:
    """The same demand, done the n-th time."""
    return replace(entry, generation=number, reference=reference(entry.key, number))
