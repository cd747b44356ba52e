"""Answers of other frameworks, matched with images whose truth is planted."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sklearn.metrics as truth
from PIL import Image

from support import runs_on_images
from support.images import CLASSES, draw_image
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.index import read_index
from tumorlens.data.leakage import judge_leak
from tumorlens.data.split import make_split
from tumorlens.errors import ConfigError, DataError
from tumorlens.evaluation.external import Evaluated
from tumorlens.evaluation.judge import judge_answers
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.files import read_model
from tumorlens.runs.external import ExternalMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

NUM_TRAIN, NUM_TEST = 4, 5


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and Testing; of each class, two of the five test images are seen.

    Image 0 is the mirrored, image 1 the turned picture of a training image. A copy of
    image 4 of the first class is there a second time.
    """
    root = tmp_path_factory.mktemp("set") / "data"
    for label in CLASSES:
        for number in range(NUM_TRAIN):
            write_image(
                root / "Training" / label / f"tr{number}.png", draw_image(label, number)
            )
        for number in range(NUM_TEST):
            image = draw_image(label, 100 + number)
            if number == 0:
                image = draw_image(label, 0)[:, ::-1]
            elif number == 1:
                image = np.rot90(draw_image(label, 1))
            write_image(root / "Testing" / label / f"te{number}.png", image)
    copy = draw_image(CLASSES[0], 100 + NUM_TEST - 1)
    write_image(root / "Testing" / CLASSES[0] / "te5.png", copy)
    return root


def test_paths(data: Path) -> list[str]:
    files = sorted(data.glob("Testing/*/*.png"))
    return [path.relative_to(data).as_posix() for path in files]


test_paths.__test__ = False  # type: ignore[attr-defined] # a helper


def probs_of(paths: Sequence[str], *, seed: int = 0) -> NDArray[np.float64]:
    """Return random probabilities, more often right than wrong."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(paths), len(CLASSES)))
    for row, path in enumerate(paths):
        logits[row, CLASSES.index(path.split("/")[-2])] += 1
    probs = np.exp(logits)
    found: NDArray[np.float64] = probs / probs.sum(axis=1, keepdims=True)
    return found


def write_csv(
    path: Path, columns: Mapping[str, Sequence[Any]], order: Sequence[int] = ()
) -> Path:
    rows = list(zip(*columns.values(), strict=True))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([rows[at] for at in order] if len(order) else rows)
    return path


def write_answers(
    path: Path,
    data: Path,
    *,
    paths: Sequence[str] | None = None,
    probs: NDArray[np.float64] | None = None,
    order: Sequence[int] = (),
) -> Path:
    paths = test_paths(data) if paths is None else paths
    probs = probs_of(test_paths(data)) if probs is None else probs
    columns: dict[str, Any] = {"path": paths}
    columns |= {f"prob_{name}": probs[:, n] for n, name in enumerate(CLASSES)}
    return write_csv(path, columns, order)


@pytest.fixture
def answers(tmp_path: Path, data: Path) -> Path:
    return write_answers(tmp_path / "model.csv", data)


def judge(predictions: Path, data: Path, **options: Any) -> Evaluated:
    return judge_answers(predictions, data, **options)


def figures(found: Evaluated) -> dict[str, Any]:
    content = found.metrics.model_dump(mode="json")
    return {name: content[name] for name in ("all", "seen", "new", "counts")}


def flat(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each number and text of a nested result by its place."""
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from flat(value, f"{place}.{key}")
    else:
        yield place, content


# what comes out


