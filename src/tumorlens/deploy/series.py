"""Series -> predictions for each slice and one for the series, by a stated rule.

The network sees one slice at a time; the prediction for a whole series is a rule on top
of it, not something that was learnt. The most suspicious slice of many is suspicious by
chance alone, the more so the more slices there are.

As rows of a table they have one row per slice, then one for the series, which has no
path. The columns that tables of ordinary images have are there under the same names.
Only on request is the patient among them: a series is otherwise a number.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tumorlens.data.images import read_image, without_path
from tumorlens.deploy.prediction_file import OF_TRUST, trust_cells
from tumorlens.errors import ConfigError, DataError, did_you_mean
from tumorlens.runs.trust import NO_BRAIN_MRI, Judged
from tumorlens.system import num_processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from tumorlens.data.dicom.series import Series, Slice
    from tumorlens.deploy.prediction_file import Row
    from tumorlens.deploy.predictor import Prediction, Predictor
    from tumorlens.runs.trust import TrustedAnswers

Rule = Literal["mean", "most-suspicious"]
RULES: tuple[Rule, ...] = get_args(Rule)

_NO_TUMOR = {"notumor", "notumour", "nontumor", "nontumour", "normal", "healthy"}
"""Names of the class without a tumour, in lower case, letters and digits only."""


@dataclass(frozen=True)
class SliceAnswer:
    """The answer for one slice."""

    probs: NDArray[np.float32] | None
    """Shape (C,); `None` for a slice that cannot be read."""
    error: str | None = None
    trust: Judged | None = None
    """What trust says of the slice; `None` if not calibrated."""


@dataclass(frozen=True)
class SeriesAnswer:
    """The answers for a series, slice by slice and as a whole."""

    series: Series
    slices: tuple[SliceAnswer, ...]
    probs: NDArray[np.float32] | None
    """Shape (C,), by the rule; `None` where no slice could be read."""
    key: int | None
    """Index of the slice that stands for the series: the most suspicious one, or by
    the rule `mean` the one with the highest probability of the predicted class."""
    rule: str
    """The rule with its numbers, in words."""
    trust: Judged | None = None
    """What is to be answered for the series, see `judge_series`; `None` if not
    calibrated."""


def no_tumor_class(classes: Sequence[str], name: str | None = None) -> int | None:
    """Return the index of the class that means no tumour, or `None`.

    Args:
        classes: Names.
        name: One of them. By default the class is recognised by its name: 'no_tumor',
            'no tumour', 'notumor', 'normal', 'healthy' and the like.

    Raises:
        ConfigError: `name` is no class.

    Example:
        >>> no_tumor_class(["glioma", "No_Tumour"]), no_tumor_class(["a", "b"])
        (1, None)
    """
    if name is not None:
        if name not in classes:
            raise ConfigError(
                f"--no-tumor-class: there is no class {name!r}",
                hint=did_you_mean(name, classes),
            )
        return classes.index(name)
    for number, known in enumerate(classes):
        if "".join(filter(str.isalnum, known)).lower() in _NO_TUMOR:
            return number
    return None


def check_rule(
    rule: Rule, classes: Sequence[str], *, no_tumor: str | None = None
) -> int | None:
    """Return the index of the no-tumour class, which `most-suspicious` requires.

    Raises:
        ConfigError: It is not known, or `no_tumor` is no class.
    """
    found = no_tumor_class(classes, no_tumor)
    if rule == "most-suspicious" and found is None:
        raise ConfigError(
            "the rule most-suspicious must know which class means no tumour; the "
            f"classes are {', '.join(classes)}",
            hint=f"name it, as in --no-tumor-class {classes[0]}, or take "
            "--series-rule mean",
        )
    return found


def answer_series(
    predictor: Predictor,
    series: Series,
    *,
    rule: Rule,
    no_tumor: int | None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> SeriesAnswer:
    """Predict every slice of a series, and summarise by a rule.

    `mean` is the mean of the slices' probabilities. `most-suspicious` is the slice with
    the highest probability of any one class other than no tumour, the first of equals.
    Slices that cannot be read are left out of both.

    Args:
        predictor: The model.
        series: One of `find_series`.
        rule: One of `RULES`.
        no_tumor: Index of that class, see `check_rule`; needed by `most-suspicious`.
        batch_size: Slices that go through the network together.
        progress: Called with the number of slices that were just done.
    """
    slices: list[SliceAnswer] = []
    with ThreadPoolExecutor(max_workers=num_processors()) as pool:
        for start in range(0, len(series.slices), batch_size):
            some = series.slices[start : start + batch_size]
            slices += _answers(predictor, pool, some)
            if progress is not None:
                progress(len(some))
    answer = summarise(series, slices, rule=rule, no_tumor=no_tumor)
    if predictor.trust is None:
        return answer
    return replace(answer, trust=judge_series(answer, predictor.trust))


def summarise(
    series: Series,
    slices: Sequence[SliceAnswer],
    *,
    rule: Rule,
    no_tumor: int | None,
) -> SeriesAnswer:
    """Return the slices' predictions with that of the series, see `answer_series`."""
    readable = [number for number, one in enumerate(slices) if one.probs is not None]
    if not readable:
        return SeriesAnswer(series, tuple(slices), None, None, rule)
    probs = np.stack([one.probs for one in slices if one.probs is not None])  # (N, C)
    if rule == "mean":
        mean: NDArray[np.float32] = probs.mean(axis=0)
        key = readable[int(probs[:, mean.argmax()].argmax())]
        words = f"mean of {_counted(len(readable), len(slices))}"
        return SeriesAnswer(series, tuple(slices), mean, key, words)
    suspicion = np.delete(probs, no_tumor, axis=1) if no_tumor is not None else probs
    at = int(suspicion.max(axis=1).argmax())
    key = readable[at]
    of = _counted(len(readable), len(slices))
    words = f"most suspicious of {of}: slice {key + 1}"
    return SeriesAnswer(series, tuple(slices), probs[at], key, words)


