"""Repeats calls until they succeed, as any caller would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tallystick import DeadlineExceededError, TallystickError

_MAX_TRIES = 40
"""How many times a caller retries before it gives up."""

Call = Callable[[], Awaitable[Any]]


async def call_until_success(
    call: Call, name: str, violations: list[str], allowed_reasons: frozenset[str] = frozenset()
) -> Any:
    """The call's answer after retries; None if it is rejected, which is a violation except for some
    reasons.
    """
    response, error = await call_with_retries(call, name, violations)
    if error is not None and error.reason not in allowed_reasons:
        violations.append(f"{name} was rejected: {error}")
    return response


async def expect_rejection(call: Call, name: str, violations: list[str], reason: str) -> None:
    """Makes a call that must be rejected for the given reason."""
    response, error = await call_with_retries(call, name, violations)
    if response is not None:
        violations.append(f"{name}: was not rejected with {reason}")
    elif error is not None and error.reason != reason:
        violations.append(f"{name}: rejected with {error}, not with {reason}")


async def call_with_retries(
    call: Call, name: str, violations: list[str]
) -> tuple[Any, TallystickError | None]:
    """The call's answer, or its rejection, after retries. A call that never succeeds is a violation
    and has neither.
    """
    for tries in range(1, _MAX_TRIES + 1):
        try:
            return await call(), None
        except TallystickError as error:
            last_error = error
            if not (error.may_retry or isinstance(error, DeadlineExceededError)):
                return None, error
        await asyncio.sleep(0.2 * tries)
    violations.append(f"{name} never succeeded: {last_error}")
    return None, None
