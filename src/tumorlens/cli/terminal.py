"""What the commands print: progress, tables and closing lines.

Results go to standard output, progress to standard error. On a terminal progress is a
bar; elsewhere it is a line per epoch and nothing for the rest, so that logs stay short.
rich decides about colour (it honours NO_COLOR) and about the width. It is imported
inside the functions: `tumorlens.cli.app` imports this module for every `--help`.
Letters that the encoding of the terminal lacks are written as escapes.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from tumorlens.runs.progress import Listener, epoch_line
from tumorlens.system import is_main_process
from tumorlens.text import counted, decimal, number_range, one_line, percent, points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import Progress

    from tumorlens.data.audit import Audit
    from tumorlens.data.claim import ClaimCheck
    from tumorlens.data.overlap import Overlaps
    from tumorlens.data.split import Split
    from tumorlens.deploy.artefact import Verdict
    from tumorlens.deploy.predictor import Prediction
    from tumorlens.evaluation.map_checks import ExplanationChecks
    from tumorlens.runs.estimate import Estimate
    from tumorlens.runs.external import ExternalMetrics
    from tumorlens.runs.listing import RunRow
    from tumorlens.runs.measures import Metrics, TrustMeasures, TtaEffect
    from tumorlens.runs.stress import Stress
    from tumorlens.training.fit import TrainResult

PLAIN_WIDTH = 200
"""Columns of a table that is not shown on a terminal, where 80 would fold it."""


def escape_unknown_letters() -> None:
    """Let both streams escape letters that their encoding lacks, as in file names."""
    for stream in (sys.stdout, sys.stderr):
        # Under a test or a notebook they may be something else.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what is left in the buffers. A closed pipe raises `BrokenPipeError`."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def discard_output() -> None:
    """Send all further output nowhere: whatever read it has closed the pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_line(words: str = "") -> None:
    """Print a sentence, wrapped between words on a terminal."""
    console = _console()
    console.print(
        one_line(words),
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=not console.is_terminal,
    )


def print_error(problem: str, hint: str) -> None:
    """Print an error as one `error:` line and one `hint:` line."""
    print(f"error: {one_line(problem)}", file=sys.stderr)
    print(f"hint: {one_line(hint)}", file=sys.stderr)


def print_warning(words: str) -> None:
    """Print a problem that does not stop the command."""
    print(f"warning: {one_line(words)}", file=sys.stderr, flush=True)


def print_next(where: str, *command: object) -> None:
    """Close a command: print where its files are and which command comes next."""
    print(one_line(where))
    print(f"next: {one_line(shlex.join(str(word) for word in command))}")


