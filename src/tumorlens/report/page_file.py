"""The JSON behind a page, read back and checked before anything is drawn of it."""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from tumorlens.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

Content = TypeVar("Content", bound=BaseModel)


def read_page_file(
    path: Path, content: type[Content], *, version: int, hint: str
) -> Content:
    """Return what a file holds.

    Args:
        path: A JSON object with the number of its layout under `format`.
        content: What it has to be.
        version: The `format` that is read.
        hint: How to make the file again.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"there is no {path}", hint=hint) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}", hint=hint) from None
    got = found.get("format") if isinstance(found, dict) else found
    if got != version:
        raise RunError(f"expected format {version} in {path}, got {got!r}", hint=hint)
    try:
        return content.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"{path} is damaged at {place}: {first['msg']}, got "
            f"{reprlib.repr(first['input'])}",
            hint=hint,
        ) from None
