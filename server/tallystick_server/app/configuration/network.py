"""The rules about connections with other machines: where authentication and TLS are required."""

from __future__ import annotations

import ipaddress
from typing import Protocol

from tallystick_server.app.configuration.errors import Origins
from tallystick_server.app.configuration.settings import Settings

TLS_SCHEME = "https://"
"""An address that begins with it is reached by TLS."""


class ListenerSettings(Protocol):
    """The settings that each server's section has."""

    @property
    def listen(self) -> str: ...
    @property
    def certificate_file(self) -> str: ...
    @property
    def key_file(self) -> str: ...
    @property
    def tls_terminated_by_proxy(self) -> bool: ...


def is_loopback(address: str) -> bool:
    """Whether the address is reachable from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_network(settings: Settings, origins: Origins) -> list[str]:
    """A line for each setting that would expose plain text, or a server without authentication."""
    listeners = {"server": settings.server.listen, "http": settings.http.listen}
    lines = [
        f"{origins.name((section, 'listen'))} must be a loopback address while authentication is "
        "none."
        for section, address in listeners.items()
        if settings.authentication == "none" and address and not is_loopback(address)
    ]
    lines += _check_listener("server", settings.server, origins)
    lines += _check_listener("http", settings.http, origins)
    lines += _check_service_addresses(settings, origins)
    lines += _check_return_origins(settings, origins)
    metrics = settings.metrics
    if metrics.listen and not is_loopback(metrics.listen) and not metrics.allow_remote:
        lines.append(
            f"{origins.name(('metrics', 'listen'))} must be a loopback address while "
            "metrics.allow_remote is false: it has no TLS and no authentication."
        )
    return lines


def _check_listener(section: str, listener: ListenerSettings, origins: Origins) -> list[str]:
    """`section`: the name of the server's section. An empty `listen` is no listener."""
    for name, other in (("certificate_file", "key_file"), ("key_file", "certificate_file")):
        if getattr(listener, name) and not getattr(listener, other):
            return [f"{origins.name((section, other))} must be set while {section}.{name} is set."]
    is_encrypted = listener.certificate_file or listener.tls_terminated_by_proxy
    if is_encrypted or not listener.listen or is_loopback(listener.listen):
        return []
    line = (
        f"{origins.name((section, 'listen'))} must be a loopback address while it is plain text. "
        f"Set {section}.certificate_file and {section}.key_file for TLS, or "
        f"{section}.tls_terminated_by_proxy = true if a proxy terminates TLS in front of it."
    )
    return [line]


def _check_return_origins(settings: Settings, origins: Origins) -> list[str]:
    """Buyers are sent back to a URL that they reach, for callers that exist."""
    name = origins.name(("payment", "return_origins"))
    lines = []
    if settings.authentication == "tokens":
        callers = {caller.name for caller in settings.callers.values()}
        lines += [
            f"{name} must have only the names of callers as keys."
            for caller in settings.payment.return_origins
            if caller not in callers
        ][:1]
    http = settings.http
    if settings.payment.return_origins and not http.public_url and not is_loopback(http.listen):
        lines.append(
            f"{origins.name(('http', 'public_url'))} must be set while payment.return_origins is, "
            "because http.listen is no loopback address: buyers of hosted pages are sent there."
        )
    return lines


def _check_service_addresses(settings: Settings, origins: Origins) -> list[str]:
    if settings.service_tls_originated_by_proxy:
        return []
    return [
        f"{origins.name_below(('service_addresses',), service)} must begin with {TLS_SCHEME} or be "
        "a loopback address while service_tls_originated_by_proxy is false."
        for service, address in settings.service_addresses.items()
        if not address.startswith(TLS_SCHEME) and not is_loopback(address)
    ]
