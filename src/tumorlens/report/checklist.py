"""The checklist of a run, `checklist.csv`: what its files answer of two guidelines.

CLAIM 2024 (Tejani et al., https://doi.org/10.1148/ryai.240300) has 44 items, STARD-AI
(Sounderajah et al. 2025, https://doi.org/10.1038/s41591-025-03953-8) 40, some of them
in lettered parts. The topics are our own words, as short as a label: whoever reports a
study reads the guidelines. An item is answered only where a file of the run says all
that it is about. Most items are about a study, its patients and its authors, and of
those a run knows nothing. There is no score: items do not weigh the same.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tumorlens.report.card import Card

COLUMNS = ("guideline", "item", "topic", "state", "from")

ANSWERED, NOT_ANSWERED, NOT_KNOWN = (
    "answered",
    "not answered",
    "not known to the software",
)


class Item(NamedTuple):
    """An item of a guideline."""

    guideline: str
    number: str
    """With the letter of its part."""
    topic: str
    subject: str = ""
    """What of a run answers it, see `_answers`; empty for what no run knows."""


class Row(NamedTuple):
    """A line of the checklist; the last field is named `from` in the file."""

    guideline: str
    item: str
    topic: str
    state: str
    source: str
    """File and fields with the answer, or the command that would make them."""


_CLAIM = (
    ("1", "title names the kind of AI"),
    ("2", "abstract that sums up the study"),
    ("3", "background and intended clinical role"),
    ("4", "what the study sets out to show"),
    ("5", "whether data existed before the study"),
    ("6", "what the study is for"),
    ("7", "where the images come from", "sources"),
    ("8", "rules for taking cases in"),
    ("9", "preprocessing of the images", "preprocessing"),
    ("10", "which parts of the data were taken"),
    ("11", "how images were de-identified"),
    ("12", "what was done about missing data"),
    ("13", "how the images were acquired"),
    ("14", "how the true labels are defined"),
    ("15", "why the labels are defined so"),
    ("16", "who annotated, and their qualification"),
    ("17", "how the test set was annotated"),
    ("18", "agreement within and between annotators"),
    ("19", "assignment of data to subsets", "subsets"),
    ("20", "unit in which subsets are disjoint", "groups"),
    ("21", "planned size of the test set"),
    ("22", "the model in detail", "model"),
    ("23", "software, libraries and their versions", "software"),
    ("24", "initial values of the weights", "start"),
    ("25", "training in detail, with augmentation", "training"),
    ("26", "how the final model was chosen", "choice"),
    ("27", "how several models are combined", "ensemble"),
    ("28", "which measures are reported", "measures"),
    ("29", "how sure the figures are", "intervals"),
    ("30", "how stable the results are", "stress"),
    ("31", "how answers are explained", "explanations"),
    ("32", "test on data like training", "internal"),
    ("33", "test on data from elsewhere", "external"),
    ("34", "where a trial is registered"),
    ("35", "how many cases were taken in", "counts"),
    ("36", "who the patients of each subset are"),
    ("37", "how good the final model is", "measures"),
    ("38", "accuracy by class, with intervals", "by class"),
    ("39", "what the mistakes look like", "mistakes"),
    ("40", "weak points of the study"),
    ("41", "what it means for practice"),
    ("42", "where technical details can be read"),
    ("43", "access to software, model and data"),
    ("44", "who paid, and their part"),
)

_STARD_AI = (
    ("1", "title or abstract names AI and accuracy"),
    ("2", "abstract in a fixed order"),
    ("3", "background, intended use and workflow"),
    ("4", "study question and hypotheses"),
    ("5", "whether data existed before the study"),
    ("6", "ethical approval of the study"),
    ("7", "rules for participants and for images"),
    ("8", "why patients were considered"),
    ("9", "where and when patients were found"),
    ("10", "how the series of patients arose"),
    ("11", "source and purpose of the data"),
    ("12", "who annotated the data, and how"),
    ("13", "devices and software of data capture"),
    ("14", "acquisition and preprocessing of the data"),
    ("15a", "the index test in detail", "model"),
    ("15b", "development, with sizes of the samples", "development"),
    ("15c", "thresholds of the index test", "thresholds"),
    ("15d", "intended users and their expertise"),
    ("16a", "the reference standard in detail"),
    ("16b", "why this reference was chosen"),
    ("16c", "thresholds of the reference standard"),
    ("17a", "what readers of the index test knew"),
    ("17b", "what assessors of the reference knew"),
    ("18", "how accuracy was estimated", "intervals"),
    ("19", "what became of unclear results", "abstention"),
    ("20", "what was done about missing results"),
    ("21", "how accuracy varies", "variability"),
    ("22", "planned number of cases, and why"),
    ("23", "search for errors, bias and unfairness"),
    ("24", "drawing of who went where"),
    ("25", "who the patients of each subset are"),
    ("26a", "how severe the disease was"),
    ("26b", "what the other patients had", "classes"),
    ("27", "time between index test and reference"),
    ("28", "whether images are those of use"),
    ("29", "how data from elsewhere differ"),
    ("30", "table of answers against labels", "cross table"),
    ("31", "accuracy by class, with intervals", "by class"),
    ("32", "harm done by the tests"),
    ("33", "weak points of the study"),
    ("34", "what it means for practice"),
    ("35", "whether its use is fair"),
    ("36", "where the study is registered"),
    ("37", "where the full protocol is"),
    ("38", "who paid, and their part"),
    ("39", "who earns by it"),
    ("40a", "access to data and code"),
    ("40b", "whether answers are kept", "outputs"),
)

ITEMS = tuple(
    [Item("CLAIM 2024", *one) for one in _CLAIM]
    + [Item("STARD-AI", *one) for one in _STARD_AI]
)
"""Every item, in the order of the guidelines."""


def as_csv(card: Card) -> str:
    """Return `checklist.csv`, a line for each item."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(checklist_of(card))
    return text.getvalue()


