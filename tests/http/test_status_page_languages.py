"""Which language a buyer reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_server.http.status_page.languages import choose_language, load_languages

LANGUAGES = load_languages()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "en"),
        ("de", "de"),
        ("DE-at", "de"),
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("en-US,en;q=0.9,de;q=0.8", "en"),
        ("en;q=0.8,de;q=0.9", "de"),
        ("de,en", "de"),
        ("en,de", "en"),
        ("fr,de;q=0.5", "de"),
        ("fr,it", "en"),
        ("*", "en"),
        ("fr,*;q=0.1", "en"),
        ("de,*", "de"),
        ("en;q=0,*", "de"),
        ("en;q=0,de;q=0", "en"),
        ("de;q=0", "en"),
        ("de;q=0.001", "de"),
        (" de ; q = 1.000 ", "de"),
        ("de\t,en;q=0.5", "de"),
        # malformed parts are ignored
        ("de;q=2,en;q=0.1", "en"),
        ("de;q=-1", "en"),
        ("de;q=0.1234", "en"),
        ("de;q=,en", "en"),
        ("de;level=1", "en"),
        (",,;,q=1,de", "de"),
        ("de-", "en"),
        ("deutsch1", "en"),
        ("../de", "en"),
        ("de\x00", "en"),
        ("ｄｅ", "en"),
        ("x" * 100_000 + ",de", "en"),
        ("fr," * 100_000 + "de", "en"),
    ],
)
def test_the_header_chooses_the_language(header: str, expected: str) -> None:
    assert choose_language(LANGUAGES, header).tag == expected


@pytest.mark.parametrize(
    ("locale", "expected"),
    [("de", "de"), ("de-AT", "de"), ("DE", "de"), ("en-GB", "en"), ("pt-BR", "en"), ("", "en")],
)
def test_the_callers_locale_has_precedence(locale: str, expected: str) -> None:
    """A locale that has no catalogue leaves the choice to the header."""
    assert choose_language(LANGUAGES, "en", locale).tag == expected
    other = {"de": "de"}.get(expected, "en" if locale.startswith("en") else "de")
    assert choose_language(LANGUAGES, "de", locale).tag == other


@given(st.text(max_size=600), st.text(max_size=40))
def test_no_header_fails(header: str, locale: str) -> None:
    assert choose_language(LANGUAGES, header, locale).tag in LANGUAGES


@given(st.lists(st.sampled_from(["de", "en", "fr", "*", ";q=0.5", ";q=x", ",", "-", "q", " "])))
def test_no_likely_header_fails(parts: list[str]) -> None:
    assert choose_language(LANGUAGES, "".join(parts)).tag in LANGUAGES
