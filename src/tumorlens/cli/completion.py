"""Shell completion: settings of --set, names of networks, formats, subsets.

Typer completes commands, options and fixed choices. The names it cannot have are in
`completion.json`, because importing timm or the settings would take longer than a
person waits for the Tab key. `make docs` writes that file, and a test compares it with
timm and the settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

_KEY = "_TUMORLENS_COMPLETE_KEY"
"""The setting whose value is completed, when the shell has cut it from its value."""


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """Return `section.name=` for --set, or with one setting left also its values."""
    settings: dict[str, dict[str, Any]] = _names()["settings"]
    if key := os.environ.get(_KEY):
        return [(value, "") for value in _values(key, incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [(f"{key}={one}", "") for one in _values(key, value)]
    found = [name for name in settings if name.startswith(key)]
    items = [(f"{name}=", settings[name]["description"]) for name in found]
    if len(found) == 1:  # of several words the shell adds the start, and no space
        items += [(f"{found[0]}={one}", "") for one in settings[found[0]]["values"]]
    return items


def complete_condition(incomplete: str) -> list[str]:
    """Return `column=` and `section.name=` for --where, or the values of a setting."""
    if key := os.environ.get(_KEY):
        return [*_values(key, incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={one}" for one in _values(key, value)]
    return [f"{name}=" for name in (*_names()["columns"], *_names()["settings"])]


def complete_sort_key() -> list[str]:
    """Return the columns and settings for --sort."""
    return [*_names()["columns"], *_names()["settings"]]


def complete_model(incomplete: str) -> list[str]:
    """Return timm's names; those of pretrained weights once a point is typed."""
    models: dict[str, list[str]] = _names()["models"]
    name, point, _ = incomplete.partition(".")
    return [f"{name}.{tag}" for tag in models.get(name, ())] if point else [*models]


def complete_format() -> list[str]:
    """Return the formats of `export`."""
    return [*_names()["formats"], "all"]


def complete_subset() -> list[str]:
    """Return the subsets that a network is measured on."""
    return ["test", "val"]


def complete_device() -> list[str]:
    """Return the devices of `benchmark`."""
    return ["cpu", "cuda"]


def join_words_of_bash(environ: MutableMapping[str, str]) -> None:
    """Mend what bash sends to be completed: it takes `key=value` for three words.

    bash replaces only the part behind the last `=`, so that part alone is left to be
    completed, and the setting before it is kept aside for `complete_setting`.
    """
    if environ.get("_TUMORLENS_COMPLETE") != "complete_bash":
        return
    words = environ["COMP_WORDS"].split("\n")[: int(environ["COMP_CWORD"]) + 1]
    joined: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if joined and "=" in (before, word):
            joined[-1] += word
        else:
            joined.append(word)
    last = joined.pop()
    if last.startswith("-") and "=" in last:
        option, _, last = last.partition("=")
        joined.append(option)
    key, equals, value = last.rpartition("=")
    if equals:
        environ[_KEY], last = key, value
    environ["COMP_WORDS"] = "\n".join([*joined, last])
    environ["COMP_CWORD"] = str(len(joined))


def _values(key: str, incomplete: str) -> Iterable[str]:
    if key == "model.name":
        return complete_model(incomplete)
    values: list[str] = _names()["settings"].get(key, {}).get("values", [])
    return [] if values == ["none"] else values  # a file or a number


def _names() -> dict[str, Any]:
    import json

    file = Path(__file__).with_name("completion.json")
    names: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return names
