"""Idempotency keys as a real provider honors them, for charges and payouts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from tallystick_sandbox import rules
from tallystick_sandbox.rules import Behavior, Fault, Reply, StoredRequest
from tallystick_sandbox.store import LoggedRequest, RequestLog
from tallystick_server.operations.batcher import Batcher
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection


class IdempotencyKeys:
    """A durable log of the reply to each key. Replies are replayed for `window_seconds` seconds.
    After that the key is forgotten, and a repeated request is executed again.
    """

    def __init__(
        self,
        log: RequestLog,
        database: Database,
        build_reply: Callable[[StoredRequest], Reply],
        window_seconds: float,
    ) -> None:
        self._log = log
        self._database = database
        self._build_reply = build_reply
        self._window_seconds = window_seconds
        self._in_flight: set[str] = set()
        # how many times a transient fault was applied to each key
        self._fault_counts: Counter[str] = Counter()
        self._batcher: Batcher[LoggedRequest, Reply] = Batcher("sandbox.log", self._store)

    def start(self) -> None:
        self._batcher.start()

    async def stop(self) -> None:
        await self._batcher.stop()

    async def execute_once(
        self, entry: LoggedRequest, behavior: Behavior, latency_seconds: float
    ) -> Reply:
        """Executes the request, or replays the earlier reply to its key. `latency_seconds` in
        seconds.
        """
        if entry.key in self._in_flight:
            return rules.KEY_IN_USE
        self._in_flight.add(entry.key)
        try:
            if latency_seconds + behavior.delay_seconds:
                await asyncio.sleep(latency_seconds + behavior.delay_seconds)
            return self.apply_fault(
                rules.FAULTS_BEFORE_COMMIT, entry.key, behavior
            ) or await self._execute(entry, behavior)
        finally:
            self._in_flight.discard(entry.key)

    async def _execute(self, entry: LoggedRequest, behavior: Behavior) -> Reply:
        reply = await self._batcher.submit(entry)
        return self.apply_fault(rules.FAULTS_AFTER_COMMIT, entry.key, behavior) or reply

    def apply_fault(
        self, faults: Mapping[Fault, Reply], key: str, behavior: Behavior
    ) -> Reply | None:
        """Returns the faulty reply if one of these faults applies to the key now, else None."""
        if behavior.fault not in faults:
            return None
        if behavior.fault in rules.TRANSIENT_FAULTS:
            if self._fault_counts[key] >= behavior.times:
                return None
            self._fault_counts[key] += 1
        return faults[behavior.fault]

    async def _store(self, entries: Sequence[LoggedRequest]) -> Sequence[Reply]:
        by_key = {entry.key: entry for entry in entries}

        def insert(connection: Connection) -> dict[str, Reply]:
            new_keys = self._log.insert(connection, list(by_key.values()))
            replies = {key: self._build_reply(by_key[key]) for key in new_keys}
            existing_rows = (
                self._log.find(connection, sorted(by_key.keys() - new_keys), self._window_seconds)
                if len(new_keys) < len(by_key)
                else {}
            )
            for key, row in existing_rows.items():
                if row.is_expired:
                    next_entry = with_generation(by_key[key], row.generation + 1)
                    self._log.insert(connection, [next_entry])
                    replies[key] = self._build_reply(next_entry)
                elif row.fingerprint.hex() != by_key[key].fingerprint:
                    replies[key] = rules.KEY_MISMATCH
                else:
                    replies[key] = self._build_reply(row)
            return replies

        replies = await self._database.transact(insert, idempotent=True)
        return [replies[entry.key] for entry in entries]


def reference_for(key: str, number: int = 1) -> str:
    """The provider's reference for the n-th execution of a key."""
    return f"sb_{sha256((key if number == 1 else f'{key}/{number}').encode()).hexdigest()[:24]}"


def with_generation(entry: LoggedRequest, number: int) -> LoggedRequest:
    """The same request, executed the n-th time."""
    return replace(entry, generation=number, reference=reference_for(entry.key, number))
