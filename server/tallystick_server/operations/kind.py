"""Operation kinds: what the worker does with each kind of operation, as values.

A kind is a value of functions, one for each step of the lifecycle. The worker calls them in the
order in which they are listed here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias

from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.provider.outcome import FailureReason, ProviderOutcome
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import Op
from tallystick_storage.sql import Connection


def default_circuit(action: NextAction) -> Circuit:
    """Sends have a circuit, and lookups and cancellations have another."""
    return Circuit.SENDS if action is NextAction.SEND else Circuit.LOOK_UPS


def never_awaits_provider(_operation: object) -> bool:
    return False


def never_ends(_operation: object, _now: float) -> None:
    return None


FallBack: TypeAlias = Callable[[FailedStep[Op], Callable[[str], bool]], Awaitable[Op | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationKind(Generic[Op]):
    """The functions of one kind of operation. A function with a connection runs in a transaction,
    and calls no provider and no other service.
    """

    name: KindName
    load: Callable[[Connection, Mapping[str, int], float], Sequence[Op]]
    """Loads the operations of this kind that were claimed under these lease tokens, at a loop
    time.
    """
    find: Callable[[Connection, str, float], Op | None]
    """Loads one operation in any state at a loop time, without its lease, with its last attempt:
    its lease token is NO_LEASE. A call of its provider must end as if a lease began now.
    """
    next_action: Callable[[Op, float, float, float], NextAction]
    """Decides the next action from the operation, the loop time, the seconds for which the provider
    honors a key, and the seconds of a lease. A lease ends before the key does.
    """
    failure_if_not_sent: Callable[[Op, float], FailureReason | None] = never_ends
    """The reason to fail it at a loop time if no money was moved; None: it must not end."""
    prepare: Mapping[NextAction, Callable[[Op], Awaitable[Op | None]]] = field(default_factory=dict)
    """The actions that precede a provider call. Each returns the operation after it, or None if the
    lease was lost; the new holder continues then. Raises what `book` raises.
    """
    perform: Callable[[Any, Op, NextAction], Awaitable[ProviderOutcome]]
    """Calls the provider of the operation for an action."""
    circuit: Callable[[NextAction], Circuit] = default_circuit
    """The circuit of the provider that an action uses."""
    record: Callable[[Op, Any], Awaitable[Op]]
    """Applies an outcome to the operation, whatever its source. It is idempotent, needs no lease,
    and takes outcomes in any order. Returns the updated operation.
    """
    fall_back: FallBack[Op] | None = None
    """Continues at another provider after a step that certainly sent nothing. Returns the operation
    with its next attempt, leased again, or None if it stays as it is. It is also given a function
    that says whether a provider can be called. None: this kind has one provider.
    """
    book: Callable[[Op], Awaitable[object]] | None = None
    """Credits the wallet and posts to the ledger. None: there is nothing to book.

    Raises BookingRejected, ServiceCallRejected or ConstraintViolation, and ApiError where a retry
    may succeed.
    """
    lock_unresolved: Callable[[Connection, list[str]], set[str]]
    """Locks operations. Returns the ids of those without a recorded outcome; none can be recorded
    while the lock is held.
    """
    is_locked_after_queue: bool
    """Whether `lock_unresolved` is called once the rows of the operation queue are locked, or
    before. The storage layer has one order of locks.
    """
    fail: Callable[[Connection, Sequence[FailedStep[Op]]], Sequence[Op]]
    """Fails operations that certainly moved no money. Returns those that failed."""
    close: Callable[[Connection, Op, str, str], Op | None]
    """Fails an operation as an operator decided, with the operator and the reason. Returns it if it
    changed.
    """
    notify: Callable[[Op], None]
    """Wakes the calls that wait for an operation that failed or was closed."""
    phase: Callable[[Op], str]
    """What it waits for; "": nothing. The monitor has a threshold for each phase."""
    awaits_provider: Callable[[Op], bool] = never_awaits_provider
    """Whether the provider has it and reports the result later."""
    batchers: Sequence[Batcher[Any, Any]] = ()
    """The batchers of its functions. The worker starts, drains and stops them."""
