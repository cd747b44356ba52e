from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tumorlens.data.index import (
    SUBSET_WORDS,
    Index,
    Record,
    SplitRow,
    check_no_work,
    check_outside,
    fact_of,
    patient_note,
    read_index,
    read_split,
    with_labels,
    write_split,
)
from tumorlens.errors import DataError
from tumorlens.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REAL_SET = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"
PATIENT = "DOE^JANE"


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write texts to paths below `root`. An index decodes nothing, so text will do."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def two_classes(root: Path, *extra: str) -> Path:
    return write_tree(root, {name: name for name in ("a/1.png", "b/2.png", *extra)})


def error_of(data: Path, metadata: str | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read_index(data, metadata=metadata)
    assert caught.value.hint
    assert PATIENT not in str(caught.value)
    return caught.value


# Folders


def test_class_folders_that_differ_are_told_what_to_do(tmp_path: Path) -> None:
    for place in ("Training/a", "Training/b", "Testing/a"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(b"1")
    with pytest.raises(DataError, match="'b' is in Training but not in") as caught:
        read_index(tmp_path)
    assert caught.value.hint.startswith("every subset needs the same class folders")


def test_a_folder_of_classes_becomes_one_record_per_file(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "set", {"b/2.png": "two", "a/1.png": "one"})
    index = read_index(root)
    assert index.root == root
    assert index.classes == ("a", "b")
    assert [record.path for record in index.records] == ["a/1.png", "b/2.png"]
    first = index.records[0]
    assert (first.label, first.subset, first.patient) == ("a", None, None)
    assert (first.source, first.source_label) == (None, None)
    assert first.sha256 == hashlib.sha256(b"one").hexdigest()
    assert first.num_bytes == 3
    assert index.file_of(first).read_text() == "one"


@pytest.mark.parametrize("word", sorted(SUBSET_WORDS))
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_a_subset_folder_is_known_in_any_case(
    tmp_path: Path, word: str, spell: object
) -> None:
    assert callable(spell)
    two_classes(tmp_path / spell(word))
    two_classes(tmp_path / ("Testing" if SUBSET_WORDS[word] != "test" else "train"))
    subsets = {record.path: record.subset for record in read_index(tmp_path).records}
    assert subsets[f"{spell(word)}/a/1.png"] == SUBSET_WORDS[word]
    assert len(set(subsets.values())) == 2


def test_every_regular_file_in_a_class_folder_is_a_record(tmp_path: Path) -> None:
    root = two_classes(tmp_path, "a/notes.txt", "a/no suffix", "a/ümlaut (1).JPG")
    (root / "a" / "empty.png").touch()
    paths = {record.path: record.num_bytes for record in read_index(root).records}
    assert set(paths) == {
        "a/1.png",
        "a/empty.png",
        "a/no suffix",
        "a/notes.txt",
        "a/ümlaut (1).JPG",
        "b/2.png",
    }
    assert paths["a/empty.png"] == 0


def test_hidden_files_and_folders_are_no_records(tmp_path: Path) -> None:
    root = two_classes(
        tmp_path,
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/metadata.csv",
        ".git/x",
        "__MACOSX/a/1.png",
        "README.md",
    )
    assert [r.path for r in read_index(root).records] == ["a/1.png", "b/2.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_to_a_file_is_a_record_and_a_dangling_one_is_an_error(
    tmp_path: Path,
) -> None:
    root = two_classes(tmp_path / "set")
    (tmp_path / "elsewhere.png").write_text("linked")
    (root / "a" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert [r.num_bytes for r in read_index(root).records if "link" in r.path] == [6]

    (tmp_path / "elsewhere.png").unlink()
    assert "a/link.png is a link to a file that does not" in error_of(root).problem


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders on Windows")
def test_a_pipe_is_no_record_and_does_not_block(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    os.mkfifo(root / "a" / "pipe")
    assert len(read_index(root).records) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep names as text")
def test_a_file_name_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    (Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.png"))).write_text("x")
    assert r"is not UTF-8: '\udcff.png'" in error_of(root).problem


def test_a_folder_is_indexed_alike_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_classes(tmp_path / "set")
    outside = read_index(root)
    monkeypatch.chdir(root)
    assert read_index(Path()) == outside
    assert read_index(Path("../set")) == outside


# What is wrong with a folder


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert error_of(missing).problem == f"no such folder or table: {missing}"
    # One that the system refuses to look at: what it says, and not that it is missing.
    assert "x: File name too long" in error_of(tmp_path / ("x" * 300)).problem


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert (
        "expected a folder or a .csv or .parquet"
        in error_of(tmp_path / "images.zip").problem
    )


def test_a_folder_without_folders_has_no_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.png": "x"})
    assert error_of(tmp_path).problem == f"no class folders in {tmp_path}"


def test_one_class_is_too_few(tmp_path: Path) -> None:
    write_tree(tmp_path, {"glioma/1.png": "x"})
    problem = error_of(tmp_path).problem
    assert problem == f"expected at least two classes in {tmp_path}, got 1: 'glioma'"


@pytest.mark.parametrize("inside", [[], [".DS_Store"]], ids=["empty", "hidden only"])
def test_a_class_without_files_is_named(tmp_path: Path, inside: list[str]) -> None:
    two_classes(tmp_path)
    (tmp_path / "c").mkdir()
    for name in inside:
        (tmp_path / "c" / name).touch()
    problem = error_of(tmp_path).problem
    assert problem == f"no files in the class folder {tmp_path / 'c'}"


def test_a_class_that_one_subset_lacks_is_named_with_both(tmp_path: Path) -> None:
    two_classes(tmp_path / "Training", "glioma/1.png")
    two_classes(tmp_path / "Testing", "gliom/1.png")
    error = error_of(tmp_path)
    assert "'gliom' is in Testing but not in Training" in error.problem
    assert error.hint == "did you mean 'glioma'?"


def test_a_class_that_only_the_second_subset_lacks_is_found(tmp_path: Path) -> None:
    two_classes(tmp_path / "Training")
    two_classes(tmp_path / "Testing", "c/1.png")
    assert "'c' is in Testing but not in Training" in error_of(tmp_path).problem


def test_a_subset_without_classes_is_named(tmp_path: Path) -> None:
    two_classes(tmp_path / "Training")
    (tmp_path / "Testing").mkdir()
    problem = error_of(tmp_path).problem
    assert problem == f"no class folders in {tmp_path / 'Testing'}"


def test_a_folder_beside_the_subsets_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path / "Training")
    (tmp_path / "extras").mkdir()
    problem = error_of(tmp_path).problem
    assert "subset folder 'Training' and beside it 'extras'" in problem


def test_the_folder_above_the_set_is_refused_with_a_way_out(tmp_path: Path) -> None:
    two_classes(tmp_path / "set" / "Training")
    error = error_of(tmp_path)
    assert "class folder " + str(tmp_path / "set") in error.problem
    assert "got the folder 'Training'" in error.problem
    assert "right above the class or subset folders" in error.hint


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_folder_or_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_classes(tmp_path)

    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert error_of(root).problem == f"cannot list {root}: Permission denied"
    monkeypatch.setattr("tumorlens.data.index.sha256_of", refuse)
    problem = error_of(root).problem
    assert problem == f"cannot read {root / 'a/1.png'}: Permission denied"


# Metadata


def with_metadata(root: Path, text: str, name: str = "metadata.csv") -> Path:
    two_classes(root)
    (root / name).write_text(text, encoding="utf-8")
    return root


def test_metadata_beside_the_classes_is_joined_by_path(tmp_path: Path) -> None:
    root = with_metadata(
        tmp_path, "path,patient,source,source_label\na/1.png,7,figshare,b\n"
    )
    first, second = read_index(root).records
    assert (first.patient, first.source, first.source_label) == ("7", "figshare", "b")
    assert (second.patient, second.source, second.source_label) == (None, None, None)


def test_metadata_none_ignores_the_file(tmp_path: Path) -> None:
    root = with_metadata(tmp_path, "path,patient\na/1.png,7\n")
    assert read_index(root, metadata="none").records[0].patient is None


def test_metadata_of_another_name_replaces_the_one_beside(tmp_path: Path) -> None:
    root = with_metadata(tmp_path / "set", "path,patient\na/1.png,7\n")
    other = tmp_path / "other.csv"
    other.write_text("patient,path\n8,./a/1.png\n")
    index = read_index(root, metadata=str(other))
    assert index.records[0].patient == "8"


def test_metadata_rows_without_a_file_matter_only_when_none_has_one(
    tmp_path: Path,
) -> None:
    root = with_metadata(tmp_path, "path,patient\na/1.png,7\na/gone.png,8\n")
    assert len(read_index(root).records) == 2
    with_metadata(tmp_path, f"path,patient\nimages/a/1.png,{PATIENT}\n")
    error = error_of(root)
    assert "metadata.csv names a file of the index; its first path is" in error.problem
    assert "'images/a/1.png'" in error.problem
    assert "expected paths such as 'a/1.png'" in error.hint
    assert error.hint.endswith("or go without the table: data.metadata = 'none'")
    with_metadata(tmp_path, "path,patient\n")
    assert "names a file of the index" in error_of(root).problem


def test_metadata_that_contradicts_itself_is_refused_without_the_patient(
    tmp_path: Path,
) -> None:
    root = with_metadata(
        tmp_path, f"path,patient\na/1.png,{PATIENT}\na/1.png,{PATIENT}\n"
    )
    assert read_index(root).records[0].patient == PATIENT
    with_metadata(tmp_path, f"path,patient\na/1.png,{PATIENT}\na/./1.png,8\n")
    assert "line 3: 'a/1.png' is named before with another" in error_of(root).problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            ",image,class,shape\n0,1.png,a,x\n", "has no column 'path'", id="Kaggle"
        ),
        pytest.param("path;patient\na/1.png;7\n", "no column 'path'", id="semicolons"),
        pytest.param(
            "path,patient_id\na/1.png,7\n", "no column 'patient', but", id="misnamed"
        ),
        pytest.param(
            "path,age\na/1.png,7\n", "no column patient, source or", id="no facts"
        ),
    ],
)
def test_metadata_that_may_not_be_ours_is_refused_with_the_way_without_it(
    tmp_path: Path, text: str, problem: str
) -> None:
    root = with_metadata(tmp_path, text)
    error = error_of(root)
    assert problem in error.problem
    assert error.hint.endswith("or go without the table: data.metadata = 'none'")
    assert len(read_index(root, metadata="none").records) == 2


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    assert "gone.csv: No such file" in error_of(root, "gone.csv").problem


# Tables


def table_of(root: Path, text: str, name: str = "table.csv") -> Path:
    two_classes(root)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_a_table_gives_every_field(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        "label,path,subset,patient,source,source_label,more\n"
        "y,b/2.png,Testing,7,web,x,ignored\n"
        "x,a/1.png,,,,,\n",
    )
    index = read_index(table)
    assert index.root == tmp_path
    assert index.classes == ("x", "y")
    first, second = index.records
    assert (first.path, first.label, first.subset) == ("a/1.png", "x", None)
    assert (first.patient, first.source, first.source_label) == (None, None, None)
    assert (second.path, second.label, second.subset) == ("b/2.png", "y", "test")
    assert (second.patient, second.source, second.source_label) == ("7", "web", "x")
    assert second.sha256 == hashlib.sha256(b"b/2.png").hexdigest()


def test_a_parquet_table_gives_the_same_index_as_a_csv(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = table_of(tmp_path, "path,label,patient\na/1.png,x,7\nb/2.png,y,\n")
    columns = {"path": ["a/1.png", "b/2.png"], "label": ["x", "y"]}
    parquet.write_table(
        # pandas writes whole numbers beside a gap as 7.0 and NaN.
        arrow.table({**columns, "patient": [7.0, float("nan")]}),
        tmp_path / "table.parquet",
    )
    assert read_index(tmp_path / "table.parquet") == read_index(table)


def test_a_table_may_name_files_outside_its_folder(tmp_path: Path) -> None:
    table = table_of(tmp_path / "set", "")
    (tmp_path / "out.png").write_text("out")
    table.write_text(
        f"path,label\n../out.png,x\n{tmp_path}/set/a/1.png,y\n{tmp_path}/set/../"
        "set/b/2.png,y\n"
    )
    index = read_index(table)
    assert {r.path for r in index.records} >= {"../out.png", "a/1.png"}
    assert {r.num_bytes for r in index.records if r.label == "x"} == {3}


@pytest.mark.parametrize("path", ["a/gone.png", "a", "../..", "", "a/1.png\x00"])
def test_a_table_may_only_name_files_that_exist(tmp_path: Path, path: str) -> None:
    table = table_of(tmp_path, f"path,label\nb/2.png,x\n{path},y\n")
    problem = error_of(table).problem
    assert f"{table}, line 3: no such file: {path!r}" in problem


def test_a_table_that_names_a_file_twice_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label\na/1.png,x\nb/2.png,y\nb/../a/1.png,z\n")
    problem = error_of(table).problem
    assert problem == f"{table}, line 4: 'a/1.png' is named before, in line 2"


def test_a_table_row_needs_a_label(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label\na/1.png, \nb/2.png,y\n")
    assert error_of(table).problem == f"{table}, line 2: no label"


def test_a_table_row_has_a_known_subset(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label,subset\na/1.png,x,trainn\n")
    error = error_of(table)
    assert error.problem == f"{table}, line 2: unknown subset 'trainn'"
    assert error.hint == "did you mean 'train'?"


def test_a_table_of_no_or_one_class_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label\n")
    assert error_of(table).problem.endswith("got 0")
    table = table_of(tmp_path, "path,label\na/1.png,x\nb/2.png,x\n")
    assert error_of(table).problem.endswith("got 1: 'x'")


def test_a_table_without_a_label_column_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,class\na/1.png,x\n")
    assert "has no column 'label'" in error_of(table).problem


def test_metadata_fills_in_what_a_table_does_not_say(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label,patient\na/1.png,x,1\nb/2.png,y,2\n")
    other = tmp_path / "other.csv"
    other.write_text("path,patient,source\na/1.png,,web\n")
    first, second = read_index(table, metadata=str(other)).records
    assert (first.patient, first.source) == ("1", "web")
    assert (second.patient, second.source) == ("2", None)


# Labels by spelling


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Glioma", "glioma"),
        ("no_tumor", "no tumor"),
        ("no-tumor", "No  Tumor"),
        ("gr\u00f6\u00dfe", "gro\u0308\u00dfe"),  # one letter in two Unicode forms
    ],
)
@pytest.mark.parametrize("kind", ["folders", "subsets", "table"])
def test_labels_that_differ_only_in_spelling_are_refused(
    tmp_path: Path, kind: str, one: str, other: str
) -> None:
    if kind == "table":
        data = table_of(tmp_path, f"path,label\na/1.png,{one}\nb/2.png,{other}\n")
    else:
        subsets = ["train/", "test/"] if kind == "subsets" else [""]
        names = [f"{s}{c}/1.png" for s in subsets for c in (one, other, "rest")]
        data = write_tree(tmp_path, {name: name for name in names})
    problem = error_of(data).problem
    assert "differ only in their spelling" in problem
    assert ascii(one) in problem
    assert ascii(other) in problem


def test_labels_that_differ_in_a_sign_are_two_classes(tmp_path: Path) -> None:
    names = ("grade+/1.png", "grade-/1.png", "grade 2/1.png", "grade/1.png")
    root = write_tree(tmp_path, {name: name for name in names})
    assert len(read_index(root).classes) == 4


# Results inside the images


@pytest.mark.parametrize(
    ("out", "is_folder", "is_refused"),
    [
        ("set/audit", True, True),
        ("set", True, True),
        ("set/../set/runs/first", True, True),
        ("set/a/split.csv", False, True),
        ("set/split.csv", False, False),
        ("set/.runs/first", True, False),
        ("set-audit", True, False),
        ("elsewhere/audit", True, False),
    ],
)
def test_results_are_not_written_where_they_would_be_read_as_images(
    tmp_path: Path, out: str, *, is_folder: bool, is_refused: bool
) -> None:
    data = two_classes(tmp_path / "set")
    if is_refused:
        with pytest.raises(DataError, match="is inside the folder of the images") as e:
            check_outside(tmp_path / out, data, is_folder=is_folder)
        assert e.value.hint == f"name a place outside {data}"
    else:
        check_outside(tmp_path / out, data, is_folder=is_folder)


def test_beside_a_table_there_may_be_results(tmp_path: Path) -> None:
    check_outside(tmp_path / "audit", table_of(tmp_path, "path,label\n"))


# Digest


def test_the_digest_follows_path_label_subset_and_content_only(tmp_path: Path) -> None:
    index = read_index(two_classes(tmp_path))
    first, second = index.records

    def digest(**changes: Any) -> str:
        changed = (replace(first, **changes), second)
        return Index(Path("elsewhere"), index.classes, changed).digest

    assert len(index.digest) == 64
    assert digest() == digest(patient="7", source="web") == index.digest
    others = [
        digest(path="a/0.png"),
        digest(label="b"),
        digest(subset="test"),
        digest(sha256="0" * 64),
    ]
    assert len({index.digest, *others}) == 5


# Splits


ROW = SplitRow(
    path="a/1.png", sha256="0" * 64, label="a", group="a/1.png", subset="train"
)


@pytest.mark.parametrize(
    "path",
    ["a/1.png", 'a/quo"te.png', "a/com,ma.png", "a/line\nfeed", "a/car\rriage", " a/ä"],
)
def test_a_split_is_read_back_as_it_was_written(tmp_path: Path, path: str) -> None:
    rows = (
        replace(ROW, path=path, group=path.strip()),
        replace(ROW, path="b/2.png", subset="left-out", reason="copy of 'a', twice"),
        replace(ROW, path="c/3.png", subset="fold-12"),
    )
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows


def test_a_split_is_plain_csv(tmp_path: Path) -> None:
    write_split(tmp_path / "split.csv", [ROW])
    assert (tmp_path / "split.csv").read_bytes() == (
        b"path,sha256,label,group,subset,reason\n"
        b"a/1.png," + b"0" * 64 + b",a,a/1.png,train,\n"
    )


def test_a_split_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    # With a byte order mark, carriage returns, another order and without reasons.
    text = f"subset,group,label,sha256,path\r\ntrain,a/1.png,a,{'0' * 64},a/1.png\r\n"
    (tmp_path / "split.csv").write_bytes(text.encode("utf-8-sig"))
    assert read_split(tmp_path / "split.csv") == (ROW,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (replace(ROW, path=""), "line 3: no path"),
        (replace(ROW, path="b", label=""), "line 3: no label"),
        (replace(ROW, path="b", group=""), "line 3: no group"),
        (ROW, "line 3: 'a/1.png' is named before, in line 2"),
        (replace(ROW, path="b", sha256="f00"), "as sha256, got 'f00'"),
        (replace(ROW, path="b", sha256="g" * 64), "as sha256, got 'ggg"),
        (replace(ROW, path="b", sha256="0" * 65), "as sha256, got '000"),
        (replace(ROW, path="b", subset="tets"), "line 3: unknown subset 'tets'"),
        (replace(ROW, path="b", subset="trains"), "line 3: unknown subset 'trains'"),
        (replace(ROW, path="b", subset="fold-"), "line 3: unknown subset 'fold-'"),
        (replace(ROW, path="b", subset="x" * 999), "unknown subset 'xxx"),
    ],
)
def test_a_bad_row_of_a_split_is_named(
    tmp_path: Path, row: SplitRow, message: str
) -> None:
    write_split(tmp_path / "split.csv", [ROW, row])
    with pytest.raises(DataError) as caught:
        read_split(tmp_path / "split.csv")
    assert message in caught.value.problem
    assert str(tmp_path / "split.csv") in caught.value.problem
    assert caught.value.hint
    assert len(caught.value.problem) < len(str(tmp_path)) + 200


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "split.csv", [])
    with pytest.raises(DataError, match=r"split\.csv has no rows"):
        read_split(tmp_path / "split.csv")


# The real set


@pytest.mark.real
@pytest.mark.skipif(not REAL_SET.is_dir(), reason=f"no images in {REAL_SET}")
def test_the_real_set_has_the_files_and_patients_that_its_readme_says() -> None:
    index = read_index(REAL_SET)
    assert len(index.records) == 3264
    assert sum(record.patient is not None for record in index.records) == 2345
    assert len(index.classes) == 4
    assert sum(record.subset == "test" for record in index.records) == 394
    assert len({record.sha256 for record in index.records}) == 3027


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_NAMES = _TEXTS.map(str.strip).filter(bool)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.builds(
            SplitRow,
            path=_TEXTS,
            sha256=st.sampled_from(["0" * 64, "ab" * 32]),
            label=_NAMES,
            group=_NAMES,
            subset=st.sampled_from(["train", "val", "test", "left-out", "fold-3"]),
            reason=st.just("") | _NAMES,
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row.path,
    )
)
def test_any_split_is_read_back_as_it_was_written(
    tmp_path: Path, rows: list[SplitRow]
) -> None:
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == tuple(rows)


