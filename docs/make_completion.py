"""Print src/tumorlens/cli/completion.json: the names that a shell completes.

Run by `make docs`; a test compares the committed file with what this prints.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from itertools import groupby
from typing import Any

import timm

from tumorlens.config import Config, setting_names
from tumorlens.deploy.artefact import KINDS
from tumorlens.runs.listing import COLUMNS


def completion_file() -> str:
    """Return the whole file."""
    names = {
        "columns": list(COLUMNS),
        "formats": list(KINDS),
        "settings": {
            key: {"description": _in_a_line(description), "values": _values(key)}
            for key, description in setting_names().items()
        },
        "models": _models(),
    }
    return json.dumps(names, ensure_ascii=False, separators=(",", ":")) + "\n"


def _models() -> dict[str, list[str]]:
    """Return timm's name of each network -> the tags of its pretrained weights."""
    models: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    tagged = (name.partition(".") for name in timm.list_models(pretrained=True))
    for name, group in groupby(tagged, key=lambda parts: parts[0]):
        models[name] = [tag for _, _, tag in group if tag]
    return models


def _values(key: str) -> list[str]:
    """Return the choices of a setting, or its default."""
    section, _, name = key.partition(".")
    schema = Config.model_json_schema()["$defs"][f"{section.title()}Config"]
    field: dict[str, Any] = schema["properties"][name]
    parts = field.get("anyOf", [field])
    choices = [str(value) for part in parts for value in part.get("enum", [])]
    if any(part.get("type") == "boolean" for part in parts):
        choices += ["true", "false"]
    if any(part.get("type") == "null" for part in parts):
        choices.append("none")
    default = Config().model_dump()[section][name]
    if not choices and isinstance(default, int | float | str):
        choices = [str(default)]
    return choices


def _in_a_line(text: str) -> str:
    """Return the start of a description, as much as a shell can show beside a name."""
    return textwrap.shorten(re.split(r"[.;:](?: |$)", text)[0], 60, placeholder=" …")


if __name__ == "__main__":
    sys.stdout.write(completion_file())
