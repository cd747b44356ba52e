"""How often the intervals of the product cover the truth, by simulation.

    python benchmarks/interval_coverage.py [--sets 2000] [--only shares] [--csv FILE]

Simulated test sets of 1 to 12 images a group, for each accuracy, number of groups and
intraclass correlation (ICC) of being right. In each set the functions of
`tumorlens.stats` are called as `evaluate` and `compare` call them, and their 95 %
intervals are held against the value of the population.

- `shares`: right or wrong from a beta distribution over groups, which has exactly the
  ICC. Beside it the width of the logit interval with robust errors.
- `measures`: probabilities of four classes from a latent normal model, one class a
  group, with logits 1.5 times too large, as of an overconfident network. The truth is
  the value over 400,000 images.
- `differences`: two networks on the same images, from correlated latent normal
  variables, equally good or five points apart: coverage, and how often a difference is
  called significant that there is not.

The output is Markdown, for `docs/statistics.md`. `--csv` has every cell.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from tumorlens.stats import estimates, intervals, metrics
from tumorlens.stats.paired import paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

ACCURACIES = (0.70, 0.85, 0.95, 0.99)
NUM_GROUPS = (20, 40, 80, 150, 700)
ICCS = (0.0, 0.3, 0.7)
MAX_IMAGES = 12
NUM_CLASSES = 4
OVERCONFIDENCE = 1.5
SEED = 42

Row = dict[str, Any]


class Cell(NamedTuple):
    """One kind of test set."""

    accuracy: float
    num_groups: int
    icc: float


def main() -> None:
    """Run the simulation and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=2000, help="test sets a cell")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--csv", type=Path, help="every cell as CSV")
    parser.add_argument("--into", type=Path, help="page that gets the tables")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    rows: list[Row] = []
    tables: list[str] = []
    for name in [args.only] if args.only else list(PARTS):
        found = list(run(name, num_sets=args.sets, workers=args.workers))
        tables.append(PARTS[name].table(found))
        print(tables[-1], flush=True)
        rows += found
    if args.csv:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {name: _rounded(value) for name, value in row.items()} for row in rows
            )
    if args.into:
        write_between(args.into, "\n".join(tables))