# words for what is not known


@pytest.mark.parametrize(
    "word",
    [
        *("unknown", "Unknown", " UNKNOWN ", "NA", "n/a", "N/A", "nan", "None", "null"),
        *("?", "??", "-", "--", "", " ", ".", "_", "Not Known", "not_available"),
        *("Anonymous", "anonymised", "missing", "unk"),
    ],
)
def test_a_word_for_an_unknown_patient_makes_no_patient(
    make_images: Callable[..., Path], word: str
) -> None:
    data = make_images(num_each=2)
    paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lines = [f'{path},"{word}","{word}","{word}"' for path in paths]
    table = data / "metadata.csv"
    table.write_text("\n".join(["path,patient,source,source_label", *lines]))
    records = read_index(data).records
    assert {(one.patient, one.source, one.source_label) for one in records} == {
        (None, None, None)
    }


@pytest.mark.parametrize("key", ["P-1", "0", "1", "no", "Unknown-17", "NA12878", "x"])
def test_a_key_that_may_be_a_patient_s_stays_one(key: str) -> None:
    assert fact_of(key) == key


def index_of_patients(*patients: str | None) -> Index:
    records = tuple(
        Record(f"a/{number}.png", "a", None, patient, None, None, "0" * 64, 1)
        for number, patient in enumerate(patients)
    )
    return Index(Path("data"), ("a", "b"), records)


