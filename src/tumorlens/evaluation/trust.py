"""Trust: how sure a run may be, when it answers, and what it turns away; fitted on val.

`fit_trust` looks at the val images once: temperature, conformal sets, the threshold of
abstention with its proof, operating points and the input gate. Promises are fitted on
one image of each group, as slices of one patient are right or wrong together. Test is
never looked at. What comes of it is applied by `tumorlens.runs.trust`.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.index import check_unchanged
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.features import load_networks, pass_over
from tumorlens.evaluation.gate import FALSE_ALARMS, fit_gate, spoil
from tumorlens.evaluation.inference import card_of
from tumorlens.evaluation.subsets import read_data
from tumorlens.files import locked, sha256_of, write_bytes
from tumorlens.runs.estimate import (
    CalibrationBins,
    estimate_of,
    estimate_of_score,
)
from tumorlens.runs.trust import (
    FILE,
    GATE_FILE,
    Calibration,
    GateFacts,
    OperatingPoint,
    Promise,
    Sets,
    Trust,
    write_trust,
)
from tumorlens.stats import conformal, estimates, intervals, metrics
from tumorlens.stats.calibration import answered_probs, fit_temperature
from tumorlens.stats.selective import fewest_for, fit_threshold, provable_error
from tumorlens.text import counted, percent
from tumorlens.training.dataset import PreparedData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.index import Index
    from tumorlens.runs.folder import ModelCard, Run
    from tumorlens.runs.progress import Progress
    from tumorlens.stats.gate import Gate


@dataclass(frozen=True)
class Wanted:
    """What is to be promised."""

    coverage: float = 0.9
    """Least share of cases in which the true class is in the set."""
    error: float = 0.05
    """Largest share of wrong answers."""
    confidence: float = 0.9
    """Chance with which the promise about the answers holds."""
    specificity: float = 0.95
    """Specificity of the operating point of each class."""

    def check(self) -> None:
        """Refuse what is no rate.

        Raises:
            ConfigError: A number is not in (0, 1).
        """
        for name, value in vars(self).items():
            if not 0 < value < 1:
                raise ConfigError(
                    f"expected {name} above 0 and below 1, got {value:g}",
                    hint="it is a fraction: 0.9 for 90 %",
                )


def wanted_of(run: Run, **given: float | None) -> Wanted:
    """Return what the settings of a run promise, but for what is given."""
    settings = run.config.trust.model_dump(exclude={"fit"})
    return Wanted(**settings | {k: v for k, v in given.items() if v is not None})


def fit_trust(
    run: Run,
    wanted: Wanted | None = None,
    *,
    data: Path | Sequence[Path] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Trust, ...]:
    """Fit and write `trust.json` and `gate.npz`, and the temperature into `model.json`.

    Args:
        run: A finished run. Of a k-fold run, each fold is fitted by itself.
        wanted: What is to be promised; `None` takes the run's settings.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
        device: As for the setting `train.device`.
        progress: Called with images done and images in all.

    Returns:
        The trust of the run, or of each fold.

    Raises:
        ConfigError: A rate is not in (0, 1).
        DataError: There is no data, or an image cannot be read any more; a class has no
            val image, or val has too few groups for the coverage.
        RunError: The run is not finished, has no val images or no features, or the
            data has changed.
    """
    wanted = wanted or wanted_of(run)
    wanted.check()
    if not run.is_finished:
        raise RunError(
            f"the training of {run.path} is not finished",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    index = read_data(run, data)
    parts = run.folds() if run.is_kfold else (run,)
    return tuple(
        _fit(part, wanted, index, device=device, progress=progress) for part in parts
    )


def fit_first_trust(run: Run, *, progress: Progress | None = None) -> tuple[Trust, ...]:
    """Fit trust at the end of a training, as its settings want it.

    A run that is calibrated, measured or exported already is left alone: resuming it
    must change none of its answers.

    Args:
        run: As for `fit_trust`.
        progress: As for `fit_trust`.

    Returns:
        As `fit_trust`; nothing where none is to be fitted.

    Raises what `fit_trust` raises.
    """
    parts = run.folds() if run.is_kfold else (run,)
    is_in_use = all((part.path / FILE).is_file() for part in parts) or any(
        (one.path / name).exists()
        for one in (run, *parts)
        for name in ("metrics.json", "export")
    )
    if not run.config.trust.fit or is_in_use:
        return ()
    return fit_trust(run, device=run.config.train.device, progress=progress)


def _fit(
    run: Run, wanted: Wanted, index: Index, *, device: str, progress: Progress | None
) -> Trust:
    data = PreparedData(index, run.split())
    check_unchanged(data.rows, index)
    rows = data.subset_rows("val")
    _check_val(run, [row.label for row in rows], index.classes)
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    seed = run.config.train.seed
    chosen = one_of_each(groups, seed=seed)
    _check_coverage(wanted.coverage, len(chosen))

    networks = [(one, card_of(one, index)) for one in run.networks()]
    loaded = load_networks(networks, device)
    of_val = pass_over(
        loaded,
        data,
        "val",
        change=lambda images, first: spoil(images, seed=seed + first),
        progress=progress,
    )
    of_train = pass_over(loaded, data, "train", progress=progress)
    temperature = fit_temperature(of_val.logits, of_val.labels, weights=of_val.weights)
    gate, aurocs = fit_gate(
        of_train.embedding,
        of_train.labels,
        of_val.embedding,
        of_val.facts,
        of_val.variants,
        seed=seed,
    )
    before, probs = (
        answered_probs(of_val.logits, divisor, weights=of_val.weights)
        for divisor in (1.0, temperature)
    )
    labels = of_val.labels
    trust = Trust(
        weights_sha256=tuple(card.weights_sha256 for _, card in networks),
        classes=index.classes,
        num_images=len(rows),
        num_groups=len(chosen),
        seed=seed,
        temperature=temperature,
        before=_calibration(before, labels, groups),
        after=_calibration(probs, labels, groups),
        sets=_sets(probs[chosen], labels[chosen], wanted.coverage, seed=seed),
        promise=promise_of(probs[chosen], labels[chosen], wanted),
        operating_points={
            name: _operating_point(
                probs[:, number], labels == number, groups, wanted.specificity
            )
            for number, name in enumerate(index.classes)
        },
        gate=GateFacts(
            sha256="0" * 64,
            method=gate.method,
            auroc=aurocs,
            false_alarms=FALSE_ALARMS,
        ),
    )
    return _write(run, trust, gate, networks)


def _write(
    run: Run, trust: Trust, gate: Gate, networks: Sequence[tuple[Run, ModelCard]]
) -> Trust:
    paths = [
        run.path / GATE_FILE,
        run.path / FILE,
        *(one.card_path for one, _ in networks),
    ]
    with locked(run.path), _all_or_none(paths):
        written = write_trust(run.path, trust, [gate])
        update = {
            "temperature": trust.temperature,
            "trust_sha256": sha256_of(run.path / FILE),
        }
        for one, card in networks:
            one.write_card(card.model_copy(update=update))
    return written


@contextmanager
def _all_or_none(paths: Sequence[Path]) -> Iterator[None]:
    """Put files back as they were if one of them cannot be written.

    Where a disk is full, that may fail for a file that was there; reading then finds
    that the files do not belong together.
    """
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            with suppress(OSError, DataError):
                if content is None:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != content:
                    write_bytes(path, content)
        raise


def _check_val(run: Run, labels: Sequence[str], classes: Sequence[str]) -> None:
    if not labels:
        raise RunError(
            f"{run.path} has no val images, and trust is fitted on them",
            hint="train with a val subset; imported weights get one by: "
            "tumorlens import ... --data DATA",
        )
    if missing := [name for name in classes if name not in labels]:
        raise DataError(
            f"no val image of {run.path} is of the class {missing[0]}",
            hint="train with more images of the class, or with another split",
        )


def _check_coverage(coverage: float, num_groups: int) -> None:
    needed = math.ceil(coverage / (1 - coverage) - 1e-9)
    if num_groups < needed:
        raise DataError(
            f"a coverage of {coverage:g} needs {needed} groups of val, which has "
            f"{num_groups}",
            hint=f"ask for less: --coverage {num_groups / (num_groups + 1):.2g}",
        )


def one_of_each(groups: NDArray[np.integer], *, seed: int) -> NDArray[np.int64]:
    """Return the position of one image of each group, drawn at random.

    Args:
        groups: Group of each image, shape (N,).
        seed: Seed of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.sort(order[first]).astype(np.int64)


