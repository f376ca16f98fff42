"""One run: a seed's world, from the first call until everything is quiet and audited."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tallystick import AsyncClient, TallystickError
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify_by
from tallystick_server.runtime import telemetry
from tests.torture.check import AT_REST

from .alerts import audit_alerts
from .auditor import Auditor, Charged
from .chance import Chance
from .cluster import OPERATOR, SERVICES, TEAMS, Cluster
from .database import AtRest, Conditions, Engines, Tables
from .faults import Fault, Faults, outage, poison
from .load import Load, Wish, wish
from .loop import Deadlock
from .operator_load import OperatorLoad, in_bulk
from .payout_auditor import PayoutAuditor, Transferred
from .payout_load import PayoutLoad, Withdrawal, withdrawal
from .world import SLOW, World

_CALLS_AT_MOST = 400.0
"""Seconds of the world's time after which callers must have their answers."""
_RESTS_WITHIN = 720.0
"""Seconds after healing in which everything must come to rest: past its key's window a charge is asked about twelve times, up to an hour apart."""
_LAST_MESSAGES = 20.0
"""Seconds after which no message is under way any more."""
_SHORT_WINDOW, _LONG_WINDOW = 15.0, 86_400.0
_NEEDS_OPERATOR = frozenset({"REJECTED", "MISDIRECTED"})
"""Causes of dead letters that no retry can mend: what the provider rejects as malformed, and another's answer."""


@dataclass(frozen=True)
class Plan:
    """What a run is made of: all of it follows from this. `without`: payments and faults that are left out; `planned`: faults at given places."""

    seed: int
    payments: int
    share: float | None = None
    """Of port calls that something befalls; None: by the seed."""
    without_payments: frozenset[int] = frozenset()
    without_faults: frozenset[str] = frozenset()
    planned: Mapping[str, Fault] = field(default_factory=dict)
    wishes: tuple[Wish, ...] = ()
    """Payments beside those of chance."""
    payouts: int = 0
    """By chance, and a schedule with a cut-off, if there are any."""
    without_payouts: frozenset[int] = frozenset()
    withdrawals: tuple[Withdrawal, ...] = ()
    """Payouts beside those of chance."""
    alone: frozenset[str] = frozenset()
    """Services of one process; of each other there are two."""
    outage: bool | None = None
    """Whether a service or the provider is away for an hour; None: by the seed."""
    poison: bool | None = None
    """Whether a service fails on some items for up to an hour; None: by the seed."""


