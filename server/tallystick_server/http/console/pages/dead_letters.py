"""Dead letters: operations that wait for a decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tallystick.operator.v1 import operator_pb2
from tallystick_server.http.console.acts import REASON, Act, ActPage, Input
from tallystick_server.http.console.links import path_of
from tallystick_server.http.console.visit import Answer, Page, Visit

SERVICES = ("payment", "payout")
"""The services that have dead letters."""
STATES = ("OPEN", "RETRIED", "CLOSED", "RESOLVED")


async def list_dead_letters(visit: Visit) -> Answer:
    """GET /console/dead-letters: those of a service, by state, cause and provider, newest first."""
    return await show_list(visit)


async def show_list(visit: Visit, problem: str = "") -> Page:
    """The list that the query chooses. `problem`: why nothing was done with a selection of it."""
    service = "payout" if visit.query.get("service") == "payout" else "payment"
    state = visit.query.get("state", "OPEN")
    response = await visit.calls.call(
        f"{service}.ListDeadLetters",
        state=f"DEAD_LETTER_STATE_{state}" if state != "ALL" else "",
        filter=filter_fields(visit.query) or None,
        **visit.list_fields(),
    )
    values = {
        "response": response,
        "service": service,
        "state": state,
        "states": STATES,
        "causes": _CAUSES,
        "may_act": state == "OPEN" and bool(visit.allowed(dead_letter_acts(service))),
        "problem": problem,
    }
    return Page("dead_letters.html", "Dead letters", values, 400 if problem else 200)


def filter_fields(chosen: Mapping[str, str]) -> dict[str, Any]:
    """The filter of a call, from the fields `cause` and `provider`; {}: all."""
    cause, provider = chosen.get("cause", ""), chosen.get("provider", "")
    fields = {"cause": cause and f"DEAD_LETTER_CAUSE_{cause}", "provider": provider}
    return {name: value for name, value in fields.items() if value}


_CAUSES = [
    value.name.removeprefix("DEAD_LETTER_CAUSE_")
    for value in operator_pb2.DeadLetterCause.DESCRIPTOR.values
    if value.number
]


def _page(service: str) -> Callable[[Visit], Awaitable[Answer]]:
    async def show_dead_letter(visit: Visit) -> Answer:
        """GET /console/dead-letters/{service}/{dead_letter_id}: its cause, what it is about, and
        what can be done.
        """
        dead_letter_id = visit.variables["dead_letter_id"]
        response = await visit.calls.call(f"{service}.GetDeadLetter", dead_letter_id=dead_letter_id)
        is_open = response["dead_letter"]["state"] == "OPEN"
        values = {
            "response": response,
            "acts": visit.allowed(dead_letter_acts(service)) if is_open else (),
            "list_path": path_of("dead-letters"),
        }
        return Page("dead_letter.html", f"Dead letter {dead_letter_id}", values)

    return show_dead_letter


def dead_letter_acts(service: str) -> tuple[Act, ...]:
    """The decisions about a dead letter of a service."""
    return (
        Act(
            "retry",
            "Retry",
            f"{service}.RetryDeadLetter",
            (REASON,),
            "The operation is retried.",
            hint="Continues the operation, once what stopped it is fixed.",
        ),
        Act(
            "close",
            "Close",
            f"{service}.CloseDeadLetter",
            (
                REASON,
                Input("evidence", "Evidence", "How you know that no money has moved."),
            ),
            "The dead letter is closed.",
            is_grave=True,
            hint="Gives the operation up. The provider is asked first whether money has moved.",
        ),
    )


DEAD_LETTER_ACTS = tuple(
    ActPage(f"dead-letters/{service}/{{dead_letter_id}}", _page(service), dead_letter_acts(service))
    for service in SERVICES
)
