"""Certificates that exist only while a test runs, and connections that show which one is served."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509


@dataclass(frozen=True)
class ServerFiles:
    """The files of a server's certificate and key, and of the CA that clients trust. It has the
    names of the settings of a server, for tests of one without the platform.
    """

    folder: Path
    ca: trustme.CA
    listen: str = "127.0.0.1:0"
    tls_terminated_by_proxy: bool = False

    @property
    def certificate_file(self) -> str:
        return str(self.folder / "server.pem")

    @property
    def key_file(self) -> str:
        return str(self.folder / "server.key")

    @property
    def ca_file(self) -> str:
        return str(self.folder / "ca.pem")

    def write(self, leaf: trustme.LeafCert) -> int:
        """Writes a certificate and its key. Returns the serial number."""
        chain = b"".join(certificate.bytes() for certificate in leaf.cert_chain_pems)
        Path(self.certificate_file).write_bytes(chain)
        Path(self.key_file).write_bytes(leaf.private_key_pem.bytes())
        return x509.load_pem_x509_certificates(chain)[0].serial_number

    def renew(self) -> int:
        """Writes a new certificate for 127.0.0.1. Returns its serial number."""
        return self.write(self.ca.issue_cert("127.0.0.1"))


def server_files(folder: Path) -> ServerFiles:
    """The files of a new CA, with a certificate."""
    files = ServerFiles(folder, trustme.CA())
    files.ca.cert_pem.write_to_path(files.ca_file)
    files.renew()
    return files


@contextmanager
def tls_connection(
    address: str,
    *,
    max_version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    protocol: str = "h2",
) -> Iterator[ssl.SSLSocket]:
    """A connection that accepts every certificate, and every version up to `max_version`. Raises
    OSError if the server rejects it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    context.set_ciphers("ALL:@SECLEVEL=0")  # else this client itself rejects old versions
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = max_version
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as tcp_socket,
        context.wrap_socket(tcp_socket) as tls_socket,
    ):
        yield tls_socket


def serial_of(connection: ssl.SSLSocket) -> int:
    """The serial number of the server's certificate."""
    certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def served_serial(address: str, protocol: str = "h2") -> int:
    """The serial number of the certificate that a new connection gets."""
    with tls_connection(address, protocol=protocol) as connection:
        return serial_of(connection)
