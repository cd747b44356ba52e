"""Every error that a user of this package can cause.

    TumorlensError             base; the command line prints it and exits with status 2
    |- ConfigError        a setting is unknown, of the wrong type or out of range
    |- DataError          the image folder or one of its files cannot be used
    |- RunError           a run folder is missing, incomplete or from another version
    |- OutOfMemoryError   the memory is too small for what the settings demand
    |- ArtefactError      an exported model is missing, changed, or not as promised
    `- MissingExtraError  an optional dependency is not installed

A broken promise inside our own code is not in this list. It stays an
`AssertionError` with its traceback, because the user cannot repair it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
