"""What may be stored of a span: nothing that can hold personal data."""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_SPANS_OF_TRACE = 2_000
ALLOWED_ATTRIBUTES = frozenset(
    {
        "batch.size",
        "code.function.name",
        "db.namespace",
        "db.operation.name",
        "db.system.name",
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "rpc.method",
        "rpc.response.status_code",
        "rpc.system.name",
        "tallystick.outcome",
    }
)
"""The attributes with few values, known before. All others are left out."""
OTHER = "_OTHER"
_NAME = re.compile(r"[A-Za-z0-9_./{}<>:* -]{1,200}", re.ASCII)
_DIGIT = re.compile(r"[0-9]", re.ASCII)
_MAX_DIGITS = 6
"""Numbers of cards, accounts, telephones and customers have more."""


def safe_name(text: str) -> str:
    """The name of a span or a process, or _OTHER if it has a form that names do not have, or
    more digits than a name has.
    """
    is_name = _NAME.fullmatch(text) and len(_DIGIT.findall(text)) <= _MAX_DIGITS
    return text if is_name else OTHER


def safe_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes that cannot hold personal data."""
    return {
        name: safe_name(attributes[name])
        for name in sorted(attributes.keys() & ALLOWED_ATTRIBUTES)
        if attributes[name]
    }
