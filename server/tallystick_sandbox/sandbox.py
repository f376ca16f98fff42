"""The sandbox provider's charges, with their own durable log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID, uuid4

from tallystick_core.fingerprint import fingerprint
from tallystick_core.money import apply_rate
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_sandbox import rules, store
from tallystick_sandbox.idempotency import IdempotencyKeys, reference_for
from tallystick_sandbox.rules import Behavior, Fault, Reply
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection


class Sandbox:
    """The payment provider. `name`: the sandbox, which knows only its own charges; several may
    share a database. `latency_seconds`: the latency of every reply, in seconds;
    `key_window_seconds`: how long keys are honored, in seconds; `fee_ppm`: its fee in parts per
    million of each charge, 0: it reports none. `new_id`: makes the ids of requests.
    """

    def __init__(
        self,
        database: Database,
        *,
        name: str = "sandbox",
        latency_seconds: float = 0.0,
        key_window_seconds: float = 86_400.0,
        fee_ppm: int = 0,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._database = database
        self._name = name
        self._fee_ppm = fee_ppm
        self._new_id = new_id
        self._latency_seconds = latency_seconds
        self._keys = IdempotencyKeys(
            store.CHARGES, database, rules.build_charge_reply, key_window_seconds
        )
        self.down = False
        """Whether every connection to the provider is refused."""

    def start(self) -> None:
        self._keys.start()

    async def stop(self) -> None:
        await self._keys.stop()

    async def charge(self, request: ChargeRequest) -> Reply:
        """Charges, or replays the earlier reply to the key."""
        if self.down:
            return rules.CONNECTION_REFUSED
        behavior = rules.behavior_for(request.payment_token)
        reply = await self._keys.execute_once(
            _new_entry(self._name, request, behavior), behavior, self._latency_seconds
        )
        return self._complete(reply)

    async def cancel(self, charge_id: str) -> Reply:
        """Cancels a pending charge, and returns its state."""
        return await self.look_up(charge_id, cancel=True)

    async def look_up(self, charge_id: str, *, cancel: bool = False) -> Reply:
        """Returns the state of a charge. Lookups find charges even after their key was
        forgotten.
        """

        if self.down:
            return rules.CONNECTION_REFUSED

        def advance(connection: Connection) -> Reply:
            row = store.CHARGES.find_latest(connection, self._name, charge_id)
            if row is None:
                return rules.NOT_FOUND
            state, code = rules.resolve_pending(row.state, row.code)
            if cancel and state == "PENDING":
                state, code = "DECLINED", "cancelled"
            if (state, code) != (row.state, row.code):
                store.resolve_charge(connection, row.key, row.generation, state, code)
            snapshot = rules.ChargeSnapshot(
                charge_id,
                row.reference,
                "DECLINED" if state == "ERROR" else state,
                row.amount,
                row.currency,
                row.fault,
                code,
            )
            return rules.build_charge_reply(snapshot)

        return self._complete(await self._database.transact(advance))

    def _complete(self, reply: Reply) -> Reply:
        """The reply with the id of its request, and with the sandbox's fee if the charge was made
        and a fee is configured.
        """
        reply = reply.answering(rules.format_request_id(self._new_id()))
        if reply.status != 200 or not self._fee_ppm:
            return reply
        return replace(reply, fee=apply_rate(reply.amount, self._fee_ppm))


def _new_entry(provider: str, request: ChargeRequest, behavior: Behavior) -> store.LoggedRequest:
    digest = fingerprint(
        request.charge_id, request.amount, request.currency, request.payment_token, request.method
    )
    return store.LoggedRequest(
        key=request.key,
        generation=1,
        fingerprint=digest.hex(),
        provider=provider,
        subject=request.charge_id,
        reference=reference_for(request.key),
        state=rules.initial_charge_state(behavior),
        amount=request.amount + (1 if behavior.fault is Fault.OTHER_AMOUNT else 0),
        currency=request.currency,
        fault=behavior.fault,
        code=behavior.code,
    )
