"""Addresses without their passwords."""

from __future__ import annotations

import pytest

from tumorlens.urls import is_server, without_password, without_secrets

HIDDEN = [
    ("postgresql://a:b@c/d", "postgresql://a@c/d"),
    ("postgresql://:b@c/d", "postgresql://@c/d"),
    ("postgresql+pg8000://a:b@[::1]:5432/d", "postgresql+pg8000://a@[::1]:5432/d"),
    # As SQLAlchemy reads them: a password goes on to the last @ before the host.
    ("postgresql://a:b@b@c/d", "postgresql://a@c/d"),
    ("postgresql://a:b/b?b@c:1/d?x=y@z", "postgresql://a@c:1/d?x=y@z"),
    ("postgresql://a@c/d?x=1&password=b&y=2", "postgresql://a@c/d?x=1&y=2"),
    ("postgresql://a@c/d?sslpassword=b", "postgresql://a@c/d"),
    ("http://a:b@c:5000/d", "http://a@c:5000/d"),
    ("http://c/d?access_token=b", "http://c/d"),
    ("--store=postgresql://a:b@c/d", "--store=postgresql://a@c/d"),
]
SHOWN = [
    "postgresql://a@c:5432/d",
    "sqlite:////tmp/x",
    "sqlite:////home/a:b@c/x",
    "http://c:5000/@d",
    "http://c:5000/d?x=a:b@c",
    "data.path=/images",
    "a:b@c",
    "",
]


@pytest.mark.parametrize(("address", "shown"), HIDDEN)
def test_a_password_is_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown


@pytest.mark.parametrize("address", SHOWN)
def test_what_has_no_password_is_not_touched(address: str) -> None:
    assert without_password(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter%202@host/db",
        "http://me:hunter%202@host",
        "postgresql://me@host/db?x=1&password=hunter%202",
    ],
)
def test_an_error_is_told_without_the_password_it_quotes(address: str) -> None:
    said = f"cannot reach {address} as 'hunter 2'"
    shown = without_secrets(said, address)
    assert "hunter" not in shown
    assert shown.endswith("as '***'")


def test_what_is_said_without_a_password_is_told_as_it_is() -> None:
    said = "no such host: c"
    assert without_secrets(said, "postgresql://a@c/d?x=c") == said


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://a", True), ("https://a:1/b", True), ("sqlite:///http", False)],
)
def test_a_server_is_known_by_its_scheme(url: str, *, expected: bool) -> None:
    assert is_server(url) is expected
