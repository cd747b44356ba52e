"""The model card for people, `card.md`, and the files beside it.

The text has in sentences and tables what `card.json` holds, and no other figure. Its
head is the YAML that model hubs read, with a `model-index`, as `huggingface_hub` writes
it. Nothing goes to a network, and no hub is asked whether the card is valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from tumorlens.deploy.artefact import CARD_FILES, is_artefact
from tumorlens.errors import DataError
from tumorlens.files import check_folder, remove_leftovers, write_model, write_text
from tumorlens.report.card import NOT_KNOWN, card_of_artefact, card_of_run
from tumorlens.report.checklist import COLUMNS, as_csv
from tumorlens.report.tables import decimals, markdown_table, markdown_text
from tumorlens.runs.folder import open_run
from tumorlens.text import (
    NOT_DEFINED,
    counted,
    decimal,
    duration,
    p_value,
    percent,
    points,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tumorlens.deploy.artefact import Change
    from tumorlens.report.card import (
        Card,
        CardFigures,
        CardGap,
        CardMeasures,
        CardStress,
    )
    from tumorlens.report.tables import Rows
    from tumorlens.runs.estimate import Estimate

TEXT_FILE, DATA_FILE, CHECKLIST_FILE = CARD_FILES

_MEASURES = (
    ("Accuracy", "accuracy", "accuracy"),
    ("Balanced accuracy", "balanced_accuracy", "balanced_accuracy"),
    ("Macro F1", "macro_f1", "f1"),
    ("Macro AUROC", "macro_auroc", "roc_auc"),
    ("Log loss", "log_loss", "log_loss"),
    ("Brier score", "brier", "brier_score"),
    ("Calibration error", "ece", "expected_calibration_error"),
)
"""Title, field, and name in the `model-index`."""

_PERCENTAGES = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class WrittenCard:
    """A card on disk."""

    folder: Path
    card: Card


def write_card(path: Path, out: Path | None = None) -> WrittenCard:
    """Write `card.md`, `card.json` and `checklist.csv` of a run or an artefact.

    Args:
        path: Folder of a finished run of any kind, or of an artefact.
        out: Where to; `None` is the folder itself.

    Raises:
        RunError: There is no run, it is not finished, or one of its files is missing or
            damaged.
        ArtefactError: The artefact, or one of the run's, is damaged.
        DataError: `out` cannot be written, or a file there is somebody's.
    """
    if is_artefact(path):
        path = path.parent if path.is_file() else path
        card = card_of_artefact(path)
    else:
        card = card_of_run(open_run(path))
    folder = path if out is None else out
    check_folder(folder)
    _check_ours(folder)
    text, checklist = as_text(card), as_csv(card)
    remove_leftovers(folder.glob(".*"))
    write_text(folder / CHECKLIST_FILE, checklist)
    write_model(folder / DATA_FILE, card)
    write_text(folder / TEXT_FILE, text)
    return WrittenCard(folder, card)


def as_text(card: Card) -> str:
    """Return `card.md`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tumorlens.report"),
        autoescape=False,  # Markdown, which `_escaped` takes care of
        undefined=jinja2.StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=lambda text: Markup(f"`{text}`"),
        counted=counted,
        duration=duration,
        percent=percent,
    )
    body = environment.get_template("card.md.j2").render(
        card=card,
        gap=lambda name: _gap(card.missing[name]),
        not_known=NOT_KNOWN,
        has_gate=any(one.gate for one in card.trust.values()),
        tables={name: Markup(markdown_table(rows)) for name, rows in _tables(card)},
    )
    head = _head(card).to_yaml(line_break="\n")
    content: str = ModelCard(f"---\n{head}\n---\n\n{body}").content
    return content


def _head(card: Card) -> ModelCardData:
    """Return the metadata for model hubs."""
    results = [*_results(card)]
    return ModelCardData(
        base_model=card.base_model,
        eval_results=results or None,
        library_name="tumorlens",
        license="unknown",
        model_name=card.name,
        pipeline_tag="image-classification",
        tags=["medical", "mri", "brain", *(one.name for one in card.networks.values())],
    )


def _results(card: Card) -> Iterator[EvalResult]:
    """Return the figures for the `model-index`: those on test, then on other sets."""
    if card.figures is not None:
        name = " + ".join(card.sets) or "images of the run"
        # Hubs show the name beside the figure, and nothing else of the card.
        note = " (not held out)" if card.has_leak else ""
        yield from _results_on(card.figures, name, subset="test", note=note)
    for one in card.external.values():
        found, note = one.new or one.all, " (new images)" if one.new else ""
        yield from _results_on(found, one.name, subset="all", note=note)


def _results_on(
    measures: CardMeasures, name: str, *, subset: str, note: str
) -> Iterator[EvalResult]:
    figures = [
        (kind, title, getattr(measures, field)) for title, field, kind in _MEASURES
    ]
    figures += [
        ("recall", f"Recall of {label}", one.recall)
        for label, one in measures.per_class.items()
    ]
    for kind, title, estimate in figures:
        if estimate.value is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type=name,
                dataset_name=name,
                dataset_split=subset,
                metric_type=kind,
                metric_name=f"{title}{note}",
                metric_value=estimate.value,
            )


