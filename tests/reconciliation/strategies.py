"""Generated values of statements."""

from __future__ import annotations

from datetime import UTC, date, datetime

from hypothesis import strategies as st

currencies = st.sampled_from(["EUR", "USD", "JPY", "KWD", "BTC"])
amounts = st.integers(-(10**12), 10**12)
unsigned_amounts = st.integers(0, 10**12)
days = st.dates(date(1970, 1, 1), date(2099, 12, 31))
seconds = st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")
texts = st.text(_characters, max_size=20)
required_texts = st.text(_characters, min_size=1, max_size=20)
