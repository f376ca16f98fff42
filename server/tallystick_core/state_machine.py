"""State machines as tables: (state, trigger) to the next state."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

from tallystick_core.errors import ApiError, state_error

S = TypeVar("S", bound=StrEnum)
H = TypeVar("H", bound=StrEnum)


class Verb(NamedTuple):
    """What a trigger does to a resource, as errors name it: CANCEL in the metadata, "cancelled" in
    the message.
    """

    name: str
    participle: str


def next_state(
    transitions: Mapping[tuple[S, H], S],
    verbs: Mapping[H, Verb],
    state: S,
    trigger: H,
    resource: str,
) -> S:
    """The next state. Raises INVALID_STATE for a pair that is not in the table. `resource` names
    the subject, such as "order".
    """
    try:
        return transitions[state, trigger]
    except KeyError:
        raise invalid_state_error(resource, state, verbs[trigger]) from None


def invalid_state_error(resource: str, state: str, verb: Verb) -> ApiError:
    """The error for a change that the state does not allow."""
    message = f"The {resource} is {state} and cannot be {verb.participle}."
    return state_error(message, state, verb.name)
