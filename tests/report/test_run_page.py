"""The pages: hand-made files in, one self-contained page out."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from support.handmade_external import write_evaluation
from support.handmade_metrics import (
    CLASSES,
    LEAK_WORDS,
    SUBSET_COUNTS,
    handmade_metrics,
    leak,
)
from support.images import draw_image
from support.pages import Tags, assert_self_contained
from tumorlens.config import parse_config, setting_names
from tumorlens.data.images import ImageLimits
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import RunError
from tumorlens.files import write_json
from tumorlens.report import write_run_report
from tumorlens.report.drawing import DARK, LIGHT, SERIES
from tumorlens.report.page import load_picture
from tumorlens.runs.folder import Run, create_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def history(num_epochs: int, *, offset: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 0.1 + offset + math.exp(-epoch / 3),
            "train_accuracy": 1 - 0.6 * math.exp(-epoch / 2) - offset,
            "val_loss": 0.4 + offset + math.exp(-epoch / 4),
            "val_accuracy": 0.85 - 0.5 * math.exp(-epoch / 2) - offset,
            "val_balanced_accuracy": 0.8,
            "val_macro_f1": 0.8,
            "lr": 1e-3,
            "images_per_second": 55.0,
            "seconds": 40.0,
            "is_best": epoch == num_epochs - 1,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes an evaluated run by hand, with its images."""
    return _run_maker(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Three runs with their pages, for tests that only read: drawing takes a second."""
    runs = {}
    for kind in ("ordinary", "leaking", "folds"):
        make = _run_maker(tmp_path_factory.mktemp(kind))
        runs[kind] = make(
            leaks=kind == "leaking", num_folds=3 if kind == "folds" else 0
        )
        assert write_run_report(runs[kind]).path == runs[kind].path / "report.html"
    return runs


def page_of(run: Run) -> str:
    return run.report_path.read_text(encoding="utf-8")


def _run_maker(tmp_path: Path) -> Callable[..., Run]:
    def write(
        *,
        leaks: bool = False,
        classes: tuple[str, ...] = CLASSES,
        num_folds: int = 0,
        name: str = "run",
    ) -> Run:
        data = tmp_path / "data"
        protocol = "as-given" if leaks else "grouped"
        if num_folds:
            protocol = "grouped-kfold"
        config = parse_config(
            {"data": {"path": str(data), "protocol": protocol}, "optim": {"epochs": 6}}
        )
        run = create_run(tmp_path / name, config)
        content = handmade_metrics(leaks=leaks, classes=classes)
        content["protocol"] = protocol
        if num_folds:
            for fold in range(num_folds):
                part = create_run(run.fold_path(fold), config)
                part.write_history(history(6 - fold % 2, offset=0.02 * fold))
            content["folds"] = [
                {"fold": fold, "num_images": 6, "accuracy": 0.8031 + 0.01 * fold}
                for fold in range(num_folds)
            ]
        else:
            run.write_history(history(6))
        run.write_environment(
            {
                "command": "tumorlens train --data data --out run",
                "seed": 42,
                "device": "cpu",
                "versions": {"python": "3.11.2", "torch": "2.11.0"},
            }
        )
        run.write_leak(LeakVerdict.model_validate(content["leak"]))
        run.log_look(subset="val", command="tumorlens evaluate run --subset val")
        run.log_look(subset="test", command="tumorlens evaluate run")
        run.metrics_path.write_text(json.dumps(content), encoding="utf-8")
        write_predictions(run, data, classes)
        return run

    return write


def write_predictions(run: Run, data: Path, classes: tuple[str, ...]) -> None:
    """Write predictions that agree with `SUBSET_COUNTS`, and the images they name."""
    rng = np.random.default_rng(0)
    lines = [
        ["path", "label", "predicted", "group", "source", "fold"]
        + [f"prob_{name}" for name in classes]
    ]
    for row, label in enumerate(CLASSES):
        number = 0
        for column, count in enumerate(SUBSET_COUNTS[row]):
            for _ in range(count):
                path = f"class{row}/{number}.png"
                (data / f"class{row}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw_image(label, 10 * row + number)).save(data / path)
                probs = rng.dirichlet(np.ones(len(classes)) * 0.5)
                probs = np.sort(probs)
                probs[[column, -1]] = probs[[-1, column]]
                lines.append(
                    [path, classes[row], classes[column], path, "figshare", ""]
                    + [f"{prob:.9g}" for prob in probs]
                )
                number += 1
    with run.predictions_path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


@pytest.mark.parametrize("kind", ["ordinary", "leaking", "folds"])
def test_a_run_page_loads_nothing_from_anywhere(
    written: dict[str, Run], kind: str
) -> None:
    assert_self_contained(page_of(written[kind]))


def test_ids_of_a_page_are_unique_and_every_reference_has_its_target(
    written: dict[str, Run],
) -> None:
    page = page_of(written["ordinary"])
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) > 100
    assert len(ids) == len(set(ids))
    targets = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {one or other for one, other in targets} <= set(ids)


def test_a_run_page_shows_every_measure_as_people_write_it(
    written: dict[str, Run],
) -> None:
    run = written["ordinary"]
    text = Tags(page_of(run)).text
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        value, low, high = (content[key][part] for part in ("value", "low", "high"))
        assert f"{value:.1%}".replace("%", " %") in text, key
        assert f"{100 * low:.1f} to {100 * high:.1f} %" in text, key
    for key in ("macro_auroc", "log_loss", "brier", "ece"):
        assert f"{content[key]['value']:.3f}" in text, key
        low, high = content[key]["low"], content[key]["high"]
        assert f"{low:.3f} to {high:.3f}" in text, key
    for name, one in content["per_class"].items():
        shares = [
            f"{100 * one[key]['value']:.1f} % "
            f"{100 * one[key]['low']:.1f} to {100 * one[key]['high']:.1f} %"
            for key in ("recall", "precision", "specificity")
        ]
        auroc = one["auroc"]
        row = (
            f"{name} 8 {' '.join(shares)} {100 * one['f1']:.1f} % "
            f"{auroc['value']:.3f} {auroc['low']:.3f} to {auroc['high']:.3f}"
        )
        assert row in text
    assert "figshare 20 90.1 % 85.0 to 93.3 % 87.6 %" in text
    assert "unknown 12 66.7 % 61.6 to 69.9 % 54.3 %" in text
    assert content["interval"] in text
    assert "Looks at test 1" in text


def test_a_run_page_says_what_it_is_not_and_how_to_repeat_it(
    make_run: Callable[..., Run],
) -> None:
    run = make_run(name="my run")
    text = Tags(write_run_report(run).path.read_text(encoding="utf-8")).text
    assert "Not a medical device; research use only" in text
    assert "tumorlens train --data data --out run" in text
    assert f"tumorlens train '{run.path}/config.toml' --out '{run.path}-again'" in text
    assert "torch 2.11.0" in text
    for name in setting_names():
        assert f" {name.partition('.')[2]} " in text


def test_every_figure_and_table_of_a_leaking_run_carries_the_words_of_the_leak(
    written: dict[str, Run],
) -> None:
    run = written["leaking"]
    page = page_of(run)
    images = [part.split("</svg>")[0] for part in page.split("<svg")[1:]]
    files = [path.read_text(encoding="utf-8") for path in run.figures_dir.glob("*.svg")]
    assert len(images) == 5
    assert len(files) == 4
    for svg in images + files:
        # Wrapped into lines, in order.
        text = " ".join(Tags(f"<svg{svg}").texts)
        assert LEAK_WORDS in " ".join(text.split())
    text = Tags(page).text
    headline, _, rest = text.partition("Balanced accuracy")
    assert "✕ Leak check: failed" in headline
    assert LEAK_WORDS in headline
    for section in ("Calibration in numbers", "By class", "By source"):
        assert LEAK_WORDS in rest.partition(section)[2][:350], section
    assert LEAK_WORDS in rest.partition("The most confident mistakes")[2][:350]


def test_a_clean_run_is_not_warned_of(written: dict[str, Run]) -> None:
    page = page_of(written["ordinary"])
    text = Tags(page).text
    assert "✓ Leak check: passed" in text
    assert "failed" not in text
    assert 'class="banner"' not in page


@pytest.mark.parametrize(
    ("num_unknown", "in_training", "both_sides"),
    [(32, "n/a", "n/a"), (7, "0 of those known", "0 of those known")],
)
def test_a_check_without_known_patients_has_not_passed(
    make_run: Callable[..., Run], num_unknown: int, in_training: str, both_sides: str
) -> None:
    run = make_run()
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    content["leak"] = leak(leaks=False, num_unknown=num_unknown)
    write_json(run.metrics_path, content)
    write_run_report(run)
    page = page_of(run)
    text = Tags(page).text
    heading = f"Leak check: patients not known for {num_unknown} of 32 test images"
    assert heading in text
    assert f"with their patient in training {in_training}" in text
    assert f"patients on both sides {both_sides}" in text
    assert "✓" not in text
    assert 'class="card verdict open"' in page


def test_the_page_says_why_there_is_no_interval(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    content["balanced_accuracy"] |= {"low": None, "high": None}
    content["per_class"]["glioma"]["recall"] |= {"low": None, "high": None}
    content["no_interval"] = {
        "balanced_accuracy": "there is one group only",
        "recall of glioma": "there is one group only",
    }
    content["warnings"] = ["Few groups carry these figures: 3 groups in all."]
    write_json(run.metrics_path, content)
    write_run_report(run)
    text = Tags(page_of(run)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "80.4 % no interval: there is one group only" in text
    assert "Few groups carry these figures: 3 groups in all." in text
    assert "glioma 8 75.1 % no interval: there is one group only 85.7 %" in text


def test_the_page_of_measures_of_before_says_how_their_intervals_were_made(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    words = "95 %, percentile bootstrap over 21 groups; Wilson for recalls"
    content |= {"format": 1, "interval": words}
    one = content["per_class"]["glioma"]
    one |= {"precision": 0.8571, "specificity": 0.9583, "auroc": 0.9417}
    one["recall_by_group"] = {"value": 0.7513, "low": 0.3123, "high": 0.9543}
    write_json(run.metrics_path, content)
    write_run_report(run)
    text = Tags(page_of(run)).text.replace("\N{NO-BREAK SPACE}", " ")
    row = "glioma 8 75.1 % 31.2 to 95.4 % 85.7 % 95.8 % 80.0 % 0.942 meningioma"
    assert row in text
    assert text.count(words) == 3  # accuracy, by class, by source
    assert "groups as units" not in text


def test_the_words_of_the_leak_are_drawn_into_the_png(
    written: dict[str, Run],
) -> None:
    # PNG holds no text: the colour of the warning must be there, and only then.
    for leaks, kind in ((True, "leaking"), (False, "ordinary")):
        run = written[kind]
        for name in ("curves", "confusion", "roc", "calibration"):
            with Image.open(run.figures_dir / f"{name}.png") as image:
                colors = image.convert("RGB").getcolors(1 << 24) or []
            wanted = tuple(bytes.fromhex(LIGHT["warn"][1:]))
            count = sum(number for number, color in colors if color == wanted)
            assert (count > 500) == leaks, name


def test_names_of_the_user_are_text_and_never_markup(
    make_run: Callable[..., Run],
) -> None:
    hostile = '<script>alert("$x$")</script>'
    run = make_run(classes=(hostile, "_hidden", "b&b", "</svg><b>"))
    page = write_run_report(run).path.read_text(encoding="utf-8")
    assert_self_contained(page)
    tags = Tags(page)
    assert not [name for name, _ in tags.elements if name == "b"]
    assert hostile in tags.text
    # The figures' own files are XML, and parse as such.
    for path in run.figures_dir.glob("*.svg"):
        tree = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        if path.stem in ("roc", "confusion"):
            # As it stands, dollars included: it is no formula.
            assert '<script>alert("$x$")' in " ".join(tree.itertext())


def test_the_same_run_gives_the_same_bytes(written: dict[str, Run]) -> None:
    run = written["folds"]

    def content() -> dict[str, bytes]:
        files = [run.report_path, *sorted(run.figures_dir.iterdir())]
        return {path.name: path.read_bytes() for path in files}

    first = content()
    assert {name for name in first if name != "report.html"} == {
        f"{name}.{suffix}"
        for name in ("curves", "confusion", "roc", "calibration")
        for suffix in ("svg", "png")
    }
    write_run_report(run)
    assert content() == first


def test_the_most_confident_mistakes_come_first_with_all_their_probabilities(
    written: dict[str, Run],
) -> None:
    run = written["ordinary"]
    with run.predictions_path.open(encoding="utf-8", newline="") as file:
        wrong = [
            row for row in csv.DictReader(file) if row["label"] != row["predicted"]
        ]
    wrong.sort(key=lambda row: -float(row[f"prob_{row['predicted']}"]))
    page = page_of(run)
    cards = page.split('<article class="picture">')[1:]
    assert len(cards) == len(wrong) == 6
    for card, row in zip(cards, wrong, strict=True):
        tags = Tags(card)
        (image,) = [one for name, one in tags.elements if name == "img"]
        assert image["alt"] == (
            f"Image {row['path']}, label {row['label']}, predicted {row['predicted']}"
        )
        for name in CLASSES:
            assert f"{name} {100 * float(row[f'prob_{name}']):.1f} %" in tags.text


def test_pictures_are_made_small_and_keep_their_proportions(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((600, 900), np.uint8)).save(tmp_path / "a.png")
    picture = load_picture(tmp_path, "a.png")
    assert (picture.width, picture.height) == (224, 149)
    encoded = picture.uri.removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.size == (224, 149)


def test_an_image_over_the_limits_is_not_opened(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((600, 900), np.uint8)).save(tmp_path / "a.png")
    picture = load_picture(tmp_path, "a.png", limits=ImageLimits(max_pixels=1000))
    assert picture.why_not == "not shown: the file cannot be read as an image"


def test_images_that_are_gone_or_broken_are_said_to_be(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run()
    elsewhere = tmp_path / "moved"
    (tmp_path / "data").rename(elsewhere)
    written = write_run_report(run)
    text = Tags(written.path.read_text(encoding="utf-8")).text
    assert text.count("not shown: the file is gone") == 6
    assert written.num_missing == 6
    assert written.why_not == "not shown: the file is gone"

    for path in elsewhere.rglob("*.png"):
        path.write_bytes(b"no image")
    page = write_run_report(run, data=elsewhere).path.read_text(encoding="utf-8")
    text = Tags(page).text
    assert text.count("not shown: the file cannot be read as an image") == 6


def test_a_picture_without_a_folder_is_a_sentence() -> None:
    assert load_picture(None, "a.png").why_not.endswith("the data folder is not known")


def test_folds_are_listed_and_their_curves_drawn(written: dict[str, Run]) -> None:
    page = page_of(written["folds"])
    text = Tags(page).text
    assert "0 6 80.3 % 1 6 81.3 % 2 6 82.3 %" in text
    assert "3 folds, 5 to 6 epochs each" in text
    # Thin lines for three folds in train and in val, in each of the two panels.
    assert page.count("stroke-opacity: 0.55") == 2 * 2 * 3


def test_settings_that_differ_from_the_defaults_are_marked(
    written: dict[str, Run],
) -> None:
    page = page_of(written["ordinary"])
    changed = re.findall(r'<dd class="changed">([^<]*)</dd>', page)
    assert changed[1:] == ["6"]
    assert changed[0].endswith("/data")


def test_a_run_without_figures_to_show_says_what_to_do(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    run.metrics_path.unlink()
    with pytest.raises(RunError, match="run is not evaluated yet") as caught:
        write_run_report(run)
    assert caught.value.hint == f"run: tumorlens evaluate {run.path}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format": 3}', r"expected format 1 or 2 in .*metrics\.json, got 3"),
        ("[]", r"expected format 1 or 2 in .*metrics\.json, got \[\]"),
        ("{", r"metrics\.json is not JSON: Expecting property name"),
        ('{"format": 2}', r"metrics\.json is damaged at protocol: Field required"),
    ],
)
def test_metrics_that_are_not_ours_are_refused(
    make_run: Callable[..., Run], content: str, problem: str
) -> None:
    run = make_run()
    run.metrics_path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=problem):
        write_run_report(run)


def test_predictions_that_are_not_a_table_are_refused(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    table = run.predictions_path.read_text(encoding="utf-8")
    run.predictions_path.write_text(
        table.replace("path,label", "path,tag"), encoding="utf-8"
    )
    with pytest.raises(RunError, match="got path, tag, predicted"):
        write_run_report(run)


def test_measures_that_are_not_defined_are_left_open(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    content["macro_auroc"] = {"value": None, "low": None, "high": None}
    content["accuracy"].update(low=None, high=None)
    one = content["per_class"]["glioma"]
    one["num_images"] = 0
    for name in ("recall", "precision", "auroc"):
        one[name] = {"value": None, "low": None, "high": None}
    content["curves"]["roc"]["glioma"] = {"fpr": [], "tpr": []}
    content["curves"]["calibration"] = {
        "confidence": [None, 0.9],
        "accuracy": [None, 0.8],
        "count": [0, 32],
    }
    run.metrics_path.write_text(json.dumps(content), encoding="utf-8")
    text = Tags(write_run_report(run).path.read_text(encoding="utf-8")).text
    assert "0.931 meningioma" in text
    assert "0.942 glioma" not in text
    assert "n/a glioma" not in text
    assert "Macro AUROC n/a Log loss" in text
    assert "Accuracy on test 81.3 % 95 %, with 21 groups as units" in text
    assert "glioma 0 n/a n/a 95.8 % 90.7 to 99.1 % 80.0 % n/a" in text


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_have_the_contrast_of_wcag_aa(palette: dict[str, str]) -> None:
    def luminance(color: str) -> float:
        parts = [byte / 255 for byte in bytes.fromhex(color[1:])]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in parts
        ]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    def contrast(one: str, other: str) -> float:
        low, high = sorted([luminance(palette[one]), luminance(palette[other])])
        return (high + 0.05) / (low + 0.05)

    pairs = [
        (text, ground)
        for text in ("ink", "muted", "accent")
        for ground in ("page", "surface")
    ]
    pairs += [("warn", "warn-fill"), ("good", "good-fill"), ("warn", "surface")]
    pairs += [("ink", "warn-fill"), ("ink", "good-fill")]
    pairs += [(name, "surface") for name in SERIES]
    too_faint = {pair: contrast(*pair) for pair in pairs if contrast(*pair) < 4.5}
    assert not too_faint


def test_both_themes_know_the_same_colors_and_none_is_used_for_two_things() -> None:
    assert LIGHT.keys() == DARK.keys()
    # A figure's colours are found by their value when it goes into a page.
    assert len(set(LIGHT.values())) == len(LIGHT)


def other_sets(run: Run) -> str:
    page = write_run_report(run).path.read_text(encoding="utf-8")
    return page.partition("<h2>On other sets")[2].partition("</section>")[0]


def test_evaluations_on_other_sets_have_a_row_each_with_a_link_to_their_page(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    assert other_sets(run) == ""
    write_evaluation(run.external_path("b10"), [1, 0, 1, 1, 1, 1], "nnnpps", name="b10")
    write_evaluation(run.external_path("b9"), [1, 0], "pp", name="b9")
    write_evaluation(run.external_path("c"), [1, 0], "??", name="c")
    (run.external_path("b10") / "external.html").touch()
    (run.path / "external" / "begun").mkdir()
    run.log_look(subset="external b10", command="tumorlens evaluate run --on b10")
    part = other_sets(run)
    assert re.findall(r'href="([^"]*)"', part) == ["external/b10/external.html"]
    text = Tags(part).text
    # 2 of the 3 new images are right, by hand.
    assert re.search(
        r"b9 2 2 nothing is new 0 b10 6 3 66\.7 % [\d.]+ to [\d.]+ % 3 images 1 "
        r"c 2 not known not known which are new 0",
        text,
    ), text


def test_a_damaged_evaluation_on_another_set_is_named(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    write_evaluation(run.external_path("b"), [1, 0], "np")
    (run.external_path("b") / "external.json").write_text("{}")
    with pytest.raises(RunError, match=r"b/external\.json is damaged at name"):
        write_run_report(run)
    assert not run.report_path.exists()
