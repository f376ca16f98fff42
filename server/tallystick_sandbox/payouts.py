"""The sandbox provider pays sellers out, and keeps its own durable log of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.canonical import fingerprint
from tallystick_core.provider import PayoutDemand
from tallystick_sandbox import rules
from tallystick_sandbox.keys import Keys, generation, reference
from tallystick_sandbox.rules import Behaviour, Fault, Plan, Reply
from tallystick_storage import sandbox as store
from tallystick_storage.database import Database


class SandboxPayouts:
    """The provider itself. `latency` in seconds for every submission; `window`: how long keys are honoured, in seconds."""

    def __init__(self, database: Database, *, plan: Plan | None = None, latency: float = 0.0, window: float = 86_400.0) -> None:
        self._database = database
        self._plan = plan or Plan()
        self._latency = latency
        self._keys = Keys(store.TRANSFERS, database, rules.transfer_reply, window)
        self._verified: Counter[str] = Counter()
        self.down = False
        """Whether it refuses every connection."""

    def start(self) -> None:
        self._keys.start()

    async def stop(self) -> None:
        await self._keys.stop()

    async def submit(self, demands: Sequence[PayoutDemand]) -> Sequence[Reply]:
        """Pays, or replays what the keys got before: one answer for each, in order."""
        if self.down:
            return [rules.UNREACHED] * len(demands)
        chosen = [rules.behaviour(demand.bank_account_token, demand.key, self._plan) for demand in demands]
        replies = await asyncio.gather(*(self._pay(*one) for one in zip(demands, chosen, strict=True)))
        lost = [self._keys.befalls({Fault.BATCH_LOST: rules.LOST}, demand.key, one) for demand, one in zip(demands, chosen, strict=True)]
        return [rules.LOST] * len(demands) if any(lost) else replies

    async def _pay(self, demand: PayoutDemand, chosen: Behaviour) -> Reply:
        return await self._keys.use(_entry(demand, chosen), chosen, self._latency)

    async def look_up(self, payout_id: str) -> Reply:
        """What became of a payout, which goes on while it is looked at."""
        if self.down:
            return rules.UNREACHED

        def look(connection: Connection) -> Reply:
            row = store.TRANSFERS.last_of(connection, payout_id)
            if row is None:
                return rules.NOT_FOUND
            if row.fault == Fault.TWICE and row.generation == 1:
                again = generation(_entry_of(row, payout_id), row.generation + 1)
                store.TRANSFERS.insert(connection, [again])
                return rules.transfer_reply(again)
            entry = _entry_of(row, payout_id)
            entry.state = rules.next_state(row, float(row.age))
            if entry.state != row.state:
                entry.returned_amount = rules.returned(row) if entry.state == "RETURNED" else None
                store.move(connection, entry.key, entry.generation, entry.state, entry.returned_amount)
            if entry.state == "ERROR":
                return Reply(402, row.reference, row.amount, row.currency, "server_error", subject=payout_id)
            return rules.transfer_reply(entry)

        return await self._database.transact(look)

    async def verify(self, bank_account_token: str) -> Reply:
        """Whether it can pay to an account."""
        if self.down:
            return rules.UNREACHED
        answer = rules.verification(bank_account_token, self._verified[bank_account_token])
        self._verified[bank_account_token] += 1
        return answer


def _entry(demand: PayoutDemand, chosen: Behaviour) -> store.Entry:
    print_ = fingerprint(demand.payout_id, demand.amount, demand.currency, demand.bank_account_token)
    return store.Entry(
        key=demand.key,
        generation=1,
        fingerprint=print_.hex(),
        subject=demand.payout_id,
        reference=reference(demand.key),
        state=rules.transfer_state(chosen),
        amount=demand.amount + (1 if chosen.fault is Fault.OTHER_AMOUNT else 0),
        currency=demand.currency,
        fault=chosen.fault,
        code=chosen.code,
    )


def _entry_of(row: Row[Any], payout_id: str) -> store.Entry:
    """A stored transfer as an entry."""
    return store.Entry(
        key=row.key,
        generation=row.generation,
        fingerprint=bytes(row.fingerprint).hex(),
        subject=payout_id,
        reference=row.reference,
        state=row.state,
        amount=row.amount,
        currency=row.currency,
        fault=row.fault,
        code=row.code,
        returned_amount=row.returned_amount,
    )
