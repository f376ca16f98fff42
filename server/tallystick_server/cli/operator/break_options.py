"""The options and arguments of the commands for breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tallystick_core.reconciliation.breaks import BreakClass, BreakKind, BreakState
from tallystick_server.cli.runner import UsageError, whole_number

_UNRESOLVED = (BreakState.OPEN, BreakState.AWAITING_APPROVAL, BreakState.AWAITING_REOPENING)


@dataclass(frozen=True, slots=True)
class BreakSelection:
    """Selects breaks: those that meet every criterion. "" and None do not filter."""

    states: tuple[BreakState, ...] = ()
    """Any of these; empty: all."""
    break_class: BreakClass | None = None
    kind: BreakKind | None = None
    account: str = ""
    assignee: str = ""
    statement_file_id: str = ""

    def __str__(self) -> str:
        """Such as "unresolved breaks of the kind ROUNDING"."""
        parts = [
            f"{self.states[0]} breaks" if len(self.states) == 1 else "breaks",
            f"of the class {self.break_class}" if self.break_class else "",
            f"of the kind {self.kind}" if self.kind else "",
            f"of {self.account}" if self.account else "",
            f"assigned to {self.assignee}" if self.assignee else "",
            f"of the file {self.statement_file_id}" if self.statement_file_id else "",
        ]
        text = " ".join(filter(None, parts))
        return f"unresolved {text}" if self.states == _UNRESOLVED else text


BreakIdArgument = Annotated[
    str, typer.Argument(metavar="BREAK_ID", help="As 'breaks list' prints it.")
]
VersionOption = Annotated[
    int | None,
    typer.Option(
        "--version",
        parser=whole_number(1, 1_000_000),
        metavar="N",
        help="The version that you have seen, as 'breaks show' prints it; another is rejected.",
        show_default=False,
    ),
]
StateOption = Annotated[
    BreakState | None,
    typer.Option("--state", help="Only breaks in this state.", show_default=False),
]
AllOption = Annotated[bool, typer.Option("--all", help="Include resolved ones.")]
ClassOption = Annotated[
    BreakClass | None,
    typer.Option("--class", help="Only breaks of this class.", show_default=False),
]
KindOption = Annotated[
    BreakKind | None, typer.Option("--kind", help="Only breaks of this kind.", show_default=False)
]
AccountOption = Annotated[
    str,
    typer.Option(
        "--account",
        metavar="ACCOUNT",
        help="Only this account, such as psp/stripe/clearing.",
        show_default=False,
    ),
]
AssigneeOption = Annotated[
    str,
    typer.Option(
        "--assignee", metavar="NAME", help="Only breaks of this operator.", show_default=False
    ),
]
FileOption = Annotated[
    str,
    typer.Option(
        "--file",
        metavar="STATEMENT_FILE_ID",
        help="Only breaks found in this file.",
        show_default=False,
    ),
]


def select_breaks(
    ctx: typer.Context,
    state: BreakState | None,
    include_resolved: bool,
    break_class: BreakClass | None,
    kind: BreakKind | None,
    account: str,
    assignee: str,
    statement_file_id: str,
) -> BreakSelection:
    """The breaks that the options select. Raises UsageError."""
    if state is not None and include_resolved:
        raise UsageError(ctx, "Give either --state or --all.")
    states = (state,) if state else () if include_resolved else _UNRESOLVED
    return BreakSelection(states, break_class, kind, account, assignee, statement_file_id)