def checklist_of(card: Card) -> tuple[Row, ...]:
    """Return the items of both guidelines, and what the run says of each."""
    answers = _answers(card)
    rows = []
    for item in ITEMS:
        answer = answers[item.subject] if item.subject else _UNKNOWN
        rows.append(Row(item.guideline, item.number, item.topic, *answer))
    return tuple(rows)


class _Answer(NamedTuple):
    state: str
    source: str


_UNKNOWN = _Answer(NOT_KNOWN, "")


def _answers(card: Card) -> dict[str, _Answer]:
    """Return what the run says of each subject."""
    model = _everywhere(card, "model.json")
    history = _everywhere(card, "history.jsonl")
    trust = _everywhere(card, "trust.json", places=card.trust)
    libraries, details = "environment.json: packages", "name, arguments, classes"
    preprocessing = "size_px, fit, mean, std"
    if card.kind == "artefact":
        libraries, details = "model.json: made_with", "networks, classes"
        preprocessing = "size_px, fit"
    figures, external = card.figures, [f"external/{name}" for name in card.external]
    sources = figures.by_source if figures else {}
    commands = {name: gap.command for name, gap in card.missing.items()}
    evaluate = commands.get("figures", "tumorlens evaluate RUN")
    split = commands.get("split", "")
    answers = {
        "preprocessing": _if(card.networks, f"{model}: {preprocessing}"),
        "model": _if(card.networks, f"{model}: {details}"),
        "software": _if(card.machine.packages, libraries),
        "ensemble": _if(card.networks, _combined(card, model)),
        "subsets": _if(
            card.split, "config.toml: data.protocol; split.csv: subset", split
        ),
        "groups": _if(card.split, "split.csv: group; leak.json", split),
        "classes": _if(card.split, "split.csv: label", split),
        "counts": _if(
            card.split and _are_patients_known(card), "split.csv: group, subset, reason"
        ),
        "start": _if(card.training, "config.toml: model.pretrained"),
        "training": _if(
            card.training, f"config.toml: augment, optim, train; {history}"
        ),
        "choice": _if(card.training, f"config.toml: train.best_by; {model}: epoch"),
        "development": _if(
            card.training and card.split, f"config.toml; split.csv: subset; {history}"
        ),
        "sources": _if(sources and "unknown" not in sources, "metrics.json: by_source"),
        "measures": _if(figures, "metrics.json", evaluate),
        "internal": _if(figures, "metrics.json: protocol, subset, leak", evaluate),
        "intervals": _if(figures, "metrics.json: interval, warnings", evaluate),
        "by class": _if(figures, "metrics.json: per_class", evaluate),
        "cross table": _if(figures, "metrics.json: confusion_matrix", evaluate),
        "mistakes": _if(
            figures and "predictions.csv" in card.files,
            "predictions.csv; metrics.json: confusion_matrix",
            evaluate,
        ),
        "outputs": _if(
            "predictions.csv" in card.files, "predictions.csv; looks.jsonl", evaluate
        ),
        "thresholds": _if(
            card.trust, f"{trust}: promise, operating_points", commands.get("trust", "")
        ),
        "abstention": _if(
            figures and figures.trust,
            f"{trust}: promise; metrics.json: trust",
            commands.get("trust", evaluate),
        ),
        "variability": _if(
            len(sources) > 1 or (figures and figures.folds) or card.stress,
            "; ".join(_variability(card)),
            commands.get("stress", ""),
        ),
        "stress": _if(card.stress, "; ".join(card.stress), commands.get("stress", "")),
        "explanations": _if(
            card.explanations,
            "; ".join(card.explanations),
            commands.get("explanations", ""),
        ),
        "external": _if(
            external,
            "; ".join(f"{folder}/external.json" for folder in external),
            commands.get("external", ""),
        ),
    }
    if card.kind == "artefact":
        of_run = _Answer(NOT_ANSWERED, "tumorlens card RUN")
        answers = {
            subject: answer if answer.state == ANSWERED else of_run
            for subject, answer in answers.items()
        }
    return answers


def _if(condition: object, source: str, command: str = "") -> _Answer:
    """Return the answer of a file; without it the command that makes one, if any."""
    if condition:
        return _Answer(ANSWERED, source)
    return _Answer(NOT_ANSWERED, command) if command else _UNKNOWN


def _everywhere(card: Card, name: str, *, places: Iterable[str] | None = None) -> str:
    """Return where a file is that each network has, such as `folds/*/model.json`."""
    found = dict.fromkeys(
        "" if place == "." else re.sub(r"\d+", "*", place) + "/"
        for place in places or card.networks
    )
    return "; ".join(f"{place}{name}" for place in found)


def _combined(card: Card, model: str) -> str:
    """Return the file that says how many networks answer, and how they are combined."""
    if card.kind == "ensemble":
        return "ensemble.json: members"
    return "config.toml: data.num_folds" if card.kind == "k-fold run" else model


def _are_patients_known(card: Card) -> bool:
    leak = card.leak
    return bool(leak and leak.num_test and not leak.num_test_unknown_patient)


def _variability(card: Card) -> Iterator[str]:
    figures = card.figures
    if figures and len(figures.by_source) > 1:
        yield "metrics.json: by_source"
    if figures and figures.folds:
        yield "metrics.json: folds"
    yield from card.stress