@pytest.mark.parametrize("part", ["all", "new", "seen"])
def test_every_figure_equals_scikit_learn(answers: Path, data: Path, part: str) -> None:
    got = getattr(judge(answers, data).metrics, part)
    paths = test_paths(data)
    probs = probs_of(paths)
    chosen = [
        row
        for row, path in enumerate(paths)
        if "te5" not in path
        and (part == "all" or (path[-5] in "01") == (part == "seen"))
    ]
    y = [paths[row].split("/")[1] for row in chosen]
    predicted = [CLASSES[place] for place in probs[chosen].argmax(axis=1)]
    labels = {"labels": CLASSES}
    expected = {
        "accuracy": truth.accuracy_score(y, predicted),
        "balanced_accuracy": truth.balanced_accuracy_score(y, predicted),
        "macro_f1": truth.f1_score(y, predicted, average="macro"),
        "log_loss": truth.log_loss(y, probs[chosen], **labels),
        "brier": truth.brier_score_loss(
            y, probs[chosen], scale_by_half=False, **labels
        ),
        "macro_auroc": truth.roc_auc_score(
            y, probs[chosen], multi_class="ovr", **labels
        ),
    }
    for name, value in expected.items():
        assert getattr(got, name).value == pytest.approx(value, abs=1e-7), name
    matrix = truth.confusion_matrix(y, predicted, **labels)
    assert [list(row) for row in got.confusion_matrix] == matrix.tolist()
    assert got.accuracy.low < got.accuracy.value


def test_what_training_has_seen_is_found_mirrored_and_turned(
    answers: Path, data: Path
) -> None:
    found = judge(answers, data)
    counts = found.metrics.counts
    assert (counts.files, counts.copies, counts.tested) == (21, 1, 20)
    assert (counts.seen_pictures, counts.seen_patients, counts.new) == (8, 0, 12)
    assert sum(found.metrics.orientations.values()) == 8
    with (found.folder / "images.csv").open() as file:
        states = {row["path"]: row["state"] for row in csv.DictReader(file)}
    assert {path for path, state in states.items() if state == "seen-picture"} == {
        f"Testing/{label}/te{number}.png" for label in CLASSES for number in (0, 1)
    }
    assert states["Testing/glioma/te5.png"] == "left-out"
    assert not any(path.startswith("Training") for path in states)
    leak = next(one for one in found.metrics.notes if "Leak:" in one)
    assert "Leak: 8 of 21 test images" in leak


