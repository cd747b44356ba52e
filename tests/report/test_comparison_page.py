"""The page of a comparison: a hand-made comparison.json in, one page out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from support.images import draw_image
from tumorlens.errors import RunError
from tumorlens.report import write_comparison_page
from tumorlens.report.comparison_figures import (
    ArmCurves,
    Bar,
    Point,
    draw_arm_curves,
    draw_bars,
    draw_front,
    wrap_name,
)
from tumorlens.report.drawing import LIGHT, Heading
from tumorlens.runs.measures import HistoryRow

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")
LEAK_WORDS = (
    "Leak: 261 of 394 test images (66.2 %) show a picture that is also in training; "
    "332 test images have no known patient."
)
MARK = "leaks: 261 of 394 test images (66.2 %) show a picture that is also in training"
CLEAN_WORDS = "No leak found: none of 2870 test images is also in training."
PROTOCOLS = ("as-given", "grouped-kfold")
HEADING = Heading("Title", "subtitle")


def measure(value: float) -> dict[str, Any]:
    return {
        **{"value": value, "low": value - 0.0311, "high": value + 0.0222},
        **{"method": "Wilson, design effect", "unit": "group", "num_units": 84},
    }


def measures(protocol: str, number: int) -> dict[str, Any]:
    leaks = protocol == "as-given"
    accuracy = 0.7345 + 0.02 * number + 0.0612 * leaks
    return {
        "num_seeds": 2,
        "num_images": 394 if leaks else 2870,
        "accuracy": measure(accuracy),
        "balanced_accuracy": measure(accuracy - 0.01),
        "macro_f1": measure(accuracy - 0.02),
        "log_loss": measure(0.6161 + 0.1 * number),
        "ece": {"value": 0.0843, "low": None, "high": None},
        "last_epoch_accuracy": 0.7713 if leaks else None,
        "best_val_epoch_accuracy": 0.7824 if leaks else None,
        "best_test_epoch_accuracy": 0.8119 if leaks else None,
        "best_test_epoch": 7 if leaks else None,
        "leak": {
            "words": LEAK_WORDS if leaks else CLEAN_WORDS,
            "is_believable": not leaks,
        },
    }


def history(num_epochs: int, *, offset: float, watched: bool) -> list[dict[str, Any]]:
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1.2 / epoch,
            "train_accuracy": 0.9 - 0.3 / epoch,
            "val_loss": 1.5 / epoch + offset,
            "val_accuracy": 0.8 - 0.3 / epoch - offset,
            "lr": 1e-3,
            "is_best": epoch == num_epochs,
        }
        for epoch in range(1, num_epochs + 1)
    ]
    if watched:
        for row in rows:
            row |= {"test_loss": row["val_loss"], "test_accuracy": row["val_accuracy"]}
    return rows


def arm(name: str, number: int) -> dict[str, Any]:
    return {
        "name": name,
        "settings": {"optim.lr": 0.1**number, "model.pretrained": "no"},
        "model": "resnet50",
        "num_parameters": 23_516_228,
        "macs": 4_090_000_000,
        "size_bytes": 94_300_000,
        "latency_ms": {"value": 6.85 + number, "p5": 6.5, "p95": 9.25},
        "train_seconds": 754.2,
        "images_per_second": 155.3,
        "measures": {name: measures(name, number) for name in PROTOCOLS},
        "runs": [
            {
                "path": f"trials/{number}-{protocol}-{seed}",
                "protocol": protocol,
                "seed": seed,
                "state": "finished",
                "reason": None,
                "history": history(
                    4, offset=0.01 * number, watched=protocol == "as-given"
                ),
            }
            for protocol in PROTOCOLS
            for seed in (42, 43)
        ],
    }


def comparison(names: tuple[str, ...] = ("plain", "dropout", "lr=0.01")) -> Any:
    return {
        "format": 2,
        "title": "Effect of dropout",
        "study": "runs/dropout",
        "subset": "test",
        "arms": [arm(name, number) for number, name in enumerate(names)],
        "pairs": [
            {
                "protocol": protocol,
                "first": names[0],
                "second": second,
                "num_images": 2870,
                "difference": {"value": -0.0213, "low": -0.0301, "high": 0.0042},
                "p": 0.0312,
                "p_holm": 0.0001 if number else 0.0624,
                "is_noise": not number,
            }
            for protocol in PROTOCOLS
            for number, second in enumerate(names[1:])
        ],
        "summary": ["No significant difference."],
        "pareto": [names[0], names[-1]],
        "headline_protocol": "grouped-kfold",
        "example": {
            "path": "glioma/0.png",
            "label": "glioma",
            "classes": list(CLASSES),
            "rows": [
                {
                    "arm": name,
                    "network": "grouped-kfold, seed 42",
                    "probs": dict(
                        zip(CLASSES, (0.9987, 0.0013, 0.0, 0.0), strict=True)
                    ),
                    "predicted": "glioma" if number else "meningioma",
                    "in_training": number == 1,
                }
                for number, name in enumerate(names)
            ],
        },
    }


def without_curves(content: Any) -> Any:
    """Return it without histories: drawing them takes most of the time."""
    for one in content["arms"]:
        for run in one["runs"]:
            run["history"] = []
    return content


def write(folder: Path, content: Any, *, data: Path | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "comparison.json"
    source.write_text(json.dumps(content), encoding="utf-8")
    out = folder / "comparison.html"
    assert write_comparison_page(source, data=data, out=out) == out
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with its figures, for tests that only read: drawing takes seconds."""
    root = tmp_path_factory.mktemp("comparison")
    (root / "data" / "glioma").mkdir(parents=True)
    Image.fromarray(draw_image("glioma", 0)).save(root / "data/glioma/0.png")
    write(root, comparison(), data=root / "data")
    return root


