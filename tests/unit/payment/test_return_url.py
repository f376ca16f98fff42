"""Return URLs: only those of allowed origins, in a form that every browser reads the same way."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payment.return_url import (
    MAX_URL_LENGTH,
    parse_origin,
    parse_return_url,
    reject_origin,
)

SHOP = "https://shop.example"
ALLOWED = frozenset({SHOP, "https://shop.example:8443", "http://127.0.0.1:7100"})

OPEN_REDIRECTS = [
    "//evil.example",
    "///evil.example",
    "////evil.example/..",
    "/\\evil.example",
    "\\\\evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https:///evil.example",
    "https:\\\\evil.example",
    "https://evil.example",
    "https://evil.example/https://shop.example",
    "https://evil.example?https://shop.example",
    "https://evil.example#https://shop.example",
    "https://evil.example\\@shop.example",
    "https://shop.example\\@evil.example",
    "https://shop.example\\.evil.example",
    "https://shop.example@evil.example",
    "https://shop.example:443@evil.example",
    "https://shop.example%40evil.example",
    "https://shop.example%2eevil.example",
    "https://shop.example.evil.example",
    "https://shop.example.",
    "https://evilshop.example",
    "https://shop.example:8080",
    "https://shop.example:99999/",
    "https://shop.example:0443443",
    "https://shop.example:",
    "https://shop.example:port/",
    "https://user@shop.example",
    "https://:secret@shop.example",
    "http://shop.example",
    "HTTPS://shop.example",
    "https://SHOP.example",
    "https://shop.example\t.evil.example",
    "https://shop.example\n",
    "\nhttps://shop.example",
    " https://shop.example",
    "https://shop.example /",
    "https://shop.example/\r\nLocation: https://evil.example",
    "https://shop.example/\x00",
    "https://shop.example/<script>",
    'https://shop.example/"onload=',
    "https://shop.example/`",
    "https://shop.exаmple",  # a Cyrillic letter
    "https://ｓhop.example",
    "https://shop。example",
    "https://xn--shp-example",
    "https://[::1]",
    "https://[shop.example]",
    "https://shop.example;evil.example",
    "https://shop.example,evil.example",
    "https://shop.example|evil.example",
    "https://shop.example^evil.example",
    "ftp://shop.example",
    "javascript:alert(1)",
    "javascript://shop.example/%0aalert(1)",
    "java\nscript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    "file:///etc/passwd",
    "blob:https://shop.example/1",
    "about:blank",
    "shop.example",
    "/thanks",
    "?next=https://shop.example",
    "https://",
    "http://127.0.0.1",
    "http://127.0.0.1:7101",
    "http://localhost:7100",
    "http://0x7f000001:7100",
    "http://2130706433:7100",
    "https://shop.example/" + "a" * MAX_URL_LENGTH,
]


def error_of(text: str) -> ApiError:
    """The error of a URL that must be rejected."""
    try:
        parsed = parse_return_url(text, "success_url")
    except ApiError as error:
        return error
    rejection = reject_origin(parsed, "success_url", ALLOWED)
    assert rejection is not None, f"{text!r} is accepted"
    return rejection


@pytest.mark.parametrize("text", OPEN_REDIRECTS)
def test_no_url_leads_elsewhere(text: str) -> None:
    """Each known trick to leave the shop is rejected, with the field in the error."""
    error = error_of(text)
    assert error.reason is ErrorReason.FIELD_INVALID
    assert error.field == "success_url"
    assert error.message.startswith("success_url must be")


@pytest.mark.parametrize(
    "text",
    [
        SHOP,
        f"{SHOP}/",
        f"{SHOP}:443/thanks",
        f"{SHOP}:8443/thanks?order=7&next=https://evil.example/",
        f"{SHOP}/a/../b;c=1?x=%2F#/orders/7",
        f"{SHOP}?order=7",
        "http://127.0.0.1:7100/thanks",
    ],
)
def test_urls_of_the_shop_are_accepted(text: str) -> None:
    assert parse_return_url(text, "success_url") == text
    assert reject_origin(text, "success_url", ALLOWED) is None


def test_the_error_names_the_allowed_origins() -> None:
    assert error_of("https://evil.example").message == (
        "success_url must be of an origin that is allowed for the caller: "
        "http://127.0.0.1:7100, https://shop.example, https://shop.example:8443 (setting "
        "payment.return_origins)."
    )


def test_an_empty_url_and_a_card_number_have_errors_of_their_own() -> None:
    with pytest.raises(ApiError) as error:
        parse_return_url("", "cancel_url")
    assert error.value.reason is ErrorReason.FIELD_REQUIRED
    with pytest.raises(ApiError) as error:
        parse_return_url(f"{SHOP}/?card=4242-4242-4242-4242", "cancel_url")
    assert error.value.reason is ErrorReason.CARD_NUMBER_REJECTED


@given(
    st.text(alphabet=st.sampled_from("htps:/\\@.#?&%[]0123456789aeilmnoprsvx-\t\n "), max_size=60)
)
def test_what_is_accepted_has_an_allowed_origin_for_another_parser_too(tail: str) -> None:
    """Property: whatever follows the shop's origin, an accepted URL has the shop's host, also as
    the standard library reads it.
    """
    for text in (SHOP + tail, tail + SHOP, f"https://{tail}"):
        try:
            parsed = parse_return_url(text, "success_url")
        except ApiError:
            continue
        if reject_origin(parsed, "success_url", ALLOWED) is None:
            parts = urlsplit(parsed)
            assert (parts.scheme, parts.hostname) in (
                ("https", "shop.example"),
                ("http", "127.0.0.1"),
            )
            assert parts.username is None


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example:443", "https://shop.example"),
        ("https://shop.example:8443", "https://shop.example:8443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://shop.example/", None),
        ("http://shop.example", None),
        ("shop.example", None),
        ("https://*.example", None),
        ("", None),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(text: str, origin: str | None) -> None:
    assert parse_origin(text) == origin
