"""Canonical bytes: one value, one sequence of bytes. Fingerprints and the hash chain are made of them, never of wire bytes."""

from __future__ import annotations

from hashlib import sha256


def canonical(*fields: str | int | bytes) -> bytes:
    """Every field length-prefixed, so that no two different lists of fields give the same bytes."""
    parts = []
    for field in fields:
        raw = field if isinstance(field, bytes) else str(field).encode()
        parts.append(b"%d:%b" % (len(raw), raw))
    return b"".join(parts)


def fingerprint(*fields: str | int | bytes) -> bytes:
    """32 bytes that stand for the fields."""
    return sha256(canonical(*fields)).digest()
