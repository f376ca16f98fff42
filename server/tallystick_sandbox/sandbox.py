"""The sandbox provider: honours idempotency keys like a real one, and keeps its own durable log of what it charged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from sqlalchemy import Connection

from tallystick_core.canonical import fingerprint
from tallystick_core.provider import ChargeDemand
from tallystick_sandbox import rules
from tallystick_sandbox.rules import Behaviour, Fault, Plan, Reply
from tallystick_server.runtime.stage import Stage
from tallystick_storage import sandbox as store
from tallystick_storage.database import Database


class Sandbox:
    """The provider itself. `latency` in seconds for every answer; `window`: how long keys are honoured, in seconds."""

    def __init__(self, database: Database, *, plan: Plan | None = None, latency: float = 0.0, window: float = 86_400.0) -> None:
        self._database = database
        self._plan = plan or Plan()
        self._latency = latency
        self._window = window
        self._in_hand: set[str] = set()
        self._befell: Counter[str] = Counter()  # how often a fault that does not last has befallen each key
        self.down = False
        """Whether it refuses every connection."""
        self._log: Stage[store.NewCharge, Reply] = Stage("sandbox.log", self._store)

    def start(self) -> None:
        self._log.start()

    async def stop(self) -> None:
        await self._log.stop()

    async def charge(self, demand: ChargeDemand) -> Reply:
        """Charges, or replays what the key got before."""
        if self.down:
            return rules.UNREACHED
        if demand.key in self._in_hand:
            return rules.KEY_IN_USE
        self._in_hand.add(demand.key)
        try:
            return await self._charge(demand)
        finally:
            self._in_hand.discard(demand.key)

    async def _charge(self, demand: ChargeDemand) -> Reply:
        chosen = rules.behaviour(demand, self._plan)
        if self._latency + chosen.delay:
            await asyncio.sleep(self._latency + chosen.delay)
        early = self._befalls(rules.EARLY, demand.key, chosen)
        if early is not None:
            return early
        answer = await self._log.submit(_new_charge(demand, chosen))
        return self._befalls(rules.LATE, demand.key, chosen) or answer

    def _befalls(self, faults: Mapping[Fault, Reply], key: str, chosen: Behaviour) -> Reply | None:
        """What comes instead of the truth, if one of these faults befalls the key now."""
        if chosen.fault not in faults:
            return None
        if chosen.fault in rules.PASSING:
            if self._befell[key] >= chosen.times:
                return None
            self._befell[key] += 1
        return faults[chosen.fault]

    async def cancel(self, charge_id: str) -> Reply:
        """Ends a charge that is pending; what became of it."""
        return await self.look_up(charge_id, ends=True)

    async def look_up(self, charge_id: str, *, ends: bool = False) -> Reply:
        """What became of a charge; keys that were forgotten are known here for ever."""

        if self.down:
            return rules.UNREACHED

        def look(connection: Connection) -> Reply:
            row = store.last_of(connection, charge_id)
            if row is None:
                return rules.NOT_FOUND
            state = rules.resolved(row.state, row.code)
            code = row.code
            if ends and state == "PENDING":
                state, code = "DECLINED", "cancelled"
            if state != row.state:
                store.resolve(connection, row.key, row.generation, state, code)
            return rules.reply("DECLINED" if state == "ERROR" else state, row.reference, row.amount, row.currency, code)

        return await self._database.transact(look)

    async def _store(self, charges: Sequence[store.NewCharge]) -> Sequence[Reply]:
        by_key = {charge.key: charge for charge in charges}

        def insert(connection: Connection) -> dict[str, Reply]:
            fresh = store.insert(connection, list(by_key.values()))
            replies = {key: _reply(by_key[key]) for key in fresh}
            known = store.find(connection, sorted(by_key.keys() - fresh), self._window) if len(fresh) < len(by_key) else {}
            for key, row in known.items():
                if row.forgotten:
                    again = replace(by_key[key], generation=row.generation + 1)
                    store.insert(connection, [again])
                    replies[key] = _reply(again)
                elif bytes(row.fingerprint).hex() != by_key[key].fingerprint:
                    replies[key] = rules.KEY_MISMATCH
                else:
                    replies[key] = rules.reply(row.state, row.reference, row.amount, row.currency, row.code)
            return replies

        replies = await self._database.transact(insert)
        return [replies[charge.key] for charge in charges]


def _new_charge(demand: ChargeDemand, chosen: rules.Behaviour) -> store.NewCharge:
    print_ = fingerprint(demand.charge_id, demand.amount, demand.currency, demand.payment_token, demand.method)
    return store.NewCharge(
        demand.key,
        1,
        print_.hex(),
        demand.charge_id,
        f"sb_{sha256(demand.key.encode()).hexdigest()[:24]}",
        rules.state(chosen),
        demand.amount + (1 if chosen.fault is Fault.OTHER_AMOUNT else 0),
        demand.currency,
        chosen.code,
    )


def _reply(charge: store.NewCharge) -> Reply:
    return rules.reply(charge.state, charge.reference, charge.amount, charge.currency, charge.code)