def _tables(card: Card) -> Iterator[tuple[str, Rows]]:
    """Return the tables of the card, by their names in the template."""
    yield "networks", _network_rows(card)
    yield "hashes", _hash_rows(card)
    yield "packages", _packages(card)
    if card.split:
        yield "split", _split_rows(card)
    if card.figures:
        found = card.figures
        yield "measures", _measure_rows([("", found)])
        yield "by_class", _class_rows(found)
        yield "confusion", _confusion_rows(found)
        yield "by_source", _source_rows(found)
        yield "folds", _fold_rows(found)
        if found.trust:
            yield "answers", _answer_rows(found)
    if card.trust:
        yield "calibration", _calibration_rows(card)
        yield "operating_points", _operating_rows(card)
        yield "gates", _gate_rows(card)
    yield "exports", _export_rows(card)
    for folder, other in card.external.items():
        parts = (("new images", other.new), ("seen", other.seen), ("all", other.all))
        yield (
            f"external/{folder}",
            _measure_rows([(title, one) for title, one in parts if one]),
        )
    for file, stress in card.stress.items():
        yield file, _stress_rows(stress)


def _measure_rows(parts: Sequence[tuple[str, CardMeasures]]) -> Rows:
    """Return a row for each measure and a column for each part."""
    heading = ["measure", *(title or "value (95 % interval)" for title, _ in parts)]
    rows = [
        [
            "images (groups)",
            *(f"{one.num_images:,} ({one.num_groups:,})" for _, one in parts),
        ]
    ]
    for title, field, _ in _MEASURES:
        is_percentage = field in _PERCENTAGES
        values = [getattr(one, field) for _, one in parts]
        if all(one.value is None for one in values):
            continue
        rows.append(
            [title, *(_share(v) if is_percentage else decimals(v) for v in values)]
        )
    return heading, rows


def _class_rows(found: CardMeasures) -> Rows:
    heading = ["class", "images", "recall", "precision", "specificity", "F1", "AUROC"]
    return heading, [
        [
            name,
            f"{one.num_images:,}",
            *map(_share, (one.recall, one.precision, one.specificity)),
            percent(one.f1),
            decimals(one.auroc),
        ]
        for name, one in found.per_class.items()
    ]


def _confusion_rows(found: CardMeasures) -> Rows:
    heading = ["label", *(f"as {name}" for name in found.classes)]
    rows = zip(found.classes, found.confusion_matrix, strict=True)
    return heading, [[name, *(f"{one:,}" for one in row)] for name, row in rows]


def _source_rows(found: CardMeasures) -> Rows:
    heading = ["source", "images (groups)", "accuracy"]
    heading += [f"recall of {name}" for name in found.classes]
    return heading, [
        [
            name,
            f"{one.num_images:,} ({one.num_groups:,})",
            _share(one.accuracy),
            *(_share(one.recall.get(label)) for label in found.classes),
        ]
        for name, one in found.by_source.items()
    ]


def _fold_rows(found: CardMeasures) -> Rows:
    return ["fold", "images", "accuracy"], [
        [f"{one.fold}", f"{one.num_images:,}", percent(one.accuracy)]
        for one in found.folds
    ]


def _answer_rows(found: CardFigures) -> Rows:
    trust = found.trust
    assert trust is not None
    pairs = [
        ("answered with a class", trust.answered),
        ("wrong among the answers", trust.error_of_answers),
        ("accuracy of the surest 80 %", trust.accuracy_of_surest),
        ("true class in the set", trust.coverage),
    ]
    pairs += [
        (f"{name} in the set", one) for name, one in trust.coverage_by_class.items()
    ]
    if trust.turned_away is not None:
        pairs.append(("turned away by the gate", trust.turned_away))
    pairs += [
        (f"turned away, of {name}", one)
        for name, one in trust.turned_away_by_source.items()
    ]
    rows = [[title, _share(one)] for title, one in pairs]
    rows.append(["mean number of classes in a set", decimal(trust.mean_set_size, 2)])
    return ["on test", "share (95 % interval)"], rows


def _network_rows(card: Card) -> Rows:
    heading = ["network", "input", "square by", "views", "epoch", "temperature"]
    return heading, [
        [
            one.name if place == "." else f"{place}: {one.name}",
            f"{one.size_px} x {one.size_px}",
            one.fit,
            one.views,
            NOT_DEFINED if one.epoch is None else f"{one.epoch}",
            decimal(one.temperature),
        ]
        for place, one in card.networks.items()
    ]


def _split_rows(card: Card) -> Rows:
    assert card.split is not None
    heading = ["subset", "groups", "images", *card.classes]
    return heading, [
        [
            name,
            f"{card.split.groups[name]:,}",
            f"{sum(counts.values()):,}",
            *(f"{counts.get(label, 0):,}" for label in card.classes),
        ]
        for name, counts in card.split.images.items()
    ]


