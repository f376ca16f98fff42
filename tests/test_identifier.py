"""Ids, texts, and the card numbers that must not hide in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.identifier import _luhn, parse_country, parse_id, parse_text, parse_token, refuse_card_number
from tallystick_core.refusal import Reason, Refused

# Numbers that providers publish for tests, of each issuer; none is anybody's card.
TEST_CARDS = [
    "4242424242424242",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3056930009020004",
    "3566002020360505",
]


def _with(separator: str, number: str) -> str:
    return separator.join(number[i : i + 4] for i in range(0, len(number), 4))


@pytest.mark.parametrize("number", TEST_CARDS)
@pytest.mark.parametrize("separator", ["", " ", "-", ".", "\n", " - ", "     ", " ;;; / ", "\u200b", "\u00a0"])
def test_card_numbers_are_refused_however_written(number: str, separator: str) -> None:
    """S1: spaced, dashed, split by lines or by invisible signs, a card number is seen."""
    text = f"my card {_with(separator, number)} thanks"
    with pytest.raises(Refused) as refused:
        parse_text(text, "buyer_info", 1024)
    assert refused.value.reason is Reason.CARD_NUMBER_REFUSED
    assert number not in str(refused.value)


@pytest.mark.parametrize("prefix", ["2200", "5000", "5019", "5612", "5812", "6074", "6304", "6759", "8172", "9792"])
def test_card_numbers_of_other_issuers_are_refused(prefix: str) -> None:
    """S1: numbers made up for Mir, Maestro, Dankort, RuPay and Troy."""
    number = next(made for made in (f"{prefix}00000000000{last}" for last in range(10)) if _luhn(made))
    with pytest.raises(Refused):
        refuse_card_number(number, "buyer_info")


def test_card_numbers_in_other_digits_are_refused() -> None:
    """S1: full-width, Arabic and circled digits are digits."""
    for shift in (0xFF10, 0x0660, 0x245F):
        with pytest.raises(Refused):
            refuse_card_number("".join(chr(shift + int(d)) for d in TEST_CARDS[0]), "buyer_info")


@pytest.mark.parametrize("text", ["4242424242424241", "order 1795365018658398600 of today", "2026-11-22 10:15:00.123456", "1234567890123456"])
def test_other_long_numbers_pass(text: str) -> None:
    """Luhn alone would refuse every tenth order number: issuer and length count too."""
    refuse_card_number(text, "buyer_info")


@pytest.mark.parametrize("text", ["", "-a", "_a", "a b", "a" * 65, "ä", "a\n", "a/b", "a\0", "'; drop table x--", "１"])
def test_bad_ids_are_refused(text: str) -> None:
    """An id is 1 to 64 ASCII letters, digits, _ and -, beginning with a letter or digit."""
    with pytest.raises(Refused) as refused:
        parse_id(text, "checkout_id")
    assert refused.value.reason in {Reason.FIELD_INVALID, Reason.FIELD_REQUIRED}
    assert refused.value.field == "checkout_id"


@given(st.text(max_size=2000))
def test_texts_are_taken_whole_or_refused(text: str) -> None:
    """A text comes out as it went in, right-to-left marks and emoji included, or is refused by name."""
    try:
        assert parse_text(text, "buyer_info", 1024) == text
        assert "\0" not in text
        assert len(text) <= 1024
    except Refused as refused:
        assert refused.reason in {Reason.FIELD_INVALID, Reason.CARD_NUMBER_REFUSED}


def test_tokens_and_countries() -> None:
    """A token is visible ASCII, a country two capitals or nothing."""
    assert parse_token("tok_visa:x", "credit_card_info") == "tok_visa:x"
    assert parse_country("", "buyer_country") == ""
    for text in ("", "tok visa", "tök", "t" * 256, TEST_CARDS[0]):
        with pytest.raises(Refused):
            parse_token(text, "credit_card_info")
    for text in ("gb", "GBR", "G1", "ＧＢ"):
        with pytest.raises(Refused):
            parse_country(text, "buyer_country")
