"""Trust that is written by hand: thresholds without a val subset behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tumorlens.runs.trust import Promise, Sets, Trust, TrustedAnswers

if TYPE_CHECKING:
    from collections.abc import Sequence


def handmade_trust(
    classes: Sequence[str], *, threshold: float | None, least: float
) -> TrustedAnswers:
    """Return trust without a gate.

    Args:
        classes: Names in the order of the probabilities.
        threshold: Largest probability from which on an image is answered.
        least: Probability from which on a class is in the set.
    """
    num = len(classes)
    return TrustedAnswers(
        Trust(
            weights_sha256=("0" * 64,),
            classes=tuple(classes),
            num_images=100,
            num_groups=100,
            seed=0,
            temperature=1.0,
            before=None,
            after=None,
            sets=Sets(
                coverage=0.9,
                lac=1 - least,
                aps=0.9,
                lac_by_class=(1 - least,) * num,
                aps_by_class=(0.9,) * num,
            ),
            promise=Promise(
                error=0.05,
                confidence=0.9,
                threshold=threshold,
                num_groups=100,
                num_answered=50,
                num_wrong=0,
                words="by hand",
            ),
            operating_points={},
            gate=None,
        ),
        (),
    )
