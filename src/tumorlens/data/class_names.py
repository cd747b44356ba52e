"""Names of classes: which of two lists mean the same class.

The public sets spell the same classes in many ways: `no_tumor`, `notumor` and `no`, or
`glioma` and `Glioma_Tumor`. Spellings are matched here, and meanings are not: whether
`normal` is `no_tumor` is for the user to say.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Every class of these sets is of a tumour or of none, so the word tells none apart.
_TUMOUR = re.compile(r"(?<=[^\W_]) ?tumou?rs?$")


@dataclass(frozen=True)
class ClassMatch:
    """Which names of two lists mean the same class."""

    pairs: tuple[tuple[str, str], ...]
    """Name in the first list and name in the second, in the order of the first."""

    only_first: tuple[str, ...]
    """Names of the first list without a match, in its order."""

    only_second: tuple[str, ...]
    """Names of the second list without a match, in its order."""

    @property
    def renamed(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose two names are not equal."""
        return tuple(pair for pair in self.pairs if pair[0] != pair[1])

    @property
    def is_complete(self) -> bool:
        """Whether every name of both lists has a match."""
        return not self.only_first and not self.only_second


def match_classes(first: Iterable[str], second: Iterable[str]) -> ClassMatch:
    """Return which names of two lists mean the same class.

    Equal names are matched first. Of the others, two are matched that are equal apart
    from case, blanks, `_`, `-` between words and the word tumor (or tumour, tumors) at
    the end, unless either list has several such names: then nothing is guessed.

    Args:
        first: Class names, each once.
        second: Class names, each once.

    Returns:
        The pairs and the names left over. Exchanging the lists exchanges the names in
        each pair and changes nothing else but the order.

    Example:
        >>> match_classes(["glioma", "no_tumor", "other"], ["Glioma_Tumor", "no"])
        ClassMatch(pairs=(('glioma', 'Glioma_Tumor'), ('no_tumor', 'no')), \
only_first=('other',), only_second=())
    """
    ours, theirs = list(dict.fromkeys(first)), list(dict.fromkeys(second))
    match_of = {name: name for name in ours if name in set(theirs)}
    by_stem = _by_stem(theirs)
    for stem, names in _by_stem(ours).items():
        others = by_stem.get(stem, [])
        if len(names) == len(others) == 1:
            match_of.setdefault(names[0], others[0])
    matched = set(match_of.values())
    return ClassMatch(
        pairs=tuple((name, match_of[name]) for name in ours if name in match_of),
        only_first=tuple(name for name in ours if name not in match_of),
        only_second=tuple(name for name in theirs if name not in matched),
    )


def spelling_of(name: str) -> str:
    """Return what two spellings of one name have in common.

    Example:
        >>> spelling_of("No_Tumor ") == spelling_of("no tumor") == spelling_of(
        ...     "no-tumor"
        ... )
        True
        >>> spelling_of("grade-") == spelling_of("grade")
        False
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"(?:[\s_]|(?<=\w)-(?=\w))+", " ", folded).strip()


def _by_stem(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_stem(name)].append(name)
    return found


def _stem(name: str) -> str:
    """Return a name without its spelling and without the word tumor at its end.

    Example:
        >>> [_stem(name) for name in ("No_Tumour", "notumor", "no", "tumor")]
        ['no', 'no', 'no', 'tumor']
        >>> [_stem(name) for name in ("grade 1 2", "Grade_12", "nerve sheath")]
        ['grade1 2', 'grade12', 'nervesheath']
    """
    # A blank between two digits keeps two numbers apart, any other only two words.
    return re.sub(r"(?<!\d) | (?!\d)", "", _TUMOUR.sub("", spelling_of(name)))