def _calibration(
    probs: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> Calibration:
    confidence, accuracy, count = metrics.calibration_bins(probs, labels)
    number_of = metrics.confidence_bins(probs)
    right = probs.argmax(axis=1) == labels
    num_groups = len(np.unique(groups))
    measures = {
        "log_loss": estimates.log_loss(probs, labels, groups),
        "brier": estimates.brier(probs, labels, groups),
        "ece": estimates.calibration_error(probs, labels, groups),
    }
    return Calibration(
        **{
            name: estimate_of(found, num_groups=num_groups)
            for name, found in measures.items()
        },
        bins=CalibrationBins(
            confidence=tuple(confidence), accuracy=tuple(accuracy), count=tuple(count)
        ),
        accuracy_by_bin=tuple(
            estimate_of_score(_share(right, groups, number_of == number))
            for number in np.unique(number_of)
        ),
    )


def _share(
    values: NDArray[np.bool_], groups: NDArray[np.int64], part: NDArray[np.bool_]
) -> intervals.Score | None:
    if not part.any():
        return None
    _, own = np.unique(groups[part], return_inverse=True)
    return intervals.share(values[part], own)


def _sets(
    probs: NDArray[np.float64],
    labels: NDArray[np.int64],
    coverage: float,
    *,
    seed: int,
) -> Sets:
    """Return the thresholds of the sets, fitted on one image of each group."""
    rows = np.arange(len(labels))
    draws = np.random.default_rng(seed).random(len(labels))
    lac = conformal.lac_scores(probs)[rows, labels]
    aps = conformal.aps_scores(probs, draws)[rows, labels]
    number_of = range(probs.shape[1])

    def found(scores: NDArray[np.float64]) -> float | None:
        one = conformal.threshold(scores, coverage)
        return max(0.0, one) if math.isfinite(one) else None

    return Sets(
        coverage=coverage,
        lac=found(lac),
        aps=found(aps),
        lac_by_class=tuple(found(lac[labels == number]) for number in number_of),
        aps_by_class=tuple(found(aps[labels == number]) for number in number_of),
    )


def promise_of(
    probs: NDArray[np.float64], labels: NDArray[np.int64], wanted: Wanted
) -> Promise:
    """Return when to answer, so that few enough answers are wrong.

    Args:
        probs: Probabilities of one image of each group, shape (N, C).
        labels: True class indices, shape (N,).
        wanted: Error and confidence.
    """
    is_wrong = probs.argmax(axis=1) != labels
    found = fit_threshold(
        probs.max(axis=1), is_wrong, error=wanted.error, confidence=wanted.confidence
    )
    num = len(labels)
    if found is None:
        words = _words_without(probs.max(axis=1), is_wrong, wanted)
    else:
        words = (
            f"at most {percent(wanted.error)} of the answers are wrong, with "
            f"{percent(wanted.confidence, 0)} confidence: of {counted(num, 'group')} "
            f"of val, one image each, {found.num_answered} are answered and "
            f"{found.num_wrong} of these wrongly"
        )
    return Promise(
        error=wanted.error,
        confidence=wanted.confidence,
        threshold=None if found is None else found.threshold,
        num_groups=num,
        num_answered=0 if found is None else found.num_answered,
        num_wrong=0 if found is None else found.num_wrong,
        words=words,
    )


def _words_without(
    certainty: NDArray[np.float64], is_wrong: NDArray[np.bool_], wanted: Wanted
) -> str:
    """Return why nothing is promised. The arguments are those of `fit_threshold`."""
    num = len(is_wrong)
    promise = (
        f"no threshold proves that at most {percent(wanted.error)} of the answers are "
        f"wrong, with {percent(wanted.confidence, 0)} confidence"
    )
    needed = fewest_for(wanted.error, wanted.confidence)
    if num < needed:
        could = provable_error(num, wanted.confidence)
        return (
            f"{promise}: that takes {needed} groups without a mistake, and val has "
            f"{num}, which without a mistake would prove {percent(could)}"
        )
    is_surest = certainty >= np.sort(certainty)[-needed]
    mistakes = counted(int(is_wrong[is_surest].sum()), "mistake")
    return (
        f"{promise}: the {is_surest.sum()} surest of {counted(num, 'group')} of val "
        f"have {mistakes}, which is too many; all groups have {is_wrong.sum()}"
    )


def _operating_point(
    probs: NDArray[np.float64],
    is_class: NDArray[np.bool_],
    groups: NDArray[np.int64],
    specificity: float,
) -> OperatingPoint:
    """Return the lowest threshold with the wanted specificity on val.

    Args:
        probs: Probability of the class, shape (N,).
        is_class: Whether the class is the true one, shape (N,).
        groups: Group of each image, shape (N,).
        specificity: Least share of other images below the threshold.
    """
    others = np.sort(probs[~is_class])
    rank = math.ceil(specificity * len(others) - 1e-9)
    threshold = float(np.nextafter(others[rank - 1], 1)) if len(others) else 0.0
    is_found = probs >= threshold
    return OperatingPoint(
        threshold=min(1.0, threshold),
        specificity=estimate_of_score(_share(~is_found, groups, ~is_class)),
        sensitivity=estimate_of_score(_share(is_found, groups, is_class)),
    )
