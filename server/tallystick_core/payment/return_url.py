"""The URLs to which buyers go back after a page of a provider. Only the origins that are allowed
for a caller are accepted: a URL of any other would make the platform send buyers anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote, unquote_plus

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import reject_card_number

MAX_URL_LENGTH = 2_000
_ORIGIN = (
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
# Printable ASCII of RFC 3986. No user name, which looks like a host, and no backslash, which
# browsers read as a slash.
_URL = re.compile(rf"\A{_ORIGIN}(?:[/?#][A-Za-z0-9._~!$&'()*+,;=:@/?#%\[\]-]*)?\Z", re.ASCII)
_ORIGIN_ONLY = re.compile(rf"\A{_ORIGIN}\Z", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


def parse_origin(text: str) -> str | None:
    """The canonical form of an origin, such as https://shop.example; None: it is none. Without TLS
    it must be of this machine.
    """
    match = _ORIGIN_ONLY.match(text)
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        return None
    if match["scheme"] == "http" and match["host"] not in _LOOPBACK_HOSTS:
        return None
    return _origin_of(match)


def parse_return_url(text: str, field: str) -> str:
    """Parses a URL of any origin. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED."""
    if not text:
        raise ApiError(ErrorReason.FIELD_REQUIRED, f"{field} is required.", field=field)
    match = _URL.match(text) if len(text) <= MAX_URL_LENGTH else None
    if match is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be an absolute URL of at most {MAX_URL_LENGTH} characters, with its "
            "host in small letters, without a user name, and with all but A-Z a-z 0-9 and "
            "-._~:/?#[]@!$&'()*+,;=% percent-encoded.",
            field=field,
        )
    for written in (text, unquote(text), unquote_plus(text)):
        reject_card_number(written, field)
    return text


def reject_origin(url: str, field: str, allowed_origins: Collection[str]) -> ApiError | None:
    """The error of a parsed URL that is of none of these origins."""
    match = _URL.match(url)
    if match is not None and _origin_of(match) in allowed_origins:
        return None
    allowed = ", ".join(sorted(allowed_origins)) or "none is"
    return ApiError(
        ErrorReason.FIELD_INVALID,
        f"{field} must be of an origin that is allowed for the caller: {allowed} (setting "
        "payment.return_origins).",
        field=field,
    )


def _origin_of(match: re.Match[str]) -> str:
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if port is None or port.lstrip("0") == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"
