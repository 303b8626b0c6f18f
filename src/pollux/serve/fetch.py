"""Files from the web for requests that name a URL, without opening the server's own network to whoever sends them.

A name is resolved once, every address it has must be public, and the connection goes to that very address, so a name that resolves
differently a moment later changes nothing; each redirect starts anew. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, 2.5.5.1
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")  # RFC 6890; Oracle's clouds keep secrets of the machine there
_PLATFORM = ipaddress.IPv4Address("168.63.129.16")  # a public address that answers only inside Azure, with secrets of the machine
_AS_IS = "%/?:@!$&'()*+,;=-._~"  # RFC 3986
_REDIRECTS = (301, 302, 303, 307, 308)


class FetchError(ValueError):
    """A URL that may not be fetched or did not answer; the message names the URL without its query.

    refused: its address is not allowed; status: what it answered with instead of 200, 0 if nothing.
    """

    def __init__(self, message: str, refused: bool = False, status: int = 0):
        super().__init__(message)
        self.refused, self.status = refused, status


@dataclass(frozen=True)
class FetchLimits:
    """What one URL may cost."""

    max_bytes: int = 100 << 20
    seconds: float = 30.0  # all together: connections, redirects and the body
    redirects: int = 5

    def __post_init__(self):
        if self.max_bytes < 1 or self.seconds <= 0 or self.redirects < 0:
            raise ValueError("a fetch needs at least 1 byte, a positive number of seconds and 0 or more redirects")


@dataclass(frozen=True)
class Fetched:
    """A file as it came. mime_type: as the server called it, without parameters, "" if it did not; charset: what it said of that."""

    data: bytes
    mime_type: str
    url: str  # after redirects
    charset: str = ""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet. Addresses that carry an IPv4 address are judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if carried is None and (address in _NAT64 or address in _IPV4_COMPATIBLE):
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(carried)
        if address in _LOCAL_NAT64 or address.is_site_local:
            return False
    elif address in _PROTOCOLS or address == _PLATFORM:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def fetch(url: str, limits: FetchLimits = FetchLimits(), allowed: Callable[[Address], bool] = is_public) -> Fetched:
    """The file behind an http or https URL; blocks. allowed: which addresses may be connected to.

    Raises FetchError for another scheme, an address that is not allowed, a status other than 200, and what exceeds the limits.
    """
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        try:
            answer = _get(url, deadline, limits, allowed)
        except TimeoutError as error:
            raise FetchError(f"{_named(url)} took longer than the limit of {limits.seconds:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{_named(url)} cannot be fetched: {error.__class__.__name__}") from error
        if isinstance(answer, Fetched):
            return answer
        url = answer
    raise FetchError(f"{_named(url)} is behind more than {limits.redirects} redirects")


def _get(url: str, deadline: float, limits: FetchLimits, allowed: Callable[[Address], bool]) -> Fetched | str:
    """The file, or the URL that it was moved to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise FetchError(f"{url!r:.80} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise FetchError(f"{_named(url)} must begin with http:// or https:// and a host")
    if parts.username is not None:
        raise FetchError(f"{_named(url)} may not carry a user name")
    sock = _connect(url, host, port, deadline, allowed)
    with _ended_by(deadline, sock) as line:
        if parts.scheme == "https":
            line.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            line.sock.do_handshake()
        connection = http.client.HTTPConnection(host, port)
        connection.sock = line.sock
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_AS_IS)
        connection.request("GET", path, headers={"User-Agent": "pollux", "Accept-Encoding": "identity", "Connection": "close"})
        with connection.getresponse() as response:
            if response.status in _REDIRECTS and (moved := response.headers["Location"]):
                try:
                    return urljoin(url, moved)
                except ValueError as error:
                    raise FetchError(f"{_named(url)} was moved to what is not a URL: {error}") from error
            if response.status != 200:
                raise FetchError(f"{_named(url)} answers with status {response.status}", status=response.status)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FetchError(f"{_named(url)} is sent compressed, though that was not asked for")
            data = _read(url, response, limits)
            mime_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return Fetched(data, mime_type, url, response.headers.get_content_charset(""))


@dataclass(eq=False)
class _Line:
    sock: socket.socket

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it may have ended by itself
            self.sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _ended_by(deadline: float, sock: socket.socket) -> Iterator[_Line]:
    """Closes a connection after the block or at the deadline, so that no slow trickle of bytes holds it. Raises TimeoutError."""
    line = _Line(sock)
    timer = threading.Timer(_left(deadline), line.end)
    timer.start()
    try:
        yield line
        _left(deadline)  # a connection that was ended looks like the end of the file
    except (OSError, http.client.HTTPException, FetchError) as error:
        if time.monotonic() >= deadline:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
        line.sock.close()


def _connect(url: str, host: str, port: int, deadline: float, allowed: Callable[[Address], bool]) -> socket.socket:
    """A connection to the first address of a host that answers; refused if any of its addresses is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{_named(url)}: there is no host of this name") from error
    if not all(allowed(_address(sockaddr)) for *_, sockaddr in found):
        raise FetchError(f"{_named(url)} lies in a network that may not be fetched from", refused=True)
    last: OSError | None = None
    for family, kind, protocol, _, sockaddr in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(sockaddr)
            if not allowed(_address(sock.getpeername())):
                raise FetchError(f"{_named(url)} lies in a network that may not be fetched from", refused=True)
            return sock
        except OSError as error:
            last = error
            sock.close()
        except FetchError:
            sock.close()
            raise
    raise last or OSError("no address")


def _read(url: str, response: http.client.HTTPResponse, limits: FetchLimits) -> bytes:
    data = response.read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        raise FetchError(f"{_named(url)} is larger than the limit of {limits.max_bytes} bytes")
    if response.length:  # what the header announced and did not come
        raise FetchError(f"{_named(url)} broke off after {len(data)} bytes")
    return data


def _address(sockaddr: tuple) -> Address:
    return ipaddress.ip_address(sockaddr[0].partition("%")[0])  # without the zone of a link-local address


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _named(url: str) -> str:
    """A URL as it may stand in a message: its query may hold a secret."""
    return url.partition("?")[0][:200]
