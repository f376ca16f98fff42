"""The languages of the status page, and which one a buyer reads."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from babel import Locale
from markupsafe import Markup, escape

from tallystick_server.http.status_page.formats import format_money, format_time

DEFAULT_LANGUAGE = "en"
_FOLDER = Path(__file__).parent / "catalogues"
_MAX_HEADER = 500
_RANGE = re.compile(
    r"(?:([a-z]{2,8})(?:-[a-z0-9]{1,8})*|\*)(?:;q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Language:
    """The words of a language. `tag`: as in the HTML attribute lang. `texts`: by dotted key."""

    tag: str
    texts: Mapping[str, str]

    def text(self, key: str, **values: object) -> Markup:
        """A text as HTML, with its placeholders filled. Raises KeyError."""
        return escape(self.texts[key]).format(**values)

    def money(self, amount: str, currency: str) -> str:
        return format_money(amount, currency, self._locale)

    def time(self, time: datetime) -> Markup:
        return format_time(time, self.texts["time_format"], self._locale)

    @property
    def _locale(self) -> Locale:
        return Locale.parse(self.texts["locale"])


def load_languages() -> Mapping[str, Language]:
    """Every language that has a catalogue, by its tag; the default one first."""
    languages = [
        Language(path.stem, dict(_flatten(tomllib.loads(path.read_text("utf-8")))))
        for path in sorted(_FOLDER.glob("*.toml"))
    ]
    languages.sort(key=lambda language: language.tag != DEFAULT_LANGUAGE)
    return {language.tag: language for language in languages}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, str):
            yield prefix + key, value
        else:
            yield from _flatten(value, f"{prefix}{key}.")


def choose_language(
    languages: Mapping[str, Language], accept_language: str, locale: str = ""
) -> Language:
    """The language of a page. `locale`: what the caller has requested, such as "de-AT", which has
    precedence. What is malformed in the header `accept_language` is ignored.
    """
    requested = locale.partition("-")[0].lower()
    if requested in languages:
        return languages[requested]
    qualities = _read_ranges(accept_language)
    others = qualities.get("*", 0.0)
    # of two with the same quality, the one that is first in the header
    tags = [tag for tag in (*qualities, *languages) if tag in languages]
    best = max(tags, key=lambda tag: qualities.get(tag, others))
    return languages[best if qualities.get(best, others) else DEFAULT_LANGUAGE]


def _read_ranges(header: str) -> dict[str, float]:
    """The quality of each language of the header, in lower case; "*": of all others."""
    qualities: dict[str, float] = {}
    for part in header[:_MAX_HEADER].split(","):
        match = _RANGE.fullmatch(part.replace(" ", "").replace("\t", ""))
        if match is not None:
            tag = (match[1] or "*").lower()
            qualities[tag] = max(qualities.get(tag, 0.0), float(match[2] or 1))
    return qualities
