"""The explanation of a payout: its facts as sentences, and what happens next to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from tallystick_core.operations.dead_letter import DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    AlertFacts,
    AttemptFacts,
    DeadLetterFacts,
    Explanation,
    ExplanationEntry,
    ExplanationSource,
    FailedTryFacts,
    NextStep,
    OperationFacts,
    ReportFacts,
    WebhookFacts,
    describe_polls,
    join_sentences,
    quote,
    sort_entries,
    sort_steps,
)
from tallystick_core.operations.explanation_attempts import attempt_entries, failed_try_entry
from tallystick_core.operations.explanation_sentences import (
    alert_entries,
    dead_letter_entries,
    operation_steps,
    report_entries,
    report_steps,
    webhook_entry,
    webhook_steps,
)
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.reported_transfer import TransferMatch
from tallystick_core.payout.state import (
    TERMINAL_STATES,
    PayoutState,
    PayoutTransitionReason,
)
from tallystick_core.provider.outcome import PayoutFailure

_PAYOUT = "payout"


@dataclass(frozen=True, slots=True)
class PayoutTransitionFacts:
    """A version of a payout in its history. `actor` "": the platform."""

    from_state: str
    to_state: PayoutState
    reason: PayoutTransitionReason
    time: datetime
    actor: str = ""
    reason_text: str = ""


@dataclass(frozen=True, slots=True)
class TransferFacts:
    """A transfer that the provider reports. Amounts with their currency, such as "1.00 EUR";
    `returned` "": nothing was returned. `needs_operator`: it does not match, and nobody has
    acknowledged it as it is now.
    """

    provider: str
    reference: str
    match: TransferMatch
    paid: str
    create_time: datetime
    needs_operator: bool = False
    returned: str = ""
    return_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PayoutFacts:
    """A payout and everything that PayoutService has stored about it. Amounts are decimal text in
    major units. `next_poll_time`: when the provider is polled after the end, None: not at all.
    """

    payout_id: str
    caller: str
    seller_account: str
    amount: str
    fee: str
    net_amount: str
    currency: str
    provider: str
    state: PayoutState
    is_booked: bool
    payout_destination_id: str
    create_time: datetime
    payout_batch_id: str = ""
    failure_reason: PayoutFailure | None = None
    decline_code: str = ""
    trace_id: str = ""
    transitions: tuple[PayoutTransitionFacts, ...] = ()
    attempts: tuple[AttemptFacts, ...] = ()
    transfers: tuple[TransferFacts, ...] = ()
    operation: OperationFacts | None = None
    dead_letters: tuple[DeadLetterFacts, ...] = ()
    reports: tuple[ReportFacts, ...] = ()
    next_poll_time: datetime | None = None
    poll_count: int = 0
    webhooks: tuple[WebhookFacts, ...] = ()
    alerts: tuple[AlertFacts, ...] = ()
    failed_tries: tuple[FailedTryFacts, ...] = ()

    @property
    def name(self) -> str:
        return f"payouts/{self.payout_id}"


FAILURE_SENTENCES: Mapping[PayoutFailure, str] = {
    PayoutFailure.INSUFFICIENT_FUNDS: "When the hold was placed, the wallet had too little "
    "available.",
    PayoutFailure.WALLET_FROZEN: "The seller's wallet is frozen.",
    PayoutFailure.DESTINATION_REJECTED: "The provider or the bank cannot pay to the account, so "
    "the destination is UNUSABLE.",
    PayoutFailure.PROVIDER_DECLINED: "The provider declined the payout.",
    PayoutFailure.PROVIDER_REJECTED: "The provider declined the request itself, such as its "
    "amount; nothing was paid.",
    PayoutFailure.PROVIDER_MISMATCH: "The provider paid another amount or currency than requested.",
    PayoutFailure.PROVIDER_UNREACHABLE: "The provider could not be reached; certainly nothing was "
    "sent.",
    PayoutFailure.CLOSED_BY_OPERATOR: "An operator closed it on the evidence that nothing was "
    "paid.",
}
"""Why a payout is FAILED."""

STATE_SENTENCES: Mapping[PayoutState, str] = {
    PayoutState.CREATED: "Its money is not held in the wallet yet.",
    PayoutState.AWAITING_APPROVAL: "Its money is held, and a second person must approve it.",
    PayoutState.READY: "Its money is held, and it will be sent to {provider}.",
    PayoutState.SUBMITTING: "{provider} has not reported whether it has the payout.",
    PayoutState.SUBMITTED: "{provider} has accepted it, and has not sent the money yet.",
    PayoutState.IN_TRANSIT: "{provider} has sent the money, and the seller's bank has not "
    "confirmed it yet.",
    PayoutState.PAID: "{provider} reports that the seller's bank has the money.",
    PayoutState.FAILED: "It was not paid as requested, and its hold ends.",
    PayoutState.REJECTED: "An operator rejected it, and the money is available again.",
    PayoutState.CANCELLED: "It was cancelled before it was sent, and the money is available again.",
    PayoutState.RETURNED: "The seller's bank returned the money, which is available again.",
}
"""What a state means."""

_TRANSITIONS: Mapping[PayoutTransitionReason, str] = {
    PayoutTransitionReason.CREATED: "The payout was stored.",
    PayoutTransitionReason.FUNDS_HELD: "WalletService held the money; the payout became {state}.",
    PayoutTransitionReason.HOLD_REJECTED: "WalletService rejected the hold; the payout became "
    "{state}.",
    PayoutTransitionReason.APPROVED: "{actor} approved the payout.",
    PayoutTransitionReason.REJECTED: "{actor} rejected the payout.",
    PayoutTransitionReason.CANCELLED: "{actor} cancelled the payout.",
    PayoutTransitionReason.DESTINATION_ENDED: "The destination became UNUSABLE or DISABLED before "
    "the payout was sent; it became {state}.",
    PayoutTransitionReason.SENDING: "The platform began to send the payout; it became {state}.",
    PayoutTransitionReason.PROVIDER_OUTCOME: "The payout became {state}, as the provider reported.",
    PayoutTransitionReason.UNMATCHED_TRANSFER: "The provider reported a transfer or an outcome "
    "that does not match the payout.",
    PayoutTransitionReason.GIVEN_UP: "The payout became {state}: it is no longer sent, and "
    "certainly nothing was paid.",
    PayoutTransitionReason.CLOSED_BY_OPERATOR: "{actor} closed the dead letter; the payout became "
    "{state}.",
    PayoutTransitionReason.BOOKED: "The payout was booked: the wallet and the ledger show "
    "how it ended.",
    PayoutTransitionReason.ACKNOWLEDGED: "{actor} acknowledged an unmatched transfer or a "
    "conflicting report.",
}
_OPERATOR_REASONS = frozenset(
    {
        PayoutTransitionReason.APPROVED,
        PayoutTransitionReason.REJECTED,
        PayoutTransitionReason.CLOSED_BY_OPERATOR,
        PayoutTransitionReason.ACKNOWLEDGED,
    }
)
_BEFORE_THE_ATTEMPT = frozenset(
    {PayoutState.CREATED, PayoutState.AWAITING_APPROVAL, PayoutState.READY, PayoutState.SUBMITTING}
)

_MATCHES: Mapping[TransferMatch, str] = {
    TransferMatch.EXACT: "It matches the request.",
    TransferMatch.AFTER_FAILURE: "It matches the request, but the payout had FAILED. The wallet is "
    "debited; what is not available is owed.",
    TransferMatch.AMOUNT_MISMATCH: "The amount differs. The wallet is debited by the amount of the "
    "transfer.",
    TransferMatch.DUPLICATE: "Another transfer was reported before. The wallet is debited by this "
    "one too.",
    TransferMatch.CURRENCY_MISMATCH: "The currency differs. It is posted to the unapplied account, "
    "and the seller is not debited.",
}


def explain(facts: PayoutFacts, now: datetime) -> Explanation:
    """The explanation of a payout at `now`. It has at least one next step and one entry."""
    name = f"{_PAYOUT} {facts.payout_id}"
    entries = [_request_entry(facts)]
    transitions = [(item, _transition_entry(item)) for item in facts.transitions]
    entries += [entry for item, entry in transitions if item.to_state in _BEFORE_THE_ATTEMPT]
    for attempt in facts.attempts:
        entries += attempt_entries(attempt, name, _outcome_times(facts))
    entries += [failed_try_entry(item, name) for item in facts.failed_tries]
    for transfer in facts.transfers:
        entries += _transfer_entries(transfer)
    entries += [entry for item, entry in transitions if item.to_state not in _BEFORE_THE_ATTEMPT]
    for dead_letter in facts.dead_letters:
        entries += dead_letter_entries(dead_letter)
    for report in facts.reports:
        entries += report_entries(report, _PAYOUT)
    entries += map(webhook_entry, facts.webhooks)
    for alert in facts.alerts:
        entries += alert_entries(alert)
    return Explanation(
        facts.name,
        facts.state,
        _summary(facts),
        sort_steps([*payout_steps(facts, now), *webhook_steps(facts.webhooks)]),
        sort_entries(entries),
    )


def payout_steps(facts: PayoutFacts, now: datetime) -> list[NextStep]:
    """What happens next to a payout."""
    steps = list(report_steps(facts.reports, _PAYOUT, facts.name))
    steps += [
        NextStep(
            Actor.OPERATOR,
            f"An operator must clarify the transfer {transfer.reference} of {transfer.paid} with "
            f"{transfer.provider}, and acknowledge it.",
            facts.name,
        )
        for transfer in facts.transfers
        if transfer.needs_operator
    ]
    if facts.state in TERMINAL_STATES and facts.is_booked:
        return [*steps, *_completed_steps(facts)]
    return [*steps, *_waiting_steps(facts), *_operation_steps(facts, now)]


def _waiting_steps(facts: PayoutFacts) -> list[NextStep]:
    """What the payout waits for outside the platform. The platform's own step follows."""
    match facts.state:
        case PayoutState.AWAITING_APPROVAL:
            action = (
                f"An operator other than {facts.caller} must approve or reject the payout, unless "
                "it is cancelled. The wallet holds its money until then."
            )
            return [NextStep(Actor.OPERATOR, action, facts.name)]
        case PayoutState.SUBMITTED:
            action = f"{facts.provider} must send the money to the seller's bank."
            return [NextStep(Actor.PROVIDER, action, facts.name)]
        case PayoutState.IN_TRANSIT:
            action = "The seller's bank must confirm the money, usually within days."
            return [NextStep(Actor.BANK, action, facts.name)]
        case _:
            return []


