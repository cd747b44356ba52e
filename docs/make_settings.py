"""Print docs/settings.md: every setting with its default, its values and its meaning.

Run by `make docs`; a test compares the committed page with what this prints.
"""

from __future__ import annotations

import sys
from itertools import groupby
from typing import Any

from tumorlens.config import Config, setting_names

_INTRODUCTION = """# Settings

Made from the code by `make docs`; do not edit it.

Each can stand in a TOML file (`tumorlens train run.toml ...`) and be set on the command
line (`--set optim.lr=1e-4`; `none` unsets one that can be unset). The command line wins
over the file, the file over the default. What was used, all of it, is written to
`config.toml` in the run folder before the first step.
"""

_BOUNDS = {
    "exclusiveMinimum": "> ",
    "minimum": "≥ ",
    "exclusiveMaximum": "< ",
    "maximum": "≤ ",
}


def settings_page() -> str:
    """Return the whole page as Markdown."""
    schemas = Config.model_json_schema()["$defs"]
    defaults = Config().model_dump()
    blocks = [_INTRODUCTION]
    for section, keys in groupby(setting_names(), key=lambda key: key.split(".")[0]):
        schema = schemas[f"{section.title()}Config"]
        lines = [
            f"## {section}",
            "",
            schema["description"],
            "",
            "| setting | default | values | meaning |",
            "|---|---|---|---|",
        ]
        for key in keys:
            name = key.removeprefix(f"{section}.")
            default = _shown(defaults[section][name])
            values = _values(schema["properties"][name])
            lines.append(f"| `{key}` | {default} | {values} | {setting_names()[key]} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(schema: dict[str, Any]) -> str:
    """Return what the setting accepts, from its JSON schema, in words."""
    if "anyOf" in schema:
        given = [part for part in schema["anyOf"] if part.get("type") != "null"]
        return ", ".join(map(_values, given)) + " or unset"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "list of " + _values(schema["items"])
    words = {
        "boolean": "`true`, `false`",
        "integer": "whole number",
        "object": "table",
        "string": "text",
    }
    bounds = [
        # Versions of pydantic differ in writing 1 or 1.0.
        f"{sign}{int(bound) if bound == int(bound) else bound}"
        for key, sign in _BOUNDS.items()
        if (bound := schema.get(key)) is not None
    ]
    return " ".join(
        [words.get(schema["type"], schema["type"]), " and ".join(bounds)]
    ).strip()


if __name__ == "__main__":
    sys.stdout.write(settings_page())
