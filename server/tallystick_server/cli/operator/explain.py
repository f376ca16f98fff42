"""The command that explains a payment or a payout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tallystick_server.cli.operator.connection import connect
from tallystick_server.cli.operator.options import AddressOption, JsonOption
from tallystick_server.cli.output import (
    escape,
    print_heading,
    print_json,
    print_line,
    print_paragraph,
)

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from tallystick.history.v1 import explanation_pb2

_INDENT = 4


def explain(
    ctx: typer.Context,
    id_: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The id of a payment, an order, a charge or a payout, or the provider's id of "
            "one.",
        ),
    ],
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Explain a payment or a payout: what happened, what happens next, and who must act."""
    with connect(ctx, address) as calls:
        explanation = calls.explain(id_)
    if as_json:
        from tallystick_server.cli.messages import to_json

        print_json(to_json(explanation))
    else:
        _print_explanation(explanation)


def _print_explanation(explanation: explanation_pb2.Explanation) -> None:
    from tallystick.history.v1 import explanation_pb2
    from tallystick_server.rpc.enums import EnumNames

    actors = EnumNames(explanation_pb2.Actor.DESCRIPTOR)
    sources = EnumNames(explanation_pb2.ExplanationSource.DESCRIPTOR)
    print_heading(f"{explanation.resource_name}: {explanation.state}")
    print_paragraph(explanation.summary)
    print_line()
    print_heading("What happens next")
    for step in explanation.next_steps:
        when = [
            f"at {_format(step.time)}" if step.HasField("time") else "",
            f"until {_format(step.deadline)}" if step.HasField("deadline") else "",
        ]
        print_line(" ".join(filter(None, [actors.parse(step.actor, "actor"), *when])))
        print_paragraph(step.action, indent=_INDENT)
        if step.resource_name:
            print_paragraph(step.resource_name, indent=_INDENT)
    print_line()
    print_heading("What happened")
    for entry in explanation.entries:
        print_line(f"{_format(entry.time)}  {sources.parse(entry.source, 'source')}")
        print_paragraph(entry.title, indent=_INDENT)
        if entry.detail:
            print_paragraph(entry.detail, indent=_INDENT)
        marks = [
            f"reference {entry.reference}" if entry.reference else "",
            f"trace {entry.trace_id}" if entry.trace_id else "",
        ]
        if any(marks):
            print_paragraph(", ".join(filter(None, marks)), indent=_INDENT)
    if explanation.omissions:
        print_line()
        print_heading("What is missing here")
        for omission in explanation.omissions:
            print_line(f"- {escape(omission)}")


def _format(time: Timestamp) -> str:
    """To the millisecond, in UTC."""
    return f"{time.ToDatetime().isoformat(' ', 'milliseconds')} UTC"
