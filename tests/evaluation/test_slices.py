"""Weak slices of answers made by hand, and of a run from its files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.handmade_runs import answers
from support.runs_on_images import make_run
from tumorlens.data.picture_facts import PictureFacts
from tumorlens.errors import RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.slices import measure_slices
from tumorlens.stats.paired import holm
from tumorlens.stats.parts import part_against_rest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.evaluation.predictions import Predictions

NUM = 120


def facts(**columns: np.ndarray) -> list[PictureFacts]:
    """Return facts of which only the named ones differ between the images."""
    same = {name: np.full(NUM, 0.5) for name in PictureFacts._fields} | columns
    return [PictureFacts(*row) for row in zip(*same.values(), strict=True)]


def table(wrong: range, *, web: range = range(0)) -> Predictions:
    right = [int(number not in wrong) for number in range(NUM)]
    sources = tuple("web" if number in web else "figshare" for number in range(NUM))
    return replace(answers(right), sources=sources)


def test_the_third_in_which_it_errs_is_named() -> None:
    # Wrong on 20 of the 40 smallest images and nowhere else.
    found = measure_slices(table(range(0, 40, 2)), facts(size=np.arange(NUM) + 100.0))
    small, _, large = found.slices
    assert (small.num_images, small.lowest, small.highest) == (40, 100, 139)
    assert small.accuracy.value == 0.5
    assert small.rest.value == 1
    assert small.is_worse
    assert large.is_found
    assert not large.is_worse
    assert found.words == (
        "Worse than the rest: smallest images (100 to 139 px), 50.0 % against 100.0 % "
        "(-50.0 points)."
    )


def test_the_source_in_which_it_errs_is_named() -> None:
    found = measure_slices(table(range(0, 40, 2), web=range(40)), facts())
    assert [one.name for one in found.weak] == ["web"]
    assert "images of source web, 50.0 % against 100.0 %" in found.words


def test_nothing_is_said_to_be_worse_where_errors_are_everywhere() -> None:
    found = measure_slices(table(range(0, NUM, 10)), facts(size=np.arange(NUM) * 1.0))
    assert found.weak == []
    assert found.words == (
        "None of 3 parts of the images, by source, size, brightness and sharpness, is "
        "shown to be worse than the rest."
    )


def test_p_is_corrected_for_all_parts_and_a_mirror_image_is_one_of_them() -> None:
    rng = np.random.default_rng(1)
    found = measure_slices(
        table(range(0, NUM, 7), web=range(50)),
        facts(size=rng.random(NUM), brightness=rng.random(NUM)),
    )
    assert [one.fact for one in found.slices] == ["source"] * 2 + [
        *["size"] * 3,
        *["brightness"] * 3,
    ]
    figshare, web, *others = found.slices
    assert figshare.p_holm == web.p_holm
    tested = [web.p, *(one.p for one in others)]
    assert [web.p_holm, *(one.p_holm for one in others)] == pytest.approx(holm(tested))


def test_parts_of_few_groups_are_not_compared() -> None:
    given = replace(
        table(range(9), web=range(9)),
        groups=tuple(str(n if n < 9 else n // 3) for n in range(NUM)),
    )
    found = measure_slices(given, facts())
    assert found.slices == ()
    assert found.too_few == ("figshare", "web")
    assert found.words == "No part of the images has groups enough to be compared."


def test_the_slices_of_a_run_follow_from_its_tables(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images(num_each=20)
    run = make_run(tmp_path / "run", data, subset_of=lambda n: ("train", "test")[n > 4])
    found = evaluate(run, device="cpu").slices
    assert found is not None
    assert run.metrics().slices == found
    with run.facts_of("test").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    given = read_predictions(run.predictions_path)
    assert set(rows) == set(given.paths)
    brightness = np.array([float(rows[path]["brightness"]) for path in given.paths])
    darkest = next(one for one in found.slices if one.name == "darkest images")
    is_part = brightness <= np.sort(brightness)[19]  # a third of 60, all different
    expected = part_against_rest(
        given.predicted == given.labels,
        is_part,
        np.unique(given.groups, return_inverse=True)[1],
    )
    assert darkest.num_images == 20
    assert darkest.difference.value == pytest.approx(expected.value)
    assert darkest.p == pytest.approx(expected.p)


def test_files_of_earlier_versions_have_no_slices(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", make_images())
    evaluate(run, device="cpu")
    content = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    del content["slices"], content["leak"]["labels_sha256"]
    run.metrics_path.write_text(json.dumps(content), encoding="utf-8")
    assert run.metrics().slices is None
    content["slices"] = {"slices": [{"fact": "colour"}]}
    run.metrics_path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json.*slices"):
        run.metrics()
