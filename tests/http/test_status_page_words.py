"""What the status page shows of a payment: in each state, in each language, of any content."""

from __future__ import annotations

import re
from itertools import product
from string import Formatter

import pytest
from markupsafe import Markup

from tallystick.payment.v1.payment_pb2 import (
    BuyerAmount,
    BuyerStatus,
    FailureReason,
    PaymentState,
    PendingReason,
)
from tallystick_core.currencies import EXPONENTS
from tallystick_server.http.status_page.languages import Language, load_languages
from tallystick_server.http.status_page.view import (
    View,
    not_found_view,
    payment_view,
    unavailable_view,
)
from tallystick_server.http.status_page.words import FAILURE_WORDS, PENDING_WORDS
from tests.support.platform import ROOT
from tests.support.status_page import RESOLVE_BY_TIME, buyer_status

LANGUAGES = load_languages()
ENGLISH, GERMAN = LANGUAGES["en"], LANGUAGES["de"]
OPEN, PAID, PARTIALLY_PAID, FAILED = (
    PaymentState.PAYMENT_STATE_OPEN,
    PaymentState.PAYMENT_STATE_PAID,
    PaymentState.PAYMENT_STATE_PARTIALLY_PAID,
    PaymentState.PAYMENT_STATE_FAILED,
)
BUYER_ACTION = PendingReason.PENDING_REASON_BUYER_ACTION
MISMATCH = FailureReason.FAILURE_REASON_PROVIDER_MISMATCH
CLOSED = FailureReason.FAILURE_REASON_CLOSED_BY_OPERATOR
UNKNOWN_VALUE = 99
_TITLES_OF_AN_END = {
    language.texts[key]
    for language in LANGUAGES.values()
    for key in language.texts
    if re.fullmatch(r"(paid|partially_paid|failed\..*)\.title", key)
}


def euros(amount: str) -> BuyerAmount:
    return BuyerAmount(amount=amount, currency="EUR")


def text_of(view: View) -> str:
    """The paragraphs as a buyer reads them."""
    return " ".join(paragraph.striptags() for paragraph in view.paragraphs)


def shown_amounts(view: View) -> dict[str, list[str]]:
    return {str(row.label): list(row.amounts) for row in view.amounts}


def shown_links(view: View) -> list[tuple[str, str]]:
    return [(str(link.label), link.url) for link in view.links]


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=list(LANGUAGES))
def test_every_combination_has_words(language: Language) -> None:
    """Every state with every reason, with and without links and times, also of values that a newer
    service may send: a title, a text, and a page that refreshes exactly while it is open.
    """
    combinations = product(
        [*PaymentState.values(), UNKNOWN_VALUE],
        [*PendingReason.values(), UNKNOWN_VALUE],
        [*FailureReason.values(), UNKNOWN_VALUE],
        ["https://shop.example/", ""],
        [RESOLVE_BY_TIME, None],
    )
    for state, pending, failure, url, time in combinations:
        status = buyer_status(
            state,  # type: ignore[arg-type]
            pending_reason=pending,
            failure_reason=failure,
            next_action_url=url,
            success_url=url,
            cancel_url=url,
            resolve_by_time=time,
            paid_amounts=[euros("9.90")],
        )
        view = payment_view(status, language)
        assert view.title
        assert all(view.paragraphs)
        assert view.amounts
        assert view.refreshes == (str(view.title) not in _TITLES_OF_AN_END)
        assert view.refreshes == (state not in {PAID, PARTIALLY_PAID, FAILED})
        assert bool(view.links) <= bool(url)


def test_every_value_of_the_contract_has_its_words() -> None:
    """A new reason does not fall back to the general words unnoticed."""
    assert set(FAILURE_WORDS) == set(FailureReason.values())
    assert set(PENDING_WORDS) == set(PendingReason.values())


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=list(LANGUAGES))
def test_the_catalogues_have_the_same_texts(language: Language) -> None:
    """The same keys with the same placeholders; no text is empty, or is the English one."""

    def placeholders(text: str) -> set[str | None]:
        return {name for _, name, _, _ in Formatter().parse(text)} - {None}

    assert list(language.texts) == list(ENGLISH.texts)
    for key, english in ENGLISH.texts.items():
        text = language.texts[key]
        assert placeholders(text) == placeholders(english), key
        assert text.strip(), key
        is_same = text == english and key != "time_format"
        assert not is_same or language is ENGLISH, key


def test_every_catalogue_is_a_language() -> None:
    """English is the first: it is the language of a buyer whose languages are unknown."""
    folder = ROOT / "server/tallystick_server/http/status_page/catalogues"
    others = sorted({path.stem for path in folder.iterdir()} - {"en"})
    assert list(LANGUAGES) == ["en", *others]


