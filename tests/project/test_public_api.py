"""The public names, their documentation, and how results look in a notebook."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

import tumorlens
from support.handmade_external import write_evaluation
from support.planted_sets import make_two_sets
from support.public_examples import TINY
from tumorlens.config import Config
from tumorlens.errors import ConfigError
from tumorlens.report.notebook import view_of
from tumorlens.text import NotebookView

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
FUNCTIONS = [
    name for name in tumorlens.__all__ if inspect.isfunction(getattr(tumorlens, name))
]


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    assert tumorlens.__all__ == sorted(tumorlens.__all__)
    assert 10 <= len(tumorlens.__all__) <= 14
    for name in tumorlens.__all__:
        assert getattr(tumorlens, name).__doc__, name


def test_the_page_documents_every_public_name_and_no_other() -> None:
    assert re.findall(r"^### `(\w+)`", PAGE, re.MULTILINE) == tumorlens.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_public_function_has_an_example_and_says_what_it_raises(name: str) -> None:
    documentation = inspect.getdoc(getattr(tumorlens, name)) or ""
    for section in ("Raises:", "Example:", ">>> "):
        assert section in documentation
    assert f"tumorlens.{name}(" in documentation


def test_split_refuses_a_setting_that_has_no_effect_on_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr has no effect here"):
        tumorlens.split(tmp_path, settings={"optim.lr": 1})


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        tumorlens.nosuch  # noqa: B018


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: tumorlens.audit("DATA"), ("Audit of DATA", "distinct pictures")),
        (lambda: tumorlens.split("DATA"), ("Split by patient", "<td", "train")),
        (
            lambda: tumorlens.open_run("runs/first"),
            ("Run first: test_resnet", "Accuracy on test", "<svg"),
        ),
        (
            lambda: tumorlens.open_run("runs/first").metrics(),
            ("balanced accuracy", "No copies found", "<svg"),
        ),
        (
            lambda: tumorlens.predict("runs/first", ["DATA/glioma/0.png", "no.png"]),
            ("2 images", "DATA/glioma/0.png", "unreadable: "),
        ),
        (
            lambda: tumorlens.compare(["runs/first"], with_latency=False),
            ("first", "accuracy"),
        ),
    ],
    ids=["audit", "split", "run", "metrics", "predictions", "comparison"],
)
def test_a_result_shows_itself_in_a_notebook(
    examples: Path, make: Callable[[], Any], shown: tuple[str, ...]
) -> None:
    (examples / "no.png").write_text("no image")
    result = make()
    assert isinstance(result, NotebookView)
    html = result._repr_html_()
    assert html is not None
    for words in shown:
        assert words in html


def test_a_notebook_view_escapes_names(examples: Path, tmp_path: Path) -> None:
    shutil.copytree("DATA", tmp_path / "<b>DATA")
    html = view_of(tumorlens.audit(tmp_path / "<b>DATA"))
    assert "&lt;b&gt;DATA" in html
    assert "<b>" not in html


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ("nnnp", ("Training has seen 1 of the 4", "new, 3 images", "seen, 1 image<")),
        ("pppp", ("nothing is new", "Confusion matrix, all images", "seen, 4 images")),
        ("????", ("Not known: the model does not tell", "all, 4 images")),
    ],
)
def test_an_evaluation_on_another_set_shows_new_and_seen_side_by_side(
    tmp_path: Path, states: str, shown: tuple[str, ...]
) -> None:
    found = write_evaluation(tmp_path, [1, 0, 1, 1], states, notes=("A note.",))
    html = found._repr_html_()
    assert html is not None
    for words in (*shown, "first on hospital-b", "recall of glioma", "A note.", "<svg"):
        assert words in html
    assert found.headline.accuracy.percentage in html


def test_there_is_no_view_of_what_is_no_result() -> None:
    with pytest.raises(TypeError, match="no view of int"):
        view_of(3)


def test_audit_writes_the_page_when_a_folder_is_given(examples: Path) -> None:
    tumorlens.audit("DATA", out="audit")
    names = {path.name for path in (examples / "audit").iterdir()}
    assert names == {"audit.json", "audit.html"}


def test_settings_go_on_top_of_other_settings() -> None:
    start = tumorlens.load_config(settings={"optim.lr": 0.5, "data.path": "2020"})
    assert isinstance(start, Config)
    config = tumorlens.load_config(
        start, settings={"optim.epochs": 3, "data.path": None}
    )
    assert (config.optim.lr, config.optim.epochs) == (0.5, 3)
    assert (start.data.path, config.data.path) == ("2020", None)


def test_resuming_takes_the_same_settings_and_no_others(
    examples: Path, tmp_path: Path
) -> None:
    config = tumorlens.open_run("runs/first").config
    (tmp_path / "c.toml").write_text("[model]\nname = 'test_resnet'\n")
    for same in (config, tmp_path / "c.toml"):
        tumorlens.train(same, out="runs/first", data="DATA", resume=True)
    with pytest.raises(ConfigError, match=r"epochs: . before, now 77"):
        tumorlens.train(out="runs/first", resume=True, settings={"optim.epochs": 77})


@pytest.mark.parametrize("fit", [True, False])
def test_training_ends_with_trust_where_it_is_wanted(
    examples: Path, tmp_path: Path, *, fit: bool
) -> None:
    run = tumorlens.train(
        data="DATA",
        out=tmp_path / "run",
        settings=TINY | {"trust.coverage": 0.5, "trust.fit": fit},
    )
    assert (run.path / "trust.json").is_file() is fit


def test_images_are_named_in_one_way() -> None:
    for call in (
        lambda: tumorlens.split("a", settings={"data.path": "b"}),
        lambda: tumorlens.train(data="a", out="x", settings={"data.path": "b"}),
    ):
        with pytest.raises(ConfigError, match=r"data.path is given twice: 'a' as data"):
            call()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: tumorlens.export("runs/first", cast("Any", "onxx")),
            "unknown format 'onxx'",
        ),
        (lambda: tumorlens.export("runs/first", []), r"expected formats .* got \[\]"),
        (
            lambda: tumorlens.export("runs/first", ["onnx"], max_drop=7),
            r"max_drop from 0 to 1, got \['onnx'\] and 7",
        ),
        (lambda: tumorlens.evaluate("runs/first", subset="train"), "subset 'train'"),
        (lambda: tumorlens.predict("runs/first", "nosuch.png"), "nosuch.png"),
        (
            lambda: tumorlens.Predictor.open("runs/first", device="tpu"),
            "expected the device auto, cpu, cuda, mps or xpu, got 'tpu'",
        ),
    ],
)
def test_a_wrong_argument_is_an_error_with_a_hint(
    examples: Path, make: Callable[[], Any], problem: str
) -> None:
    with pytest.raises(tumorlens.TumorlensError, match=problem) as caught:
        make()
    assert caught.value.hint


CHECKED = [
    *((name, getattr(tumorlens, name)) for name in FUNCTIONS),
    ("Predictor.open", tumorlens.Predictor.open),
]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(function, name, id=f"{of}-{name}")
        for of, function in CHECKED
        for name in inspect.signature(function).parameters
    ],
)
def test_every_argument_of_the_wrong_type_is_named_before_anything_is_done(
    function: Callable[..., object],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    usual: dict[str, object] = {
        one.name: "x"
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty
    }
    for wrong in (5j, {1: "x"}, b"x", ValueError):
        if callable(wrong) and name == "progress":
            continue
        with pytest.raises(TypeError) as caught:
            function(**usual | {name: wrong})
        told = str(caught.value)
        assert told.startswith(f"{function.__qualname__}() expected ")
        assert f" for {name}, got {wrong!r}" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("audit(None)", "audit() expected a path for data, got None"),
        (
            "train(5, out='x')",
            (
                "train() expected a path, the result of load_config or None for "
                "config, got 5"
            ),
        ),
        (
            "predict(3, 'a.png')",
            "predict() expected a path, a Run or a Predictor for model, got 3",
        ),
        (
            "predict('x', ['a.png', 5])",
            "predict() expected a path or a list of such for images, got ['a.png', 5]",
        ),
        (
            "train(out='x', settings='optim.lr=1')",
            (
                "train() expected a mapping of dotted names to values or None for "
                "settings, got 'optim.lr=1'"
            ),
        ),
        (
            "load_config({'optim.lr': 1})",
            (
                "load_config() expected a path, the result of load_config or None for "
                "start, got {'optim.lr': 1}"
            ),
        ),
        (
            "train(out='x', resume='no')",
            "train() expected True or False for resume, got 'no'",
        ),
        (
            "export('x', max_drop=True)",
            "export() expected a number for max_drop, got True",
        ),
    ],
)
def test_the_error_of_a_wrong_type_is_one_sentence(call: str, told: str) -> None:
    with pytest.raises(TypeError) as caught:
        eval(call, vars(tumorlens))
    assert str(caught.value) == told


def test_a_setting_of_the_wrong_type_is_an_error_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: .* number, got 'fast'"):
        tumorlens.load_config(settings={"optim.lr": "fast"})


def test_paths_may_be_of_any_kind_and_images_come_from_any_iterable(
    examples: Path,
) -> None:
    with os.scandir("DATA/glioma") as found:
        entries: list[Any] = list(found)
    generator: Any = (one for one in entries)
    answers = tumorlens.predict(Path("runs/first"), generator)
    assert len(answers) == len(entries) > 1
    with os.scandir("runs") as found:
        run: Any = next(one for one in found if one.name == "first")
    assert len(tumorlens.predict(run, entries[0])) == 1
    assert tumorlens.open_run(run).name == "first"


def test_the_metadata_may_be_a_path(examples: Path) -> None:
    files = sorted(Path("DATA").rglob("*.png"))
    rows = [f"{one.relative_to('DATA').as_posix()},p{i}" for i, one in enumerate(files)]
    Path("who.csv").write_text("\n".join(["path,patient", *rows]))
    found = tumorlens.audit("DATA", metadata=Path("who.csv"))
    assert found.patients.known == len(files)


def test_one_path_needs_no_list(examples: Path) -> None:
    run = tumorlens.open_run("runs/first")
    assert len(tumorlens.compare(run, with_latency=False).arms) == 1
    assert len(tumorlens.predict(run, "DATA")) == 24
    assert [one.kind for one in tumorlens.export(run, "onnx")] == ["onnx"]


def test_the_package_lists_its_public_names_and_nothing_else() -> None:
    assert set(dir(tumorlens)) == {*tumorlens.__all__, "__version__"}


def test_importing_the_package_loads_little() -> None:
    code = (
        "import sys, tumorlens;"
        "assert not {'torch', 'numpy', 'pydantic', 'IPython'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_several_sets_are_compared_and_pooled(tmp_path: Path) -> None:
    clinic, web = make_two_sets(tmp_path)
    found = tumorlens.audit(clinic, against=web, out=tmp_path / "audit")
    assert found.overlaps is not None
    assert [one.name for one in found.overlaps.sets] == ["clinic", "web"]
    assert "7 of 20 files of clinic" in view_of(found)
    assert "Against other sets" in (tmp_path / "audit/audit.html").read_text("utf-8")
    assert tumorlens.audit(clinic, against=[str(web)]).overlaps == found.overlaps
    made = tumorlens.split([clinic, str(web)])
    assert {row.path.partition("/")[0] for row in made.rows} == {"clinic", "web"}
    assert made.leak.leaks is False
    same = {"data.path": [clinic, web]}
    assert tumorlens.split([clinic, web], settings=same).rows == made.rows
    with pytest.raises(ConfigError, match=r"data\.path is given twice"):
        tumorlens.split([clinic, web], settings={"data.path": [web, clinic]})
    with pytest.raises(TypeError, match="expected a path or a list of such for data"):
        tumorlens.split(3)  # type: ignore[arg-type] # that is the point
