"""What may be fetched for a request: public addresses only, whatever the URL calls them and wherever it leads.

Servers on 127.0.0.2 stand for the open internet, 127.0.0.1 for the server's own machine; Linux answers on both.
"""

import contextlib
import http.server
import ipaddress
import socket
import threading
import time

import pytest

from pollux.serve.fetch import Fetched, FetchError, FetchLimits, fetch, is_public

PUBLIC = "127.0.0.2"


def only_public(address):
    return str(address) == PUBLIC


@contextlib.contextmanager
def answering(host, answer):
    """A server whose GET calls answer(handler); yields its address and the paths it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *arguments):
            pass

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://{host}:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def send(body, kind="image/png", **headers):
    def answer(handler):
        handler.send_response(200)
        for name, value in {"Content_Type": kind, "Content_Length": len(body), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def redirect(url):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.end_headers()

    return answer


def test_a_file_comes_with_its_charset():
    with answering(PUBLIC, send(b"text", "text/html; q=1; charset=KOI8-R")) as (address, _):
        assert fetch(address, allowed=only_public).charset == "koi8-r"


def test_a_file_comes_with_its_type():
    with answering(PUBLIC, send(b"pixels", "Image/PNG; q=1")) as (address, asked):
        assert fetch(f"{address}/a.png?x=1", allowed=only_public) == Fetched(b"pixels", "image/png", f"{address}/a.png?x=1")
    assert asked == ["/a.png?x=1"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200"),
        *("224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.0.192", "198.18.0.1", "168.63.129.16"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:a00:1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::"),
        *("fe80::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:0:7f00:1::", "2001:db8::1"),
    ],
)
def test_no_address_of_an_inner_network_is_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"],
)
def test_this_machine_is_not_fetched_from_however_it_is_written(host):
    with answering("127.0.0.1", send(b"secret")) as (address, asked):
        with pytest.raises(FetchError, match="may not be fetched|no host of this name"):
            fetch(f"http://{host}:{address.rpartition(':')[2]}/")
    assert asked == []


def resolving(monkeypatch, *answers):
    """Names resolve to one answer after the other, each a list of addresses."""
    left = list(answers)

    def getaddrinfo(host, port, *arguments, **keywords):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return left


def test_a_name_that_resolves_to_this_machine_is_not_fetched_from(monkeypatch):
    resolving(monkeypatch, ["127.0.0.1"])
    with answering("127.0.0.1", send(b"secret")) as (address, asked), pytest.raises(FetchError, match="may not be fetched"):
        fetch(f"http://innocent.example:{address.rpartition(':')[2]}/", allowed=only_public)
    assert asked == []


def test_one_inner_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    resolving(monkeypatch, [PUBLIC, "127.0.0.1"])
    with answering(PUBLIC, send(b"pixels")) as (address, asked), pytest.raises(FetchError, match="may not be fetched"):
        fetch(f"http://both.example:{address.rpartition(':')[2]}/", allowed=only_public)
    assert asked == []


def test_a_name_that_changes_its_address_is_asked_for_only_once(monkeypatch):
    with answering(PUBLIC, send(b"pixels")) as (address, _), answering("127.0.0.1", send(b"secret")) as (_, asked):
        left = resolving(monkeypatch, [PUBLIC], ["127.0.0.1"])
        assert fetch(f"http://rebinding.example:{address.rpartition(':')[2]}/", allowed=only_public).data == b"pixels"
    assert len(left) == 1 and asked == []


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/", "http://2130706433:{port}/", "//127.0.0.1:{port}/", "file:///etc/passwd", "gopher://127.0.0.1/"]
)
def test_a_redirect_leads_nowhere_that_the_url_may_not(target):
    with answering("127.0.0.1", send(b"secret")) as (inner, asked):
        with answering(PUBLIC, redirect(target.format(port=inner.rpartition(":")[2]))) as (address, _):
            with pytest.raises(FetchError, match="may not be fetched|must begin with http"):
                fetch(address, allowed=only_public)
    assert asked == []


def test_redirects_are_followed_and_counted():
    with answering(PUBLIC, send(b"pixels")) as (end, _), answering(PUBLIC, redirect(f"{end}/there")) as (start, _):
        assert fetch(start, allowed=only_public).url == f"{end}/there"
    with answering(PUBLIC, redirect("/again")) as (address, asked), pytest.raises(FetchError, match="more than 3 redirects"):
        fetch(address, FetchLimits(redirects=3), only_public)
    assert len(asked) == 4


@pytest.mark.parametrize("headers", [{}, {"Content_Length": 10**9}])
def test_a_large_file_is_broken_off(headers):
    with answering(PUBLIC, send(b"x" * 5000, **headers)) as (address, _), pytest.raises(FetchError, match="larger than the limit of 4000"):
        fetch(address, FetchLimits(max_bytes=4000), only_public)


def test_a_file_that_does_not_come_in_time_is_broken_off():
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:  # each byte is quick, all together never end
                handler.wfile.write(b"x")
                time.sleep(0.02)

    with answering(PUBLIC, drip) as (address, _), pytest.raises(FetchError, match="longer than the limit of 0.2 seconds"):
        fetch(address, FetchLimits(seconds=0.2), only_public)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (send(b"short", Content_Length=100), "broke off"),
        (redirect(""), "status 302"),
        (redirect("http://[broken/"), "moved to what is not a URL"),
        (send(b"xx", Content_Encoding="gzip"), "compressed"),
        (lambda handler: handler.send_error(404), "status 404"),
        (lambda handler: handler.wfile.write(b"no http\r\n\r\n"), "cannot be fetched"),
    ],
)
def test_an_answer_that_is_no_file_is_an_error(answer, message):
    with answering(PUBLIC, answer) as (address, _), pytest.raises(FetchError, match=message):
        fetch(address, allowed=only_public)


@pytest.mark.parametrize(
    "url", ["ftp://a.example/", "http://", "http://user:word@a.example/", "http://a.example:99999/", "http://[::1/", "a.png"]
)
def test_a_url_that_is_none_is_an_error(url):
    with pytest.raises(FetchError):
        fetch(url, allowed=only_public)


def test_letters_of_other_alphabets_may_stand_in_a_url():
    with answering(PUBLIC, send(b"pixels")) as (address, asked):
        fetch(f"{address}/Bär 1.png?q=ö&r=%20", allowed=only_public)
    assert asked == ["/B%C3%A4r%201.png?q=%C3%B6&r=%20"]


def test_messages_leave_out_the_query_of_a_url():
    with pytest.raises(FetchError) as caught:
        fetch("http://127.0.0.1:9/a?token=secret")
    assert "secret" not in str(caught.value)
