"""The targets of clients: which are valid, and that none is plain text by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick import AsyncClient, Client, ClientSettings


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:7070", "https://127.0.0.1:7070/", "https://", "HTTPS://host:7070"],
)
def test_a_target_that_is_no_address_is_a_value_error(
    client_class: type[Client | AsyncClient], target: str
) -> None:
    """Also as the target of one service; gRPC would report it as a name that cannot be resolved."""
    message = r"^target must be host:port, unix:path, or https://host:port for TLS\.$"
    with pytest.raises(ValueError, match=message):
        client_class(target)
    with pytest.raises(ValueError, match=message):
        client_class("127.0.0.1:7070", ledger=target)


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_a_ca_file_needs_a_target_with_tls(
    client_class: type[Client | AsyncClient], tmp_path: Path
) -> None:
    """Who sets a CA expects TLS, so a target without it is an error; so is a file that cannot be
    used.
    """
    path = tmp_path / "ca.pem"
    settings = ClientSettings(ca_file=str(path))
    with pytest.raises(ValueError, match=r"^target must begin with https:// if ca_file is set\.$"):
        client_class("127.0.0.1:7070", settings=settings)
    with pytest.raises(ValueError, match=r"^ca_file cannot be read: No such file or directory\.$"):
        client_class("https://127.0.0.1:7070", settings=settings)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"^ca_file must have certificates in PEM\.$"):
        client_class("https://127.0.0.1:7070", settings=settings)
