"""HTTPS without a certificate bought elsewhere: a certificate authority of this machine alone, and a certificate of the server from it.

Both lie under the data folder. Clients that trust the authority's file trust the server, also after its certificate was renewed.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # some clients refuse longer lives
RENEW_DAYS = 30  # a certificate that ends sooner is made anew when the server starts
_EARLIER = datetime.timedelta(hours=1)  # for clients whose clock is slow


@dataclass(frozen=True)
class Certificate:
    """Files in PEM: what clients trust, and what the server shows and signs with."""

    authority: Path
    chain: Path
    key: Path


def local_names(extra: Iterable[str] = ()) -> list[str]:
    """What this machine is called by its own clients: localhost, its host name, its addresses, and the extra names or addresses."""
    host = socket.gethostname()
    names = ["localhost", "127.0.0.1", "::1", host, f"{host}.local", *extra]
    try:
        names += [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)]
    except OSError:
        pass  # a host whose own name does not resolve is reached by its other names
    return [name for name in dict.fromkeys(names) if name and not _is_unspecified(name)]


def certificate(folder: Path, names: Iterable[str], now: datetime.datetime | None = None) -> Certificate:
    """The server's certificate for names and addresses in a folder; made if it is missing, close to its end or lacks a name.

    Raises ValueError if a file in the folder is not what it should be.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    names = list(names)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = Certificate(folder / "authority.pem", folder / "server.pem", folder / "server-key.pem")
    authority_key = folder / "authority-key.pem"
    try:
        if not _lasts(found.authority, now) or not authority_key.is_file():
            _make_authority(found.authority, authority_key, now)
            found.chain.unlink(missing_ok=True)
        if not _lasts(found.chain, now) or not found.key.is_file() or not set(names) <= _names(_read(found.chain)):
            _make_server(found, authority_key, names, now)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{folder} holds a certificate or key that cannot be used ({error}); remove the folder to make them anew"
        ) from error
    return found


def trust_lines(found: Certificate) -> list[str]:
    """How a person makes clients trust the server."""
    return [
        f"Clients trust this server if they trust {found.authority}:",
        f"  Python, also Google's and OpenAI's clients: export SSL_CERT_FILE={found.authority}",
        f"  curl: curl --cacert {found.authority} ...",
        "  browsers: import the file as an authority for web sites. Keep authority-key.pem beside it to yourself.",
    ]


def _make_authority(path: Path, key_path: Path, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"pollux on {socket.gethostname()}"[:64])])
    made = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_path, key)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _make_server(found: Certificate, authority_key: Path, names: list[str], now: datetime.datetime) -> None:
    authority = _read(found.authority)
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ValueError(f"{authority_key.name} is not the key of {found.authority.name}")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    made = (
        _builder(subject, authority.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write_key(found.key, key)
    found.chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(made: x509.Certificate) -> set[str]:
    alternatives = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*alternatives.get_values_for_type(x509.DNSName), *map(str, alternatives.get_values_for_type(x509.IPAddress))}


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _lasts(path: Path, now: datetime.datetime) -> bool:
    return path.is_file() and _read(path).not_valid_after_utc - now > datetime.timedelta(days=RENEW_DAYS)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Readable by its owner alone from its first moment."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        )


def _is_unspecified(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False
