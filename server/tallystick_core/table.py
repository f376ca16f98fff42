"""State machines as tables: (state, happening) to the state after."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from tallystick_core.refusal import Reason, Refused

S = TypeVar("S", bound=StrEnum)
H = TypeVar("H", bound=StrEnum)


def moved(moves: Mapping[tuple[S, H], S], state: S, happening: H, what: str) -> S:
    """The state after. Raises STATE_FORBIDS for a pair that is not in the table; `what` names the subject, such as "An order"."""
    try:
        return moves[state, happening]
    except KeyError:
        metadata = {"state": state, "verb": happening}
        raise Refused(Reason.STATE_FORBIDS, f"{what} that is {state} takes no {happening}.", metadata=metadata) from None
