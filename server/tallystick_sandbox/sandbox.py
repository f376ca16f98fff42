"""The sandbox provider: charges buyers, and keeps its own durable log of it."""

from __future__ import annotations

from sqlalchemy import Connection

from tallystick_core.canonical import fingerprint
from tallystick_core.provider import ChargeDemand
from tallystick_sandbox import rules
from tallystick_sandbox.keys import Keys, reference
from tallystick_sandbox.rules import Behaviour, Fault, Plan, Reply
from tallystick_storage import sandbox as store
from tallystick_storage.database import Database


class Sandbox:
    """The provider itself. `latency` in seconds for every answer; `window`: how long keys are honoured, in seconds."""

    def __init__(self, database: Database, *, plan: Plan | None = None, latency: float = 0.0, window: float = 86_400.0) -> None:
        self._database = database
        self._plan = plan or Plan()
        self._latency = latency
        self._keys = Keys(store.CHARGES, database, rules.charge_reply, window)
        self.down = False
        """Whether it refuses every connection."""

    def start(self) -> None:
        self._keys.start()

    async def stop(self) -> None:
        await self._keys.stop()

    async def charge(self, demand: ChargeDemand) -> Reply:
        """Charges, or replays what the key got before."""
        if self.down:
            return rules.UNREACHED
        chosen = rules.behaviour(demand.payment_token, demand.key, self._plan)
        return await self._keys.use(_entry(demand, chosen), chosen, self._latency)

    async def cancel(self, charge_id: str) -> Reply:
        """Ends a charge that is pending; what became of it."""
        return await self.look_up(charge_id, ends=True)

    async def look_up(self, charge_id: str, *, ends: bool = False) -> Reply:
        """What became of a charge; keys that were forgotten are known here for ever."""

        if self.down:
            return rules.UNREACHED

        def look(connection: Connection) -> Reply:
            row = store.CHARGES.last_of(connection, charge_id)
            if row is None:
                return rules.NOT_FOUND
            state, code = rules.resolved(row.state, row.code)
            if ends and state == "PENDING":
                state, code = "DECLINED", "cancelled"
            if (state, code) != (row.state, row.code):
                store.resolve(connection, row.key, row.generation, state, code)
            known = rules.Kept(charge_id, row.reference, "DECLINED" if state == "ERROR" else state, row.amount, row.currency, row.fault, code)
            return rules.charge_reply(known)

        return await self._database.transact(look)


def _entry(demand: ChargeDemand, chosen: Behaviour) -> store.Entry:
    print_ = fingerprint(demand.charge_id, demand.amount, demand.currency, demand.payment_token, demand.method)
    return store.Entry(
        key=demand.key,
        generation=1,
        fingerprint=print_.hex(),
        subject=demand.charge_id,
        reference=reference(demand.key),
        state=rules.state(chosen),
        amount=demand.amount + (1 if chosen.fault is Fault.OTHER_AMOUNT else 0),
        currency=demand.currency,
        fault=chosen.fault,
        code=chosen.code,
    )
