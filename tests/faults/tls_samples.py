"""Certificates of every kind, ClientHellos by hand, and OpenSSL's own client and server as programs."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.peers import free_port, listens, wait_until

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = timedelta(days=1)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def _key(kind: str) -> Key:
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Paths of a certificate and of its key, PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of a test; ``pem`` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name, self._key = folder, name, _key("ec")
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name)).issuer_name(_name(name)).public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 400 * DAY).not_valid_after(now + 400 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self.pem = folder / f"{name}.pem"
        self.pem.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        kind: str = "ec",
        usages: Sequence[x509.ObjectIdentifier] = (CLIENT, SERVER),
        days: tuple[int, int] = (-1, 30),
        address: str = "127.0.0.1",
        passphrase: str = "",
    ) -> Pair:
        """A certificate for an address, valid between so many days from now."""
        key, now = _key(kind), datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(name)).issuer_name(self._certificate.subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY).not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        pair = Pair(certificate=self._folder / f"{name}.pem", key=self._folder / f"{name}.key")
        pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
        return pair


# by hand ------------------------------------------------------------------------------------------

VERSIONS = {"SSL 3.0": 0x0300, "TLS 1.0": 0x0301, "TLS 1.1": 0x0302, "TLS 1.2": 0x0303}
AEAD_12 = {0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9}
"""ECDHE with AES-GCM or ChaCha20-Poly1305, over RSA and ECDSA (RFC 5289, RFC 7905)."""
AEAD_13 = {0x1301, 0x1302, 0x1303}
_SIGNALS = {0x00FF, 0x5600}
"""No suites: safe renegotiation, and a version that was fallen back to."""


def every_suite(but: set[int]) -> list[int]:
    """All 65,536 numbers that a cipher suite can have, but some."""
    return [n for n in range(0x10000) if n not in but | _SIGNALS]


def client_hello(version: int, suites: Sequence[int]) -> bytes:
    """A ClientHello up to TLS 1.2 (RFC 5246 7.4.1.2), in as many records as it needs."""
    listed = struct.pack(f">{len(suites)}H", *suites)
    groups, formats = struct.pack(">HHHHH", 10, 6, 4, 23, 29), struct.pack(">HHBB", 11, 2, 1, 0)
    hashes_ = struct.pack(">5H", 0x0401, 0x0501, 0x0601, 0x0403, 0x0804)
    extensions = groups + formats + struct.pack(">HHH", 13, len(hashes_) + 2, len(hashes_)) + hashes_
    body = struct.pack(">H32sB", version, bytes(range(32)), 0) + struct.pack(">H", len(listed)) + listed
    body += b"\1\0" + (struct.pack(">H", len(extensions)) + extensions if version > 0x0300 else b"")
    hello = b"\1" + len(body).to_bytes(3, "big") + body
    pieces = [hello[at : at + 16000] for at in range(0, len(hello), 16000)]
    return b"".join(struct.pack(">BHH", 22, min(version, 0x0301), len(piece)) + piece for piece in pieces)


def chosen(port: int, hello: bytes, timeout_s: float = 30.0) -> tuple[int, int] | None:
    """Version and suite of the ServerHello that answers; None for an alert or a closed connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(hello)
            while len(answer) < 11 + 35 or len(answer) < 46 + answer[43]:
                got = sock.recv(4096)
                if not got:
                    break
                answer += got
                if answer[0] != 22:
                    break
    if answer[:1] != b"\x16" or answer[5:6] != b"\2":
        return None
    at = 5 + 4
    session = answer[at + 34]
    return struct.unpack_from(">H", answer, at)[0], struct.unpack_from(">H", answer, at + 35 + session)[0]


# OpenSSL's programs -------------------------------------------------------------------------------


def every_cipher() -> list[tuple[str, str]]:
    """Names of the cipher suites that this OpenSSL speaks at all, and the version each began with."""
    told = subprocess.run(
        ["openssl", "ciphers", "-v", "ALL:COMPLEMENTOFALL@SECLEVEL=0"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [(line.split()[0], line.split()[1]) for line in told.stdout.splitlines()]


def s_client(port: int, *options: str, say: str = "Q\n") -> str:
    """What OpenSSL's client tells of a handshake, all of it."""
    told = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options],
        input=say, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    return told.stdout + told.stderr


def agreed(told: str) -> str:
    """The suite that OpenSSL's client says was agreed; "" if none was."""
    for line in told.splitlines():
        if line.startswith("New, ") and " Cipher is " in line:
            name = line.rpartition(" Cipher is ")[2].strip()
            return "" if name == "(NONE)" else name
    return ""


@contextmanager
def s_server(pair: Pair, *options: str) -> Iterator[int]:
    """OpenSSL's server with a certificate; its port. It says nothing inside the TLS connection."""
    port = free_port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(pair.certificate),
         "-key", str(pair.key), "-quiet", *options],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: listens(port), 30, "the TLS server listens")
        yield port
    finally:
        process.kill()
        process.communicate()