@pytest.mark.parametrize(
    ("patients", "is_odd"),
    [
        (("x",) * 12 + tuple("abcdefgh"), True),
        (("x",) * 12 + (None,) * 8, True),
        (("x",) * 12 + (None,) * 200, False),  # less than a tenth
        (tuple("aabbccddee"), False),  # few patients: each has a fifth
        (("x",) * 4 + tuple("aabbccdd"), False),
        ((None, None), False),
    ],
)
def test_one_patient_with_most_files_is_noted_without_its_key(
    patients: tuple[str | None, ...], *, is_odd: bool
) -> None:
    note = patient_note(index_of_patients(*patients))
    assert bool(note) is is_odd
    if note:
        assert note.startswith("12 of 20 files have the same patient")


@pytest.mark.parametrize("name", ["metadata.csv", "notes.csv"])
def test_a_table_replaces_one_of_its_kind_and_nothing_else(
    tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    check_no_work(out, columns=("path", "run"))
    out.write_text("path,run,predicted\n", encoding="utf-8")
    check_no_work(out, columns=("path", "run"))
    out.write_text("path,patient\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"{name} is there, and is no table of this"):
        check_no_work(out, columns=("path", "run"))
    assert out.read_text(encoding="utf-8") == "path,patient\n"


def test_a_folder_is_no_place_for_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        check_no_work(tmp_path, columns=("path",))


def test_no_table_is_written_between_the_files_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="is between the files of the run"):
        check_no_work(tmp_path / "split.csv", columns=("path",))


# Corrected labels


def corrected(root: Path, table: str, **written: Any) -> Index:
    file = root.parent / "labels.csv"
    file.write_text(table, encoding="utf-8", **written)
    return with_labels(read_index(root), file)


def test_corrected_labels_hold_in_place_of_those_of_the_data(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data", "a/3.png")
    before = {file: file.read_bytes() for file in root.rglob("*.png")}
    index = corrected(root, "path,label,reason\n./a/3.png,b,looked again\nb/2.png,b,\n")
    assert {one.path: one.label for one in index.records} == {
        **{"a/1.png": "a", "a/3.png": "b", "b/2.png": "b"}
    }
    assert index.labels_sha256 == sha256_of(tmp_path / "labels.csv")
    assert index.digest != read_index(root).digest
    assert {file: file.read_bytes() for file in root.rglob("*.png")} == before
    assert with_labels(read_index(root), None) == read_index(root)


@pytest.mark.parametrize(
    ("lines", "problem", "hint"),
    [
        pytest.param(
            ["a/9.png,b,"],
            "line 2: 'a/9.png' is not among the 2 files of",
            "write the path as split.csv of a run has it",
            id="path",
        ),
        pytest.param(
            ["a/1.png,bb,"],
            "line 2: unknown class 'bb'",
            "did you mean 'b'?",
            id="class",
        ),
        pytest.param(
            ["a/1.png,,wrong"], "line 2: no label", "fill it in", id="no label"
        ),
        pytest.param(
            ["a/1.png,b,", "./a/1.png,b,"],
            "line 3: 'a/1.png' is named before, in line 2",
            "keep one of the two lines",
            id="twice",
        ),
        pytest.param(["a/1.png,b"], "line 2: expected 3 fields", "", id="fields"),
    ],
)
def test_a_wrong_line_of_corrected_labels_is_named(
    tmp_path: Path, lines: list[str], problem: str, hint: str
) -> None:
    root = two_classes(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        corrected(root, "\n".join(["path,label,reason", *lines]))
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_corrected_labels_without_a_reason_are_no_such_table(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    with pytest.raises(DataError, match=r"labels\.csv has no column 'reason' among"):
        corrected(root, "path,label\na/1.png,b\n")
    with pytest.raises(DataError, match=r"cannot open the table .*none\.csv"):
        with_labels(read_index(root), tmp_path / "none.csv")
