"""Types of arguments of the public functions, checked before anything is done.

    def audit(data: str | Path, *, out: str | Path | None = None) -> Audit:
        arguments.check(audit, locals())

Without it, the wrong type ends in an error of some library far below, or not at all: a
number would do as the name of a folder.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

_WORDS = {
    "str": "text",
    "Path": "a path",
    "Run": "a Run",
    "Predictor": "a Predictor",
    "Config": "the result of load_config",
    "Kind": "a format",
    "Sequence": "a list of such",
    "Mapping": "a mapping of dotted names to values",
    "Progress": "a function of two numbers",
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "None": "None",
}
"""Name in an annotation -> what to give."""


def check(function: Callable[..., object], given: Mapping[str, object]) -> None:
    """Compare arguments with the annotations of their function.

    Nothing is imported for it: classes of this package are told by their names.

    Args:
        function: A function that is annotated with names of `_WORDS`.
        given: Its arguments by name. Names without an annotation are passed over.

    Raises:
        TypeError: An argument, or one in a list, has another type.

    Example:
        >>> def halve(count: int | None) -> None:
        ...     check(halve, locals())
        >>> halve("two")
        Traceback (most recent call last):
        TypeError: halve() expected a whole number or None for count, got 'two'
    """
    for name, value in given.items():
        annotation = function.__annotations__.get(name)
        if annotation is not None and not _fits(value, annotation):
            raise TypeError(
                f"{function.__qualname__}() expected {_expected(annotation)} for "
                f"{name}, got {reprlib.repr(value)}"
            )


def _fits(value: object, annotation: str) -> bool:
    return any(_is(value, name, of) for name, of in _parts(annotation))


def _parts(annotation: str) -> list[tuple[str, str]]:
    """Return the names in an annotation, each with what is in its brackets.

    Example:
        >>> _parts("Run | Sequence[str | Path]")
        [('Run', ''), ('Sequence', 'str | Path')]
    """
    return re.findall(r"(\w+)(?:\[(.*?)\])?", annotation)


def _expected(annotation: str) -> str:
    names = [name for name, _ in _parts(annotation)]
    # A text that may be a path is one.
    words = [_WORDS[one] for one in names if one != "str" or "Path" not in names]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _is(value: Any, name: str, of: str) -> bool:
    match name:
        case "None":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, Integral) and not isinstance(value, bool)
        case "float":
            return isinstance(value, Real) and not isinstance(value, bool)
        case "str" | "Kind":
            return isinstance(value, str)
        case "Path":
            return isinstance(value, PathLike)
        case "Progress":
            return callable(value)
        case "Mapping":
            return isinstance(value, Mapping) and all(isinstance(k, str) for k in value)
        case "Sequence":
            return _is_list(value, of)
    return any(
        one.__name__ == name and one.__module__.startswith("tumorlens.")
        for one in type(value).__mro__
    )


def _is_list(value: object, of: str) -> bool:
    """Return whether there are values one after the other, all of the right type.

    Those that can be read only once, such as a generator's, are not looked at.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    return not isinstance(value, Sequence) or all(_fits(one, of) for one in value)