def print_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; every column but the first is right-aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(heading):
        # Long class names break after an underscore; nothing is ever cut off.
        words = one_line(name)
        table.add_column(
            Text(words if len(words) <= 10 else words.replace("_", "_\n")),
            justify="right" if number else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    _console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


def print_audit(found: Audit) -> None:
    """Print what an audit found, its verdict first."""
    print_line(found.verdict.words)
    if found.verdict.left:
        print_line(found.verdict.left)
    for sentence in found.findings:
        print_line(f"- {sentence}")
    counts = {
        "files": found.num_files,
        "that cannot be read": found.num_unreadable,
        "that look odd": len(found.odd),
        "distinct files": found.distinct.bytes,
        "distinct decoded pixels": found.distinct.pixels,
        "distinct pictures": found.distinct.pictures,
    }
    print_table(("", "number"), [(name, f"{n:,}") for name, n in counts.items()])
    if found.overlaps:
        _print_overlaps(found.overlaps)


def _print_overlaps(found: Overlaps) -> None:
    """Print what sets have in common, as a matrix where they are three or more."""
    for pair in found.pairs:
        for sentence in pair.sentences:
            print_line(f"- {sentence}")
    if len(found.sets) > 2:
        print_table(
            ("pictures of", *(f"in {one.name}" for one in found.sets)),
            [
                (
                    one.name,
                    *(
                        percent(its[other.name].share) if other.name in its else ""
                        for other in found.sets
                    ),
                )
                for one in found.sets
                for its in [found.matrix[one.name]]
            ],
        )


def print_claims(found: ClaimCheck) -> None:
    """Print what published accuracies can be worth, the verdict first."""
    print_line(found.verdict)
    for sentence in found.words:
        print_line(f"- {sentence}")
    for claim in found.claims:
        print_line()
        for sentence in claim.words:
            print_line(sentence)
    print_line()
    if found.differences:
        for difference in found.differences:
            print_line(difference.words)
        print_line()
    first = found.claims[0].by_class
    if all(one.right_if_all_seen_are is None for one in first.values()):
        return
    print_line("right answers that are possible by class, with all seen ones right:")
    print_table(
        ("class", "test", "seen", *(claim.accuracy for claim in found.claims)),
        [
            (
                label,
                f"{one.num_test:,}",
                f"{one.num_seen:,}",
                *(
                    number_range(claim.by_class[label].right_if_all_seen_are)
                    for claim in found.claims
                ),
            )
            for label, one in first.items()
        ],
    )


def print_split(split: Split) -> None:
    """Print how many images of each class are in each subset."""
    print_table(
        ("subset", *split.classes, "all"),
        [
            (
                subset,
                *(str(counts[label]) for label in split.classes),
                str(counts.total()),
            )
            for subset, counts in split.counts.items()
        ],
    )
    _print_left_out(split.left_out)


def _print_left_out(left_out: Mapping[str, int]) -> None:
    for reason, number in left_out.items():
        print_line(f"left out, {reason}: {counted(number, 'file')}")


def print_training(result: TrainResult) -> None:
    """Print how a training ended."""
    _print_left_out(result.left_out)
    if result.best:
        print_line(
            f"kept the weights of epoch {result.best['epoch']}: "
            f"val accuracy {percent(result.best['val_accuracy'])}"
        )
    leak = result.run.leak()
    if leak.leaks or leak.unknown_patients:
        print_line(leak.words)


def print_measures(measures: Metrics) -> None:
    """Print the headline figures of an evaluation, and what they are worth."""
    unknown = measures.leak.unknown_patients
    print_line(
        f"{measures.num_images} {measures.subset} images in "
        f"{measures.num_groups} groups, protocol {measures.protocol}"
        f"{unknown and f'; {unknown}'}"
    )
    headline = ("accuracy", "balanced_accuracy", "macro_f1")
    print_table(
        ("measure", "95 % interval"),
        [
            (
                name.replace("_", " "),
                _or_why_not(measures, name, getattr(measures, name)),
            )
            for name in headline
        ]
        + [
            (
                f"recall of {name}",
                _or_why_not(measures, f"recall of {name}", one.recall),
            )
            for name, one in measures.per_class.items()
        ],
    )
    print_line(
        "Intervals are 95 %, with groups as units: slices of one patient are right or "
        "wrong together."
    )
    for warning in measures.warnings:
        print_line(warning)
    if measures.trust is None:
        print_line("Not calibrated: tumorlens trust fits when to answer.")
    else:
        _print_trust(measures.trust)
    if measures.slices:
        print_line(measures.slices.words)
    if measures.leak.labels_sha256:
        print_line(measures.leak.labels)
    print_line(measures.leak.words)


def _print_trust(found: TrustMeasures) -> None:
    """Print what the answers of a calibrated run are worth."""
    promise = (
        f"promised {percent(found.error_wanted)} at most"
        if found.is_promised
        else "no promise is proved"
    )
    print_table(
        ("answers", "95 % interval"),
        [
            ("answered with a class", found.answered.percentage),
            (f"wrong among these ({promise})", found.error_of_answers.percentage),
            ("accuracy of the surest 80 %", found.accuracy_of_surest.percentage),
            (
                f"true class in the set ({percent(found.coverage_wanted, 0)} wanted)",
                found.coverage.percentage,
            ),
            ("mean classes in a set", f"{found.mean_set_size:.2f}"),
            *(
                [("turned away as no brain MRI", found.turned_away.percentage)]
                if found.turned_away
                else []
            ),
        ],
    )


def print_external(found: ExternalMetrics) -> None:
    """Print the figures on another set, those on new images first."""
    from tumorlens.runs.external import PARTS

    print_line(f"{found.model} on {found.data}: {found.words}")
    if found.words_of_turns:
        print_line(found.words_of_turns)
    parts = {
        f"{part} ({one.num_images:,} images, {counted(one.num_groups, 'group')})": one
        for part in PARTS
        if (one := getattr(found, part)) is not None
    }
    rows = [
        (
            name.replace("_", " "),
            *(getattr(one, name).percentage for one in parts.values()),
        )
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece")
        if name not in found.all.not_measured
    ]
    rows += [
        (
            f"recall of {name}",
            *(one.per_class[name].recall.percentage for one in parts.values()),
        )
        for name in found.all.classes
    ]
    if "log_loss" not in found.all.not_measured:
        losses = [decimal(one.log_loss.value) for one in parts.values()]
        rows.append(("log loss", *losses))
    for sentence in found.notes:
        print_line(sentence)
    print_table(("measure", *parts), rows)
    for sentence in found.headline.warnings:
        print_line(sentence)


def _or_why_not(measures: Metrics, name: str, measure: Estimate) -> str:
    """Return a measure with its interval, or with the reason why it has none."""
    why = measures.no_interval.get(name)
    return measure.percentage + (f" (no interval: {why})" if why else "")


def print_tta(effect: TtaEffect) -> None:
    """Print what test-time augmentation changes, as `evaluation.tta` measured it."""
    print_line(
        f"{effect.num_images} {effect.subset} images in {effect.num_groups} groups, "
        f"policy {effect.policy}"
    )
    difference = effect.difference
    low, high = difference.low, difference.high
    bounds = (
        ""
        if low is None or high is None
        else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    )
    print_table(
        ("accuracy", "95 % interval"),
        [
            ("without", percent(effect.without)),
            ("with", percent(effect.with_views)),
            ("difference, points", f"{100 * difference.value:+.1f}{bounds}"),
        ],
    )
    print_line(effect.summary)


def print_stress(found: Stress) -> None:
    """Print the accuracy at each level of each corruption, the worst first."""
    print_line(
        f"{found.model}: {found.num_images:,} {found.subset} images in "
        f"{counted(found.num_groups, 'group')}, clean {found.clean.percentage}"
    )
    num_levels = max(len(one.levels) for one in found.corruptions)
    rows = []
    for one in found.by_loss:
        accuracies = [percent(level.accuracy.value) for level in one.levels]
        accuracies += [""] * (num_levels - len(accuracies))
        worst = one.most_lost
        change, low, high = worst.change, worst.change.low, worst.change.high
        words = points(change.value)
        if low is not None and high is not None:
            words += f" ({points(low)} to {points(high)})"
        rows.append((one.title, *accuracies, words + " *" * worst.is_found))
    levels = [f"level {number}" for number in range(1, num_levels + 1)]
    print_table(("corruption", *levels, "worst level, points"), rows)
    print_line(
        "Changes against the same images clean, with paired 95 % intervals over "
        "groups; *: more than chance, corrected for all levels of all corruptions."
    )
    print_line(found.words)
    if found.clean_trust:
        _print_stressed_answers(found)
    for reason in dict.fromkeys(found.not_measured.values()):
        print_line(f"No {', '.join(found.not_measured)}: {reason}.")
    if found.leak.leaks:
        print_line(found.leak.words)


def _print_stressed_answers(found: Stress) -> None:
    """Print what is answered at the hardest level of each corruption."""
    rows = []
    for title, trust in [
        ("clean", found.clean_trust),
        *(
            (f"{one.title}, level {one.levels[-1].level}", one.levels[-1].trust)
            for one in found.by_loss
        ),
    ]:
        if trust is not None:
            alarms = trust.alarms.percentage if trust.alarms else "no gate"
            rows.append(
                (title, trust.answered.percentage, trust.error.percentage, alarms)
            )
    print_table(("", "answered", "wrong among answers", "turned away"), rows)


def print_export(verdicts: Sequence[Verdict], sizes: Sequence[int | None]) -> None:
    """Print a line for each format: its difference from the run, and the verdict.

    Args:
        verdicts: One for each format.
        sizes: Bytes of each graph; `None` where nothing was written.
    """
    from tumorlens.deploy.artefact import Parity

    judged = [one for one in verdicts if isinstance(one, Parity)]
    if judged:
        print_line(f"compared on {judged[0].num_images} val images, from file to label")
    rows = []
    for verdict, size in zip(verdicts, sizes, strict=True):
        row = [verdict.kind, "" if size is None else f"{size / 1e6:.2f} MB"]
        if isinstance(verdict, Parity):
            change = verdict.accuracy.change
            bounds = (
                ""
                if change.low is None or change.high is None
                else f" ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            )
            row.append(f"{verdict.max_difference:.1g}")
            row.append(str(len(verdict.flips)))
            row.append(f"{100 * change.value:+.1f}{bounds}")
        else:
            row += ["", "", ""]
        rows.append([*row, "good" if verdict.passed else "failed"])
    print_table(
        (
            *("format", "size", "largest difference", "flips"),
            *("accuracy change, points", "verdict"),
        ),
        rows,
    )
    for verdict in verdicts:
        for reason in verdict.reasons:
            print_line(f"{verdict.kind}: {reason}")
        # The other formats are judged by each probability, not by their accuracy.
        if isinstance(verdict, Parity) and verdict.bounds.flip_margin is None:
            print_line(f"{verdict.kind}: {verdict.shown}")


def print_predictions(
    answers: Sequence[tuple[str, Sequence[str], Sequence[Prediction]]],
) -> None:
    """Print the probability of every class.

    One image has its classes below each other and its runs side by side; several have a
    line each, and one per run.

    Args:
        answers: Per run its name, its classes and its predictions, which are of the
            same files in the same order.
    """
    classes = list(dict.fromkeys(name for _, names, _ in answers for name in names))
    probs = [
        [_probs_by_class(names, prediction) for prediction in predictions]
        for _, names, predictions in answers
    ]
    files = answers[0][2]
    if len(files) == 1 and not files[0].error:
        print_line(
            f"{files[0].path}: {', '.join(_shown_answer(run[2][0]) for run in answers)}"
        )
        print_table(
            ("class", *(name for name, _, _ in answers)),
            [(name, *(run[0].get(name, "") for run in probs)) for name in classes],
        )
        return
    several = len(answers) > 1
    rows = []
    for number, file in enumerate(files):
        for (run, _, predictions), shown in zip(answers, probs, strict=True):
            words = f"{file.path}: {file.error}" if file.error else str(file.path)
            predicted = _shown_answer(predictions[number])
            cells = [shown[number].get(name, "") for name in classes]
            rows.append([words, *([run] if several else []), predicted, *cells])
    heading = ["file", *(["run"] if several else []), "predicted", *classes]
    print_table(heading, rows)


def print_explanations(found: ExplanationChecks) -> None:
    """Print what the maps of some images are worth: a line each, and all together."""

    def beside_chance(value: float, chance: float) -> str:
        return f"{decimal(value, 2)} ({decimal(chance, 2)})"

    has_tumours = found.summary.num_with_tumour > 0
    rows = []
    for one in found.images:
        if one.error:
            rows.append([f"{one.path}: {one.error}", "unreadable"])
            continue
        random = one.randomization[-1].correlation if one.randomization else None
        removal, outside, place = one.removal, one.outside, one.localisation
        assert removal is not None
        rows.append(
            [
                one.path,
                str(one.explained),
                percent(one.prob),
                decimal(random, 2),
                beside_chance(removal.deletion, removal.deletion_random),
                beside_chance(removal.insertion, removal.insertion_random),
                percent(outside.heat if outside else None),
                *(
                    [("hit" if place.is_hit else "miss") if place else ""]
                    if has_tumours
                    else []
                ),
            ]
        )
    print_table(
        [
            *("file", "class", "prob", "like random", "deletion (random)"),
            *("insertion (random)", "outside head"),
            *(["tumour"] if has_tumours else []),
        ],
        rows,
    )
    for sentence in found.sentences():
        print_line(sentence)


def print_runs(rows: Sequence[RunRow]) -> None:
    """Print a line for each run folder."""
    if not rows:
        print_line("no run folders")
        return
    print_table(
        (
            *("name", "model", "protocol", "state", "val_accuracy", "test_accuracy"),
            *("leak", "date", "path"),
        ),
        [
            (
                row.value("name"),
                row.value("model") or "",
                row.value("protocol") or "",
                f"{row.state}, {row.progress}" if row.progress else row.state,
                "" if row.val_accuracy is None else percent(row.val_accuracy),
                row.test_accuracy.percentage if row.test_accuracy else "",
                row.leak or "",
                row.date or "",
                str(row.path),
            )
            for row in rows
        ],
    )
    for row in rows:
        for name, found in row.external.items():
            print_line(f"{row.path}, on {name}: {found.accuracy_words}")
        if row.reason:
            print_line(f"damaged: {row.reason}")


@contextmanager
def counting(words: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Yield a function that shows a count of files; `None` if this is no terminal.

    Args:
        words: What is being done, such as "reading".
    """
    with progress_bars() as bars:
        if bars is None:
            yield None
            return
        task = bars.add_task(words, total=None)

        def show(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total, refresh=done == total)

        yield show


class TrainingDisplay(Listener):
    """Shows a training: a bar for the step, a line for each epoch."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None) if bars else None
        self._words = ""
        self._fold = ""

    def stage(self, text: str) -> None:
        """Name what begins."""
        self._words = text
        if self._bars and self._task is not None:
            # rich keeps the total of a task that had one.
            self._bars.remove_task(self._task)
            self._task = self._bars.add_task(f"{self._fold}{text}", total=None)

    def note(self, text: str) -> None:
        """Print it."""
        print_warning(text)

    def fold(self, fold: int, num_folds: int) -> None:
        """Name the fold that begins, in all that follows."""
        self._fold = f"fold {fold} of {num_folds}  "

    def files(self, done: int, total: int) -> None:
        """Show how many files of the stage are done."""
        self._show(self._words, done, total)

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Show how far the epoch is."""
        self._show(f"epoch {epoch}", done, total)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch."""
        line = self._fold + epoch_line(row)
        if not is_main_process():
            return
        if self._bars:
            self._bars.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show(self, words: str, done: int, total: int) -> None:
        if self._bars and self._task is not None:
            self._bars.update(
                self._task,
                description=f"{self._fold}{words}",
                completed=done,
                total=total,
                # What ends is drawn full, however soon the next step takes its place.
                refresh=done == total,
            )


@contextmanager
def training() -> Iterator[TrainingDisplay]:
    """Yield the listener that shows a training."""
    with progress_bars() as bars:
        yield TrainingDisplay(bars)


@contextmanager
def progress_bars(*, last: str | None = None) -> Iterator[Progress | None]:
    """Yield rich's progress bars; `None` if this is no terminal.

    Args:
        last: Text of the last column, as rich's TextColumn takes it, instead of the
            time left that rich works out.
    """
    console = _console(stderr=True)
    if not (console.is_terminal and is_main_process()):
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(last, markup=False) if last else TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield bars


def _shown_answer(prediction: Prediction) -> str:
    """Return the predicted class, and what is to be answered where that differs."""
    if prediction.predicted is None:
        return "unreadable"
    trust = prediction.trust
    if trust is None or trust.answer == prediction.predicted:
        return prediction.predicted
    words = f"{trust.answer}, {trust.objection}" if trust.objection else trust.answer
    return f"{prediction.predicted} ({words})"


def _probs_by_class(classes: Sequence[str], prediction: Prediction) -> dict[str, str]:
    if prediction.probs is None:
        return {}
    shown = [percent(float(prob)) for prob in prediction.probs]
    return dict(zip(classes, shown, strict=True))


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    return _console_class()(stderr=stderr, width=width)


@cache
def _console_class() -> type[Console]:
    from rich.console import Console

    class PlainConsole(Console):
        """A console that leaves a closed pipe to `cli.app`: rich ends with status 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PlainConsole