@dataclass
class Result:
    """What a run gave. `to_rest`: seconds of the world's time from healing until everything was quiet."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """The port calls that did something until everything was quiet, in order."""
    to_rest: float = 0.0


class _Log(logging.Handler):
    """What is logged belongs to the trace; an error is a violation: nothing that is injected may surprise the platform."""

    def __init__(self, world: World, result: Result) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self._result = result

    def emit(self, record: logging.LogRecord) -> None:
        self._world.tell(f"{self._world.loop.node.name} logs: {record.getMessage()}")
        if record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else None
            self._result.violations.append(f"logged: {record.getMessage()} {error!r}")


class Simulation:
    """Runs plans on one database, one after the other."""

    def __init__(self, databases: Databases) -> None:
        self._urls = databases.all()
        self._tables = Tables(databases)
        self._server = Conditions()
        self._engines = Engines(self._server)
        self._at_rest = AtRest(databases)
        self._is_warm = False

    def run(self, plan: Plan) -> Result:
        """Plays a plan. What it gives is the same each time."""
        plan = replace(plan, share=_share(plan), outage=_has(plan, plan.outage, "an outage", 0.25), poison=_has(plan, plan.poison, "poison", 0.35))
        result = Result(plan)
        gc.disable()  # what is collected runs its `finally`, at a moment that depends on everything before
        world = [self._run(plan, result)]
        with _unheard():  # what is left unfinished ends where it stands, which concerns nobody any more
            world.clear()
            while gc.collect():
                pass
        if not self._is_warm:  # what the first run has loaded and compiled stays; looking through it after each run took longer than a short run
            gc.freeze()
            self._is_warm = True
        gc.enable()
        return result

    def _run(self, plan: Plan, result: Result) -> World:
        self._tables.reset()
        telemetry.seed(plan.seed)
        chance = Chance(plan.seed)
        faults = Faults(chance, plan.share or 0.0, plan.without_faults, plan.planned)
        drift = {service: chance.between(f"drift of {service}", -5, 5) for service in SERVICES}
        window = _SHORT_WINDOW if chance.number("window") < 0.3 else _LONG_WINDOW
        # what is still under way when a lease ends could reach the provider after it has forgotten the key
        slow = (SLOW[0], 5.0) if window == _SHORT_WINDOW else SLOW
        world = World(chance, faults, self._server, drift, slow)
        try:
            with _logged(_Log(world, result)):
                world.loop.run_until_complete(self._play(plan, world, window, result))
        except Deadlock:
            result.violations.append("nothing is left that could ever happen")
        except TallystickError as error:
            result.violations.append(f"the operator or the auditor was refused: {error}")
        except Exception as error:  # noqa: BLE001 - a run that breaks has a seed as any other that fails
            result.violations.append(f"the run broke: {error!r}")
        finally:
            world.loop.close()
        result.faults, result.trace = faults.happened, world.trace
        return world

    def close(self) -> None:
        self._engines.close()
        self._at_rest.close()
        self._tables.close()

    async def _play(self, plan: Plan, world: World, window: float, result: Result) -> None:
        cluster = Cluster(world, self._urls, self._engines, window)
        span = 5.0 + min(plan.payments / 12, 5.0 + plan.payments / 40) if plan.payments else 0.0
        wishes = [wish(world.chance, number, span) for number in range(plan.payments) if number not in plan.without_payments]
        load = Load(world, cluster, [*plan.wishes, *wishes])
        withdrawals = [withdrawal(world.chance, number, span) for number in range(plan.payouts) if number not in plan.without_payouts]
        payouts = PayoutLoad(world, cluster, [*plan.withdrawals, *withdrawals])
        if plan.outage:
            world.outages = [outage(world.chance, span)]
            world.tell(f"{world.outages[0]}")
        if plan.poison:
            world.poison = poison(world.chance, span)
            world.tell(f"{world.poison}")
        operators = OperatorLoad(world, cluster)
        cluster.start(plan.alone)
        load.start()
        payouts.start(schedule=plan.payouts > 0)
        if plan.payments:
            operators.start()
        await asyncio.sleep(max([span, *(one.end for one in world.outages), world.poison.end if world.poison else 0.0]))
        world.tell("heals")
        world.faults.healed = True
        healed = world.loop.now
        operator = cluster.client(OPERATOR, OPERATOR)
        loads = (load, payouts, operators)
        while not all(one.idle for one in loads) and world.loop.now < healed + _CALLS_AT_MOST:  # noqa: ASYNC110 - nodes do not share what one waits for
            await asyncio.sleep(1.0)
        if not all(one.idle for one in loads):
            result.violations.append(f"callers wait {_CALLS_AT_MOST:g} s after healing")
        await self._rests(world, result, healed + (_LAST_MESSAGES if world.faults.share else 0.0), healed)
        result.to_rest = world.loop.now - healed
        result.calls = list(world.calls)
        allowed = _NEEDS_OPERATOR | ({"UNRESOLVED"} if window == _SHORT_WINDOW else set())
        for turn in range(2):
            causes = await self._clear_up(operator, world)
            result.violations += [f"a dead letter for {cause} needs an operator" for cause in sorted(causes - allowed) if turn == 0]
            if causes:
                await self._rests(world, result, world.loop.now, world.loop.now)
        result.violations += await audit_alerts(operator, self._tables.query)
        world.audited = True
        teams = {team: cluster.client(f"auditor for {team}", team) for team in TEAMS}
        quiet = not world.faults.share
        bank = PayoutAuditor(operator, payouts.told, self._transfers(), quiet=quiet)
        auditor = Auditor(operator, teams, load.told, self._log(), bank, quiet=quiet)
        await auditor.audit()
        result.violations += [*payouts.wrong, *await operators.audit(operator)]
        result.violations += auditor.violations
        report = verify_by(self._at_rest.read)
        result.violations += [f"verify: {wrong}" for check in report.checks for wrong in check.wrong]
        world.tell(f"ends with {len(result.violations)} violations")

    async def _rests(self, world: World, result: Result, earliest: float, since: float) -> None:
        """Waits until nothing is due and everything has been told and booked."""
        while world.loop.now < earliest or self._tables.query(AT_REST)[0][0] != 0:
            if world.loop.now > since + _RESTS_WITHIN:
                result.violations.append(f"no rest within {_RESTS_WITHIN:g} s of healing")
                return
            await asyncio.sleep(1.0)

    async def _clear_up(self, operator: AsyncClient, world: World) -> set[str]:
        """An operator has dead letters tried again, or closes them; their causes."""
        found = set()
        services: tuple[tuple[Any, Any], ...] = ((operator.payment, payment_service_pb2), (operator.payout, payout_service_pb2))
        for service, pb in services:
            request = pb.ListDeadLettersRequest(state=recovery_pb2.DEAD_LETTER_STATE_OPEN)
            letters = [letter async for letter in operator.pages(service.ListDeadLetters, request, "dead_letters")]
            found |= {letter.cause for letter in letters}
            if letters and world.chance.number(f"in bulk {letters[0].dead_letter_id}") < 0.5:
                await in_bulk(operator, service, pb, retry=world.chance.number(f"retry {letters[0].dead_letter_id}") < 0.5)
                continue
            for letter in letters:
                await _decide(service, pb, letter.dead_letter_id, retry=world.chance.number(f"retry {letter.dead_letter_id}") < 0.5)
        return found

    def _log(self) -> list[Charged]:
        rows = self._tables.query(
            "select charge_id, state, amount, currency, reference, code from sandbox.charge order by charge_id, key, generation"
        )
        return [Charged(*row) for row in rows]

    def _transfers(self) -> list[Transferred]:
        columns = "payout_id, generation, state, amount, currency, returned_amount, reference"
        return [Transferred(*row) for row in self._tables.query(f"select {columns} from sandbox.transfer order by payout_id, key, generation")]


async def _decide(service: Any, pb: Any, dead_letter_id: str, *, retry: bool) -> None:
    """What an operator does with a dead letter, if that can be done."""
    try:
        if retry:
            await service.RetryDeadLetter(pb.RetryDeadLetterRequest(dead_letter_id=dead_letter_id, reason="once more"))
        else:
            close = pb.CloseDeadLetterRequest(dead_letter_id=dead_letter_id, reason="no money moved", evidence="the provider's log")
            await service.CloseDeadLetter(close)
    except TallystickError as error:
        if error.reason != "STATE_FORBIDS":
            raise


@contextmanager
def _logged(handler: logging.Handler) -> Iterator[None]:
    """Everything that is logged meanwhile goes to one handler alone: others might keep what belongs to the run beyond it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


@contextmanager
def _unheard() -> Iterator[None]:
    """Nothing is logged meanwhile, and what is raised where nobody can catch it is not shown."""
    logging.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = hook
        logging.disable(logging.NOTSET)


def _has(plan: Plan, given: bool | None, what: str, share: float) -> bool:
    """Whether there is something, as given or by the seed: in a share of the runs in which payments are made by chance."""
    return given if given is not None else plan.payments > 0 and Chance(plan.seed).number(f"whether there is {what}") < share


def _share(plan: Plan) -> float:
    """How much goes wrong: in some runs nothing, in most a little, in some a lot."""
    if plan.share is not None:
        return plan.share
    return Chance(plan.seed).weighed("share", {0.0: 1.0, 0.02: 3.0, 0.05: 5.0, 0.12: 2.0})
