"""Web pages of other sites, in the browser of somebody who can reach a server that has no API key.

Such a page may post to `http://localhost:8000` without asking, as long as it does not say that the body is JSON. And
where the name of its site leads to this machine a moment later (DNS rebinding), it may read the answers, too. Both are
told by what no page can change: that there is an `Origin`, and the name and the port in `Host`. A proxy passes on a
name of its own, but not with the port of this server behind it; what comes through one is its business.
"""

from functools import lru_cache
from ipaddress import ip_address
from socket import gethostname
from typing import Any
from urllib.parse import urlsplit

_LOCAL = ("localhost", "local", "internal", "test", "lan", "home.arpa")
"""Ends of names that nobody can register, so that they lead nowhere by the will of a stranger."""

_JSON = b"application/json"
_NAMES = frozenset({b"host", b"origin", b"content-type"})


def is_of_foreign_page(scope: Any) -> bool:
    """Whether a request (an ASGI scope) can only be one of a page that this server knows nothing of."""
    found = {name: value for name, value in scope["headers"] if name in _NAMES}
    host = found.get(b"host", b"")
    own_host, own_port = scope.get("server") or ("", None)
    if own_port is not None and _is_rebound(host, own_host, own_port):
        return True
    origin = found.get(b"origin")
    if origin is None or scope["method"] != "POST":
        return False
    is_json = found.get(b"content-type", b"").partition(b";")[0].strip().lower() == _JSON
    return not is_json and _is_foreign(origin, host)


@lru_cache(256)
def _is_rebound(host: bytes, own_host: str, own_port: int) -> bool:
    """Whether a name that anybody may own has led a browser right here, to this machine."""
    name, port = _parts(b"//" + host)
    return port == own_port and not _is_local(name) and _is_loopback(own_host)


@lru_cache(256)
def _is_foreign(origin: bytes, host: bytes) -> bool:
    """Whether a page is neither of this server, under whatever name, nor of this machine."""
    name, _ = _parts(origin)
    return origin == b"null" or (origin.partition(b"://")[2] != host and not _is_local(name))


def _parts(url: bytes) -> tuple[str, int | None]:
    """The host of a URL in lower case, and its port; "" where it is none."""
    try:
        parts = urlsplit(url.decode("latin-1"))
        return (parts.hostname or "").rstrip("."), parts.port or 80
    except ValueError:
        return "", None


def _is_local(name: str) -> bool:
    """Whether a name leads where it does by the will of this machine's owner: as an address does, or none at all."""
    if "." not in name or name.endswith(tuple(f".{end}" for end in _LOCAL)) or name == gethostname().lower():
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
