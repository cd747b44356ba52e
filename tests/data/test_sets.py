"""Several sets of images as one: their names, files, classes, sources and patients."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tumorlens.config import DataConfig, load_config, parse_config, set_names
from tumorlens.data.index import Index, check_outside, patient_note, read_index
from tumorlens.data.sets import ImageSets, pooled, root_of, sets_of
from tumorlens.errors import ConfigError, DataError


def write(root: Path, *names: str) -> Path:
    """Write files with their own names as content: an index decodes nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{root.name} {name}", encoding="utf-8")
    return root


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets that spell their classes in two ways and share a relative path."""
    first = write(
        tmp_path / "here/first",
        *("Training/glioma_tumor/1.png", "Training/no_tumor/1.png"),
        *("Testing/glioma_tumor/1.png", "Testing/no_tumor/1.png"),
    )
    second = write(tmp_path / "there/second", "glioma/1.png", "notumor/1.png")
    return first, second


def by_path(index: Index) -> dict[str, tuple[str, str | None, str | None]]:
    return {one.path: (one.label, one.subset, one.source) for one in index.records}


def test_pooled_sets_have_one_spelling_and_paths_that_begin_with_their_names(
    two: tuple[Path, Path],
) -> None:
    index = read_index(pooled(two))
    assert index.classes == ("glioma_tumor", "no_tumor")
    assert by_path(index) == {
        "first/Testing/glioma_tumor/1.png": ("glioma_tumor", "test", "first"),
        "first/Testing/no_tumor/1.png": ("no_tumor", "test", "first"),
        "first/Training/glioma_tumor/1.png": ("glioma_tumor", "train", "first"),
        "first/Training/no_tumor/1.png": ("no_tumor", "train", "first"),
        "second/glioma/1.png": ("glioma_tumor", None, "second"),
        "second/notumor/1.png": ("no_tumor", None, "second"),
    }
    for record in index.records:
        content = index.file_of(record).read_text(encoding="utf-8")
        assert "/".join(content.split(" ", 1)) == record.path


def test_the_first_set_has_the_spelling(two: tuple[Path, Path]) -> None:
    assert read_index(pooled(two[::-1])).classes == ("glioma", "notumor")


def test_equal_relative_paths_of_two_sets_stay_two_files(tmp_path: Path) -> None:
    sets = [write(tmp_path / name, "a/1.png", "b/1.png") for name in ("one", "two")]
    index = read_index(pooled(sets))
    assert [one.path for one in index.records] == [
        *("one/a/1.png", "one/b/1.png", "two/a/1.png", "two/b/1.png"),
    ]
    assert len({one.sha256 for one in index.records}) == 4


def test_metadata_of_each_set_holds_for_it_and_patients_hold_for_all(
    two: tuple[Path, Path],
) -> None:
    (two[0] / "metadata.csv").write_text(
        "path,patient,source,source_label\n"
        "Training/no_tumor/1.png,P-1,clinic,no_tumor\n"
    )
    (two[1] / "metadata.csv").write_text(
        "path,patient,source_label\nglioma/1.png,P-1,notumor\n"
    )
    index = read_index(pooled(two))
    note = patient_note(index)
    assert note is not None
    assert "1 key of patients is in several sets, and each counts" in note
    assert "P-1" not in note
    records = {one.path: one for one in index.records}
    with_facts = {
        path: (one.patient, one.source, one.source_label)
        for path, one in records.items()
        if one.patient
    }
    assert with_facts == {
        "first/Training/no_tumor/1.png": ("P-1", "clinic", "no_tumor"),
        # The source's label is spelt as the labels are, or it would contradict them.
        "second/glioma/1.png": ("P-1", "second", "no_tumor"),
    }
    alone = read_index(pooled(two), metadata="none")
    assert {one.patient for one in alone.records} == {None}
    assert patient_note(alone) is None


def test_one_table_of_metadata_names_the_files_of_all_sets(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    table = tmp_path / "all.csv"
    table.write_text(
        "path,patient,source\nfirst/Testing/no_tumor/1.png,P-1,\n"
        "second/glioma/1.png,P-2,web\n"
    )
    records = read_index(pooled(two), metadata=str(table)).records
    assert {one.path: (one.patient, one.source) for one in records if one.patient} == {
        "first/Testing/no_tumor/1.png": ("P-1", "first"),
        "second/glioma/1.png": ("P-2", "web"),
    }


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(
            ("glioma", "healthy"),
            "'no_tumor' is only in first, 'healthy' is only in second",
            id="another class",
        ),
        pytest.param(
            ("glioma", "no", "pituitary"), "'pituitary' is only in second", id="more"
        ),
        pytest.param(
            ("no", "notumor", "glioma"),
            "'no_tumor' is only in first, 'no' is only in second, 'notumor' is only",
            id="ambiguous",
        ),
    ],
)
def test_sets_with_other_classes_are_refused_with_the_difference(
    two: tuple[Path, Path], tmp_path: Path, other: tuple[str, ...], words: str
) -> None:
    sets = [two[0], write(tmp_path / "x/second", *(f"{name}/1.png" for name in other))]
    with pytest.raises(DataError) as caught:
        read_index(pooled(sets))
    assert f"the classes of first and second differ: {words}" in caught.value.problem
    assert "a table with the columns path, label and source" in caught.value.hint


def test_a_table_pools_sets_by_its_column_source(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    table = tmp_path / "both.csv"
    lines = [
        f"{os.path.relpath(place, tmp_path)}/{path},{label},{name},P-1"
        for place, name, path, label in (
            (two[0], "first", "Training/no_tumor/1.png", "no"),
            (two[1], "second", "glioma/1.png", "glioma"),
            (two[1], "second", "notumor/1.png", "no"),
        )
    ]
    table.write_text("\n".join(["path,label,source,patient", *lines]))
    index = read_index(table)
    assert index.classes == ("glioma", "no")
    assert {one.source for one in index.records} == {"first", "second"}
    table.write_text(
        table.read_text().replace("1.png,no,first", "1.png,No_Tumor,first")
    )
    with pytest.raises(DataError) as caught:
        read_index(table)
    assert "labels a class 'No_Tumor' in source 'first'" in caught.value.problem
    assert "and 'no' in 'second'" in caught.value.problem


def test_results_go_outside_of_every_set(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    check_outside(tmp_path / "out", pooled(two))
    for place in two:
        with pytest.raises(
            DataError, match=f"is inside the folder of the images, {place}"
        ):
            check_outside(place / "out", pooled(two))


def test_a_name_that_is_no_set_s_gives_a_path_that_is_not_there() -> None:
    sets = ImageSets((Path("/a"), Path("/b")), ("first", "second"))
    assert not sets.file_at("third/glioma/1.png").exists()


def test_a_table_means_the_folder_it_lies_in(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label\n", encoding="utf-8")
    assert root_of(table) == root_of(tmp_path) == tmp_path


# Settings


def test_settings_with_one_set_or_none_have_no_names() -> None:
    assert sets_of(DataConfig()) is None
    assert sets_of(DataConfig(path="/a")) == ImageSets((Path("/a"),))
    assert DataConfig(path=["/a"]).path == "/a"
    assert sets_of(DataConfig(path="/a"), Path("/b")) == ImageSets((Path("/b"),))


def test_names_of_the_settings_hold_for_sets_that_were_moved_and_renamed() -> None:
    config = load_config(
        assignments=["data.path=['/a', '/b']", "data.names=['first', 'second']"]
    ).data
    moved = sets_of(config, [Path("/x/y"), Path("/z")])
    assert moved == ImageSets((Path("/x/y"), Path("/z")), ("first", "second"))


@pytest.mark.parametrize(
    ("path", "moved", "words"),
    [
        (["/a", "/b"], ["/x"], "expected 2 sets of images (a, b), got 1: /x"),
        ("/a", ["/x", "/y"], "expected 1 set of images, got 2: /x, /y"),
    ],
)
def test_more_or_fewer_places_than_sets_are_refused(
    path: str | list[str], moved: list[str], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        sets_of(DataConfig(path=path), [*map(Path, moved)])
    assert words in caught.value.problem


def test_the_home_folder_tells_no_sets_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its name is the user's, and names of sets go into files that are handed on.
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    places = [tmp_path / "jane/images", tmp_path / "server/images", tmp_path / "web"]
    assert set_names(places) == ["images", "server-images", "web"]


def test_the_name_of_a_set_can_begin_a_path(tmp_path: Path) -> None:
    odd = Path("/x/a\nb"), Path("/y/" + "z" * 200), Path("/"), Path("/t/scans.CSV")
    names = set_names(odd)
    assert names == ["a_b", "z" * 120, "root", "scans"]
    parse_config({"data": {"path": [*map(str, odd)], "names": names}})


def test_a_set_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"the set of images {tmp_path} is named twice"
    ):
        pooled([tmp_path, tmp_path / "x" / ".."])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"path": 3}, "expected data.path as a text or a list of texts, got 3"),
        ({"path": []}, "expected data.path as a text or a list of texts, got []"),
        ({"path": ["/a", 3]}, "as a text or a list of texts, got ['/a', 3]"),
        ({"path": "/a", "names": ["a"]}, "expected 1 sets in data.path, one for each"),
        ({"path": ["/a", "/b"], "names": ["a"]}, "['a'], got ['/a', '/b']"),
        ({"path": ["/a", "/b"], "names": ["a", "a"]}, "expected different data.names"),
        ({"path": ["/a", "/b"], "names": ["a", "b/c"]}, "without '/', got 'b/c'"),
        ({"path": ["/a", "/b"], "names": ["a", ".."]}, "without '/', got '..'"),
        ({"path": ["/a", "/b"], "names": ["a", ""]}, "of 1 to 120 letters"),
    ],
)
def test_settings_that_name_no_sets_are_refused(
    data: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": data})
    assert words in caught.value.problem
    assert caught.value.hint
