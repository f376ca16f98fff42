"""Targets: addresses of the platform, in plain text or with TLS."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from pathlib import Path

import grpc

_TLS_SCHEME = "https://"


def split_target(target: str) -> tuple[str, bool]:
    """The address for gRPC, and whether it is reached by TLS. Raises ValueError."""
    if re.fullmatch(rf"{_TLS_SCHEME}[^/?#@\s]+", target):
        return target.removeprefix(_TLS_SCHEME), True
    if re.match(r"https?:", target, re.IGNORECASE):
        raise ValueError("target must be host:port, unix:path, or https://host:port for TLS.")
    return target, False


def load_credentials(targets: Iterable[str], ca_file: str) -> grpc.ChannelCredentials | None:
    """The credentials for targets with TLS; None: no target has it. `ca_file`: PEM file with CA
    certificates; "": the public CAs that gRPC knows.

    Raises ValueError for an invalid target, and for a CA file that cannot be read or has no use.
    """
    if True not in {has_tls for _, has_tls in map(split_target, targets)}:
        if ca_file:
            raise ValueError("target must begin with https:// if ca_file is set.")
        return None
    return grpc.ssl_channel_credentials(_read_certificates(ca_file) if ca_file else None)


def _read_certificates(ca_file: str) -> bytes:
    try:
        content = Path(ca_file).read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode())
    except (ssl.SSLError, UnicodeDecodeError):
        raise ValueError("ca_file must have certificates in PEM.") from None
    except OSError as error:
        raise ValueError(f"ca_file cannot be read: {error.strerror}.") from None
    return content
