"""Calls that come again until they get through, as any caller's would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tallystick import DeadlineExceededError, TallystickError

_PATIENCE = 40
"""How often a caller comes back before it gives up."""

Call = Callable[[], Awaitable[Any]]


async def insist(call: Call, name: str, wrong: list[str], allowed: frozenset[str] = frozenset()) -> Any:
    """The call's answer, come what may; None if it is refused, which is wrong but for some reasons."""
    answer, refusal = await asked(call, name, wrong)
    if refusal is not None and refusal.reason not in allowed:
        wrong.append(f"{name} was refused: {refusal}")
    return answer


async def refused(call: Call, name: str, wrong: list[str], reason: str) -> None:
    """A call that must be refused for a reason."""
    answer, refusal = await asked(call, name, wrong)
    if answer is not None:
        wrong.append(f"{name}: what had to be refused with {reason} was not")
    elif refusal is not None and refusal.reason != reason:
        wrong.append(f"{name}: refused with {refusal}, not with {reason}")


async def asked(call: Call, name: str, wrong: list[str]) -> tuple[Any, TallystickError | None]:
    """The call's answer, or its refusal, after as many calls as it takes. One that never gets through is wrong, and has neither."""
    for turn in range(_PATIENCE):
        try:
            return await call(), None
        except TallystickError as error:
            last = error
            if not (error.may_retry or isinstance(error, DeadlineExceededError)):
                return None, error
        await asyncio.sleep(0.2 * (turn + 1))
    wrong.append(f"{name} never got through: {last}")
    return None, None