def _calibration_rows(card: Card) -> Rows:
    """Return a row for each network that was calibrated; before and after on val."""
    heading = ["val", "images (groups)", "temperature", "calibration error, before"]
    heading += ["after", "log loss, before", "after"]
    return heading, [
        [
            "all" if place == "." else place,
            f"{one.num_images:,} ({one.num_groups:,})",
            decimal(one.temperature),
            decimals(one.before.ece if one.before else None),
            decimals(one.after.ece if one.after else None),
            decimals(one.before.log_loss if one.before else None),
            decimals(one.after.log_loss if one.after else None),
        ]
        for place, one in card.trust.items()
    ]


def _operating_rows(card: Card) -> Rows:
    heading = ["class", "threshold", "specificity on val", "sensitivity on val"]
    trust = card.trust.get(".")
    points_of = trust.operating_points if trust else {}
    return heading, [
        [name, decimal(one.threshold), _share(one.specificity), _share(one.sensitivity)]
        for name, one in points_of.items()
    ]


def _gate_rows(card: Card) -> Rows:
    heading = ["gate", "method", "AUROC, neighbour", "AUROC, Mahalanobis"]
    heading.append("false alarms wanted")
    return heading, [
        [
            "of the run" if place == "." else f"of {place}",
            one.gate.method,
            decimal(one.gate.auroc.get("neighbour")),
            decimal(one.gate.auroc.get("mahalanobis")),
            percent(one.gate.false_alarms),
        ]
        for place, one in card.trust.items()
        if one.gate
    ]


def _stress_rows(found: CardStress) -> Rows:
    heading = ["corruption", "level", "accuracy", "change, points", "p", "found"]
    rows = [["none", NOT_DEFINED, _share(found.clean), *[NOT_DEFINED] * 3]]
    rows += [
        [
            one.title,
            f"{one.level}",
            _share(one.accuracy),
            _points(one.change),
            p_value(one.p_holm),
            "yes" if one.is_found else "no",
        ]
        for one in found.corruptions
    ]
    if found.clean_trust is not None:
        heading += ["answered", "wrong among the answers", "turned away"]
        trusts = [found.clean_trust, *(one.trust for one in found.corruptions)]
        for row, trust in zip(rows, trusts, strict=True):
            parts = (trust.answered, trust.error, trust.alarms) if trust else [None] * 3
            row += map(_share, parts)
    return heading, rows


def _export_rows(card: Card) -> Rows:
    heading = ["artefact", "numbers", "val images", "accuracy of the run"]
    heading += ["of the artefact", "change, points", "largest change of a probability"]
    return heading, [
        [
            one.kind,
            one.precision,
            f"{one.num_images:,}",
            percent(one.accuracy.run),
            percent(one.accuracy.artefact),
            _points(one.accuracy.change),
            f"{one.max_difference:.1g}",
        ]
        for one in card.exports.values()
    ]


def _hash_rows(card: Card) -> Rows:
    """Return the files that the figures rest on; of folds and members their weights."""
    weights = "weights.safetensors"
    names = {"split.csv", "seen.npz", "trust.json", "gate.npz"}
    names |= {"metrics.json", "predictions.csv"}
    return ["file", "SHA-256"], [
        [path, digest]
        for path, digest in card.files.items()
        if path in names or path.endswith(weights) or card.kind == "artefact"
    ]


def _packages(card: Card) -> Rows:
    return ["library", "version"], [
        list(pair) for pair in card.machine.packages.items()
    ]


def _share(estimate: Estimate | None) -> str:
    return NOT_DEFINED if estimate is None else estimate.percentage


def _points(change: Estimate | Change) -> str:
    """Return a difference of two accuracies in percentage points, with its bounds."""
    words = points(change.value)
    if change.low is not None and change.high is not None:
        words += f" ({points(change.low)} to {points(change.high)})"
    return words


def _gap(gap: CardGap) -> Markup:
    """Return why a part is missing, and the command that makes it."""
    why = f"{gap.why[:1].upper()}{gap.why[1:]}"
    return Markup(f"{why}: run `{gap.command}`." if gap.command else f"{why}.")


def _escaped(value: Any) -> Any:
    """Return what the template prints, the markup in names and sentences escaped."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return markdown_text(value) if is_text else value


def _check_ours(folder: Path) -> None:
    """Refuse a folder with somebody's files of the same names.

    Raises:
        DataError: One is there.
    """
    starts = {
        TEXT_FILE: "---\nlibrary_name: tumorlens\n",
        DATA_FILE: '{\n  "format": ',
        CHECKLIST_FILE: ",".join(COLUMNS),
    }
    for name, start in starts.items():
        path = folder / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            found = file.read(len(start))
        if found != start.encode():
            raise DataError(
                f"{path} is there, and was not written by this command",
                hint="name another folder with --out, or move that file away",
            )