def write_between(path: Path, tables: str) -> None:
    """Replace what stands between the two marks of a page."""
    page = path.read_text(encoding="utf-8")
    begin, end = (f"<!-- coverage: {place} -->" for place in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{tables}{end}{after}", encoding="utf-8")


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def run(
    part: str,
    *,
    num_sets: int,
    workers: int = 1,
    cells: Iterable[Cell] | None = None,
) -> Iterator[Row]:
    """Yield the rows of one part, for all cells or for some."""
    if cells is None:
        # The large cells first, so that no process is left with them at the end.
        cells = sorted(
            itertools.starmap(Cell, itertools.product(ACCURACIES, NUM_GROUPS, ICCS)),
            key=lambda cell: -cell.num_groups,
        )
    simulate = PARTS[part].simulate
    if workers == 1:
        for cell in cells:
            yield from simulate(cell, num_sets)
        return
    with ProcessPoolExecutor(workers) as pool:
        for found in pool.map(simulate, cells, itertools.repeat(num_sets)):
            print(".", end="", file=sys.stderr, flush=True)
            yield from found


def simulate_shares(cell: Cell, num_sets: int) -> list[Row]:
    """Return coverage and width of the interval of a share, and of the logit one."""
    rng = _rng("shares", cell)
    found = _Tally(cell.accuracy)
    logit_widths = []
    for _ in range(num_sets):
        groups = _groups(rng, cell.num_groups)
        chances = np.full(cell.num_groups, cell.accuracy)
        if cell.icc:
            size = 1 / cell.icc - 1
            chances = rng.beta(
                cell.accuracy * size, (1 - cell.accuracy) * size, cell.num_groups
            )
        right = rng.random(len(groups)) < chances[groups]
        score = intervals.share(right, groups)
        found.add(score.low, score.high)
        low, high = logit_interval(right, groups)
        logit_widths.append(high - low)
    row = found.row(cell, "share")
    return [row | {"width_of_logit": float(np.mean(logit_widths))}]


def logit_interval(
    right: NDArray[np.bool_], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the robust logit interval; of 0 and 1 it is Wilson's over groups."""
    value = float(right.mean())
    num_groups = int(groups.max()) + 1
    normal = float(stats.norm.ppf(0.975))
    if value in (0, 1):
        found = stats.binomtest(int(value) * num_groups, num_groups)
        ends = found.proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)
    influence = intervals.sums_of_groups((right - value) / len(right), groups)
    error = np.sqrt(intervals.robust_variance(influence)) / (value * (1 - value))
    centre = np.log(value / (1 - value))
    low, high = (1 / (1 + np.exp(-centre - side * normal * error)) for side in (-1, 1))
    return float(low), float(high)


def simulate_measures(cell: Cell, num_sets: int) -> list[Row]:
    """Return coverage and width for all other measures of an evaluation."""
    shift = _shift_for(cell.accuracy)
    common = _common_part(shift, cell.icc)
    truth = _truth(shift)
    rng = _rng("measures", cell)
    tallies = {name: _Tally(value) for name, value in truth.items()}
    for _ in range(num_sets):
        groups = _groups(rng, cell.num_groups)
        labels = rng.integers(NUM_CLASSES, size=cell.num_groups)[groups]
        of_groups = rng.standard_normal((cell.num_groups, NUM_CLASSES))[groups]
        of_images = rng.standard_normal((len(groups), NUM_CLASSES))
        noise = np.sqrt(common) * of_groups + np.sqrt(1 - common) * of_images
        probs = _probs(noise, labels, shift)
        for name, found in estimates.headline(probs, labels, groups).items():
            if name in tallies:
                tallies[name].add(*(found.interval or (-np.inf, np.inf))[:2])
    return [tally.row(cell, name) for name, tally in tallies.items()]


def simulate_differences(cell: Cell, num_sets: int) -> list[Row]:
    """Return coverage and significance for two networks, equal and 5 points apart."""
    rows = []
    for gap in (0.0, 0.05):
        rng = _rng("differences", cell)
        common = _tetrachoric(cell.accuracy, cell.icc)
        tally = _Tally(gap)
        num_significant = num_real = num_discordant = 0
        for _ in range(num_sets):
            groups = _groups(rng, cell.num_groups)
            right = _paired_answers(
                rng, groups, (cell.accuracy, cell.accuracy - gap), common
            )
            found = paired_difference(*right, groups)
            assert found.low is not None
            assert found.high is not None
            tally.add(found.low, found.high)
            num_significant += found.p < 0.05
            # A difference has to pass both, as in `compare`.
            num_real += found.p < 0.05 and not found.low <= 0 <= found.high
            num_discordant += found.num_discordant_groups
        name = "no difference" if not gap else "5 points"
        rows.append(
            tally.row(cell, name)
            | {
                "significant": num_significant / num_sets,
                "called_real": num_real / num_sets,
                "discordant_groups": num_discordant / num_sets,
            }
        )
    return rows


def _paired_answers(
    rng: np.random.Generator,
    groups: NDArray[np.int64],
    accuracies: tuple[float, float],
    common: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which images two networks get right: hard groups and images are shared."""
    num_groups = int(groups.max()) + 1
    of_groups = rng.standard_normal(num_groups)
    of_images = rng.standard_normal(len(groups))
    answers = []
    for accuracy in accuracies:
        group = np.sqrt(0.7) * of_groups + np.sqrt(0.3) * rng.standard_normal(
            num_groups
        )
        image = np.sqrt(0.6) * of_images + np.sqrt(0.4) * rng.standard_normal(
            len(groups)
        )
        latent = np.sqrt(common) * group[groups] + np.sqrt(1 - common) * image
        answers.append((latent < stats.norm.ppf(accuracy)).astype(np.float64))
    return answers[0], answers[1]


def _rng(part: str, cell: Cell) -> np.random.Generator:
    return np.random.default_rng([SEED, *part.encode(), *(int(1000 * x) for x in cell)])


def _groups(rng: np.random.Generator, num_groups: int) -> NDArray[np.int64]:
    """Return the group index of each image: 1 to 12 images in each group."""
    sizes = rng.integers(1, MAX_IMAGES + 1, size=num_groups)
    return np.repeat(np.arange(num_groups), sizes)


def _probs(
    noise: NDArray[np.float64], labels: NDArray[np.int64], shift: float
) -> NDArray[np.float64]:
    logits = noise.copy()
    logits[np.arange(len(labels)), labels] += shift
    # Calibrated logits would be `shift` times these.
    logits *= shift * OVERCONFIDENCE
    return np.asarray(softmax(logits, axis=1))


@cache
def _truth(shift: float) -> dict[str, float]:
    """Return the values of the population, from 400,000 images."""
    rng = np.random.default_rng(SEED)
    labels = np.repeat(np.arange(NUM_CLASSES), 400_000 // NUM_CLASSES)
    probs = _probs(rng.standard_normal((len(labels), NUM_CLASSES)), labels, shift)
    predicted = probs.argmax(axis=1)
    matrix = metrics.confusion_matrix(labels, predicted, num_classes=NUM_CLASSES)
    areas = [roc_auc_score(labels == number, probs[:, number]) for number in range(4)]
    return {
        "balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
        "macro_f1": float(metrics.macro_f1(matrix)),
        "macro_auroc": float(np.mean(areas)),
        "log_loss": metrics.log_loss(probs, labels),
        "brier": metrics.brier(probs, labels),
        "ece": metrics.expected_calibration_error(probs, labels),
    }


@cache
def _shift_for(accuracy: float) -> float:
    """Return how far the true class stands out, in standard deviations."""
    rng = np.random.default_rng(SEED)
    noise = rng.standard_normal((400_000, NUM_CLASSES))
    return float(np.quantile(noise[:, 1:].max(axis=1) - noise[:, 0], accuracy))


@cache
def _common_part(shift: float, icc: float) -> float:
    """Return the share of the noise that a group has in common, for an ICC."""
    if not icc:
        return 0.0
    rng = np.random.default_rng(SEED)
    of_groups, *of_images = rng.standard_normal((3, 200_000, NUM_CLASSES))

    def excess(common: float) -> float:
        right = []
        for noise in of_images:
            latent = np.sqrt(common) * of_groups + np.sqrt(1 - common) * noise
            latent[:, 0] += shift
            right.append(latent.argmax(axis=1) == 0)
        return float(np.corrcoef(*right)[0, 1]) - icc

    return float(brentq(excess, 0.0, 1.0, xtol=1e-3))


@cache
def _tetrachoric(accuracy: float, icc: float) -> float:
    """Return the correlation of two normal variables that gives an ICC."""
    if not icc:
        return 0.0
    threshold = stats.norm.ppf(accuracy)

    def excess(common: float) -> float:
        both = stats.multivariate_normal.cdf(
            [threshold, threshold], cov=[[1, common], [common, 1]]
        )
        variance = accuracy * (1 - accuracy)
        return float((both - accuracy**2) / variance) - icc

    return float(brentq(excess, 1e-6, 1 - 1e-6))


class _Tally:
    """Counts how often intervals hold a true value."""

    def __init__(self, truth: float) -> None:
        self._truth = truth
        self._ends: list[tuple[float, float]] = []

    def add(self, low: float, high: float) -> None:
        self._ends.append((low, high))

    def row(self, cell: Cell, measure: str) -> Row:
        low, high = np.array(self._ends).T
        return {
            "measure": measure,
            **cell._asdict(),
            "coverage": float(((low <= self._truth) & (self._truth <= high)).mean()),
            "width": float((high - low).mean()),
        }


def table_of_shares(rows: Sequence[Row]) -> str:
    """Return coverage by cell, and the widths against the logit interval."""
    lines = [
        "**Shares**: coverage (mean width over that of the robust logit interval).",
        "",
        *_heading("accuracy | ICC"),
    ]
    for accuracy, icc in itertools.product(ACCURACIES, ICCS):
        cells = {
            row["num_groups"]: f" {row['coverage']:.3f} ({_relative(row):.2f}) |"
            for row in rows
            if (row["accuracy"], row["icc"]) == (accuracy, icc)
        }
        lines.append(
            f"| {accuracy:.2f} | {icc:.1f} |"
            + "".join(cells[num] for num in NUM_GROUPS)
        )
    worst = min(row["coverage"] for row in rows)
    mean = np.mean([_relative(row) for row in rows])
    return "\n".join(
        [
            *lines,
            "",
            f"Lowest coverage {worst:.3f}; mean relative width {mean:.2f}.",
            "",
        ]
    )


def _heading(columns: str) -> list[str]:
    names = [*columns.split(" | "), *(f"{num} groups" for num in NUM_GROUPS)]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _relative(row: Row) -> float:
    return float(row["width"] / row["width_of_logit"])


def table_of_measures(rows: Sequence[Row]) -> str:
    """Return the lowest coverage of the other measures."""
    heading = "**Other measures**: the lowest coverage, and at which accuracy and ICC."
    return f"{heading}\n\n{_lowest(rows)}"


def _lowest(rows: Sequence[Row]) -> str:
    """Return the lowest coverage of each measure over accuracies and ICCs."""
    lines = _heading("measure")
    for measure in dict.fromkeys(row["measure"] for row in rows):
        line = f"| {measure} |"
        for num in NUM_GROUPS:
            worst = min(
                (
                    row
                    for row in rows
                    if (row["measure"], row["num_groups"]) == (measure, num)
                ),
                key=lambda row: row["coverage"],
            )
            where = f"{worst['accuracy']:.2f}, {worst['icc']:.1f}"
            line += f" {worst['coverage']:.3f} at {where} |"
        lines.append(line)
    return "\n".join([*lines, ""])


def table_of_differences(rows: Sequence[Row]) -> str:
    """Return the lowest coverage, and how often equal networks are called different."""
    equal = [row for row in rows if row["measure"] == "no difference"]
    lines = [
        "How often p < 0.05 for equally good networks (groups in which they differ).",
        "",
        *_heading("accuracy | ICC"),
    ]
    for accuracy, icc in itertools.product(ACCURACIES, ICCS):
        cells = {
            row[
                "num_groups"
            ]: f" {row['significant']:.3f} ({row['discordant_groups']:.0f}) |"
            for row in equal
            if (row["accuracy"], row["icc"]) == (accuracy, icc)
        }
        lines.append(
            f"| {accuracy:.2f} | {icc:.1f} |"
            + "".join(cells[num] for num in NUM_GROUPS)
        )
    heading = "**Differences**: the lowest coverage, and at which accuracy and ICC."
    return "\n".join([heading, "", _lowest(rows), *lines, ""])


class _Part(NamedTuple):
    simulate: Callable[[Cell, int], list[Row]]
    table: Callable[[Sequence[Row]], str]


PARTS = {
    "shares": _Part(simulate_shares, table_of_shares),
    "measures": _Part(simulate_measures, table_of_measures),
    "differences": _Part(simulate_differences, table_of_differences),
}

if __name__ == "__main__":
    main()
