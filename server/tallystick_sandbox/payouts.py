"""The sandbox provider's payouts, with their own durable log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from tallystick_core.fingerprint import fingerprint
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_sandbox import rules, store
from tallystick_sandbox.idempotency import IdempotencyKeys, reference_for, with_generation
from tallystick_sandbox.rules import Behavior, Fault, Reply
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection


class SandboxPayouts:
    """The payout provider. `name`: the sandbox, which knows only its own payouts.
    `latency_seconds`: the latency of every submission, in seconds;
    `key_window_seconds`: how long keys are honored, in seconds. `new_id`: makes the ids of
    requests.
    """

    def __init__(
        self,
        database: Database,
        *,
        name: str = "sandbox",
        latency_seconds: float = 0.0,
        key_window_seconds: float = 86_400.0,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._database = database
        self._name = name
        self._latency_seconds = latency_seconds
        self._keys = IdempotencyKeys(
            store.TRANSFERS, database, rules.build_transfer_reply, key_window_seconds
        )
        self._new_id = new_id
        self._verification_counts: Counter[str] = Counter()
        self.down = False
        """Whether every connection to the provider is refused."""

    def start(self) -> None:
        self._keys.start()

    async def stop(self) -> None:
        await self._keys.stop()

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[Reply]:
        """Pays, or replays the earlier replies to the keys. Returns one reply per payout, in order.
        All of them name the same request.
        """
        if self.down:
            return [rules.CONNECTION_REFUSED] * len(requests)
        behaviors = [rules.behavior_for(request.bank_account_token) for request in requests]
        replies = await asyncio.gather(
            *(self._pay(*pair) for pair in zip(requests, behaviors, strict=True))
        )
        lost_replies = [
            self._keys.apply_fault({Fault.BATCH_LOST: rules.NO_RESPONSE}, request.key, pair)
            for request, pair in zip(requests, behaviors, strict=True)
        ]
        if any(lost_replies):
            return [rules.NO_RESPONSE] * len(requests)
        return self._answer(replies)

    async def _pay(self, request: PayoutRequest, behavior: Behavior) -> Reply:
        return await self._keys.execute_once(
            _new_entry(self._name, request, behavior), behavior, self._latency_seconds
        )

    async def look_up(self, payout_id: str) -> Reply:
        """Returns the state of a payout, after advancing it."""
        if self.down:
            return rules.CONNECTION_REFUSED

        def advance(connection: Connection) -> Reply:
            row = store.TRANSFERS.find_latest(connection, self._name, payout_id)
            if row is None:
                return rules.NOT_FOUND
            if row.fault == Fault.PAID_TWICE and row.generation == 1:
                next_entry = with_generation(
                    _entry_from_row(self._name, row, payout_id), row.generation + 1
                )
                store.TRANSFERS.insert(connection, [next_entry])
                return rules.build_transfer_reply(next_entry)
            entry = _entry_from_row(self._name, row, payout_id)
            entry.state = rules.next_transfer_state(row, float(row.age))
            if entry.state != row.state:
                entry.returned_amount = (
                    rules.compute_returned_amount(row) if entry.state == "RETURNED" else None
                )
                store.update_transfer(
                    connection, entry.key, entry.generation, entry.state, entry.returned_amount
                )
            if entry.state == "ERROR":
                return Reply(
                    402, row.reference, row.amount, row.currency, "server_error", subject=payout_id
                )
            return rules.build_transfer_reply(entry)

        (reply,) = self._answer([await self._database.transact(advance)])
        return reply

    async def verify(self, bank_account_token: str) -> Reply:
        """Whether the provider can pay to an account."""
        if self.down:
            return rules.CONNECTION_REFUSED
        reply = rules.build_verification_reply(
            bank_account_token, self._verification_counts[bank_account_token]
        )
        self._verification_counts[bank_account_token] += 1
        (reply,) = self._answer([reply])
        return reply

    def _answer(self, replies: Sequence[Reply]) -> list[Reply]:
        """The replies to one request, with its id."""
        request_id = rules.format_request_id(self._new_id())
        return [reply.answering(request_id) for reply in replies]


def _new_entry(provider: str, request: PayoutRequest, behavior: Behavior) -> store.LoggedRequest:
    digest = fingerprint(
        request.payout_id, request.amount, request.currency, request.bank_account_token
    )
    return store.LoggedRequest(
        key=request.key,
        generation=1,
        fingerprint=digest.hex(),
        provider=provider,
        subject=request.payout_id,
        reference=reference_for(request.key),
        state=rules.initial_transfer_state(behavior),
        amount=request.amount + (1 if behavior.fault is Fault.OTHER_AMOUNT else 0),
        currency=request.currency,
        fault=behavior.fault,
        code=behavior.code,
    )


def _entry_from_row(provider: str, row: store.LogRow, payout_id: str) -> store.LoggedRequest:
    """Converts a stored transfer to a log entry."""
    return store.LoggedRequest(
        key=row.key,
        generation=row.generation,
        fingerprint=row.fingerprint.hex(),
        provider=provider,
        subject=payout_id,
        reference=row.reference,
        state=row.state,
        amount=row.amount,
        currency=row.currency,
        fault=row.fault,
        code=row.code,
        returned_amount=row.returned_amount,
    )