def _operation_steps(facts: PayoutFacts, now: datetime) -> tuple[NextStep, ...]:
    operation = facts.operation
    is_dead_letter = any(item.state is DeadLetterState.OPEN for item in facts.dead_letters)
    if facts.state is PayoutState.AWAITING_APPROVAL and not is_dead_letter:
        return ()  # nothing is scheduled before an operator has decided
    if facts.state is PayoutState.READY and operation is not None:
        # its hold is placed; the attempt begins, and is sent at once
        operation = replace(operation, next_action=NextAction.SEND)
    return operation_steps(operation, facts.dead_letters, _PAYOUT, facts.name, now)


def _completed_steps(facts: PayoutFacts) -> list[NextStep]:
    """What happens next to a payout that has ended and is booked."""
    if facts.next_poll_time is not None:
        action = (
            f"The payout is complete. The platform still asks {facts.provider} "
            f"{_POLLED_FOR.get(facts.state, 'whether more money has moved')}; "
            f"{describe_polls(facts.poll_count)}."
        )
        return [NextStep(Actor.PLATFORM, action, facts.name, facts.next_poll_time)]
    if facts.state is PayoutState.PAID:
        action = "Nothing more happens: the payout is paid and booked."
    else:
        action = (
            f"Nothing more happens: the payout is {facts.state} and booked. To pay the seller, the "
            f"caller creates another payout with a new id{_advice(facts)}."
        )
    return [NextStep(Actor.NOBODY, action)]


