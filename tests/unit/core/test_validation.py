"""Ids, texts, and card numbers that must not be hidden in them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.card_numbers import (
    contains_card_number,
    has_valid_check_digit,
    is_bank_account_number,
    is_card_number,
)
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import (
    is_id,
    parse_bank_account_token,
    parse_country,
    parse_id,
    parse_text,
    parse_token,
    reject_card_number,
)

# Test numbers that providers publish, of each issuer; none is a real card.
TEST_CARDS = [
    "4242424242424242",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3056930009020004",
    "3566002020360505",
]


def _grouped(separator: str, number: str) -> str:
    return separator.join(number[i : i + 4] for i in range(0, len(number), 4))


@pytest.mark.parametrize("number", TEST_CARDS)
@pytest.mark.parametrize(
    "separator", ["", " ", "-", ".", "\n", " - ", "     ", " ;;; / ", "\u200b", "\u00a0"]
)
def test_card_numbers_are_rejected_in_any_notation(number: str, separator: str) -> None:
    """S1: a card number with spaces, dashes, line breaks or invisible characters is detected."""
    text = f"my card {_grouped(separator, number)} thanks"
    with pytest.raises(ApiError) as error:
        parse_text(text, "buyer_info", 1024)
    assert error.value.reason is ErrorReason.CARD_NUMBER_REJECTED
    assert number not in str(error.value)


@pytest.mark.parametrize(
    "prefix", ["2200", "5000", "5019", "5612", "5812", "6074", "6304", "6759", "8172", "9792"]
)
def test_card_numbers_of_other_issuers_are_rejected(prefix: str) -> None:
    """S1: invented numbers for Mir, Maestro, Dankort, RuPay and Troy."""
    number = next(
        candidate
        for candidate in (f"{prefix}00000000000{last}" for last in range(10))
        if has_valid_check_digit(candidate)
    )
    with pytest.raises(ApiError):
        reject_card_number(number, "buyer_info")


def test_card_numbers_in_other_digits_are_rejected() -> None:
    """S1: full-width, Arabic and circled digits count as digits."""
    for shift in (0xFF10, 0x0660, 0x245F):
        with pytest.raises(ApiError):
            reject_card_number("".join(chr(shift + int(d)) for d in TEST_CARDS[0]), "buyer_info")


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424242",
        "4242-4242-4242-4242",
        "4242_4242_4242_4242",
        "378282246310005",
        "3782-822463-10005",
        "30569309025904",
    ],
)
def test_an_id_that_is_a_card_number_is_rejected(text: str) -> None:
    """S1: an id or token that consists only of a card number is rejected, with or without
    separators.
    """
    for parse in (parse_id, parse_token, parse_bank_account_token):
        with pytest.raises(ApiError) as error:
            parse(text, "field")
        assert error.value.reason is ErrorReason.CARD_NUMBER_REJECTED


@pytest.mark.parametrize(
    "text",
    [
        "4000000000006",  # 13 digits, which no issuer uses any more
        "77f38130-7603-4237-942e-0f98ae997691",
        "shop-4-000-000-000-006",
        "order-4242424242424242",  # not as a whole
        "4242424242424242-1",
        "pi_3PqX4242424242424242abcd",
        "20261128101500",
        "1764316800000000",
        "1795365018658398600",
    ],
)
def test_ids_with_many_digits_pass(text: str) -> None:
    """An id is rejected for its digits only if it is a card number as a whole."""
    assert parse_id(text, "checkout_id") == text


@pytest.mark.parametrize(
    "text",
    [
        "+49 151 87294454",
        "call +4 242 424 242 424 242 please",
        "0049 151 8729 4454",
        "order 77f38130-7603-4237-942e-0f98ae997691 of today",
        "IBAN DE89 3704 0044 0532 0130 00",
        "GB82 WEST 1234 5698 7654 32 and GB33BUKB20201555555555",
        "AE07 0331 2345 6789 0123 456 EUR",
        "2026-11-28T10:15:00.123456Z 1764316800.123456 1764316800000000",
        "ref ch_4242424242424242x, psp 8836042424242424242",
    ],
)
def test_texts_with_other_numbers_pass(text: str) -> None:
    """Phone numbers, UUIDs, IBANs, times and references are not card numbers, though their digits
    may look like one.
    """
    assert parse_text(text, "buyer_info", 1024) == text


@pytest.mark.parametrize(
    "text",
    [
        "exp 12/27, 4242 4242 4242 4242, cvc 123",
        "4242 4242 4242 4242 12/27 123",
        "amex 3782 822463 10005",
        "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
    ],
)
def test_a_card_number_among_other_numbers_is_rejected(text: str) -> None:
    """S1: dates, codes and words next to a card number do not hide it."""
    assert contains_card_number(text)


def _digits(random: Random, count: int) -> str:
    return "".join(random.choices("0123456789", k=count))


def _iban(random: Random, country: str, bban: str) -> str:
    """An IBAN with valid check digits, in groups of four."""
    check = 98 - int("".join(str(int(c, 36)) for c in f"{bban}{country}00")) % 97
    compact = f"{country}{check:02}{bban}"
    return " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))


FALSE_ALARMS: dict[str, Callable[[Random], str]] = {
    "uuid": lambda random: str(UUID(int=random.getrandbits(128), version=4)),
    "phone": lambda random: (
        f"+{random.randint(1, 998)} {_digits(random, 3)} {_digits(random, random.randint(6, 9))}"
    ),
    "national phone": lambda random: (
        f"0{_digits(random, 3)} {_digits(random, 4)} {_digits(random, 4)}"
    ),
    "German IBAN": lambda random: _iban(random, "DE", _digits(random, 18)),
    "British IBAN": lambda random: _iban(random, "GB", f"NWBK{_digits(random, 14)}"),
    "Norwegian IBAN": lambda random: _iban(random, "NO", _digits(random, 11)),
    "Saudi IBAN": lambda random: _iban(random, "SA", _digits(random, 20)),
    "time": lambda random: datetime.fromtimestamp(random.uniform(0, 4e9), UTC).isoformat(),
    "13-digit order": lambda random: _digits(random, 13),
}


@pytest.mark.parametrize("kind", FALSE_ALARMS)
def test_there_are_no_false_alarms(kind: str) -> None:
    """Of 20,000 such numbers none is rejected, in a text or, if it has the form of an id, as
    an id.
    """
    random = Random(kind)
    for sample in (FALSE_ALARMS[kind](random) for _ in range(20_000)):
        assert not contains_card_number(f"for {sample} today"), sample
        assert not (is_id(sample) and is_card_number(sample)), sample


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424241",
        "order 1795365018658398600 of today",
        "2026-11-22 10:15:00.123456",
        "1234567890123456",
    ],
)
def test_other_long_numbers_pass(text: str) -> None:
    """Luhn alone would reject every tenth order number: issuer and length count too."""
    reject_card_number(text, "buyer_info")


@pytest.mark.parametrize(
    "text", ["", "-a", "_a", "a b", "a" * 65, "ä", "a\n", "a/b", "a\0", "'; drop table x--", "１"]
)
def test_invalid_ids_are_rejected(text: str) -> None:
    """An id is 1 to 64 ASCII letters, digits, _ and -, beginning with a letter or digit."""
    with pytest.raises(ApiError) as error:
        parse_id(text, "checkout_id")
    assert error.value.reason in {ErrorReason.FIELD_INVALID, ErrorReason.FIELD_REQUIRED}
    assert error.value.field == "checkout_id"


@given(st.text(max_size=2000))
def test_texts_are_accepted_unchanged_or_rejected(text: str) -> None:
    """A text is returned unchanged, right-to-left marks and emoji included, or is rejected with its
    own reason.
    """
    try:
        assert parse_text(text, "buyer_info", 1024) == text
        assert "\0" not in text
        assert len(text) <= 1024
    except ApiError as error:
        assert error.reason in {ErrorReason.FIELD_INVALID, ErrorReason.CARD_NUMBER_REJECTED}


@pytest.mark.parametrize(
    "text",
    [
        "DE89370400440532013000",
        "de89370400440532013000",
        "GB33BUKB20201555555555",
        "532013000",
        "370400-44532013",
    ],
)
def test_a_bank_account_number_is_no_token(text: str) -> None:
    """An account number in place of the provider's token of a bank account is rejected."""
    assert is_bank_account_number(text)
    with pytest.raises(ApiError) as error:
        parse_bank_account_token(text, "bank_account_token")
    assert (error.value.reason, error.value.field) == (
        ErrorReason.FIELD_INVALID,
        "bank_account_token",
    )
    assert text not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "ba_1MvoVH2eZvKYlo2C",
        "ba_returned",
        "ba_slow:3600",
        "acct_1032D82eZvKYlo2C",
        "DE89370400440532013001",
    ],
)
def test_tokens_of_bank_accounts_pass(text: str) -> None:
    """A token with letters that is not a valid IBAN is accepted."""
    assert parse_bank_account_token(text, "bank_account_token") == text


def test_tokens_and_countries() -> None:
    """A token is visible ASCII; a country is two capitals or empty."""
    assert parse_token("tok_visa:x", "credit_card_info") == "tok_visa:x"
    assert parse_country("", "buyer_country") == ""
    for text in ("", "tok visa", "tök", "t" * 256, TEST_CARDS[0]):
        with pytest.raises(ApiError):
            parse_token(text, "credit_card_info")
    for text in ("gb", "GBR", "G1", "ＧＢ"):
        with pytest.raises(ApiError):
            parse_country(text, "buyer_country")
