"""Canonical bytes: equal values have equal bytes. Fingerprints and the hash chain are computed from
them, never from wire bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEX_TO_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def encode_canonical(*fields: str | int) -> bytes:
    """Encodes each field with its length in bytes as prefix, so that different lists of fields
    never give the same bytes.
    """
    texts = [*map(str, fields)]
    whole = "".join([f"{len(text)}:{text}" for text in texts])
    if whole.isascii():
        return whole.encode()
    return b"".join(b"%d:%b" % (len(raw), raw) for raw in map(str.encode, texts))


def fingerprint(*fields: str | int) -> bytes:
    """32 bytes that identify the fields."""
    return sha256(encode_canonical(*fields)).digest()


def digest_text(*fields: str | int) -> str:
    """32 letters that identify the fields, for use in ids. There are no digits, which could look
    like a card number by chance.
    """
    return fingerprint(*fields).hex()[:32].translate(_HEX_TO_LETTERS)


def to_microseconds(time: datetime | None) -> int | str:
    """Exact microseconds since 1970 UTC; "" for None."""
    if time is None:
        return ""
    delta = time - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
