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
    ("2", "abstract with design, results and conclusions"),
    ("3", "background and intended clinical role"),
    ("4", "aims and hypotheses of the study"),
    ("5", "prospective or retrospective collection"),
    ("6", "goal of the study"),
    ("7", "where the images come from", "sources"),
    ("8", "criteria for including and excluding cases"),
    ("9", "preprocessing of the images", "preprocessing"),
    ("10", "choice of parts of the data"),
    ("11", "how images were de-identified"),
    ("12", "handling of missing data"),
    ("13", "how the images were acquired"),
    ("14", "definition of the reference standard"),
    ("15", "why this reference standard"),
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
    ("28", "measures of performance", "measures"),
    ("29", "uncertainty and significance", "intervals"),
    ("30", "robustness or sensitivity analysis", "stress"),
    ("31", "methods of explanation, and their checks", "explanations"),
    ("32", "evaluation on internal data", "internal"),
    ("33", "testing on external data", "external"),
    ("34", "registration of a clinical trial"),
    ("35", "numbers of cases included and excluded", "counts"),
    ("36", "demographic and clinical features by subset"),
    ("37", "performance of the final model", "measures"),
    ("38", "diagnostic accuracy with its precision", "by class"),
    ("39", "analysis of wrongly classified cases", "mistakes"),
    ("40", "limitations of the study"),
    ("41", "implications for practice"),
    ("42", "where the full protocol is"),
    ("43", "availability of software, model and data"),
    ("44", "funding and role of the funders"),
)

_STARD_AI = (
    ("1", "title or abstract names AI and accuracy"),
    ("2", "structured abstract"),
    ("3", "background, intended use and workflow"),
    ("4", "objectives and hypotheses"),
    ("5", "prospective or retrospective collection"),
    ("6", "approval by an ethics committee"),
    ("7", "criteria for participants and for data"),
    ("8", "how eligible participants were found"),
    ("9", "place and time of recruitment"),
    ("10", "consecutive, random or convenience series"),
    ("11", "source and purpose of the data"),
    ("12", "who annotated the data, and how"),
    ("13", "devices and software of data capture"),
    ("14", "acquisition and preprocessing of the data"),
    ("15a", "the index test in detail", "model"),
    ("15b", "development, with sizes of the samples", "development"),
    ("15c", "cut-offs of the index test", "cut-offs"),
    ("15d", "intended users and their expertise"),
    ("16a", "the reference standard in detail"),
    ("16b", "why this reference standard"),
    ("16c", "cut-offs of the reference standard"),
    ("17a", "what readers of the index test knew"),
    ("17b", "what assessors of the reference knew"),
    ("18", "methods of estimating accuracy", "intervals"),
    ("19", "handling of indeterminate results", "abstention"),
    ("20", "handling of missing data"),
    ("21", "analyses of variability of the accuracy", "variability"),
    ("22", "planned sample size and its basis"),
    ("23", "analysis of errors, bias and fairness"),
    ("24", "diagram of the flow of participants"),
    ("25", "baseline features of each subset"),
    ("26a", "severity of disease in those affected"),
    ("26b", "alternative diagnoses in the others", "classes"),
    ("27", "time between index test and reference"),
    ("28", "whether data represent the intended population"),
    ("29", "how external data differ from internal"),
    ("30", "index test against reference, as a table", "cross table"),
    ("31", "accuracy with its precision", "by class"),
    ("32", "adverse events"),
    ("33", "limitations, bias and generalizability"),
    ("34", "implications for practice"),
    ("35", "ethics of use, and fairness"),
    ("36", "registration number and registry"),
    ("37", "where the full protocol is"),
    ("38", "funding and role of the funders"),
    ("39", "commercial interests"),
    ("40a", "availability of data and code"),
    ("40b", "whether outputs are kept for audit", "outputs"),
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
    libraries = "environment.json: packages"
    if card.kind == "artefact":
        libraries = "model.json: made_with"
    figures, external = card.figures, [f"external/{name}" for name in card.external]
    sources = figures.by_source if figures else {}
    evaluate = "tumorlens evaluate RUN"
    answers = {
        "preprocessing": _if(card.networks, f"{model}: size_px, fit, mean, std"),
        "model": _if(card.networks, f"{model}: name, arguments, classes"),
        "software": _if(card.machine.packages, libraries),
        "ensemble": _if(card.networks, _combined(card, model)),
        "subsets": _if(card.split, "config.toml: data.protocol; split.csv: subset"),
        "groups": _if(card.split, "split.csv: group; leak.json"),
        "classes": _if(card.split, "split.csv: label"),
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
        "cut-offs": _if(
            card.trust, f"{trust}: promise, operating_points", "tumorlens trust RUN"
        ),
        "abstention": _if(
            figures and figures.trust,
            f"{trust}: promise; metrics.json: trust",
            evaluate if card.trust else "tumorlens trust RUN",
        ),
        "variability": _if(
            len(sources) > 1 or (figures and figures.folds) or card.stress,
            "; ".join(_variability(card)),
            "tumorlens stress RUN",
        ),
        "stress": _if(card.stress, "; ".join(card.stress), "tumorlens stress RUN"),
        "explanations": _if(
            card.explanations,
            "; ".join(card.explanations),
            "tumorlens explain RUN IMAGE... --out RUN/explain",
        ),
        "external": _if(
            external,
            "; ".join(f"{folder}/external.json" for folder in external),
            "tumorlens evaluate RUN --on DATA",
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
