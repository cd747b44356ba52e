"""What a browser would see of a page, and that it loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

GLUE = "\0"
"""Stands for a place where a word may be broken but is not."""

VOID = {"img", "meta", "wbr"}


class Tags(HTMLParser):
    """What a browser would see: elements with their attributes, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "wbr":
            self.texts.append(GLUE)
        elif tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        words = " ".join(self.texts).replace("\xa0", " ").split()
        return " ".join(words).replace(f" {GLUE} ", "")


LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "ping"}


def assert_self_contained(page: str) -> None:
    """Fail if opening the page would fetch or run anything."""
    tags = Tags(page)
    policies = [
        attributes["content"]
        for name, attributes in tags.elements
        if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert policies[0].startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    )
    assert not {name for name, _ in tags.elements} & {
        *("script", "link", "iframe", "object", "embed", "base", "form")
    }
    for name, attributes in tags.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            if key in LOADING and name != "a":
                assert value.startswith(("#", "data:image/jpeg;base64,")), value
            assert not re.search(r"url\((?!#)", value), value
    style = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
