"""The states of breaks, their rules, and the accounts that statements are about."""

from __future__ import annotations

import pytest

from tallystick.ledger.v1 import ledger_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_core.reconciliation.accounts import (
    is_bank,
    is_tracked,
    line_type_of,
    matched_accounts,
    parse_statement_account,
)
from tallystick_core.reconciliation.breaks import (
    BREAK_TRANSITIONS,
    BUILT_IN_RULES,
    KINDS_ENDED_BY_BOOKING,
    KINDS_OF_BALANCES,
    KINDS_THAT_WAIT,
    KINDS_WITH_LIMIT,
    BreakAction,
    BreakClass,
    BreakKind,
    BreakState,
    Resolution,
    next_break_state,
)
from tallystick_core.reconciliation.statement import LineType

NEXT_STATES = {
    "OPEN": {"OPEN", "AWAITING_APPROVAL", "RESOLVED"},
    "AWAITING_APPROVAL": {"AWAITING_APPROVAL", "OPEN", "RESOLVED"},
    "RESOLVED": {"RESOLVED", "OPEN", "AWAITING_REOPENING"},
    "AWAITING_REOPENING": {"AWAITING_REOPENING", "OPEN", "RESOLVED"},
}


def test_transitions_lead_only_to_the_next_states() -> None:
    """Each state reaches the states of its list and no others; each pair of state and action that
    is not in the table is rejected.
    """
    reached: dict[str, set[str]] = {state: set() for state in BreakState}
    for state in BreakState:
        for action in BreakAction:
            if action is BreakAction.FOUND:
                assert (state, action) not in BREAK_TRANSITIONS
                continue
            try:
                reached[state].add(next_break_state(state, action))
            except ApiError as error:
                assert error.reason is ErrorReason.INVALID_STATE
                assert (state, action) not in BREAK_TRANSITIONS
    assert reached == NEXT_STATES


def test_a_resolved_break_is_only_opened_again_or_commented() -> None:
    """What was posted for it is reversed first, once that is approved."""
    actions = {action for state, action in BREAK_TRANSITIONS if state is BreakState.RESOLVED}
    assert actions == {
        BreakAction.REOPENED,
        BreakAction.REOPENING_PROPOSED,
        BreakAction.COMMENTED,
    }


def test_each_kind_has_one_built_in_rule() -> None:
    """Its first version. Only four kinds have a limit."""
    assert [rule.kind for rule in BUILT_IN_RULES] == list(BreakKind)
    assert {rule.version for rule in BUILT_IN_RULES} == {1}
    assert {
        BreakKind.ROUNDING,
        BreakKind.DATE_DIFFERS,
        BreakKind.FEE_DIFFERS,
        BreakKind.MISSING_IN_FILE,
    } == KINDS_WITH_LIMIT


def test_only_what_the_platform_resolves_is_automatic() -> None:
    """Breaks that end by themselves, and roundings, which it adjusts."""
    automatic = {rule.kind for rule in BUILT_IN_RULES if rule.break_class is BreakClass.AUTOMATIC}
    assert automatic == KINDS_THAT_WAIT | {BreakKind.ROUNDING}
    assert KINDS_THAT_WAIT < KINDS_ENDED_BY_BOOKING
    assert not KINDS_ENDED_BY_BOOKING & KINDS_OF_BALANCES


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        (BreakKind, "BREAK_KIND"),
        (BreakClass, "BREAK_CLASS"),
        (BreakState, "BREAK_STATE"),
        (Resolution, "RESOLUTION"),
        (LineType, "LINE_TYPE"),
    ],
)
def test_the_names_are_those_of_the_contract(values: type, prefix: str) -> None:
    """Each value of the domain is one of the API, and the other way round."""
    enum = {
        "BREAK_KIND": reconciliation_pb2.BreakKind,
        "BREAK_CLASS": reconciliation_pb2.BreakClass,
        "BREAK_STATE": reconciliation_pb2.BreakState,
        "RESOLUTION": reconciliation_pb2.Resolution,
        "LINE_TYPE": reconciliation_pb2.LineType,
    }[prefix]
    assert {f"{prefix}_{value}" for value in values} == set(enum.keys()) - {f"{prefix}_UNSPECIFIED"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "account", ["psp/stripe/clearing", "psp/a_b-C9/clearing", "banks/main", "banks/transit-2"]
)
def test_statements_are_about_providers_and_banks(account: str) -> None:
    """Their accounts are tracked, too."""
    assert parse_statement_account(account, "account") == account
    assert is_tracked(account)
    assert is_bank(account) == account.startswith("banks/")
    assert account in matched_accounts(account)


@pytest.mark.parametrize(
    "account",
    [
        "banks/transit",
        "banks/",
        "banks/a/b",
        "psp//clearing",
        "psp/a/fees",
        "psp/a/clearing/",
        "psp/a/clearing\n",
        "payouts/a/clearing",
        "sellers/a",
        "banks/-a",
        "banks/ä",
        "BANKS/a",
    ],
)
def test_statements_are_about_no_other_account(account: str) -> None:
    """No bank reports what is in transit, and no provider its payouts alone."""
    with pytest.raises(ApiError) as error:
        parse_statement_account(account, "account")
    assert (error.value.reason, error.value.field) == (ErrorReason.FIELD_INVALID, "account")


def test_an_account_is_required() -> None:
    """The error says which there are."""
    with pytest.raises(ApiError, match="psp/"):
        parse_statement_account("", "account")


@pytest.mark.parametrize(
    ("account", "tracked"),
    [
        ("psp/a/clearing", True),
        ("payouts/a/clearing", True),
        ("banks/a", True),
        ("banks/transit", True),
        ("psp/a/fees", False),
        ("banks/a/fees", False),
        ("sellers/a", False),
        ("platform/fees", False),
        ("unapplied/a", False),
    ],
)
def test_entries_on_clearing_accounts_are_tracked(account: str, tracked: bool) -> None:
    """No others: a statement has nothing about them."""
    assert is_tracked(account) == tracked


@pytest.mark.parametrize("kind", PostingKind)
def test_entries_of_each_kind_have_a_type_of_line(kind: PostingKind) -> None:
    """On each account; the contract has each kind."""
    assert line_type_of("banks/a", kind) is LineType.BANK_ENTRY
    assert line_type_of("psp/a/clearing", kind) in LineType
    assert f"TRANSACTION_KIND_{kind}" in ledger_pb2.TransactionKind.keys()


def test_money_without_an_owner_matches_as_what_it_was() -> None:
    """A charge at the provider, a payout on the account of payouts."""
    assert line_type_of("psp/a/clearing", "UNAPPLIED") is LineType.CHARGE
    assert line_type_of("payouts/a/clearing", "UNAPPLIED") is LineType.PAYOUT
