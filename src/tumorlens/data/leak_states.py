"""What a leak verdict comes to: a word or three, the same in tables and on pages.

What a newcomer gets wrong: copies and patients are two questions. Where nobody knows
the patients, a split without copies has not passed; half of it was never checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAK = "leak"
NO_LEAK = "no leak"
UNKNOWN = "unknown"
NO_PATIENTS = "patients not known"
SOME_PATIENTS = "patients partly known"


def leak_state(verdict: Mapping[str, Any]) -> str:
    """Return what a verdict of `leak.json` comes to.

    Returns:
        `unknown` where weights came from elsewhere; `leak` where some test image is
        known to be in training too; `patients not known` or `patients partly known`
        where copies were checked and patients could not be, for all or for some of the
        test images; `no leak` where both were.

    Example:
        >>> leak_state({"leaks": False, "num_test": 8, "num_test_unknown_patient": 3})
        'patients partly known'
    """
    if verdict.get("is_known", "leaks" in verdict) is False:
        return UNKNOWN
    if verdict["leaks"]:
        return LEAK
    num_unknown = verdict.get("num_test_unknown_patient", 0)
    if not num_unknown:
        return NO_LEAK
    return NO_PATIENTS if num_unknown >= verdict.get("num_test", 0) else SOME_PATIENTS


def unknown_patients_in_words(verdict: Mapping[str, Any]) -> str:
    """Return for how many test images nobody knows the patient; empty for none.

    Example:
        >>> unknown_patients_in_words({"num_test": 8, "num_test_unknown_patient": 3})
        'patients not known for 3 of 8 test images'
    """
    num_unknown = verdict.get("num_test_unknown_patient", 0)
    if not num_unknown:
        return ""
    num_test = verdict.get("num_test", num_unknown)
    return (
        f"patients not known for {num_unknown:,} of {num_test:,} test image"
        f"{'s' * (num_test != 1)}"
    )