@pytest.fixture
def page(folder: Path) -> str:
    return (folder / "comparison.html").read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """What a browser would see: elements with their attributes, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._texts: list[str] = []
        self._silent = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag in ("style", "script"):
            self._silent = tag
        # Where a word may be broken, none is.
        self._texts.append("" if tag == "wbr" else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._silent:
            self._silent = ""
        self._texts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts).replace("\xa0", " ").split())


def text_of(page: str) -> str:
    return _Tags(page).text


def section(page: str, title: str) -> str:
    return page.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]


def svg_text(svg: str) -> str:
    return " ".join(" ".join(ElementTree.fromstring(svg).itertext()).split())


def test_the_page_loads_nothing_and_runs_only_its_own_script(page: str) -> None:
    tags = _Tags(page)
    names = [name for name, _ in tags.elements]
    assert names.count("script") == 1
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(names)
    for name, attributes in tags.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert not re.search(r"url\((?!#)", value), value
            if key in ("src", "href", "xlink:href", "srcset", "data") and name != "a":
                assert value.startswith(("#", "data:image/jpeg;base64,")), value
    assert {a["href"] for name, a in tags.elements if name == "a"} == {
        *("comparison.csv", "comparison.md", "comparison.tex")
    }
    # A browser is told so as well, and knows the script by its digest.
    (policy,) = [a["content"] for _, a in tags.elements if "http-equiv" in a]
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        "style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {one or other for one, other in targets} <= set(ids)


def test_the_leak_stands_at_the_top_in_words(page: str) -> None:
    top = text_of(page.partition("<main>")[0])
    bad = f"✕ as-given: leaks; its figures cannot be believed {LEAK_WORDS}"
    assert f"{bad} ✓ grouped-kfold: leak check passed {CLEAN_WORDS}" in top
    assert "No significant difference." in text_of(section(page, "In words"))


def test_what_nobody_checked_is_not_called_clean(tmp_path: Path) -> None:
    content = without_curves(comparison(("plain",)))
    content["arms"][0]["measures"]["grouped-kfold"]["leak"]["is_believable"] = None
    page = write(tmp_path, content)
    assert "grouped-kfold: leaks are not known" in text_of(page)
    assert "✓" not in page.partition("<main>")[0]


def test_patients_that_nobody_knows_are_named_in_place_of_a_passed_check(
    tmp_path: Path,
) -> None:
    content = without_curves(comparison(("plain",)))
    content["arms"][0]["measures"]["grouped-kfold"]["leak"] |= {
        "is_believable": None,
        "state": "patients not known",
    }
    page = write(tmp_path, content)
    assert "grouped-kfold: copies checked, patients not known" in text_of(page)
    assert "✓" not in page.partition("<main>")[0]


def test_every_figure_under_a_leaking_protocol_carries_the_leak(folder: Path) -> None:
    figures = {path.stem: path for path in (folder / "figures").glob("*.svg")}
    assert set(figures) == {
        *("curves-as-given", "curves-grouped-kfold"),
        *("accuracy-as-given", "accuracy-grouped-kfold"),
        *("latency", "size", "front"),
    }
    for name, path in figures.items():
        words = svg_text(path.read_text(encoding="utf-8"))
        assert (MARK in words) == name.endswith("as-given"), name
        with Image.open(path.with_suffix(".png")) as image:
            assert image.width >= 900
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    inline = [f"<svg{part}".split("</svg>")[0] for part in page.split("<svg")[1:]]
    # Two curves and one accuracy for each protocol, and three others.
    assert len(inline) == 9
    assert sum(MARK in text_of(svg) for svg in inline) == 3
    for title in ("Under each protocol", "Pairs"):
        assert f"as-given {MARK}" in text_of(section(page, title))


def test_the_table_shows_every_figure_of_an_arm(page: str) -> None:
    assert (
        "plain optim.lr = 1.0 model.pretrained = no "
        "73.5 % 70.3 to 75.7 % 79.6 % 76.5 to 81.8 % 71.5 % 68.3 to 73.7 % "
        "0.616 0.585 to 0.638 0.084 23.5 M 4.09 G 94.3 MB 12 min 34 s 155.3 "
        "6.85 ms 6.50 to 9.25"
    ) in text_of(section(page, "The arms"))


def test_settings_that_the_name_says_are_not_repeated(tmp_path: Path) -> None:
    content = without_curves(comparison(("lr=0.01, resnet50, mirror=True, mixup=0",)))
    content["arms"][0]["settings"] = {
        "optim.lr": 0.01,
        "model.name": "resnet50",
        "train.freeze": [1],
        "train.patience": None,
        "model.mirror": True,
        "augment.mixup": 0.0,
    }
    words = text_of(section(write(tmp_path, content), "The arms"))
    assert (
        "lr=0.01, resnet50, mirror=True, mixup=0 train.freeze = [1] "
        "train.patience = unset 73.5"
    ) in words


def test_the_table_can_be_sorted_and_is_whole_without_a_script(page: str) -> None:
    table = section(page, "The arms").partition("</table>")[0]
    heads = [a for name, a in _Tags(table).elements if name == "th" and "scope" in a]
    heads = [head for head in heads if head["scope"] == "col"]
    assert [head["data-best"] for head in heads] == [
        *("low", "high", "high", "high", "low", "low"),
        *("low", "low", "low", "low", "high", "low"),
    ]
    assert heads[0]["data-kind"] == "text"
    assert {head["data-kind"] for head in heads[1:]} == {"number"}
    rows = table.partition("<tbody>")[2].split("<tr>")[1:]
    values = [re.findall(r'data-value="([^"]*)"', row) for row in rows]
    assert [row[0] for row in values] == ["plain", "dropout", "lr=0.01"]
    assert all(len(row) == len(heads) for row in values)
    # As exact as in the file, so that two arms that look alike are in order.
    assert list(map(float, values[0][1:6])) == pytest.approx(
        [0.7345, 0.7957, 0.7145, 0.6161, 0.0843], abs=1e-9
    )
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert "aria-sort" in script
    assert 'createElement("button")' in script


def test_the_best_test_epoch_is_shown_and_doubted(page: str) -> None:
    parts = section(page, "Under each protocol").split("<h3>")[1:]
    kfold, given = (text_of(f"<h3>{part}") for part in parts)
    assert given.startswith("as-given")
    assert "Best-test epoch chosen on test, not to be believed" in given
    assert "plain 2 394 79.6 % 76.5 to 81.8 % 77.1 % 78.2 % 81.2 % epoch 7" in given
    assert "Best-test epoch" not in kfold
    assert "plain 2 2,870 73.5 % 70.3 to 75.7 % 72.5 % 69.3 to 74.7 %" in kfold


def test_every_pair_has_its_tests_and_its_verdict(page: str) -> None:
    parts = [text_of(part) for part in section(page, "Pairs").split("<h3>")[1:]]
    for part in parts:
        assert "2 pairs, 1 of them not significant" in part
        assert (
            "plain dropout \u22122.1 \u22123.0 to +0.4 not significant 0.062 0.031 "
            "2,870 No significant difference between plain and dropout: -2.1 points "
            "(-3.0 to 0.4), p = 0.062 after Holm."
        ) in part
        assert (
            "plain lr=0.01 \u22122.1 \u22123.0 to +0.4 significant <0.001 0.031 2,870"
            in part
        )
    assert page.count('<details class="pairs-of" open>') == 2


def test_a_comparison_of_before_is_read_with_its_names(tmp_path: Path) -> None:
    content = without_curves(comparison(("plain", "dropout")))
    expected = write(tmp_path / "now", content)
    content["format"] = 1
    for arm in content["arms"]:
        time = arm["latency_ms"]
        arm["latency_ms"] = {
            **{"value": time["value"], "low": time["p5"], "high": time["p95"]}
        }
        for one in arm["measures"].values():
            one["ece"] = one["ece"]["value"]
    for pair in content["pairs"]:
        pair |= {"p_mcnemar": None, "p_bootstrap": pair.pop("p")}
    assert write(tmp_path / "before", content) == expected


def test_the_interval_of_the_calibration_error_is_shown(tmp_path: Path) -> None:
    content = without_curves(comparison(("plain", "dropout")))
    for one in content["arms"][0]["measures"].values():
        one["ece"] |= {"low": 0.0612, "high": 0.1074}
    page = write(tmp_path, content)
    assert "0.084 0.061 to 0.107 23.5 M" in text_of(section(page, "The arms"))
    assert "0.084 0.061 to 0.107" in text_of(section(page, "Under each protocol"))


def test_a_long_list_of_pairs_is_folded(tmp_path: Path) -> None:
    content = without_curves(comparison(("plain", "dropout")))
    content["pairs"] = content["pairs"][:1] * 16
    page = write(tmp_path, content)
    assert page.count('<details class="pairs-of">') == 1
    words = "plain and dropout: -2.1 points (-3.0 to 0.4), p = 0.062 after Holm.</td>"
    assert page.count(words) == 16


def test_the_example_has_a_picture_and_a_row_for_each_arm(page: str) -> None:
    part = section(page, "One image through every arm")
    words = text_of(part)
    (image,) = [a for name, a in _Tags(part).elements if name == "img"]
    assert image["alt"] == "Image glioma/0.png, label glioma"
    probs = "grouped-kfold, seed 42 99.87 % 0.13 % 0.00 % 0.00 %"
    assert f"plain {probs} ✕ meningioma dropout {probs} ✓ glioma" in words
    assert f"dropout {probs} ✓ glioma has learnt from it lr=0.01" in words
    assert words.count("has learnt from it") == 1


def test_an_example_without_data_is_named_and_one_with_its_whole_path_is_shown(
    folder: Path, tmp_path: Path
) -> None:
    content = without_curves(comparison(("plain",)))
    content["example"]["label"] = ""
    page = write(tmp_path / "named", content)
    part = text_of(section(page, "One image through every arm"))
    assert "not shown: the data folder is not known glioma/0.png" in part
    assert "its label is not known" in part
    assert "✕" not in part

    content["example"]["path"] = str(folder / "data/glioma/0.png")
    page = write(tmp_path / "whole", content)
    assert page.count("<img src=") == 1


def test_trials_without_measures_are_listed_with_their_reason(tmp_path: Path) -> None:
    content = comparison(("plain", "dropout"))
    first, second, third, _ = content["arms"][1]["runs"]
    first |= {"state": "failed", "reason": "out of memory at a batch of 1"}
    second |= {"state": "waiting", "history": []}
    third["reason"] = "not evaluated yet: tumorlens evaluate it"
    page = write(tmp_path, content)
    part = section(page, "Trials without measures")
    assert "3 of 8 trials have no measures" in text_of(page)
    assert text_of(part.partition("</table>")[0]).endswith(
        "dropout as-given 42 failed out of memory at a batch of 1 "
        "trials/1-as-given-42 "
        "dropout as-given 43 waiting trials/1-as-given-43 "
        "dropout grouped-kfold 42 finished not evaluated yet: tumorlens evaluate it "
        "trials/1-grouped-kfold-42"
    )
    words = svg_text((tmp_path / "figures/curves-as-given.svg").read_text("utf-8"))
    # What there is of an arm that never finished is drawn, and said to be no more.
    assert "dropout (unfinished)" in words
    assert "plain (unfinished)" not in words


def test_what_was_not_measured_breaks_nothing(tmp_path: Path) -> None:
    content = without_curves(comparison(("plain", "dropout")))
    second = content["arms"][1]
    for key in ("num_parameters", "macs", "size_bytes", "latency_ms"):
        second[key] = None
    second |= {"train_seconds": None, "images_per_second": None, "measures": {}}
    first = content["arms"][0]["measures"]["grouped-kfold"]
    first["log_loss"] = {"value": 0.5, "low": None, "high": None}
    first["ece"]["value"] = None
    content |= {"pairs": [], "summary": [], "study": None, "example": None}
    page = write(tmp_path, content)
    words = text_of(section(page, "The arms"))
    assert words.count("n/a") == 5 + 6 + 1
    assert "0.500 n/a 23.5 M" in words
    assert 'data-value="None"' not in page
    assert "No two arms were measured on the same images" in page
    for name in ("latency", "accuracy-as-given", "size"):
        svg = (tmp_path / f"figures/{name}.svg").read_text("utf-8")
        assert svg_text(svg).count("not measured") == 1


def test_a_comparison_of_nothing_finished_is_still_a_page(tmp_path: Path) -> None:
    content = comparison(("plain",))
    one = content["arms"][0]
    one |= {"latency_ms": None, "size_bytes": None, "measures": {}}
    for run in one["runs"]:
        run |= {"state": "waiting", "history": []}
    content |= {"pairs": [], "summary": [], "pareto": [], "study": None}
    page = write(tmp_path, content)
    assert "No conclusion yet" in page
    assert "No arm was measured." in page
    assert "No run has a history." in page
    assert "Latency was not measured." in page
    assert not (tmp_path / "figures").exists()


def test_the_same_comparison_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, comparison(), data=folder / "data")
    for name in ("comparison.html", "figures/front.svg", "figures/front.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_names_of_the_user_are_text_and_never_markup(tmp_path: Path) -> None:
    hostile = '</script><script>alert("$x$")</script>'
    other = '"><img src=x onerror=y>'
    content = json.loads(
        json.dumps(comparison(("plain", "dropout")))
        .replace("dropout", json.dumps(hostile)[1:-1])
        .replace("glioma", json.dumps(other)[1:-1])
        .replace("resnet50", "<b>model</b>")
    )
    content["title"] = "<b>title</b>"
    content["arms"][1]["runs"][0] |= {"state": "failed", "reason": "<b>reason</b>"}
    page = write(tmp_path, content)
    tags = _Tags(page)
    names = [name for name, _ in tags.elements]
    assert names.count("script") == 1
    assert not {"b", "img"} & set(names)
    for words in (hostile, other, "<b>model</b>", "<b>title</b>", "<b>reason</b>"):
        assert words in tags.text, words
    for path in (tmp_path / "figures").glob("*.svg"):
        # XML that parses, with the dollars in it: it is no formula.
        assert 'alert("$x$")' in svg_text(path.read_text(encoding="utf-8")), path


def test_long_names_of_many_arms_are_whole_in_every_figure(tmp_path: Path) -> None:
    names = tuple(
        f"{policy} augmentation with {more} and a long description, {schedule}"
        for policy in ("random-resized-crop", "auto-augment", "basic")
        for more in ("dropout 0.5", "weight decay 1e-4")
        for schedule in ("cosine", "step")
    )
    content = comparison(names)
    content["pairs"] = []
    for one in content["arms"]:
        del one["measures"]["as-given"], one["runs"][:2]
    write(tmp_path, content)
    figures = list((tmp_path / "figures").glob("*.svg"))
    assert len(figures) == 5
    for path in figures:
        words = svg_text(path.read_text(encoding="utf-8"))
        for name in names:
            assert name in words, (path.name, name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 3}, r"expected format 1 or 2 in .*comparison\.json, got 3"),
        ({"arms": []}, r"damaged at arms: .*at least 1 item.*got \[\]"),
        ({"title": None}, r"damaged at title: Input should be a valid string"),
        (
            {"pairs": [comparison()["pairs"][0] | {"protocol": "../up"}]},
            r"damaged at pairs\.0\.protocol: .*got '\.\./up'",
        ),
    ],
)
def test_a_comparison_that_is_not_ours_is_refused(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RunError, match=problem) as caught:
        write(tmp_path, comparison(("plain",)) | change)
    assert caught.value.hint.startswith("make it again with: tumorlens compare")
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, r"there is no .*comparison\.json"),
        ("{", r"comparison\.json is not JSON: Expecting property name"),
        ("[]", r"expected format 1 or 2 in .*comparison\.json, got \[\]"),
    ],
)
def test_a_comparison_that_cannot_be_read_is_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    path = tmp_path / "comparison.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=problem) as caught:
        write_comparison_page(path, data=None, out=tmp_path / "page.html")
    assert caught.value.hint.startswith("make it again with: tumorlens compare")


def rows(**columns: list[float | None]) -> list[HistoryRow]:
    """Return history rows of these columns, and nothing in the others."""
    keys = [f"{s}_{m}" for s in ("train", "val", "test") for m in ("loss", "accuracy")]
    length = len(next(iter(columns.values())))
    return [
        HistoryRow(**{key: columns.get(key, [None] * length)[epoch] for key in keys})
        for epoch in range(length)
    ]


def test_seeds_are_one_line_their_mean_where_all_of_them_are() -> None:
    seeds = [
        rows(val_accuracy=[0.5, 0.7, 0.8]),
        rows(val_accuracy=[0.6, 0.9]),
        # Measured nothing, and takes nothing away.
        rows(val_accuracy=[None]),
    ]
    drawing = draw_arm_curves(
        [ArmCurves("plain", 0, seeds)], HEADING, measures=("accuracy",)
    )
    (axes,) = drawing.figure.axes
    (line,) = axes.lines
    assert np.allclose(line.get_xydata(), [[1, 0.55], [2, 0.8]])


def test_a_study_of_one_epoch_has_no_fractions_of_it() -> None:
    arms = [ArmCurves("plain", 0, [rows(val_accuracy=[0.5])])]
    drawing = draw_arm_curves(arms, HEADING, measures=("accuracy",))
    (axes,) = drawing.figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_val_is_solid_train_dashed_and_a_watched_test_said_to_be_unused() -> None:
    history = rows(
        val_loss=[1.0, 0.8],
        train_loss=[0.9, 0.5],
        test_loss=[1.1, 0.9],
        val_accuracy=[0.5, 0.6],
        train_accuracy=[0.6, 0.7],
        test_accuracy=[0.4, 0.5],
    )
    arms = [ArmCurves(f"arm {number}", number, [history]) for number in range(3)]
    drawing = draw_arm_curves(arms, HEADING)
    assert [axes.get_ylabel() for axes in drawing.figure.axes] == ["accuracy", "loss"]
    dashes = [line.get_linestyle() for line in drawing.figure.axes[0].lines]
    assert dashes == ["-"] * 3 + ["--"] * 6
    assert "test: watched, not used" in drawing.svg
    colors = {line.get_color() for line in drawing.figure.axes[0].lines[:3]}
    assert len(colors) == 3

    # With a fourth arm there would be twelve lines in one panel.
    drawing = draw_arm_curves([*arms, ArmCurves("one more", 3, [history])], HEADING)
    assert [axes.get_ylabel() for axes in drawing.figure.axes] == [
        *("val accuracy", "val loss", "train accuracy", "train loss"),
        *("test accuracy", "test loss"),
    ]
    assert [len(axes.lines) for axes in drawing.figure.axes] == [4] * 6
    assert drawing.svg.count("test: watched, not used") == 2
    two = [ArmCurves("plain", 0, [rows(val_accuracy=[0.5, 0.6])])]
    assert "watched" not in draw_arm_curves(two, HEADING, measures=("accuracy",)).svg


@pytest.mark.parametrize(("worst", "scale"), [(5.9, "linear"), (31.0, "log")])
def test_one_exploded_loss_does_not_flatten_the_others(
    worst: float, scale: str
) -> None:
    histories = [[1.0, 0.9, 0.8], [1.0, worst, 0.8], [1.0, 0.7, 0.6]]
    arms = [
        ArmCurves(f"arm {number}", number, [rows(val_loss=list(losses))])
        for number, losses in enumerate(histories)
    ]
    drawing = draw_arm_curves(arms, HEADING, measures=("loss",))
    (axes,) = drawing.figure.axes
    assert axes.get_yscale() == scale
    assert ("(log scale)" in drawing.svg) == (scale == "log")
    # The style of all figures draws formulas as they stand.
    assert "mathdefault" not in drawing.svg


def test_bars_start_at_zero_and_end_at_their_value() -> None:
    bars = [
        Bar("plain", 0.7345, 0.70, 0.77, "73.5 %"),
        Bar("dropout", 1.0, None, None, "100.0 %"),
        Bar("failed", None, None, None, "n/a"),
    ]
    drawing = draw_bars(bars, HEADING, label="accuracy", is_fraction=True)
    (axes,) = drawing.figure.axes
    boxes: Any = axes.patches
    assert [(box.get_x(), box.get_width()) for box in boxes] == [(0, 0.7345), (0, 1)]
    (whisker,) = axes.lines
    assert np.allclose(whisker.get_xdata(), [0.70, 0.77])
    assert axes.get_xlim()[0] == 0
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        *("plain", "73.5 %", "dropout", "100.0 %", "failed", "not measured")
    ]
    # The first is on top, and no text leaves the panel.
    assert boxes[0].get_y() < boxes[1].get_y()
    assert axes.yaxis_inverted()
    right = axes.get_window_extent().x1
    assert max(text.get_window_extent().x1 for text in axes.texts) <= right


def test_the_front_is_a_step_line_through_filled_points() -> None:
    points = [
        Point("slow", 0, (9.0, 8.0, 11.0), (0.83, 0.8, 0.86), is_on_front=True),
        Point("worse", 1, (8.0, 7.0, 9.0), (0.75, 0.7, 0.8)),
        Point("fast", 2, (3.0, 2.0, 4.0), (0.79, 0.7, 0.8), is_on_front=True),
    ]
    drawing = draw_front(points, HEADING)
    (axes,) = drawing.figure.axes
    step, *others = axes.lines
    assert step.get_drawstyle() == "steps-post"
    assert np.allclose(step.get_xydata(), [[3.0, 0.79], [9.0, 0.83]])
    marked = [line for line in others if line.get_marker() not in ("", "None")]
    fills = [line.get_markerfacecolor() == LIGHT["surface"] for line in marked]
    assert fills == [False, True, False]
    assert "Pareto front" in drawing.svg


def test_without_a_front_none_is_drawn() -> None:
    points = [Point("one", 0, (8.0, 7.0, 9.0), (0.75, 0.7, 0.8))]
    assert "Pareto front" not in draw_front(points, HEADING).svg


@pytest.mark.parametrize("num_letters", [5, 20, 54])
def test_a_name_has_three_lines_at_most_and_keeps_both_its_ends(
    num_letters: int,
) -> None:
    for name in ("a" * 200, "word " * 60 + "end", "random-resized-crop " * 9, "x y"):
        lines = wrap_name(name, num_letters)
        assert len(lines) <= 3
        assert max(map(len, lines)) <= num_letters
        assert name.startswith(lines[0].rstrip("…"))
        assert name.rstrip().endswith(lines[-1].rpartition("…")[2].strip())


def test_a_point_needs_both_accuracy_and_latency(tmp_path: Path) -> None:
    content = without_curves(comparison(("first", "second", "third")))
    content["arms"][1]["latency_ms"] = None
    del content["arms"][2]["measures"]["grouped-kfold"]
    write(tmp_path, content)
    words = svg_text((tmp_path / "figures/front.svg").read_text("utf-8"))
    assert "first" in words
    assert "second" not in words
    assert "third" not in words