def judge_series(answer: SeriesAnswer, trusted: TrustedAnswers) -> Judged | None:
    """Return what is to be answered for a series; `None` without a readable slice.

    It is no brain MRI if the gate turns away more than half of its slices. Otherwise
    set and threshold are those of an image with the probabilities of the series. What
    is proved for images is not proved for series.

    Args:
        answer: From `summarise`.
        trusted: Trust of the model that predicted the slices.
    """
    if answer.probs is None:
        return None
    (judged,) = trusted.judge(answer.probs[None])
    slices = [one.trust for one in answer.slices if one.trust is not None]
    shares = [one.gate for one in slices if one.gate is not None]
    if not shares:
        return judged
    judged = judged._replace(gate=float(np.median(shares)))
    objections = Counter(one.objection for one in slices if one.objection)
    if objections.total() * 2 <= len(slices):
        return judged
    ((objection, _),) = objections.most_common(1)
    return judged._replace(answer=NO_BRAIN_MRI, objection=objection)


def columns_of(classes: Iterable[str], *, identify: bool) -> list[str]:
    """Return the names of the columns, in their order.

    `kind` is 'image' for a file without a series, 'slice' or 'series'. `slice` counts
    from 1 in the order of the series, `frame` from 1 in a multi-frame file; in the row
    of a series, `slice` is the one that stands for it. `rule` has the rule behind the
    row of a series, whose answer is that of `judge_series`.
    """
    return [
        *("path", "run", "predicted", *map("prob_{}".format, classes)),
        *(*OF_TRUST, "error"),
        *("kind", "series", "slice", "frame", "order", "rule"),
        *(["patient"] if identify else []),
    ]


def rows_of(
    run: str,
    classes: Sequence[str],
    answers: Iterable[SeriesAnswer],
    others: Iterable[Prediction] = (),
) -> list[Row]:
    """Return the rows of one run: ordinary images, then series by series."""
    rows: list[Row] = [
        {"path": str(image.path), "run": run, "kind": "image", "error": image.error}
        | _prob_columns(classes, image.probs)
        | trust_cells(image.trust)
        for image in others
    ]
    for answer in answers:
        series = answer.series
        common = {"run": run, "series": series.number, "patient": series.patient}
        for number, (place, one) in enumerate(
            zip(series.slices, answer.slices, strict=True), start=1
        ):
            rows.append(
                common
                | {"path": str(place.path), "kind": "slice", "slice": number}
                | {"frame": None if place.frame is None else place.frame + 1}
                | {"error": one.error}
                | _prob_columns(classes, one.probs)
                | trust_cells(one.trust)
            )
        rows.append(common | _series_row(classes, answer))
    return rows


def _counted(num_readable: int, num_slices: int) -> str:
    of = "" if num_readable == num_slices else f"{num_readable} of "
    return f"{of}{num_slices} slice{'' if num_slices == 1 else 's'}"


def _answers(
    predictor: Predictor,
    pool: ThreadPoolExecutor,
    slices: Sequence[Slice],
) -> Iterator[SliceAnswer]:
    def decode(one: Slice) -> NDArray[np.uint8] | str:
        try:
            return read_image(one.path, frame=one.frame, limits=predictor.limits)
        except DataError as error:
            return without_path(error, one.path)

    decoded = list(pool.map(decode, slices))
    images = [image for image in decoded if not isinstance(image, str)]
    found = iter(zip(*predictor.judge(images), strict=True) if images else ())
    for image in decoded:
        if isinstance(image, str):
            yield SliceAnswer(None, image)
        else:
            probs, trust = next(found)
            yield SliceAnswer(probs, trust=trust)


def _series_row(classes: Sequence[str], answer: SeriesAnswer) -> Row:
    error = None
    if answer.probs is None:
        error = f"none of its {len(answer.slices)} slices could be read"
    row = {
        "kind": "series",
        "slice": None if answer.key is None else answer.key + 1,
        "order": answer.series.order,
        "rule": answer.rule,
        "error": error,
    }
    return row | _prob_columns(classes, answer.probs) | trust_cells(answer.trust)


def _prob_columns(classes: Sequence[str], probs: NDArray[np.float32] | None) -> Row:
    if probs is None:
        return {}
    row: Row = {"predicted": classes[int(probs.argmax())]}
    for name, prob in zip(classes, probs, strict=True):
        row[f"prob_{name}"] = float(prob)
    return row
