"""What reconciliation adds to the explanation of a payment or a payout: the lines of statements
that match it, and its breaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from tallystick_core.operations.explanation import (
    Actor,
    ExplanationEntry,
    ExplanationSource,
    NextStep,
    count,
    join_sentences,
    quote,
)
from tallystick_core.reconciliation.breaks import (
    KINDS_THAT_WAIT,
    BreakClass,
    BreakKind,
    BreakState,
    Resolution,
)


@dataclass(frozen=True, slots=True)
class LineFacts:
    """A line of a reconciled file. Amounts with their currency; `fee` "": none. `match_rule`: what
    matched it, "": it is in the break `break_id`.
    """

    statement_file_id: str
    line_number: int
    line_type: str
    amount: str
    fee: str
    reference: str
    match_rule: str
    break_id: str
    reconcile_time: datetime


@dataclass(frozen=True, slots=True)
class BreakFacts:
    """A break. `difference` with its currency; `resolution` None: there is none."""

    break_id: str
    kind: BreakKind
    break_class: BreakClass
    state: BreakState
    account: str
    difference: str
    detail: str
    assignee: str
    proposed_by: str
    resolution: Resolution | None
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ReconciliationFacts:
    """What reconciliation has stored about a payment or a payout. `open_accounts`: the accounts of
    its ledger entries that no statement has yet.
    """

    lines: tuple[LineFacts, ...] = ()
    breaks: tuple[BreakFacts, ...] = ()
    open_accounts: tuple[str, ...] = ()


def summarize(facts: ReconciliationFacts) -> str:
    """What has become of it in statements; "": nothing is known."""
    matched_count = sum(1 for line in facts.lines if line.match_rule)
    open_count = sum(1 for item in facts.breaks if item.state is not BreakState.RESOLVED)
    accounts = sorted(set(facts.open_accounts))
    return join_sentences(
        f"{count(matched_count, 'statement line')} {'matches' if matched_count == 1 else 'match'} "
        "it."
        if matched_count
        else "",
        f"No statement of {' and '.join(accounts)} has it yet." if accounts else "",
        f"{count(open_count, 'break')} {'is' if open_count == 1 else 'are'} not resolved."
        if open_count
        else "",
    )


def reconciliation_entries(facts: ReconciliationFacts) -> list[ExplanationEntry]:
    """The lines and the breaks."""
    entries = [_line_entry(line) for line in facts.lines]
    for item in facts.breaks:
        entries += _break_entries(item)
    return entries


def _line_entry(line: LineFacts) -> ExplanationEntry:
    became = (
        f"matches the ledger by {line.match_rule}"
        if line.match_rule
        else f"is in the break {line.break_id}"
    )
    return ExplanationEntry(
        line.reconcile_time,
        ExplanationSource.RECONCILIATION,
        f"Line {line.line_number} of the statement file {line.statement_file_id} {became}.",
        join_sentences(
            f"It is a {line.line_type} of {line.amount}.",
            f"The provider took a fee of {line.fee}." if line.fee else "",
        ),
        line.reference,
    )


def _break_entries(item: BreakFacts) -> list[ExplanationEntry]:
    entries = [
        ExplanationEntry(
            item.create_time,
            ExplanationSource.RECONCILIATION,
            f"The break {item.break_id} of the kind {item.kind} was found on {item.account}.",
            join_sentences(
                f"The difference is {item.difference}.",
                f"Detail: {quote(item.detail)}." if item.detail else "",
            ),
            item.break_id,
        )
    ]
    if item.state is BreakState.RESOLVED and item.resolution is not None:
        entries.append(
            ExplanationEntry(
                item.update_time,
                ExplanationSource.RECONCILIATION,
                f"The break {item.break_id} is resolved as {item.resolution}.",
                reference=item.break_id,
            )
        )
    return entries


def reconciliation_steps(breaks: Iterable[BreakFacts]) -> list[NextStep]:
    """What happens next to the breaks that are not resolved."""
    return [_break_step(item) for item in breaks if item.state is not BreakState.RESOLVED]


def _break_step(item: BreakFacts) -> NextStep:
    name = f"breaks/{item.break_id}"
    if item.state is BreakState.AWAITING_APPROVAL:
        action = (
            f"An operator other than {item.proposed_by} must approve or reject the resolution "
            f"{item.resolution} of the break {item.break_id}."
        )
        return NextStep(Actor.OPERATOR, action, name)
    if item.state is BreakState.AWAITING_REOPENING:
        action = (
            f"An operator other than {item.proposed_by} must approve or reject that the break "
            f"{item.break_id} is opened again."
        )
        return NextStep(Actor.OPERATOR, action, name)
    if item.break_class is BreakClass.AUTOMATIC:
        action = (
            f"The platform has the provider asked, and ends the break {item.break_id} once the "
            "money is booked."
            if item.kind in KINDS_THAT_WAIT
            else f"The platform posts an adjustment for the break {item.break_id}."
        )
        return NextStep(Actor.PLATFORM, action, name)
    who = item.assignee or "An operator of finance"
    action = f"{who} must resolve the break {item.break_id} of the kind {item.kind}."
    return NextStep(Actor.OPERATOR, action, name)
