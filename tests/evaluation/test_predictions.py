"""The table of predictions: written, read back, and refused when it does not add up."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tumorlens.errors import RunError
from tumorlens.evaluation import predictions
from tumorlens.evaluation.predictions import (
    Predictions,
    pool_predictions,
    read_predictions,
    round_probs,
    write_predictions,
)

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "path,label,predicted,group,source,fold,prob_a,prob_b"
GOOD = "a/1.png,a,b,g1,web,0,0.25,0.75"


def some_predictions(num: int = 6) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        classes=("a", "b", "c"),
        paths=tuple(f"a/{n}.png" for n in range(num)),
        labels=rng.integers(3, size=num),
        probs=round_probs(rng.dirichlet(np.ones(3), size=num).astype(np.float32)),
        groups=tuple(f"g{n // 2}" for n in range(num)),
        sources=("web",) * (num - 1) + ("",),
        folds=(None,) * num,
    )


def assert_same(got: Predictions, expected: Predictions) -> None:
    assert got.classes == expected.classes
    assert got.paths == expected.paths
    assert got.groups == expected.groups
    assert got.sources == expected.sources
    assert got.folds == expected.folds
    assert got.labels.tolist() == expected.labels.tolist()
    assert got.probs.tolist() == expected.probs.tolist()
    assert got.has_probs == expected.has_probs


def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path) -> None:
    table = some_predictions()
    write_predictions(tmp_path / "p.csv", table)
    assert_same(read_predictions(tmp_path / "p.csv"), table)


def test_predicted_classes_without_probabilities_are_read_back(tmp_path: Path) -> None:
    table = replace(some_predictions(4), probs=np.eye(3)[[0, 2, 1, 0]], has_probs=False)
    write_predictions(tmp_path / "p.csv", table)
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row[2] for row in rows[1:]] == ["a", "c", "b", "a"]
    assert {cell for row in rows[1:] for cell in row[6:]} == {""}
    assert_same(read_predictions(tmp_path / "p.csv"), table)
    assert not table.rows([1]).has_probs
    assert not pool_predictions([table.rows([1]), table.rows([0])]).has_probs


def test_a_table_with_probabilities_in_some_lines_is_refused(tmp_path: Path) -> None:
    lines = [HEADER, GOOD, "a/2.png,a,b,g2,web,0,,"]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    with pytest.raises(RunError, match="only some lines have probabilities"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize("odd", ["a,b", 'a"b', "a\nb", "a\rb", "=1+1", " ä "])
def test_any_name_survives(tmp_path: Path, odd: str) -> None:
    table = some_predictions(2)
    table = Predictions(
        classes=(odd, "b", "c"),
        paths=(odd, "other"),
        labels=table.labels,
        probs=table.probs,
        groups=(odd, "other"),
        sources=(odd, ""),
        folds=(3, None),
    )
    write_predictions(tmp_path / "p.csv", table)
    assert_same(read_predictions(tmp_path / "p.csv"), table)


def test_the_table_is_plain_csv_with_the_columns_promised(tmp_path: Path) -> None:
    table = some_predictions()
    write_predictions(tmp_path / "p.csv", table)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("path", "label", "predicted", "group", "source", "fold"),
        *("prob_a", "prob_b", "prob_c"),
    ]
    for row, label in zip(rows, table.labels, strict=True):
        probs = {name: float(row[f"prob_{name}"]) for name in "abc"}
        assert row["predicted"] == max(probs, key=probs.__getitem__)
        assert row["label"] == "abc"[label]


def test_rounded_probabilities_add_up_for_those_who_check() -> None:
    logits = np.random.default_rng(0).normal(size=(500, 4)) * 3
    probs = np.exp(logits).astype(np.float32)
    probs /= probs.sum(axis=1, keepdims=True)
    assert abs(probs.astype(np.float64).sum(axis=1) - 1).max() > 2e-8
    rounded = round_probs(probs)
    assert abs(rounded.sum(axis=1) - 1).max() < 2e-9
    np.testing.assert_allclose(rounded, probs, rtol=3e-7)


def test_pooled_tables_are_sorted_by_path() -> None:
    table = some_predictions()
    parts = [table.rows([5, 1, 2]), table.rows([4, 0, 3])]
    assert_same(pool_predictions(parts), table)


def test_tables_of_different_classes_are_not_pooled() -> None:
    table = some_predictions()
    other = Predictions(**{**vars(table), "classes": ("x", "b", "c")})
    with pytest.raises(ValueError, match=r"'a', 'b', 'c'.*'x', 'b', 'c'"):
        pool_predictions([table, other])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a/1.png,a,b,g1,web,0,0.25", "expected 8 fields, got 7"),
        (",a,b,g1,web,0,0.25,0.75", "no path"),
        ("a/1.png,a,b,,web,0,0.25,0.75", "no group"),
        ("a/1.png,x,b,g1,web,0,0.25,0.75", "'x' is none of a, b"),
        ("a/1.png,a,x,g1,web,0,0.25,0.75", "'x' is none of a, b"),
        ("a/1.png,a,b,g1,web,-1,0.25,0.75", "a number as fold, got '-1'"),
        ("a/1.png,a,b,g1,web,٣,0.25,0.75", "a number as fold, got '٣'"),
        ("a/1.png,a,b,g1,web,0,nan,0.75", "'nan' is no probability"),
        ("a/1.png,a,b,g1,web,0,-0.5,1.5", "'-0.5' is no probability"),
        ("a/1.png,a,b,g1,web,0,0,inf", "'inf' is no probability"),
        ("a/1.png,a,b,g1,web,0,x,0.75", "'x' is no probability"),
        ("a/1.png,a,b,g1,web,0,0.25,0.7", "probabilities add up to 0.95"),
        ("a/1.png,a,a,g1,web,0,0.25,0.75", "predicted is 'a', but 'b' is more likely"),
    ],
)
def test_a_line_that_does_not_add_up_is_named(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"{HEADER}\nx.png,a,b,g,,,0.25,0.75\n{line}\n", encoding="utf-8")
    with pytest.raises(RunError, match=rf"p\.csv, line 3: .*{problem}\n.*evaluate"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected the columns path.*got none"),
        (HEADER.replace("group", "grp"), "expected the columns.*got path.*grp"),
        (HEADER.replace(",prob_b", ""), "at least two classes"),
        (HEADER.replace("prob_b", "prob_a"), "at least two classes"),
        (HEADER.replace("prob_b", "b"), "at least two classes"),
        (HEADER, "has no predictions"),
        (f"{HEADER}\n{GOOD}\n{GOOD}", "'a/1.png' is named twice"),
        (f'{HEADER}\n"a/1.png', "is not a table: unexpected end"),
        (f"{HEADER}\n\0", r"is not a table|expected 8 fields"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=rf"p\.csv.*{problem}"):
        read_predictions(tmp_path / "p.csv")


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"p\.csv is not a table: .*utf-8"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(RunError, match=r"cannot read .*q\.csv: No such file"):
        read_predictions(tmp_path / "q.csv")


def test_a_file_of_absurd_size_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.csv").write_text(f"{HEADER}\n{GOOD}\n", encoding="utf-8")
    assert read_predictions(tmp_path / "p.csv").folds == (0,)
    monkeypatch.setattr(predictions, "_MAX_BYTES", 10)
    with pytest.raises(RunError, match=r"p\.csv has more than 10 bytes"):
        read_predictions(tmp_path / "p.csv")
