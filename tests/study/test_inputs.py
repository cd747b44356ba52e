from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tumorlens.errors import ConfigError, RunError
from tumorlens.study.folder import create_study
from tumorlens.study.inputs import with_files
from tumorlens.study.plan_file import dump_plan, load_plan, read_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tumorlens.study.plan import StudyPlan

ARMS = """
[base]
model.name = "test_resnet"
[[arms]]
name = "a"
[[arms]]
name = "b"
optim.lr = 0.1
"""


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=3)


def plan_of(data: Path | list[Path], *assignments: str, text: str = ARMS) -> StudyPlan:
    path = (data if isinstance(data, Path) else data[0]).parent / "s.toml"
    path.write_text(text)
    return with_files(load_plan(path, assignments=assignments, data=data))


def test_moved_images_are_the_same_study_and_changed_ones_are_not(data: Path) -> None:
    plan = plan_of(data)
    moved = data.with_name("moved")
    shutil.copytree(data, moved)
    assert plan_of(moved).digest() == plan.digest()
    image = next(moved.rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    now = plan_of(moved)
    assert now.digest() != plan.digest()
    assert plan.differences(now) == ["the content of data.path has changed"]


def test_pooled_sets_count_by_the_content_of_each(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    sets = [make_images(num_each=2, name=name) for name in ("one", "two")]
    plan = plan_of(sets)
    assert plan.files.keys() == {str(place) for place in sets}
    assert plan.base.data.names == ["one", "two"]
    (tmp_path / "study.toml").write_text(dump_plan(plan))
    assert read_plan(tmp_path / "study.toml") == plan
    moved = [shutil.copytree(place, tmp_path / "x" / place.name) for place in sets]
    assert plan_of(moved).digest() == plan.digest()
    # Other folders under the names of before are the same sets.
    named = [place.rename(place.with_name(f"{place.name}-2")) for place in moved]
    assert plan_of(named).digest() != plan.digest()
    assert plan_of(named, "data.names=['one', 'two']").digest() == plan.digest()
    image = next(named[1].rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"x")
    now = plan_of(named, "data.names=['one', 'two']")
    assert plan.differences(now) == ["the content of data.path has changed"]


@pytest.mark.parametrize("metadata", ["none", "table"])
def test_metadata_of_pooled_sets_is_no_table_of_one_of_them(
    make_images: Callable[..., Path], tmp_path: Path, metadata: str
) -> None:
    sets = [make_images(num_each=2, name=name) for name in ("one", "two")]
    table = tmp_path / "all.csv"
    table.write_text("path,patient\ntwo/glioma/0.png,P-1\n")
    given = str(table) if metadata == "table" else metadata
    plan = plan_of(sets, f"data.metadata={given}")
    assert (str(table) in plan.files) == (metadata == "table")


def test_other_labels_or_patients_are_another_study(data: Path) -> None:
    plan = plan_of(data)
    paths = [path.relative_to(data).as_posix() for path in data.rglob("*.png")]
    table = data / "metadata.csv"
    digests = {plan.digest()}
    for patient in ("p", "q"):
        lines = [f"{path},{patient}" for path in paths]
        table.write_text("\n".join(["path,patient", *lines]))
        digests.add(plan_of(data).digest())
    table.unlink()
    image = sorted(data.rglob("*.png"))[0]
    image.rename(sorted(data.iterdir())[-1] / "other.png")
    digests.add(plan_of(data).digest())
    assert len(digests) == 4


@pytest.mark.parametrize(
    "text",
    [
        ARMS.replace("[base]\n", "[base]\nmodel.pretrained = 'PATH'\n"),
        ARMS.replace("optim.lr = 0.1", "model.pretrained = 'PATH'"),
        "[search]\ntrials = 2\nranges.model.pretrained = ['no', 'PATH']\n",
        ARMS.replace("[base]\n", "[base]\ndata.split = 'PATH'\n"),
    ],
    ids=["base", "arm", "search", "split"],
)
def test_a_file_counts_by_its_content_and_not_by_its_place(
    data: Path, text: str
) -> None:
    def plan_at(folder: str, content: bytes) -> StudyPlan:
        place = data.parent / folder / f"{content.decode()}.pth"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
        return plan_of(data, text=text.replace("PATH", str(place)))

    first = plan_at("here", b"1")
    assert plan_at("there", b"1").digest() == first.digest()
    other = plan_at("here", b"2")
    assert other.digest() != first.digest()
    assert first.differences(other)


def test_a_file_that_is_not_there_is_named(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read model.pretrained, /gone.pth"):
        plan_of(data, "model.pretrained=/gone.pth")


@pytest.mark.parametrize("word", ["no", "auto", "yes"])
def test_a_word_for_the_weights_is_a_part_of_the_study(data: Path, word: str) -> None:
    plan = plan_of(data, f"model.pretrained={word}")
    assert set(plan.files) == {str(data)}
    others = {"no", "auto", "yes"} - {word}
    digests = {plan_of(data, f"model.pretrained={one}").digest() for one in others}
    assert plan.digest() not in digests


def test_the_digests_are_kept_with_the_plan_and_one_without_has_its_own(
    data: Path, tmp_path: Path
) -> None:
    plan = plan_of(data)
    (tmp_path / "study.toml").write_text(dump_plan(plan))
    assert read_plan(tmp_path / "study.toml") == plan
    early = plan.model_copy(update={"files": {}})
    assert early.digest() != plan.digest()
    elsewhere = early.base.data.model_copy(update={"path": "/elsewhere"})
    base = early.base.model_copy(update={"data": elsewhere})
    assert early.model_copy(update={"base": base}).digest() == early.digest()


def test_another_study_in_a_folder_is_refused_with_the_difference(
    data: Path, tmp_path: Path
) -> None:
    create_study(tmp_path / "study", plan_of(data), store_url=None)
    create_study(tmp_path / "study", plan_of(data, "train.workers=2"), store_url=None)
    with pytest.raises(RunError, match=r"epochs: 12 before, now 3; seeds differs"):
        create_study(
            tmp_path / "study",
            plan_of(data, "optim.epochs=3", text=f"seeds = [1]\n{ARMS}"),
            store_url=None,
        )
    with pytest.raises(RunError, match="with other settings: arms differ"):
        create_study(
            tmp_path / "study",
            plan_of(data, text=ARMS.replace("0.1", "0.2")),
            store_url=None,
        )
