"""Addresses and answers as messages and logs may show them: without passwords, signatures and tokens."""

import base64
import urllib.request
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit, urlunsplit

LONGEST_QUOTE = 300
"""Characters of what a server says about an error; it may say as much as it likes."""

_LEAST_SECRET_LENGTH = 4
"""What is shorter is in many words, and hides nothing where it is taken out of them."""


class Secrets:
    """What must not be shown: the token, and the passwords in the addresses of the endpoint and of the proxies.

    A server may send any of it back, in a header, in an error of its protocol, in a file's name.
    """

    def __init__(self, token: str | None, addresses: Iterable[str]) -> None:
        passwords = [password for address in addresses for password in passwords_in(address)]
        self._token = (token or "").encode("utf-8", "replace")
        self._values = [
            value for value in sorted({token or "", *passwords}, key=len, reverse=True)
            if len(value) >= _LEAST_SECRET_LENGTH
        ]  # fmt: skip

    def hide(self, text: str) -> str:
        """`text` without them."""
        for value in self._values:
            text = text.replace(value, "***")
        return text

    def quote(self, text: str) -> str:
        """What a server says, for a message: without them, on one line, and not long."""
        shown = "".join(letter if letter.isprintable() else " " for letter in self.hide(text[: 4 * LONGEST_QUOTE]))
        return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}..."

    def hide_token(self, body: bytes) -> bytes:
        """A document without the token; a password may be a word that the document needs."""
        return body.replace(self._token, b"***") if len(self._token) >= 2 * _LEAST_SECRET_LENGTH else body

    def cause(self, error: Exception) -> Exception | None:
        """`error` as the cause of another one, which a traceback shows too; None where it holds one of them."""
        return error if self.hide(str(error)) == str(error) else None


def shown_address(url: str) -> str:
    """An address, whatever it is, as far as people need it: scheme, host, port and path."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "an address that is none"
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path, "", ""))


def origin(url: str) -> str:
    """Scheme, host and port of an address.

    Raises:
        ValueError: It is none.
    """
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def split_login(url: str) -> tuple[str, str | None]:
    """An address without the login before its host, and the value of the header that this login stands for."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    if not at:
        return url, None
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return f"{scheme}{slashes}{host}{slash}{path}", f"Basic {encoded}"


def passwords_in(url: str) -> set[str]:
    """The password before an address' host, as it is written there, as it is meant and as it is sent."""
    login, at, _ = (url.partition("://")[2] or url).rpartition("@")
    password = login.partition(":")[2]
    if not at or not password:
        return set()
    return {password, unquote(password), base64.b64encode(unquote(login).encode()).decode()}


def proxy_addresses() -> list[str]:
    """The addresses of the environment's proxies."""
    return [address for name, address in urllib.request.getproxies().items() if name != "no"]