_POLLED_FOR: Mapping[PayoutState, str] = {
    PayoutState.PAID: "whether the seller's bank returned money",
    PayoutState.FAILED: "whether it was paid after all",
}


def _advice(facts: PayoutFacts) -> str:
    is_account = facts.failure_reason is PayoutFailure.DESTINATION_REJECTED
    return " and another destination" if is_account else ""


def _summary(facts: PayoutFacts) -> str:
    is_dead_letter = any(item.state is DeadLetterState.OPEN for item in facts.dead_letters)
    return join_sentences(
        f"The payout {facts.payout_id} of {facts.amount} {facts.currency} to the seller "
        f"{facts.seller_account} is {facts.state}.",
        STATE_SENTENCES[facts.state].format(provider=facts.provider),
        FAILURE_SENTENCES[facts.failure_reason] if facts.failure_reason else "",
        f"The provider's code is {quote(facts.decline_code)}." if facts.decline_code else "",
        "It is a dead letter and waits for an operator." if is_dead_letter else "",
        ("It is booked." if facts.is_booked else "It is not booked yet.")
        if facts.state in TERMINAL_STATES
        else "",
    )


def _request_entry(facts: PayoutFacts) -> ExplanationEntry:
    return ExplanationEntry(
        facts.create_time,
        ExplanationSource.REQUEST,
        f"{facts.caller} created the payout of {facts.amount} {facts.currency} to the seller "
        f"{facts.seller_account}.",
        join_sentences(
            f"The fee is {facts.fee} {facts.currency}, so {facts.net_amount} {facts.currency} are "
            f"sent by {facts.provider} to the destination {facts.payout_destination_id}.",
            f"It belongs to the batch {facts.payout_batch_id}." if facts.payout_batch_id else "",
        ),
        facts.payout_id,
        facts.trace_id,
    )


