"""Tables read back by other programs, with names that try to break them."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.report import tables
from tumorlens.study.comparison import Comparison

if TYPE_CHECKING:
    from pathlib import Path


def table_rows(content: dict[str, Any], **options: Any) -> Any:
    return tables.table_rows(Comparison.model_validate(content), **options)


def pair_rows(content: dict[str, Any]) -> Any:
    return tables.pair_rows(Comparison.model_validate(content))


def as_csv(content: dict[str, Any]) -> str:
    return tables.as_csv(Comparison.model_validate(content))


def as_markdown(content: dict[str, Any]) -> str:
    return tables.as_markdown(Comparison.model_validate(content))


def as_latex(content: dict[str, Any]) -> str:
    return tables.as_latex(Comparison.model_validate(content))


def measure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.01}


def measures(accuracy: float, **changes: Any) -> dict[str, Any]:
    return {
        "num_seeds": 2,
        "num_images": 1311,
        "accuracy": measure(accuracy),
        "balanced_accuracy": measure(0.7),
        "macro_f1": measure(0.6),
        "log_loss": measure(0.5),
        "ece": measure(0.04),
        "last_epoch_accuracy": None,
        "best_val_epoch_accuracy": None,
        "best_test_epoch_accuracy": None,
        "best_test_epoch": None,
        "leak": {"words": "Leak.", "is_believable": False},
        **changes,
    }


def clean(accuracy: float) -> dict[str, Any]:
    """Return measures of a split that leaks nothing."""
    return measures(accuracy, leak={"words": "No leak.", "is_believable": True})


def arm(name: str, of: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "settings": {"optim.lr": 0.01},
        "model": "resnet18",
        "num_parameters": 11_178_564,
        "macs": 1_813_563_392,
        "size_bytes": 44_756_000,
        "latency_ms": {"value": 21.04, "p5": 20.0, "p95": 25.5},
        "train_seconds": 150.0,
        "images_per_second": 99.6,
        "measures": of,
        "runs": [],
        **changes,
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("num_parameters", "macs", "size_bytes", "latency_ms", "train_seconds")
    )
    return {
        "title": "A & B",
        "study": None,
        "subset": "test",
        "pareto": [],
        "example": None,
        "headline_protocol": "grouped",
        "arms": [
            arm("A", {"as-given": measures(0.9), "grouped": clean(0.8)}),
            arm("B", {"grouped": clean(0.75)}, settings={"augment.mixup": 0.2}),
            arm("C", {}, images_per_second=None, settings={}, **nothing),
        ],
        "pairs": [
            {
                "protocol": "grouped",
                "first": "A",
                "second": "B",
                "num_images": 1311,
                "difference": {"value": 0.05, "low": 0.01, "high": 0.09},
                "p": 0.0004,
                "p_holm": 0.0123,
                "is_noise": False,
            }
        ],
        "summary": ["A is better than B by 5.0 points."],
    }


# for people


def test_the_table_has_a_column_for_each_protocol_and_the_headline_first(
    comparison: dict[str, Any],
) -> None:
    heading, rows = table_rows(comparison)
    assert heading == [
        *("arm", "accuracy, grouped", "accuracy, as-given (leaks)"),
        *("macro F1, grouped", "log loss, grouped", "ECE, grouped", "parameters"),
        *("MACs", "size", "latency", "training", "images/s"),
    ]
    assert rows[0] == [
        *("A", "80.0 % (78.0 to 81.0)", "90.0 % (88.0 to 91.0)"),
        *("60.0 % (58.0 to 61.0)", "0.500 (0.480 to 0.510)", "0.040 (0.020 to 0.050)"),
        *("11.2 M", "1.81 G", "44.8 MB", "21.0 ms (20.0 to 25.5)"),
        *("2 min 30 s", "100"),
    ]
    assert rows[1][:3] == ["B", "75.0 % (73.0 to 76.0)", "n/a"]
    assert rows[2] == ["C", *["n/a"] * 11]


def test_columns_that_nobody_has_are_left_out(comparison: dict[str, Any]) -> None:
    for one in comparison["arms"]:
        one |= {"latency_ms": None, "train_seconds": None}
    heading, rows = table_rows(comparison)
    assert not {"latency", "training"} & set(heading)
    assert {len(row) for row in rows} == {len(heading)}


def test_published_epochs_have_columns_where_they_were_watched(
    comparison: dict[str, Any],
) -> None:
    comparison["arms"][0]["measures"]["as-given"] |= {
        "last_epoch_accuracy": 0.81,
        "best_val_epoch_accuracy": 0.82,
        "best_test_epoch_accuracy": 0.83,
    }
    heading, rows = table_rows(comparison)
    found = dict(zip(heading, rows[0], strict=True))
    assert found["last epoch, as-given (leaks)"] == "81.0 %"
    assert found["best val epoch, as-given (leaks)"] == "82.0 %"
    assert found["best test epoch*, as-given (leaks)"] == "83.0 %"
    assert "last epoch, grouped" not in heading


def test_the_short_table_is_made_of_columns_of_the_long_one(
    comparison: dict[str, Any],
) -> None:
    comparison["arms"][0]["measures"]["as-given"]["last_epoch_accuracy"] = 0.81
    heading, rows = table_rows(comparison, is_short=True)
    assert heading == [
        *("arm", "accuracy, grouped", "accuracy, as-given (leaks)"),
        *("parameters", "latency", "training"),
    ]
    long_heading, long_rows = table_rows(comparison)
    for row, long_row in zip(rows, long_rows, strict=True):
        found = dict(zip(long_heading, long_row, strict=True))
        assert row == [found[name] for name in heading]


def test_a_measure_without_an_interval_is_a_plain_number(
    comparison: dict[str, Any],
) -> None:
    of = comparison["arms"][0]["measures"]["grouped"]
    for name in ("accuracy", "log_loss"):
        of[name] |= {"low": None, "high": None}
    heading, rows = table_rows(comparison)
    found = dict(zip(heading, rows[0], strict=True))
    assert found["accuracy, grouped"] == "80.0 %"
    assert found["log loss, grouped"] == "0.500"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.4, "59.4 s"), (60, "1 min 00 s"), (5400, "1 h 30 min")],
)
def test_durations_are_in_the_unit_that_people_use(
    comparison: dict[str, Any], seconds: float, words: str
) -> None:
    comparison["arms"][0]["train_seconds"] = seconds
    heading, rows = table_rows(comparison)
    assert rows[0][heading.index("training")] == words


@pytest.mark.parametrize(
    ("number", "words"), [(999, "999"), (1000, "1.00 k"), (10**9, "1.00 G")]
)
def test_counts_are_written_short(
    comparison: dict[str, Any], number: int, words: str
) -> None:
    comparison["arms"][0]["num_parameters"] = number
    heading, rows = table_rows(comparison)
    assert rows[0][heading.index("parameters")] == words


def test_pairs_say_whether_they_are_significant(comparison: dict[str, Any]) -> None:
    heading, (row,) = pair_rows(comparison)
    assert len(heading) == len(row)
    assert heading[-3:] == ["p", "p, Holm", "verdict"]
    assert row == [
        *("grouped", "A", "B", "1,311", "5.0 (1.0 to 9.0)", "<0.001", "0.012"),
        "significant",
    ]
    comparison["pairs"][0]["is_noise"] = True
    assert pair_rows(comparison)[1][0][-1] == "not significant"


# for programs


def test_the_csv_has_a_line_for_each_arm_and_protocol_with_plain_numbers(
    comparison: dict[str, Any],
) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [(row["arm"], row["protocol"]) for row in rows] == [
        ("A", "as-given"),
        ("A", "grouped"),
        ("B", "grouped"),
        ("C", ""),
    ]
    first, _, second, last = rows
    assert (first["optim.lr"], first["augment.mixup"]) == ("0.01", "")
    assert (second["optim.lr"], second["augment.mixup"]) == ("", "0.2")
    assert float(first["accuracy"]) == 0.9
    assert float(first["accuracy_low"]) == pytest.approx(0.88)
    assert float(first["log_loss_high"]) == pytest.approx(0.51)
    assert (first["num_seeds"], first["num_images"]) == ("2", "1311")
    assert (first["model"], first["macs"]) == ("resnet18", "1813563392")
    assert (first["latency_ms"], first["latency_ms_p95"]) == ("21.04", "25.5")
    assert (float(first["ece"]), float(first["ece_high"])) == (0.04, 0.05)
    assert (first["leak"], first["is_believable"]) == ("Leak.", "False")
    assert (last["accuracy"], last["macs"], last["latency_ms"]) == ("", "", "")
    assert all(None not in row and None not in row.values() for row in rows)


# names that try to break out


HOSTILE = "a|b_c & 50%\n\\x {y} <i> #$^~"


def test_names_cannot_break_a_markdown_table(comparison: dict[str, Any]) -> None:
    comparison["arms"][0]["name"] = HOSTILE
    lines = as_markdown(comparison).splitlines()
    (line,) = [line for line in lines if line.startswith(r"| a\|")]
    assert line.startswith(r"| a\|b\_c & 50% \\x {y} \<i\> \#$^~ | 80.0 %")
    heading = next(line for line in lines if line.startswith("| arm"))
    assert line.replace(r"\|", "").count("|") == heading.count("|")


def test_markdown_has_the_sentences_and_both_tables(
    comparison: dict[str, Any],
) -> None:
    text = as_markdown(comparison)
    assert text.startswith("# A & B\n\nA is better than B by 5.0 points.\n\n| arm  ")
    heading, marks, *_, last = text.splitlines()[4:]
    assert [mark.strip("-") for mark in marks.strip("|").split("|")] == [
        ":",
        *[":"] * (heading.count("|") - 2),
    ]
    assert [cell.strip() for cell in last.split("|")[-3:]] == [
        "0.012",
        "significant",
        "",
    ]
    comparison["pairs"] = []
    assert "Holm" not in as_markdown(comparison)


def test_names_cannot_break_latex(comparison: dict[str, Any]) -> None:
    comparison["arms"][0]["name"] = HOSTILE
    comparison["title"] = "two\n\\input{lines}"
    text = as_latex(comparison)
    assert (
        r"a\textbar{}b\_c \& 50\% \textbackslash{}x \{y\} \textless{}i\textgreater{} "
        r"\#\$\textasciicircum{}\textasciitilde{} & 80.0 \% (78.0 to 81.0) &"
    ) in text
    assert text.splitlines()[0] == r"% two \input{lines}"


@pytest.mark.parametrize("name", ["[2cm]", "*"])
def test_a_name_is_no_option_of_the_end_of_the_row_above(
    comparison: dict[str, Any], name: str
) -> None:
    comparison["arms"][1]["name"] = name
    assert f"\\\\\n {{}}{name}" in as_latex(comparison)


def test_latex_is_two_tabulars_with_as_many_columns_as_cells(
    comparison: dict[str, Any],
) -> None:
    text = as_latex(comparison)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for part in text.split(r"\begin{tabular}")[1:]:
        first, *lines = part.splitlines()
        num_columns = len(first.strip("{}"))
        rows = [line for line in lines if line.endswith(r"\\")]
        assert len(rows) > 1
        assert {row.count("&") + 1 for row in rows} == {num_columns}
    comparison["pairs"] = []
    assert as_latex(comparison).count(r"\begin{tabular}") == 1


def test_all_tables_are_written(comparison: dict[str, Any], tmp_path: Path) -> None:
    tables.write_tables(Comparison.model_validate(comparison), tmp_path / "new")
    for suffix, write in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        path = tmp_path / "new" / f"comparison.{suffix}"
        assert path.read_text(encoding="utf-8") == write(comparison)
