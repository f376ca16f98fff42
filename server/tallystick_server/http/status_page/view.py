"""What the status page shows of a payment: its words, amounts and links, in a language."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup

from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1.payment_pb2 import BuyerAmount, BuyerStatus
from tallystick_core.money import MAX_BALANCE, format_amount, parse_amount
from tallystick_server.http.status_page.languages import Language
from tallystick_server.http.status_page.words import (
    FAILURE_WORDS,
    PENDING_WORDS,
    Tone,
    is_uncharged,
)

_WEB_URL = re.compile(r"https?://[^\s\x00-\x20\x7f\"<>\\]+", re.IGNORECASE)


class Link(NamedTuple):
    """`name`: its id on the page, which keeps the focus when the content is replaced."""

    name: str
    label: Markup
    url: str


class AmountRow(NamedTuple):
    """Amounts with one label, one for each currency."""

    label: Markup
    amounts: Sequence[str]


@dataclass(frozen=True, slots=True)
class View:
    """The content of a page. `version`: it differs if the content does. `refreshes`: whether the
    content may change. The first link is the main one.
    """

    title: Markup
    paragraphs: Sequence[Markup]
    tone: Tone
    version: str
    refreshes: bool
    amounts: Sequence[AmountRow] = ()
    links: Sequence[Link] = ()
    updated: Markup | None = None


def not_found_view(language: Language) -> View:
    """The content for a link that does not exist."""
    return _message_view(language, "not_found", refreshes=False)


def unavailable_view(language: Language) -> View:
    """The content while the payment cannot be read."""
    return _message_view(language, "unavailable", refreshes=True)


def _message_view(language: Language, key: str, *, refreshes: bool) -> View:
    return View(
        title=language.text(f"{key}.title"),
        paragraphs=[language.text(f"{key}.text"), language.text(f"{key}.next")],
        tone=Tone.WAITING if refreshes else Tone.FAILURE,
        version=key,
        refreshes=refreshes,
    )


def payment_view(status: BuyerStatus, language: Language) -> View:
    """The content for a payment. A state that this version does not know is an open one."""
    describe = _DESCRIPTIONS.get(status.payment_state, _describe_open)
    content = describe(status)
    return View(
        title=language.text(f"{content.key}.title"),
        paragraphs=[
            language.text(
                key, **{name: language.time(time) for name, time in content.times.items()}
            )
            for key in (f"{content.key}.text", *content.notes)
        ],
        tone=content.tone,
        version=str(status.version),
        refreshes=describe is _describe_open,
        amounts=[
            AmountRow(
                language.text(f"amounts.{label}"),
                [language.money(item.amount, item.currency) for item in amounts],
            )
            for label, amounts in content.amounts.items()
            if amounts
        ],
        links=[
            Link(name, language.text(f"links.{name}"), url) for name, url in content.links.items()
        ],
        updated=(
            language.text("page.updated", time=language.time(_to_time(status.update_time)))
            if status.HasField("update_time")
            else None
        ),
    )


@dataclass(frozen=True, slots=True)
class _Content:
    """The content before it has a language. `key`: of the words. `notes`: keys of further
    paragraphs. `amounts`, `links`: by the key of their label.
    """

    key: str
    tone: Tone
    notes: Sequence[str]
    amounts: Mapping[str, Sequence[BuyerAmount]]
    links: Mapping[str, str]
    times: Mapping[str, datetime] = field(default_factory=dict)


def _describe_open(status: BuyerStatus) -> _Content:
    key = PENDING_WORDS.get(status.pending_reason, "processing")
    if key != "buyer_action":
        return _Content(
            key, Tone.WAITING, [f"{key}.next"], {"requested": status.requested_amounts}, {}
        )
    links = _web_links(pay=status.next_action_url, back=status.cancel_url)
    if "pay" not in links:
        key = "buyer_confirmation"
    has_end = status.HasField("resolve_by_time")
    return _Content(
        key,
        Tone.ACTION,
        [f"{key}.until"] if has_end else [],
        {"to_pay": status.requested_amounts},
        links,
        {"time": _to_time(status.resolve_by_time)} if has_end else {},
    )


def _describe_paid(status: BuyerStatus) -> _Content:
    links = _web_links(**{"continue": status.success_url})
    notes = [] if links else ["paid.next"]
    return _Content("paid", Tone.SUCCESS, notes, {"paid": status.paid_amounts}, links)


def _describe_partially_paid(status: BuyerStatus) -> _Content:
    reason = FAILURE_WORDS.get(status.failure_reason, "failed.unspecified")
    notes = [] if reason == "failed.unspecified" else [f"{reason}.text"]
    label = "uncharged"
    if not is_uncharged(status):
        notes, label = [*notes, "failed.uncertain"], "incomplete"
    return _Content(
        "partially_paid",
        Tone.PARTIAL,
        notes,
        {"paid": status.paid_amounts, label: _unpaid_amounts(status)},
        _web_links(back=status.cancel_url),
    )


def _describe_failed(status: BuyerStatus) -> _Content:
    if is_uncharged(status):
        is_cancelled = status.failure_reason == payment_pb2.FAILURE_REASON_CALLER_CANCELLED
        links = _web_links(**{"back" if is_cancelled else "retry": status.cancel_url})
        notes = ["failed.uncharged"] if links else ["failed.uncharged", "failed.next"]
    else:
        links = _web_links(back=status.cancel_url)
        notes = ["failed.uncertain"]
    return _Content(
        FAILURE_WORDS.get(status.failure_reason, "failed.unspecified"),
        Tone.FAILURE,
        notes,
        {"requested": status.requested_amounts},
        links,
    )


_DESCRIPTIONS: Mapping[int, Callable[[BuyerStatus], _Content]] = {
    payment_pb2.PAYMENT_STATE_PAID: _describe_paid,
    payment_pb2.PAYMENT_STATE_PARTIALLY_PAID: _describe_partially_paid,
    payment_pb2.PAYMENT_STATE_FAILED: _describe_failed,
}


def _to_time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _web_links(**urls: str) -> dict[str, str]:
    """The URLs that a browser may open: never one that runs a script."""
    return {name: url for name, url in urls.items() if _WEB_URL.fullmatch(url)}


def _unpaid_amounts(status: BuyerStatus) -> list[BuyerAmount]:
    """What was requested and is not paid, by currency."""
    paid = {item.currency: _minor_units(item) for item in status.paid_amounts}
    rest = {
        item.currency: _minor_units(item) - paid.get(item.currency, 0)
        for item in status.requested_amounts
    }
    return [
        BuyerAmount(amount=format_amount(amount_minor, currency), currency=currency)
        for currency, amount_minor in rest.items()
        if amount_minor
    ]


def _minor_units(item: BuyerAmount) -> int:
    return parse_amount(item.amount, item.currency, min_amount=0, max_amount=MAX_BALANCE)
