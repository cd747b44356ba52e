"""What a comparison means, in sentences.

Everything is taken from the content of `comparison.json`; nothing is measured here.
What a newcomer would expect is the name of the winner: which arm is first is often
chance, and saying where it is not is all that these sentences do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from tumorlens import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ON_VAL = "The figures here are of val, which that does not speak of."

_MAX_SENTENCES = 6
"""Of pairs that are noise, and of runs without measures."""


def say_pair(pair: Mapping[str, Any]) -> str:
    """Return a pair of `comparison.json` as a sentence.

    Example:
        >>> say_pair(
        ...     {
        ...         "first": "A",
        ...         "second": "B",
        ...         "difference": {"value": -0.041, "low": -0.07, "high": -0.012},
        ...         "p_holm": 0.003,
        ...         "is_noise": False,
        ...     }
        ... )
        'B is better than A by 4.1 points (1.2 to 7.0), p = 0.003 after Holm.'
    """
    first, second, found = pair["first"], pair["second"], dict(pair["difference"])
    if found["value"] < 0 and not pair["is_noise"]:
        first, second = second, first
        ends = (found["low"], found["high"])
        low, high = (None if end is None else -end for end in reversed(ends))
        found = {"value": -found["value"], "low": low, "high": high}
    points = f"{_points(found['value'])} points"
    bounds = ""
    if found["low"] is not None:
        bounds = f"{_points(found['low'])} to {_points(found['high'])}"
    p = pair["p_holm"]
    after = f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} after Holm."
    if pair["is_noise"]:
        inside = f"{points}, {bounds}" if bounds else points
        return f"The difference between {first} and {second} ({inside}) is noise, " + (
            after
        )
    return f"{first} is better than {second} by {points}" + (
        f" ({bounds}), {after}" if bounds else f", {after}"
    )


def say_all(comparison: Mapping[str, Any]) -> list[str]:
    """Return what a comparison means, in sentences.

    Args:
        comparison: The content of `comparison.json` but for its `words`.

    Returns:
        Warnings of leaks first, then the differences under the headline protocol, then
        what the figures do not say.
    """
    headline = comparison["headline_protocol"]
    pairs = [pair for pair in comparison["pairs"] if pair["protocol"] == headline]
    words = _say_leaks(comparison)
    if pairs:
        words.append(
            f"Differences of accuracy on {comparison['subset']} under {headline}, "
            f"{_images(pairs)}:"
        )
    words += _say_pairs(pairs)
    words += _say_missing_pairs(comparison, pairs)
    measured = [
        arm["measures"][headline]
        for arm in comparison["arms"]
        if headline in arm["measures"]
    ]
    if pairs and all(measures["num_seeds"] == 1 for measures in measured):
        words.append(
            "Each arm was trained with one seed. The intervals say how far other "
            "images would have moved a difference, not how far another seed would."
        )
    words += _say_best_test_epoch(comparison)
    words += _say_unmeasured(comparison)
    return words + _say_example(comparison)


def _say_leaks(comparison: Mapping[str, Any]) -> list[str]:
    arms: dict[tuple[str, bool | None, str], list[str]] = defaultdict(list)
    num_arms: Counter[str] = Counter()
    for arm in comparison["arms"]:
        for protocol, measures in arm["measures"].items():
            leak = measures["leak"]
            num_arms[protocol] += 1
            arms[protocol, leak["is_believable"], leak["words"]].append(arm["name"])
    words = []
    for (protocol, is_believable, said), names in arms.items():
        if is_believable:
            continue
        whose = f" of {'; '.join(names)}" if len(names) < num_arms[protocol] else ""
        cannot = "cannot be believed" if is_believable is False else "may be too high"
        # The check compares test with training, whatever is compared here.
        on = "" if comparison["subset"] == "test" else " on test"
        below = f" {_ON_VAL}" if on else ""
        words.append(
            f"The accuracy{on}{whose} under {protocol} {cannot}. {said}{below}"
        )
    return words


def _say_pairs(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    words = [pair["words"] for pair in pairs if not pair["is_noise"]]
    noise = [pair["words"] for pair in pairs if pair["is_noise"]]
    if len(noise) <= _MAX_SENTENCES:
        return words + noise
    others = "other " if words else ""
    return [*words, f"The {len(noise)} {others}differences are noise."]


def _say_missing_pairs(
    comparison: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]
) -> list[str]:
    headline = comparison["headline_protocol"]
    num_arms = sum(headline in arm["measures"] for arm in comparison["arms"])
    num_missing = num_arms * (num_arms - 1) // 2 - len(pairs)
    words = []
    if num_missing:
        words.append(
            f"{num_missing} of the pairs share no image and "
            f"{'was' if num_missing == 1 else 'were'} not compared."
        )
    without = [
        arm["name"]
        for arm in comparison["arms"]
        if arm["measures"] and headline not in arm["measures"]
    ]
    if without:
        words.append(f"Not evaluated under {headline}: {'; '.join(without)}.")
    return words


def _say_best_test_epoch(comparison: Mapping[str, Any]) -> list[str]:
    if not any(
        measures["best_test_epoch_accuracy"] is not None
        for arm in comparison["arms"]
        for measures in arm["measures"].values()
    ):
        return []
    sentence = (
        "The best test epoch (*) was chosen on the images that it is measured on, as "
        "in many published figures. It is there to compare with these, and too high."
    )
    return [sentence]


def _say_unmeasured(comparison: Mapping[str, Any]) -> list[str]:
    arms: dict[tuple[str, int, str], list[str]] = {}
    for arm in comparison["arms"]:
        for run in arm["runs"]:
            if run["reason"] or run["state"] != "finished":
                why = run["reason"] or run["state"]
                arms.setdefault((run["protocol"], run["seed"], why), []).append(
                    arm["name"]
                )
    words = [
        f"{'; '.join(names)} ({protocol}, seed {seed}) "
        f"{'has' if len(names) == 1 else 'have'} no measures: {why}."
        for (protocol, seed, why), names in arms.items()
    ]
    num_more = sum(len(names) for names in [*arms.values()][_MAX_SENTENCES:])
    if not num_more:
        return words
    return [*words[:_MAX_SENTENCES], f"Nor have {num_more} more runs."]


def _say_example(comparison: Mapping[str, Any]) -> list[str]:
    example = comparison["example"]
    seen = [
        row["arm"] for row in (example or {"rows": []})["rows"] if row["in_training"]
    ]
    if not seen:
        return []
    return [
        f"The example was in the training of {'; '.join(seen)}, and is no test there."
    ]


def _images(pairs: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({pair["num_images"] for pair in pairs})
    if len(counts) == 1:
        return f"{counts[0]:,} images"
    return f"{counts[0]:,} to {counts[-1]:,} images"


def _points(difference: float) -> str:
    # The sentence says which of the two is better, so no plus sign.
    return text.points(difference).removeprefix("+")
