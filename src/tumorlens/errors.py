"""Every error that a user of this package can cause.

    TumorlensError             base; the command line prints it and exits with status 2
    |- ConfigError        a setting is unknown, of the wrong type or out of range
    |- DataError          the image folder or one of its files cannot be used
    |- RunError           a run folder is missing, incomplete or from another version
    |- OutOfMemoryError   the memory is too small for what the settings demand
    |- ArtefactError      an exported model is missing, changed, or not as promised
    `- MissingExtraError  an optional dependency is not installed

An argument of the wrong type is a `TypeError`, which `check_arguments` raises before a
public function does anything.

A broken promise inside our own code is not in this list. It stays an
`AssertionError` with its traceback, because the user cannot repair it.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class TumorlensError(Exception):
    """An error with a cause that the user can remove.

    Args:
        problem: What is wrong: the offending value, and where it came from.
        hint: What to do next, as an instruction. Printed on its own line.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{problem}\n  hint: {hint}" if hint else problem)
        self.problem = problem
        self.hint = hint


class ConfigError(TumorlensError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(TumorlensError):
    """The image folder or one of its files cannot be used."""


class RunError(TumorlensError):
    """A run folder is missing, incomplete or from another version."""


class OutOfMemoryError(TumorlensError):
    """The memory is too small for what the settings demand."""


class ArtefactError(TumorlensError):
    """An exported model is missing, changed, or does not answer as it should."""


class MissingExtraError(TumorlensError, ImportError):
    """An optional dependency is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint for a misspelt name.

    Args:
        name: What the user wrote.
        known: The names that would have been accepted.

    Returns:
        A sentence with the closest name, or with every name when none is close.

    Example:
        >>> did_you_mean("weight_decy", ["lr", "weight_decay"])
        "did you mean 'weight_decay'?"
        >>> did_you_mean("momentum", ["lr", "weight_decay"])
        'choose from: lr, weight_decay'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return (
        f"did you mean {close[0]!r}?" if close else f"choose from: {', '.join(names)}"
    )


@contextmanager
def naming_refused_paths() -> Iterator[None]:
    """Turn an error of the system about a path into a `DataError` that names it.

    Whether a path exists cannot be known below a folder that is locked, on a disk that
    went away, or where a name is too long: any look at such a path may end here.

    Raises:
        DataError: The body raised an `OSError` with the name of a file.
        OSError: The body raised one without.
    """
    try:
        yield
    except OSError as error:
        # Without a name it is no path: a pipe, or an import that failed.
        if error.filename is None or not isinstance(error.filename, str | bytes):
            raise
        raise DataError(
            f"cannot use {os.fsdecode(error.filename)}: {error.strerror or error}",
            hint="check its name, and the permissions of it and the folders above",
        ) from error


# Wrong types of arguments of the public functions

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


def check_arguments(
    function: Callable[..., object], given: Mapping[str, object]
) -> None:
    """Compare arguments with the annotations of their function.

    Nothing is imported for it: classes of this package are told by their names.

    Args:
        function: A function that is annotated with names of `_WORDS`.
        given: Its arguments by name. Names without an annotation are passed over.

    Raises:
        TypeError: An argument, or one in a list, has another type.

    Example:
        >>> def halve(count: int | None) -> None:
        ...     check_arguments(halve, locals())
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
            return isinstance(value, os.PathLike)
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