def test_every_text_is_used() -> None:
    """Each section of the catalogue is that of a state, or is named in the code."""
    sections = {key.rpartition(".")[0] for key in ENGLISH.texts} - {""}
    used = set(FAILURE_WORDS.values()) | set(PENDING_WORDS.values())
    others = {
        "page", "links", "amounts", "failed", "paid", "partially_paid", "buyer_confirmation",
        "not_found", "unavailable",
    }  # fmt: skip
    assert sections == used | others


@pytest.mark.parametrize(
    ("language", "title", "text", "amounts", "links"),
    [
        (
            ENGLISH,
            "Your payment is not finished yet",
            "Continue to the payment page to finish it. If you have just paid, please wait: this "
            "page updates by itself, and you cannot pay twice there. You can pay until "
            "30 November 2026, 17:00 UTC. After that, the payment is cancelled.",
            {"Amount to pay": ["€129.90"]},
            ["Continue to payment", "Back to the shop"],
        ),
        (
            GERMAN,
            "Ihre Zahlung ist noch nicht abgeschlossen",
            "Bitte schließen Sie sie auf der Zahlungsseite ab. Wenn Sie gerade bezahlt haben, "
            "warten Sie bitte: Diese Seite aktualisiert sich von selbst, und Sie können dort nicht "
            "zweimal bezahlen. Sie können bis "
            "30. November 2026, 17:00 UTC bezahlen. Danach wird die Zahlung abgebrochen.",
            {"Zu zahlen": ["129,90\u00a0€"]},
            ["Weiter zur Zahlung", "Zurück zum Shop"],
        ),
    ],
    ids=["en", "de"],
)
def test_a_buyer_who_must_act_sees_where_and_until_when(
    language: Language, title: str, text: str, amounts: dict[str, list[str]], links: list[str]
) -> None:
    status = buyer_status(
        OPEN,
        pending_reason=BUYER_ACTION,
        next_action_url="https://pay.example/page",
        resolve_by_time=RESOLVE_BY_TIME,
    )
    view = payment_view(status, language)
    assert (view.title, text_of(view)) == (title, text)
    assert shown_amounts(view) == amounts
    urls = ["https://pay.example/page", "https://shop.example/cart"]
    assert shown_links(view) == list(zip(links, urls, strict=True))
    assert '<time datetime="2026-11-30T17:00:05Z">' in view.paragraphs[1]


def test_a_buyer_who_must_act_elsewhere_sees_that() -> None:
    """Without a URL there is no link to it, and the words do not point to one."""
    view = payment_view(buyer_status(OPEN, pending_reason=BUYER_ACTION), ENGLISH)
    assert view.title == "Please confirm your payment"
    assert [link.name for link in view.links] == ["back"]


@pytest.mark.parametrize(
    ("pending", "title", "words"),
    [
        (
            PendingReason.PENDING_REASON_UNSPECIFIED,
            "Your payment is being processed",
            "please do not pay again",
        ),
        (
            PendingReason.PENDING_REASON_PROVIDER_REVIEW,
            "Your payment is being reviewed",
            "some hours, or a few days",
        ),
        (
            PendingReason.PENDING_REASON_RISK_REVIEW,
            "Your payment is being checked",
            "You are charged only after it",
        ),
    ],
)
def test_a_buyer_who_waits_has_nothing_to_do(
    pending: PendingReason.ValueType, title: str, words: str
) -> None:
    """No link leads away: a buyer who returns to the shop might pay twice."""
    view = payment_view(buyer_status(OPEN, pending_reason=pending), ENGLISH)
    assert view.title == title
    assert words in text_of(view)
    assert "open the same link later" in text_of(view)
    assert shown_amounts(view) == {"Amount": ["€129.90"]}
    assert shown_links(view) == []


def test_a_paid_payment_shows_what_was_paid() -> None:
    """One amount for each currency, and the shop's page to continue with."""
    paid = [
        euros("129.90"),
        BuyerAmount(amount="0.00100000", currency="BTC"),
        BuyerAmount(amount="12.500000", currency="USDC"),
    ]
    view = payment_view(buyer_status(PAID, paid_amounts=paid), ENGLISH)
    assert shown_amounts(view) == {
        "Paid": ["€129.90", "BTC\u00a00.00100000", "USDC\u00a012.500000"]
    }
    assert shown_links(view) == [("Continue", "https://shop.example/thanks")]
    view = payment_view(buyer_status(PAID, paid_amounts=paid, success_url=""), ENGLISH)
    assert "You can close this page" in text_of(view)