def test_two_folders_say_the_same_as_one_with_two_subsets(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    whole = judge(answers, data)
    apart = judge(
        answers,
        data / "Testing",
        trained_on=data / "Training",
        out=tmp_path / "apart",
    )
    assert figures(apart) == figures(whole)
    assert apart.metrics.words == whole.metrics.words


def test_what_was_trained_on_may_be_another_set(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for label in CLASSES:
        write_image(other / label / "0.png", draw_image(label, 500))
    write_image(other / "glioma" / "x.png", draw_image("glioma", 102)[::-1])
    found = judge(answers, data / "Testing", trained_on=other)
    assert found.metrics.counts.seen_pictures == 1
    assert found.metrics.words.startswith("Training has seen 1 of the 20 images")
    unknown = judge(answers, data / "Testing")
    assert not unknown.metrics.is_seen_known
    assert any("--trained-on" in one for one in unknown.metrics.notes)
    assert unknown.metrics.new is None


def test_answers_to_images_that_training_has_all_seen_are_refused(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"Testing is new: .* all 20 images") as caught:
        judge(answers, data / "Testing", trained_on=data)
    assert "--trained-on is what it was" in caught.value.hint
    root = tmp_path / "copied"
    for label in CLASSES:
        write_image(root / "Training" / label / "a.png", draw_image(label, 3))
        write_image(root / "Testing" / label / "b.png", draw_image(label, 3)[:, ::-1])
    table = write_csv(
        tmp_path / "few.csv",
        {"path": [f"{label}/b.png" for label in CLASSES], "predicted": CLASSES},
    )
    with pytest.raises(DataError, match=r"copied is new: .* all 4 images") as caught:
        judge(table, root)
    assert caught.value.hint.endswith("--data DATA")
    assert not answers.with_suffix("").exists()
    assert not table.with_suffix("").exists()


def test_copies_count_once_and_the_usual_figure_is_told(
    answers: Path, data: Path
) -> None:
    found = judge(answers, data)
    paths = test_paths(data)
    right = [
        CLASSES[place] == path.split("/")[1]
        for path, place in zip(paths, probs_of(paths).argmax(axis=1), strict=True)
    ]
    words = f"{sum(right)} of 21 answers are right ({100 * sum(right) / 21:.1f} %)"
    assert any(words in one for one in found.metrics.notes)


def test_the_order_of_the_rows_does_not_matter(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    order = np.random.default_rng(0).permutation(21).tolist()
    shuffled = write_answers(tmp_path / "other.csv", data, order=order)
    first, second = judge(answers, data), judge(shuffled, data)
    assert figures(first) == figures(second)
    assert first.metrics.notes == second.metrics.notes
    for name in ("predictions.csv", "images.csv"):
        assert (first.folder / name).read_text() == (second.folder / name).read_text()


def test_the_answers_of_a_run_give_the_figures_of_the_run(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    data = make_images(num_each=6)
    index = read_index(data)
    duplicates = find_duplicates(index)
    rows = make_split(
        index,
        duplicates,
        protocol="grouped",
        val_fraction=0.2,
        test_fraction=0.3,
        seed=1,
    )
    run = runs_on_images.make_run(tmp_path / "run", data)
    run.write_split(rows, judge_leak(rows, index, duplicates))
    measured = evaluate(run)
    found = judge(run.predictions_path, data, partial=True, out=tmp_path / "out")
    assert 4 <= measured.num_images < 24
    assert found.metrics.counts.unanswered == 24 - measured.num_images
    # The ninth digit of a probability may differ: rows are scaled again.
    expected = metrics_from_predictions(run.predictions_path).model_dump()
    got = dict(flat(found.metrics.all.model_dump()))
    assert got == pytest.approx(dict(flat(expected)), abs=1e-7)
    table = read_predictions(found.folder / "predictions.csv")
    own = read_predictions(run.predictions_path)
    assert (table.paths, table.groups) == (own.paths, own.groups)


def test_written_files_are_read_back(answers: Path, data: Path) -> None:
    found = judge(answers, data)
    assert found.folder == answers.with_suffix("")
    kept = read_model(found.folder / "external.json", ExternalMetrics, hint="")
    assert kept == found.metrics
    assert (kept.model, kept.name, kept.data) == ("model.csv", "data", "data")
    table = read_predictions(found.folder / "predictions.csv")
    assert metrics_from_predictions(found.folder / "predictions.csv") == kept.all
    assert table.classes == CLASSES


# probabilities, logits, classes


def test_logits_are_what_their_softmax_is(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    logits = np.log(probs_of(test_paths(data))) + 1000
    other = write_answers(tmp_path / "logits.csv", data, probs=logits)
    found = judge(other, data, logits=True)
    for name in ("accuracy", "log_loss", "brier", "ece"):
        expected = getattr(judge(answers, data).metrics.all, name).value
        assert getattr(found.metrics.all, name).value == pytest.approx(
            expected, abs=1e-7
        )
    with pytest.raises(DataError, match="20 x a probability outside 0 to 1"):
        judge(other, data, out=tmp_path / "x")


def test_columns_called_logits_need_the_option(data: Path, tmp_path: Path) -> None:
    paths = test_paths(data)
    columns: dict[str, Any] = {"path": paths}
    columns |= {f"logit_{name}": [0.0] * len(paths) for name in CLASSES}
    with pytest.raises(ConfigError, match="are called logits"):
        judge(write_csv(tmp_path / "a.csv", columns), data)


def test_the_option_for_logits_needs_numbers(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--logits has no effect"):
        judge(only_classes(tmp_path / "a.csv", data), data, logits=True)


def only_classes(path: Path, data: Path, said: Mapping[str, str] = {}) -> Path:
    """Write predicted classes; each image is its class unless `said` has its path."""
    paths = test_paths(data)
    predicted = [said.get(path, path.split("/")[1]) for path in paths]
    return write_csv(path, {"filename": paths, "Predictions": predicted})


def test_without_probabilities_their_figures_are_absent_with_the_reason(
    data: Path, tmp_path: Path
) -> None:
    wrong = {
        "Testing/glioma/te2.png": "pituitary",
        "Testing/glioma/te0.png": "no_tumor",
    }
    found = judge(only_classes(tmp_path / "a.csv", data, wrong), data)
    got = found.metrics.all
    assert got.accuracy.value == pytest.approx(18 / 20)
    assert got.confusion_matrix[0] == (3, 0, 1, 1)
    assert got.per_class["glioma"].recall.value == pytest.approx(3 / 5)
    for name in ("log_loss", "brier", "ece", "macro_auroc"):
        assert getattr(got, name).value is None
        assert "no probabilities" in got.not_measured[name]
    assert all(one.auroc.value is None for one in got.per_class.values())
    assert got.curves.calibration.count == ()
    assert all(not roc.fpr for roc in got.curves.roc.values())
    assert not set(got.interval_holds_from) & set(got.not_measured)
    assert any("without probabilities" in one for one in found.metrics.notes)
    table = read_predictions(found.folder / "predictions.csv")
    assert not table.has_probs
    assert metrics_from_predictions(found.folder / "predictions.csv") == got
    with (found.folder / "predictions.csv").open() as file:
        assert {row["prob_glioma"] for row in csv.DictReader(file)} == {""}


def test_a_class_that_is_never_predicted_is_wrong_and_not_left_out(
    data: Path, tmp_path: Path
) -> None:
    paths = test_paths(data)
    said = {path: "no_tumor" for path in paths if "/pituitary/" in path}
    found = judge(only_classes(tmp_path / "a.csv", data, said), data)
    assert found.metrics.counts.tested == 20
    assert found.metrics.all.per_class["pituitary"].recall.value == 0
    assert found.metrics.all.accuracy.value == pytest.approx(15 / 20)


def test_several_classes_become_one_and_their_probabilities_are_added(
    data: Path, tmp_path: Path, answers: Path
) -> None:
    lines = ["path,label"]
    lines += [
        f"{data / path},{'no' if '/no_tumor/' in path else 'yes'}"
        for path in test_paths(data)
    ]
    (data.parent / "binary.csv").write_text("\n".join(lines))
    found = judge(
        answers,
        data.parent / "binary.csv",
        mapping=["glioma, meningioma,pituitary=yes", "no_tumor=no"],
    )
    table = read_predictions(found.folder / "predictions.csv")
    assert table.classes == ("no", "yes")
    paths = test_paths(data)
    at = {path: row for row, path in enumerate(paths)}
    expected = probs_of(paths)[[at[p.removeprefix("data/")] for p in table.paths], 2]
    assert table.probs[:, 0] == pytest.approx(expected, abs=1e-7)


def test_numbered_classes_are_named_by_the_map(data: Path, tmp_path: Path) -> None:
    numbers = dict(enumerate(CLASSES))
    paths = test_paths(data)
    probs = probs_of(paths)
    columns: dict[str, Any] = {"filename": paths}
    columns |= {str(number): probs[:, number] for number in numbers}
    mapping = [f"{number}={name}" for number, name in numbers.items()]
    table = write_csv(tmp_path / "a.csv", columns)
    found = judge(table, data, mapping=mapping)
    assert found.metrics.all.accuracy.value == pytest.approx(
        judge(write_answers(tmp_path / "b.csv", data), data).metrics.all.accuracy.value
    )
    with pytest.raises(DataError, match="no column with answers"):
        judge(table, data)


# names of files


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda path: f"/content/drive/data/{path}", id="elsewhere"),
        pytest.param(lambda path: path.removeprefix("Testing/"), id="below Testing"),
        pytest.param(lambda path: "C:\\data\\" + path.replace("/", "\\"), id="windows"),
        pytest.param(lambda path: f"./x/../{path}", id="dots"),
    ],
)
def test_a_path_may_be_longer_or_shorter(
    answers: Path, data: Path, tmp_path: Path, spell: Callable[[str], str]
) -> None:
    paths = [spell(path) for path in test_paths(data)]
    other = write_answers(tmp_path / "other.csv", data, paths=paths)
    assert figures(judge(other, data)) == figures(judge(answers, data))


def test_a_bare_name_must_be_unique(data: Path, tmp_path: Path) -> None:
    paths = test_paths(data)
    bare = [path.rpartition("/")[2] for path in paths]
    bare[0] = paths[0]
    other = write_answers(tmp_path / "other.csv", data, paths=bare)
    with pytest.raises(DataError) as caught:
        judge(other, data)
    assert "19 x a name that several files have: 'te1.png' (line 3)" in (
        caught.value.problem
    )
    # What is left is one image, of which training has seen the picture.
    with pytest.raises(DataError, match="has seen the one image that can be tested"):
        judge(other, data, partial=True)


def test_of_equal_names_the_test_image_is_meant(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    root = make_images(subsets={"Training": 2, "Testing": 1})
    table = write_csv(
        tmp_path / "a.csv",
        {"path": [f"{label}/0.png" for label in CLASSES], "predicted": CLASSES},
    )
    assert judge(table, root).metrics.counts.tested == 4


def test_bare_names_of_their_own_are_enough(tmp_path: Path) -> None:
    for label in CLASSES:
        image = draw_image(label, 700)
        write_image(tmp_path / "data" / label / f"{label} (1).png", image)
    table = write_csv(
        tmp_path / "a.csv",
        {"image": [f"{label} (1).png" for label in CLASSES], "predicted": CLASSES},
    )
    assert judge(table, tmp_path / "data").metrics.all.accuracy.value == 1


def test_a_training_file_is_none_of_the_test_folder(data: Path, tmp_path: Path) -> None:
    paths = [f"/content/Training/{path[8:]}" for path in test_paths(data)]
    other = write_answers(tmp_path / "other.csv", data, paths=paths)
    with pytest.raises(DataError, match="21 x no file of the data"):
        judge(other, data / "Testing")


def test_answers_to_training_images_are_passed_over(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    files = sorted(data.glob("Training/*/*.png"))
    paths = [path.relative_to(data).as_posix() for path in files] + test_paths(data)
    probs = np.concatenate([np.eye(4)[[0] * 16], probs_of(test_paths(data))])
    other = write_answers(tmp_path / "other.csv", data, paths=paths, probs=probs)
    assert figures(judge(other, data)) == figures(judge(answers, data))


# what is wrong is counted, named, and left out on request


def changed(data: Path, change: str) -> tuple[list[str], NDArray[np.float64]]:
    paths, probs = test_paths(data), probs_of(test_paths(data))
    row = paths.index("Testing/meningioma/te3.png")
    match change:
        case "no row":
            return paths[:row] + paths[row + 1 :], np.delete(probs, row, axis=0)
        case "no file":
            paths[row] = "../../../etc/passwd"
        case "formula":
            paths[row] = "=HYPERLINK(1)"
        case "twice":
            return [*paths, paths[row]], np.concatenate([probs, probs[row : row + 1]])
        case "nan":
            probs[row, 1] = np.nan
        case "negative":
            probs[row] = (-0.2, 0.4, 0.4, 0.4)
        case "sum":
            probs[row] *= 0.9
    return paths, probs


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("no row", "1 x a file without a row: 'Testing/meningioma/te3.png'"),
        ("no file", "1 x no file of the data: '../../../etc/passwd' (line 11)"),
        ("formula", "1 x no file of the data: '=HYPERLINK(1)' (line 11)"),
        ("twice", "1 x a file with several rows: 'Testing/meningioma/te3.png'"),
        ("nan", "1 x an answer that is no number: 'Testing/meningioma/te3.png' (line"),
        ("negative", "1 x a probability outside 0 to 1: 'Testing/meningioma/te3.png'"),
        ("sum", "1 x probabilities that do not add up to 1: 'Testing/meningioma/te3"),
    ],
)
def test_a_wrong_answer_stops_all_unless_it_may_be_left_out(
    data: Path, tmp_path: Path, change: str, problem: str
) -> None:
    paths, probs = changed(data, change)
    other = write_answers(tmp_path / "other.csv", data, paths=paths, probs=probs)
    with pytest.raises(DataError) as caught:
        judge(other, data)
    assert problem in caught.value.problem
    assert "--partial" in caught.value.hint
    assert not (tmp_path / "other").exists()
    found = judge(other, data, partial=True)
    assert found.metrics.counts.tested == 19
    assert found.metrics.counts.unanswered == 1
    assert sum(found.metrics.all.confusion_matrix[1]) == 4
    notes = " ".join(found.metrics.notes)
    assert "19 of the 20 images that can be tested" in notes
    assert problem in notes


def test_all_faults_are_told_at_once(data: Path, tmp_path: Path) -> None:
    paths, probs = test_paths(data), probs_of(test_paths(data))
    probs[:5] = np.nan
    paths[7] = "unknown.png"
    other = write_answers(tmp_path / "other.csv", data, paths=paths, probs=probs)
    with pytest.raises(DataError) as caught:
        judge(other, data)
    problem = caught.value.problem
    assert "1 x no file of the data" in problem
    assert "1 x a file without a row" in problem
    # Named are the first three of five.
    assert "5 x an answer that is no number: 'Testing/glioma/te0.png'" in problem
    assert problem.count("Testing/glioma/") == 3
    assert "and 2 more" in problem
    assert "..." not in problem


def test_a_class_of_the_model_alone_stops_unless_it_counts_as_wrong(
    data: Path, tmp_path: Path
) -> None:
    said = {"Testing/glioma/te2.png": "sarcoma"}
    other = only_classes(tmp_path / "a.csv", data, said)
    words = "1 x a class that the data lacks ('sarcoma'): 'Testing/glioma/te2.png' (l"
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        judge(other, data)
    assert "of a class that the data lacks then count as wrong" in caught.value.hint
    found = judge(other, data, partial=True)
    notes = " ".join(found.metrics.notes)
    assert f"Counted as wrong with --partial: {words}" in notes
    assert "Left out" not in notes
    assert found.metrics.counts.tested == 20
    assert found.metrics.all.accuracy.value == pytest.approx(19 / 20)
    mapped = judge(other, data, mapping=["sarcoma,glioma=glioma"])
    assert mapped.metrics.all.accuracy.value == 1


@pytest.mark.parametrize("logits", [False, True])
def test_a_column_of_numbers_beside_the_classes_is_no_silent_loss(
    data: Path, tmp_path: Path, *, logits: bool
) -> None:
    paths = test_paths(data)
    scores = np.random.default_rng(5).normal(size=(len(paths), 5))
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    columns: dict[str, Any] = {"filename": paths}
    columns |= dict(
        zip((*CLASSES, "metastasis"), (scores if logits else probs).T, strict=True)
    )
    table = write_csv(tmp_path / "a.csv", columns)
    given = [
        path
        for path, row in zip(paths, probs, strict=True)
        if row.argmax() == 4 and "te5" not in path
    ]
    assert 0 < len(given) < 20
    words = f"{len(given)} x a class that the data lacks ('metastasis'): {given[0]!r}"
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        judge(table, data, logits=logits)
    assert "remove the column 'metastasis'" in caught.value.hint
    found = judge(table, data, logits=logits, partial=True).metrics
    rows = [row for row, path in enumerate(paths) if "te5" not in path]
    expected = truth.accuracy_score(
        [paths[row].split("/")[1] for row in rows],
        [(*CLASSES, "metastasis")[place] for place in probs[rows].argmax(axis=1)],
    )
    assert found.all.accuracy.value == pytest.approx(expected)


def test_a_class_of_the_model_is_named_if_no_image_was_given_it(
    data: Path, tmp_path: Path
) -> None:
    paths, probs = test_paths(data), probs_of(test_paths(data))
    columns: dict[str, Any] = {"path": paths}
    columns |= {f"prob_{name}": 0.9 * probs[:, n] for n, name in enumerate(CLASSES)}
    columns["prob_x"] = [0.1] * len(paths)
    table = write_csv(tmp_path / "a.csv", columns)
    words = re.escape("a.csv: 0 x a class that the data lacks ('x')")
    with pytest.raises(DataError, match=rf"{words}\n") as caught:
        judge(table, data)
    assert "remove the column" not in caught.value.hint


def test_a_class_without_a_column_stops_unless_its_images_are_left_out(
    data: Path, tmp_path: Path
) -> None:
    paths, probs = test_paths(data), probs_of(test_paths(data))
    probs = probs[:, :3] / probs[:, :3].sum(axis=1, keepdims=True)
    columns: dict[str, Any] = {"path": paths}
    columns |= {f"prob_{name}": probs[:, n] for n, name in enumerate(CLASSES[:3])}
    other = write_csv(tmp_path / "a.csv", columns)
    words = "5 x a file of a class without a column ('pituitary'): 'Testing/pituitar"
    with pytest.raises(DataError, match=re.escape(words)):
        judge(other, data)
    found = judge(other, data, partial=True)
    assert any(
        one.startswith(f"Left out with --partial: {words}")
        for one in found.metrics.notes
    )
    assert found.metrics.counts.tested == 15
    assert found.metrics.unknown_classes == {"pituitary": 5}


def test_a_predicted_class_that_is_not_the_likeliest_is_no_answer(
    data: Path, tmp_path: Path
) -> None:
    paths, probs = test_paths(data), probs_of(test_paths(data))
    predicted = [CLASSES[place] for place in probs.argmax(axis=1)]
    predicted[0] = CLASSES[probs[0].argmin()]
    columns: dict[str, Any] = {"path": paths, "predicted": predicted}
    columns |= {f"prob_{name}": probs[:, n] for n, name in enumerate(CLASSES)}
    with pytest.raises(DataError, match="1 x a predicted class that is not the likel"):
        judge(write_csv(tmp_path / "a.csv", columns), data)


def test_probabilities_of_two_digits_are_scaled(data: Path, tmp_path: Path) -> None:
    rounded = probs_of(test_paths(data)).round(2)
    assert abs(rounded.sum(axis=1) - 1).max() > 0.005
    other = write_answers(tmp_path / "a.csv", data, probs=rounded)
    table = read_predictions(judge(other, data).folder / "predictions.csv")
    assert table.probs.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-8)


def test_nothing_left_is_an_error_in_any_case(data: Path, tmp_path: Path) -> None:
    paths = [f"x{row}.png" for row in range(21)]
    other = write_answers(tmp_path / "a.csv", data, paths=paths)
    with pytest.raises(DataError, match=r"no answer in .*a\.csv is left: 21 x no file"):
        judge(other, data, partial=True)


# where it is written


def test_nobodys_work_is_overwritten(answers: Path, data: Path) -> None:
    out = answers.with_suffix("")
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(
        DataError, match=r"model is there, and is no evaluation of model\.csv"
    ):
        judge(answers, data)
    (out / "notes.txt").unlink()
    judge(answers, data)
    judge(answers, data)
    content = json.loads((out / "external.json").read_text())
    content["model"] = "other.csv"
    (out / "external.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is there"):
        judge(answers, data)
    assert [path.name for path in sorted(out.iterdir())] == [
        *("external.json", "images.csv", "predictions.csv"),
    ]


def test_results_go_neither_among_the_images_nor_into_a_run(
    answers: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="inside the folder of the images"):
        judge(answers, data, out=data / "Testing" / "out")
    (tmp_path / "config.toml").touch()
    with pytest.raises(DataError, match="between the files of a run"):
        judge(answers, data)


def test_a_folder_of_text_files_is_judged_by_their_stems(
    data: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    for label in CLASSES:
        for number in range(3):
            image = draw_image(label, 300 + number)
            write_image(flat / label / f"{label}-{number}.png", image)
    labels = tmp_path / "labels"
    labels.mkdir()
    for label in CLASSES:
        for number in range(3):
            lines = [f"{0.7 if one == label else 0.1:.2f} {one}" for one in CLASSES]
            (labels / f"{label}-{number}.txt").write_text("\n".join(lines) + "\n")
    write_image(flat / "glioma" / "glioma-1.bmp", draw_image("glioma", 303))
    with pytest.raises(DataError, match="1 x a name that several files have: 'gli"):
        judge(labels, flat)
    (flat / "glioma" / "glioma-1.bmp").unlink()
    found = judge(labels, flat)
    assert found.folder == tmp_path / "labels-judged"
    assert found.metrics.all.accuracy.value == 1
    assert found.metrics.all.log_loss.value == pytest.approx(-np.log(0.7))
