"""Addresses of servers and databases, without passwords where they are shown or kept.

A password is not only between `:` and `@`: databases take it after `?` too, and an
error message may quote it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from tumorlens.errors import ConfigError

_SECRET = re.compile(r"[^=]*(pass|pwd|secret|token)", re.IGNORECASE)
"""Names of secret parameters after `?`."""
_WEB = ("http", "https")
_WEB_LOGIN = re.compile(r"([^:/?#]*):([^/?#]*)@")
_DATABASE_LOGIN = re.compile(r"([^:/]*):([^@]*(?:@[^@/?]*)*)@")
"""As SQLAlchemy reads it: a password may have a slash or a question mark in it."""


def without_password(address: str) -> str:
    """Return an address without its password; any other text unchanged.

    Args:
        address: A URL, or a word of a command line that holds one.

    Example:
        >>> without_password("postgresql://me:hunter2@host:5432/db")
        'postgresql://me@host:5432/db'
        >>> without_password("--store=postgresql://me@host/db?password=hunter2&x=1")
        '--store=postgresql://me@host/db?x=1'
        >>> without_password("sqlite:////home/me/a:b@c/store.sqlite")
        'sqlite:////home/me/a:b@c/store.sqlite'
    """
    head, password, rest = _cut(address)
    place, mark, query = rest.partition("?")
    parts = query.split("&")
    kept = "&".join(part for part in parts if not _SECRET.match(part))
    # An address is not touched where there is nothing to hide.
    if password is None and kept == query:
        return address
    return f"{head}{place}{mark if kept else ''}{kept}"


def without_secrets(text: str, address: str) -> str:
    """Return a message about an address with its password replaced by `***`.

    Example:
        >>> without_secrets("no entry with me:hunter2", "http://me:hunter2@host")
        'no entry with me:***'
    """
    _, password, rest = _cut(address)
    parts = rest.partition("?")[2].split("&")
    secrets = [part.partition("=")[2] for part in parts if _SECRET.match(part)]
    spellings = {form for one in (password or "", *secrets) for form in _spell(one)}
    # The longest first: one may be a part of another.
    for secret in sorted(spellings, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def check_address(address: str, *, name: str) -> None:
    """Check that a variable holds the address of a web server.

    Args:
        address: Its value.
        name: Its name.

    Raises:
        ConfigError: It has no http:// or https://, no host, or a port that is none.

    Example:
        >>> check_address("https://mirror", name="HF_ENDPOINT")
        >>> check_address("mirror", name="HF_ENDPOINT")
        Traceback (most recent call last):
            ...
        tumorlens.errors.ConfigError: expected an address in HF_ENDPOINT, got 'mirror'
          hint: write it as https://HOST, or unset HF_ENDPOINT
    """
    try:
        parts = urlsplit(address)
        is_good = is_server(address) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"expected an address in {name}, got {without_password(address)!r}",
            hint=f"write it as https://HOST, or unset {name}",
        )


def is_server(url: str) -> bool:
    """Whether a URL is that of a web server."""
    return urlsplit(url).scheme in _WEB


def _cut(address: str) -> tuple[str, str | None, str]:
    """Return the part before the password, the password or `None`, and the rest.

    Without a password, the query after `?` is the rest.
    """
    scheme, separator, after = address.partition("://")
    if not separator:
        return address, None, ""
    start = _WEB_LOGIN if scheme.rpartition("=")[2] in _WEB else _DATABASE_LOGIN
    login = start.match(after)
    if login is None:
        place, mark, query = after.partition("?")
        return f"{scheme}://{place}", None, mark + query
    return f"{scheme}://{login[1]}", login[2], after[login.end(2) :]


def _spell(secret: str) -> set[str]:
    """Return a secret as typed and with its percent-encoding resolved."""
    return {secret, unquote(secret)} - {""}