def _transition_entry(item: PayoutTransitionFacts) -> ExplanationEntry:
    is_operator = item.reason in _OPERATOR_REASONS and item.actor
    return ExplanationEntry(
        item.time,
        ExplanationSource.OPERATOR if is_operator else ExplanationSource.STATE,
        _TRANSITIONS[item.reason].format(actor=item.actor or "The platform", state=item.to_state),
        f"Reason: {quote(item.reason_text)}." if item.reason_text else "",
    )


def _outcome_times(facts: PayoutFacts) -> list[datetime]:
    """When the payout ended by an answer."""
    return [
        item.time
        for item in facts.transitions
        if item.reason is PayoutTransitionReason.PROVIDER_OUTCOME
        and item.to_state in TERMINAL_STATES
    ]


def _transfer_entries(transfer: TransferFacts) -> list[ExplanationEntry]:
    entries = [
        ExplanationEntry(
            transfer.create_time,
            ExplanationSource.PROVIDER,
            f"{transfer.provider} reported a transfer of {transfer.paid}: {transfer.match}.",
            _MATCHES[transfer.match],
            transfer.reference,
        )
    ]
    if transfer.return_time is not None:
        entries.append(
            ExplanationEntry(
                transfer.return_time,
                ExplanationSource.PROVIDER,
                f"{transfer.provider} reported that the seller's bank returned "
                f"{transfer.returned}.",
                reference=transfer.reference,
            )
        )
    return entries
