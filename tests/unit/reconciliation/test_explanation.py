"""What reconciliation adds to an explanation: lines, breaks, and who must act on them."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from tallystick_core.operations.explanation import Actor
from tallystick_core.reconciliation.breaks import BreakClass, BreakKind, BreakState, Resolution
from tallystick_core.reconciliation.explanation import (
    BreakFacts,
    LineFacts,
    ReconciliationFacts,
    reconciliation_entries,
    reconciliation_steps,
    summarize,
)

_TIME = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
_LINE = LineFacts(
    "file-1", 7, "CHARGE", "9.70 EUR", "0.30 EUR", "ch_1", "CHARGE_REFERENCE", "", _TIME
)
_BREAK = BreakFacts(
    "f1-7",
    BreakKind.AMOUNT_DIFFERS,
    BreakClass.FINANCE,
    BreakState.OPEN,
    "psp/stripe/clearing",
    "0.50 EUR",
    "the line has 10.50 EUR",
    "",
    "",
    None,
    _TIME,
    _TIME,
)


@pytest.mark.parametrize(
    ("found", "actor", "part"),
    [
        (_BREAK, Actor.OPERATOR, "An operator of finance must resolve the break f1-7"),
        (replace(_BREAK, assignee="ada"), Actor.OPERATOR, "ada must resolve the break f1-7"),
        (
            replace(
                _BREAK,
                state=BreakState.AWAITING_APPROVAL,
                proposed_by="ada",
                resolution=Resolution.ADJUST,
            ),
            Actor.OPERATOR,
            "other than ada must approve or reject the resolution ADJUST",
        ),
        (
            replace(_BREAK, kind=BreakKind.ROUNDING, break_class=BreakClass.AUTOMATIC),
            Actor.PLATFORM,
            "posts an adjustment",
        ),
        (
            replace(_BREAK, kind=BreakKind.CHARGE_NOT_BOOKED, break_class=BreakClass.AUTOMATIC),
            Actor.PLATFORM,
            "has the provider asked",
        ),
    ],
    ids=["unassigned", "assigned", "approval", "adjusted", "looked up"],
)
def test_a_break_names_who_must_act(found: BreakFacts, actor: Actor, part: str) -> None:
    """By its class, its assignee and its state."""
    (step,) = reconciliation_steps([found])
    assert step.actor is actor
    assert part in step.action
    assert step.resource_name == "breaks/f1-7"


def test_every_break_becomes_sentences() -> None:
    """Each kind, class and state has an entry; those that are not resolved have a next step."""
    for kind, break_class, state in product(BreakKind, BreakClass, BreakState):
        resolution = None if state is BreakState.OPEN else Resolution.ACCEPT
        found = replace(
            _BREAK,
            kind=kind,
            break_class=break_class,
            state=state,
            resolution=resolution,
            proposed_by="ada" if state is BreakState.AWAITING_APPROVAL else "",
        )
        facts = ReconciliationFacts((replace(_LINE, match_rule="", break_id="f1-7"),), (found,))
        entries = reconciliation_entries(facts)
        steps = reconciliation_steps(facts.breaks)
        assert len(entries) == (3 if state is BreakState.RESOLVED else 2)
        assert len(steps) == (0 if state is BreakState.RESOLVED else 1)
        texts = [entry.title for entry in entries] + [step.action for step in steps]
        assert all(re.fullmatch(r"\S.*[^ .]\.", sentence) for sentence in texts), texts
        assert "None" not in "".join(texts)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (ReconciliationFacts(), ""),
        (ReconciliationFacts((_LINE,)), "1 statement line matches it."),
        (ReconciliationFacts((_LINE, _LINE)), "2 statement lines match it."),
        (
            ReconciliationFacts(open_accounts=("psp/stripe/clearing", "psp/stripe/clearing")),
            "No statement of psp/stripe/clearing has it yet.",
        ),
        (ReconciliationFacts(breaks=(_BREAK,)), "1 break is not resolved."),
        (
            ReconciliationFacts(
                (_LINE,),
                (
                    replace(_BREAK, state=BreakState.RESOLVED, resolution=Resolution.ADJUST),
                    _BREAK,
                    _BREAK,
                ),
            ),
            "1 statement line matches it. 2 breaks are not resolved.",
        ),
    ],
    ids=["nothing", "one line", "two lines", "no statement yet", "break", "all"],
)
def test_the_summary_counts_lines_and_breaks(facts: ReconciliationFacts, expected: str) -> None:
    """What has become of it in statements, in at most three sentences."""
    assert summarize(facts) == expected
