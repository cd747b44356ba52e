"""Tables and dumps as other frameworks write them, and files that are none."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.images import CLASSES
from tumorlens.errors import DataError, RunError, TumorlensError
from tumorlens.evaluation import answers as answers_module
from tumorlens.evaluation.answers import Answers, digest_of, read_answers

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = ("glioma_tumor", "no_tumor")
PROBS = [[0.25, 0.75], [0.9, 0.1]]


def read(path: Path, content: str, known: tuple[str, ...] = KNOWN) -> Answers:
    path.write_text(content, encoding="utf-8")
    return read_answers(path, known=known)


def numbers_of(found: Answers) -> list[list[float]]:
    assert found.numbers is not None
    rows: list[list[float]] = found.numbers.tolist()
    return rows


# tables


@pytest.mark.parametrize(
    "column",
    [
        *("path", "filename", "Filename", "file", "image", "image_path", "file_name"),
        *("img", "Image Name", "Name"),
    ],
)
def test_the_column_of_files_has_many_names(tmp_path: Path, column: str) -> None:
    found = read(tmp_path / "a.csv", f"{column},prob_a,prob_b\n1.png,0.25,0.75\n")
    assert found.names == ("1.png",)
    assert found.places == ("line 2",)


@pytest.mark.parametrize(
    ("header", "classes"),
    [
        ("prob_glioma,prob_notumor", ("glioma", "notumor")),
        ("Proba: A,Proba: B", ("A", "B")),
        ("probability_a b,probability_c", ("a b", "c")),
        ("Glioma,NoTumor", ("Glioma", "NoTumor")),
        ("glioma_tumor,no", ("glioma_tumor", "no")),
    ],
)
def test_the_columns_of_classes_have_a_prefix_or_the_names_of_the_data(
    tmp_path: Path, header: str, classes: tuple[str, ...]
) -> None:
    found = read(tmp_path / "a.csv", f",path,{header},x\n0,1.png,0.25,0.75,3\n")
    assert found.classes == classes
    assert numbers_of(found) == [[0.25, 0.75]]
    assert (found.predicted, found.are_logits) == (None, False)


def test_a_further_column_of_numbers_is_a_class_that_the_data_lacks(
    tmp_path: Path,
) -> None:
    text = "filename,glioma,no,metastasis,remark\n1.png,2,-1,3.5,dim\n2.png,1,0,-2,\n"
    found = read(tmp_path / "a.csv", text)
    assert found.classes == ("glioma", "no", "metastasis")
    assert numbers_of(found) == [[2, -1, 3.5], [1, 0, -2]]
    assert found.by_numbers == ("metastasis",)
    rows = [
        {"filename": "1.png", "glioma": 2, "no": -1, "metastasis": 3.5, "remark": "dim"}
    ]
    found = read(tmp_path / "a.json", json.dumps(rows))
    assert found.by_numbers == ("metastasis",)


@pytest.mark.parametrize(
    "column",
    [
        *("", "Unnamed: 0", "id", "image_id", "fold", "label", "target", "y_true"),
        *("Confidence", "prediction", "split", "index"),
    ],
)
def test_a_column_of_numbers_that_is_named_as_no_class_is_none(
    tmp_path: Path, column: str
) -> None:
    text = f"filename,glioma,no,{column}\n1.png,2,-1,7\n2.png,1,0,3\n"
    assert read(tmp_path / "a.csv", text).by_numbers == ()


@pytest.mark.parametrize(
    ("cells", "is_class"),
    [
        pytest.param((0, 1, 2), False, id="counts from 0"),
        pytest.param((1, 2, 3), False, id="counts from 1"),
        pytest.param((2, 1, 0), True, id="counts backwards"),
        pytest.param((1, "x", "y"), False, id="is mostly text"),
    ],
)
def test_a_column_that_counts_the_rows_is_no_class(
    tmp_path: Path, cells: tuple[object, ...], *, is_class: bool
) -> None:
    lines = [f"{row}.png,2,-1,{cell}" for row, cell in enumerate(cells)]
    text = "\n".join(["filename,glioma,no,other", *lines])
    found = read(tmp_path / "a.csv", text)
    assert found.by_numbers == ("other",) * is_class


def test_a_column_beside_all_probabilities_is_no_class(tmp_path: Path) -> None:
    text = "filename,glioma,no,margin_of_it\n1.png,0.3,0.7,0.4\n2.png,0.1,{},0.8\n"
    assert read(tmp_path / "a.csv", text.format("0.9")).by_numbers == ()
    found = read(tmp_path / "a.csv", text.format("0.1"))
    assert found.by_numbers == ("margin_of_it",)


def test_with_a_prefix_only_columns_that_have_it_are_classes(tmp_path: Path) -> None:
    text = "path,prob_glioma,prob_no,metastasis\n1.png,0.2,0.3,0.5\n"
    assert read(tmp_path / "a.csv", text).classes == ("glioma", "no")


def test_the_columns_that_were_found_are_shown_with_what_names_them(
    tmp_path: Path,
) -> None:
    for names in ("0123", "abcd"):
        header = ",".join(["filename", *names])
        with pytest.raises(DataError) as caught:
            read(tmp_path / "a.csv", f"{header}\n1.png,1,0,0,0\n", CLASSES)
        shown = ", ".join(repr(name) for name in ("filename", *names))
        assert caught.value.problem.endswith(f"among its 5: {shown}")
        maps = f"--map {names[0]}=glioma --map {names[1]}=meningioma"
        assert maps in caught.value.hint


def test_columns_of_a_wide_table_are_shown_in_part(tmp_path: Path) -> None:
    header = ",".join(["path", *(f"x{number}" for number in range(20))])
    with pytest.raises(DataError, match="'x8', and 11 more"):
        read(tmp_path / "a.csv", f"{header}\n")


def test_columns_called_logits_are_said_to_be_some(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "path,logit_a,logit_b\n1.png,-2,3.5\n")
    assert found.are_logits
    assert numbers_of(found) == [[-2, 3.5]]


@pytest.mark.parametrize(
    "column", ["predicted", "Predictions", "predicted_class", "y_pred", "pred_label"]
)
def test_predicted_classes_alone_are_answers(tmp_path: Path, column: str) -> None:
    text = f"path,confidence,{column}\n1.png,0.9,no\n2.png,0.8, glioma \n3.png,1,\n"
    found = read(tmp_path / "a.csv", text)
    assert found.predicted == ("no", "glioma", "")
    assert (found.classes, found.numbers) == (("glioma", "no"), None)


def test_a_list_in_a_cell_is_a_number_for_each_class(tmp_path: Path) -> None:
    text = 'Name,predictions\n1.png,"[0.25, 0.75]"\n2.png,[9.e-01 1.e-01]\n3.png,[1]\n'
    found = read(tmp_path / "a.csv", text)
    assert (found.classes, found.predicted) == (("0", "1"), None)
    assert numbers_of(found)[:2] == PROBS
    assert np.isnan(numbers_of(found)[2]).all()


def test_what_is_no_number_is_nan_and_not_refused_here(tmp_path: Path) -> None:
    rows = ["nan,1", "tensor(0.5),0.5", '"0,5",0.5', "93%,1", "=1+1,1", ",1"]
    text = "path,prob_a,prob_b\n" + "".join(
        f"{n}.png,{r}\n" for n, r in enumerate(rows)
    )
    found = read(tmp_path / "a.csv", text)
    assert np.isnan(np.array(numbers_of(found))[:, 0]).all()
    assert len(found.names) == 6


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    arrow, parquet = (
        pytest.importorskip("pyarrow"),
        pytest.importorskip("pyarrow.parquet"),
    )
    table = arrow.table(
        {"file": ["1.png", "2.png"], "glioma": [0.25, 0.9], "no": [0.75, None]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read_answers(tmp_path / "a.parquet", known=KNOWN)
    assert found.names == ("1.png", "2.png")
    assert numbers_of(found)[0] == PROBS[0]
    assert np.isnan(numbers_of(found)[1][1])
    columns = {
        "file": ["1.png", "2.png"],
        "glioma": [3.0, -1.0],
        "no": [0.0, 1.0],
        "metastasis": [2, -1],
        "embedding": [[1.0], [2.0]],
        "raw": [b"\xff", b"\xfe"],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    found = read_answers(tmp_path / "a.parquet", known=KNOWN)
    assert found.by_numbers == ("metastasis",)
    assert numbers_of(found) == [[3, 0, 2], [-1, 1, -1]]


def test_a_parquet_file_of_endless_equal_cells_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow, parquet = (
        pytest.importorskip("pyarrow"),
        pytest.importorskip("pyarrow.parquet"),
    )
    table = arrow.table({"file": ["1.png"] * 9, "prob_a": [1.0] * 9, "prob_b": [0] * 9})
    parquet.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr("tumorlens.data.tables.MAX_CELLS", 26)
    with pytest.raises(DataError, match="more than 26 cells"):
        read_answers(tmp_path / "a.parquet", known=KNOWN)


# JSON, in the forms that were seen


ULTRALYTICS = {
    name: [
        {"name": "no", "class": 1, "confidence": no},
        {"name": "glioma", "class": 0, "confidence": glioma},
    ]
    for name, (glioma, no) in zip(("1.png", "2.png"), PROBS, strict=True)
}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            [
                {"path": "1.png", "prob_glioma": 0.25, "prob_no": 0.75},
                {"path": "2.png", "prob_glioma": 0.9, "prob_no": 0.1},
            ],
            id="a list of rows",
        ),
        pytest.param(
            {
                "filename": {"0": "1.png", "1": "2.png"},
                "glioma": {"0": 0.25, "1": 0.9},
                "no": {"0": 0.75, "1": 0.1},
            },
            id="pandas to_json",
        ),
        pytest.param(
            {
                "filenames": ["1.png", "2.png"],
                "class_indices": {"no": 1, "glioma": 0},
                "predictions": PROBS,
            },
            id="keras, class indices",
        ),
        pytest.param(
            {
                "file_paths": ["1.png", "2.png"],
                "class_names": ["glioma", "no"],
                "probs": PROBS,
                "model": "vgg",
            },
            id="keras, class names",
        ),
        pytest.param(
            {
                "1.png": {"glioma": 0.25, "no": 0.75},
                "2.png": {"glioma": 0.9, "no": 0.1},
            },
            id="file to probabilities",
        ),
        pytest.param(ULTRALYTICS, id="ultralytics, file to records"),
        pytest.param(
            {name: json.dumps(one) for name, one in ULTRALYTICS.items()},
            id="ultralytics, file to text",
        ),
        pytest.param(
            [{"path": name, **one} for name, of in ULTRALYTICS.items() for one in of],
            id="ultralytics, a list of records",
        ),
    ],
)
def test_json_has_many_forms_and_one_meaning(tmp_path: Path, content: Any) -> None:
    found = read(tmp_path / "a.json", json.dumps(content))
    assert found.names == ("1.png", "2.png")
    glioma, no = found.classes.index("glioma"), found.classes.index("no")
    assert np.array(numbers_of(found))[:, [glioma, no]].tolist() == PROBS


@pytest.mark.parametrize(
    "content",
    [
        {"1.png": "no", "2.png": "glioma"},
        {"1.png": {"predicted": "no"}, "2.png": {"predicted": "glioma"}},
        {"1.png": ULTRALYTICS["1.png"][:1], "2.png": ULTRALYTICS["2.png"][1:]},
        {
            "filenames": ["1.png", "2.png"],
            "predictions": [1, 0],
            "classes": ["glioma", "no"],
        },
    ],
)
def test_json_may_have_predicted_classes_only(tmp_path: Path, content: Any) -> None:
    found = read(tmp_path / "a.json", json.dumps(content))
    assert found.predicted == ("no", "glioma")
    assert found.numbers is None


def test_the_labels_of_a_keras_generator_are_no_names_of_classes(
    tmp_path: Path,
) -> None:
    content = {
        "filenames": ["1.png", "2.png"],
        "predictions": [1, 0],
        "classes": [0, 0],
    }
    found = read(tmp_path / "a.json", json.dumps(content))
    assert found.predicted == ("1", "0")


def test_json_lines_are_rows(tmp_path: Path) -> None:
    text = (
        '{"path": "1.png", "predicted": "no"}\n{"path": "2.png", "predicted": null}\n'
    )
    assert read(tmp_path / "a.jsonl", text).predicted == ("no", "")


def test_a_folder_of_ultralytics_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("0.75 no tumor\n0.25 glioma\n")
    (tmp_path / "2 (1).txt").write_text("0.90 glioma\n0.10 no tumor\n")
    (tmp_path / "notes.md").write_text("0.1 else")
    found = read_answers(tmp_path, known=KNOWN)
    assert found.names == ("1", "2 (1)")
    assert not found.have_suffix
    columns = [found.classes.index("glioma"), found.classes.index("no tumor")]
    assert np.array(numbers_of(found))[:, columns].tolist() == PROBS
    assert len(digest_of(tmp_path)) == 64


# what is refused


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "", "no column that names the files among its 0"),
        ("a.csv", "path;prob_a;prob_b\n1;0;1\n", "is separated by ';' and not"),
        ("a.csv", "path,label\n1.png,no\n", "no column with answers among its 2"),
        ("a.csv", "path,glioma\n1.png,0.5\n", "no column with answers"),
        ("a.csv", "path,prob_a\n1.png,0.5\n", "no column with answers"),
        ("a.csv", "path,prob_a,prob_b\n", "has no answers"),
        ("a.csv", "path,predicted\n1.png,\n", "every one is empty"),
        ("a.csv", "path,predicted\n1.png,0.93\n", "fractions where the predicted"),
        ("a.csv", "path,predictions\n1.png,[0.93]\n", "a single number for each"),
        ("a.csv", "path,predicted\n1.png,=cmd()\n", "begins with '=', as a formula"),
        ("a.csv", "path,prob_@a,prob_b\n1.png,1,0\n", "begins with '@'"),
        ("a.csv", 'path,predicted\n1.png,"a\nb"\n', "no text on one line"),
        ("a.csv", "path,index_0,prob_0,prob_1\n1.png,3,1,0\n", "ranks and not classes"),
        ("a.csv", "path,predicted\n1.png,a,b\n", "expected 2 fields"),
        ("a.csv", "path,prob_a,prob_b,prob_b \n1.png,1,0,0\n", "columns of one name"),
        ("a.tsv", "path,predicted\n", "expected answers in a .csv"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", "[1, 2]", "no form that is known"),
        ("a.json", "[]", "no column that names the files"),
        ("a.json", "{}", "no column that names the files"),
        (
            "a.json",
            '[{"name": "glioma", "class": 0, "confidence": 1}]',
            "do not tell which file they are of",
        ),
        (
            "a.json",
            '{"filenames": ["1.png"], "predictions": [[1, 0], [0, 1]]}',
            "different lengths: 1 to 2",
        ),
        ("a.json", '{"1.png": "\\ud800"}', "no text on one line"),
        ("a.jsonl", "[1]\n", "not one JSON object per line"),
    ],
)
def test_what_holds_no_answers_is_refused(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    with pytest.raises(TumorlensError) as caught:
        read(tmp_path / name, content)
    assert problem in caught.value.problem
    assert caught.value.hint


def test_files_that_are_huge_or_binary_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_JSON_BYTES", 20)
    with pytest.raises(DataError, match="more than the 20 of a JSON file"):
        read(tmp_path / "a.json", json.dumps({"1.png": "no", "2.png": "no"}))
    monkeypatch.setattr("tumorlens.data.tables.MAX_BYTES", 20)
    with pytest.raises(DataError, match="more than the limit"):
        read(tmp_path / "a.csv", "path,predicted\n1.png,a\n2.png,b\n")
    monkeypatch.undo()
    for name in ("b.csv", "b.parquet", "b.json", "b.jsonl"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff" * 50)
        with pytest.raises((DataError, RunError)):
            read_answers(tmp_path / name, known=KNOWN)
    labels = tmp_path / "labels"
    labels.mkdir()
    with pytest.raises(DataError, match="there are 0 text files"):
        read_answers(labels, known=KNOWN)
    for content in (b"\xff\xfe", b"0.5 a\n" * 20_000):
        (labels / "1.txt").write_bytes(content)
        with pytest.raises(DataError, match="is no text file of answers"):
            read_answers(labels, known=KNOWN)


def test_a_column_of_texts_is_no_column_of_classes(tmp_path: Path) -> None:
    text = "path,predicted\n" + "".join(f"{n}.png,class {n}\n" for n in range(1001))
    with pytest.raises(DataError, match="1,001 classes, more than 1,000"):
        read(tmp_path / "a.csv", text)


def test_a_missing_file_and_one_without_an_end_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("/dev/zero")
    for name in ("a.csv", "b.csv", "b.json", "b.jsonl", "b"):
        with pytest.raises(DataError, match=f"there is no file .*{name}"):
            read_answers(tmp_path / name, known=KNOWN)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["path", "name", "confidence", "predictions", "classes", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=JSON)
def test_any_json_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    with suppress(TumorlensError):
        found = read(tmp_path / "a.json", json.dumps(content))
        assert len(found.names) == len(found.places) > 0