def test_a_partly_paid_payment_shows_both_parts() -> None:
    """What was paid, and what was not, by currency; a currency that is paid has no rest."""
    yen = BuyerAmount(amount="500", currency="JPY")
    status = buyer_status(
        PARTIALLY_PAID,
        failure_reason=FailureReason.FAILURE_REASON_INSUFFICIENT_FUNDS,
        requested_amounts=[euros("129.90"), yen],
        paid_amounts=[euros("29.95"), yen],
    )
    view = payment_view(status, ENGLISH)
    assert shown_amounts(view) == {"Paid": ["€29.95", "JP¥500"], "Not charged": ["€99.95"]}
    assert "not enough money" in text_of(view)
    assert shown_links(view) == [("Back to the shop", "https://shop.example/cart")]


def test_nothing_was_charged_is_written_only_where_it_is_certain() -> None:
    """A provider that took another amount has taken money. Of different reasons, one may be that.
    Nobody is asked to pay again then.
    """
    for reason in (*FailureReason.values(), UNKNOWN_VALUE):
        is_uncertain = reason in {0, MISMATCH, CLOSED, UNKNOWN_VALUE}
        failed = payment_view(buyer_status(FAILED, failure_reason=reason), ENGLISH)
        assert ("You have not been charged." in text_of(failed)) is not is_uncertain
        assert ("please contact the shop" in text_of(failed)) is is_uncertain
        leads_back = is_uncertain or reason == FailureReason.FAILURE_REASON_CALLER_CANCELLED
        assert [link.name for link in failed.links] == ["back" if leads_back else "retry"]
        partly = payment_view(buyer_status(PARTIALLY_PAID, failure_reason=reason), ENGLISH)
        label = "Not completed" if is_uncertain else "Not charged"
        assert list(shown_amounts(partly)) == [label]
        assert ("please contact the shop" in text_of(partly)) is is_uncertain


def test_money_that_fits_no_order_is_no_certainty() -> None:
    """The provider took money late or twice: the page does not say that nothing was charged."""
    status = buyer_status(
        FAILED,
        failure_reason=FailureReason.FAILURE_REASON_PAGE_EXPIRED,
        has_unapplied_charge=True,
    )
    text = text_of(payment_view(status, ENGLISH))
    assert "You have not been charged." not in text
    assert "please contact the shop" in text


def test_reasons_of_risk_rules_look_alike() -> None:
    """The page does not say which rule rejected the payment, nor that it was a rule."""
    names = [name for name in FailureReason.keys() if name.startswith("FAILURE_REASON_RISK_")]
    assert len(names) == 5
    views = [
        payment_view(buyer_status(FAILED, failure_reason=FailureReason.Value(name)), ENGLISH)
        for name in names
    ]
    assert len({(view.title, text_of(view)) for view in views}) == 1


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=list(LANGUAGES))
def test_every_currency_is_shown_with_its_decimals(language: Language) -> None:
    """As many digits as the amount has: Babel's number of decimals is wrong for some."""
    for currency, exponent in EXPONENTS.items():
        fraction = "." + "9" * exponent if exponent else ""
        text = language.money(f"1234567{fraction}", currency)
        assert re.sub(r"[^0-9]", "", text) == "1234567" + "9" * exponent, (currency, text)
        assert not re.search(r"[A-Za-z][0-9]", text), text


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt://x/%0aalert(1)",
        "java\nscript:alert(1)",
        " javascript:alert(1)",
        "\x01javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "//shop.example/",
        "/p/other",
        "https:shop.example",
        "http://",
        'https://shop.example/" onclick="alert(1)',
        "https://shop.example/a b",
        "https:\\\\shop.example",
        "ftp://shop.example/",
    ],
)
def test_only_web_urls_become_links(url: str) -> None:
    for state in (OPEN, PAID, PARTIALLY_PAID, FAILED):
        status = buyer_status(
            state,
            pending_reason=BUYER_ACTION,
            next_action_url=url,
            success_url=url,
            cancel_url=url,
        )
        assert shown_links(payment_view(status, ENGLISH)) == []


def test_pages_without_a_payment_have_words() -> None:
    for language in LANGUAGES.values():
        assert not not_found_view(language).refreshes
        assert unavailable_view(language).refreshes
        assert not_found_view(language).title != unavailable_view(language).title


def test_texts_are_escaped() -> None:
    """What a placeholder is filled with is text, unless it is an element of our own."""
    assert ENGLISH.text("page.updated", time="<b>") == "Last change: &lt;b&gt;"
    assert "<b>" in ENGLISH.text("page.updated", time=Markup("<b>"))
    assert Language("en", {"key": "Fish & <chips>"}).text("key") == "Fish &amp; &lt;chips&gt;"


def test_a_status_shows_no_ids() -> None:
    """The message has no field for ids, accounts or personal data."""
    assert set(BuyerStatus.DESCRIPTOR.fields_by_name) == {
        "payment_state", "pending_reason", "failure_reason", "next_action_url", "resolve_by_time",
        "requested_amounts", "paid_amounts", "success_url", "cancel_url", "update_time", "version",
        "locale",
        "has_unapplied_charge",
    }  # fmt: skip
