"""A certificate authority of the machine's own, and the certificate that the server shows."""

import datetime
import ssl
import stat

import pytest
from cryptography import x509

from pollux.serve import tls

NOW = datetime.datetime.now(datetime.UTC)


def handshake(trusted, shown, name):
    """Both ends of TLS in memory. Raises ssl.SSLError if the client does not trust the server."""
    client_context = ssl.create_default_context(cafile=trusted.authority)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(shown.chain, shown.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass


def serial(path):
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def test_a_client_that_trusts_the_authority_trusts_the_server_under_each_of_its_names(tmp_path):
    found = tls.certificate(tmp_path, ["localhost", "box", "127.0.0.1", "::1"])
    for name in ("localhost", "box", "127.0.0.1", "::1"):
        handshake(found, found, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(found, found, "elsewhere.example")


def test_a_client_that_trusts_another_authority_does_not_trust_the_server(tmp_path):
    ours, other = (tls.certificate(tmp_path / name, ["localhost"]) for name in ("ours", "other"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other, ours, "localhost")


def test_a_certificate_stays_as_long_as_it_lasts_and_has_all_names(tmp_path):
    first = serial(tls.certificate(tmp_path, ["localhost", "box"]).chain)
    assert serial(tls.certificate(tmp_path, ["box"]).chain) == first
    assert serial(tls.certificate(tmp_path, ["localhost", "new"]).chain) != first


def test_a_certificate_close_to_its_end_is_renewed_under_the_same_authority(tmp_path):
    found = tls.certificate(tmp_path, ["localhost"])
    authority = serial(found.authority)
    found.chain.unlink()
    old = serial(tls.certificate(tmp_path, ["localhost"], now=NOW - datetime.timedelta(days=tls.SERVER_DAYS - tls.RENEW_DAYS + 1)).chain)
    tls.certificate(tmp_path, ["localhost"], now=NOW)
    assert serial(found.chain) != old and serial(found.authority) == authority
    handshake(found, found, "localhost")
    tls.certificate(tmp_path, ["localhost"], now=NOW + datetime.timedelta(days=tls.AUTHORITY_DAYS))
    assert serial(found.authority) != authority


def test_keys_are_for_their_owner_alone(tmp_path):
    found = tls.certificate(tmp_path / "tls", ["localhost"])
    for key in (found.key, tmp_path / "tls" / "authority-key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["authority.pem", "authority-key.pem", "server.pem"])
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, name):
    tls.certificate(tmp_path, ["localhost"])
    (tmp_path / name).write_text("no certificate")
    with pytest.raises(ValueError, match="remove the folder"):
        tls.certificate(tmp_path, ["localhost", "new"])


def test_this_machine_has_its_usual_names_and_no_address_of_all():
    names = tls.local_names(["0.0.0.0", "::", "box.example"])
    assert {"localhost", "127.0.0.1", "::1", "box.example"} <= set(names) and not {"0.0.0.0", "::"} & set(names)
