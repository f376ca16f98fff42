"""The list of events, with which a client catches up after an outage."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import invalid
from tallystick_sandbox.stripe.parameters import Parameters

_MAX_TYPES = 20


def list_options(parameters: Parameters) -> dict[str, Any]:
    """`types`, or `type`, which may be a group such as "payout.*"."""
    types = parameters.texts("types", _MAX_TYPES)
    type_ = parameters.text("type")
    if types and type_:
        raise invalid("You may send only one of type and types.", "types")
    patterns = [name.replace("_", r"\_") for name in types or [type_] if name]
    if any("%" in pattern or "\\" in pattern.replace(r"\_", "") for pattern in patterns):
        raise invalid("A type consists of letters, dots, underscores and *.", "type")
    return {"event_patterns": tuple(pattern.replace("*", "%") for pattern in patterns)}


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("event", id_).body
