"""State machines as tables: (state, happening) to the state after."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

from tallystick_core.refusal import Reason, Refused

S = TypeVar("S", bound=StrEnum)
H = TypeVar("H", bound=StrEnum)


class Verb(NamedTuple):
    """What a trigger does to a resource, as refusals name it: CANCEL in the metadata, "cancelled" in the message."""

    name: str
    participle: str


def moved(moves: Mapping[tuple[S, H], S], verbs: Mapping[H, Verb], state: S, happening: H, what: str) -> S:
    """The state after. Raises STATE_FORBIDS for a pair that is not in the table; `what` names the subject, such as "order"."""
    try:
        return moves[state, happening]
    except KeyError:
        raise forbidden(what, state, verbs[happening]) from None


def forbidden(what: str, state: str, verb: Verb) -> Refused:
    """The refusal of what a state does not allow."""
    message = f"The {what} is {state} and cannot be {verb.participle}."
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": verb.name})
