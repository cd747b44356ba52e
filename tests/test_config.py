from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    get_args,
    get_origin,
)

import hypothesis
import pytest
import tomli_w
from hypothesis import reject
from hypothesis import strategies as st
from pydantic import ValidationError

import tumorlens
from tumorlens.config import (
    Config,
    absolute_paths,
    differences,
    dump_config,
    idle_settings,
    load_config,
    machine_settings,
    number_kind,
    parse_config,
    path_settings,
    setting_names,
    values_of,
)
from tumorlens.errors import ConfigError
from tumorlens.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def error_of(*assignments: str, path: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, assignments=assignments)
    assert caught.value.hint
    return caught.value


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config() == Config()


def test_a_file_beats_the_defaults_and_an_assignment_beats_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[optim]\nlr = 0.5\nepochs = 7\n")
    config = load_config(path, assignments=["optim.epochs=9"])
    assert (config.optim.lr, config.optim.epochs) == (0.5, 9)
    assert config.optim.name == Config().optim.name


@pytest.mark.parametrize(
    ("assignment", "section", "name", "expected"),
    [
        ("optim.lr=1e-4", "optim", "lr", 1e-4),
        ("optim.lr=1", "optim", "lr", 1.0),
        (" model.name = resnet50 ", "model", "name", "resnet50"),
        ("model.name='resnet50'", "model", "name", "resnet50"),
        ("model.mirror=true", "model", "mirror", True),
        ("model.global_pool=none", "model", "global_pool", None),
        ("data.metadata=none", "data", "metadata", "none"),
        ("data.path=a=b/c d", "data", "path", "a=b/c d"),
        ("data.path=2020", "data", "path", "2020"),
        ("data.path='2020'", "data", "path", "2020"),
        ("augment.crop_scale=[0.2, 0.9]", "augment", "crop_scale", [0.2, 0.9]),
        ("model.extra.pad_type=same", "model", "extra", {"pad_type": "same"}),
    ],
)
def test_an_assignment_is_read_as_toml_or_else_as_text(
    assignment: str, section: str, name: str, expected: object
) -> None:
    config = load_config(assignments=[assignment])
    assert getattr(getattr(config, section), name) == expected


def test_none_unsets_what_the_file_sets(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[optim]\nlayer_decay = 0.7\n")
    config = load_config(path, assignments=["optim.layer_decay=none"])
    assert config.optim.layer_decay is None


def test_settings_in_a_table_add_up() -> None:
    config = load_config(assignments=["model.extra.a=1", "model.extra.b=x"])
    assert config.model.extra == {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        [
            "model.extra.pad_type=same",
            "model.mean=[0.5, 0.5, 0.5]",
            "model.std=[1,1,1]",
        ],
        ["data.path=a 'quoted' \"path\"", "optim.layer_decay=0.5", "model.size_px=64"],
    ],
)
def test_a_config_is_read_back_as_it_was_written(
    tmp_path: Path, assignments: Sequence[str]
) -> None:
    config = load_config(assignments=assignments)
    (tmp_path / "x.toml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "x.toml") == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().optim.lr = 1.0  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    names = setting_names()
    assert {"data.path", "optim.lr", "train.seed"} <= set(names)
    assert [name for name, text in names.items() if not text.endswith(".")] == []


def test_the_settings_of_the_contract_exist() -> None:
    contract = (
        "data.path data.metadata data.protocol data.val_fraction model.name "
        "model.pretrained model.drop_rate model.global_pool augment.policy optim.name "
        "optim.lr optim.weight_decay optim.epochs optim.scheduler train.batch_size "
        "train.seed train.precision train.early_stop_epochs"
    )
    assert set(contract.split()) <= set(setting_names())


@pytest.mark.parametrize(
    ("assignment", "problem", "hint"),
    [
        ("optim.lrr=1", "unknown setting 'optim.lrr'", "did you mean 'optim.lr'?"),
        ("optimm.lr=1", "unknown setting 'optimm'", "did you mean 'optim'?"),
        ("optim=1", "expected --set section.name=value, got 'optim=1'", "for example"),
        ("optim.lr", "expected --set section.name=value, got 'optim.lr'", "for"),
        ("optim.lr=fast", "optim.lr: input should be a valid number, got 'fast'", "ch"),
        ("optim.lr=nan", "optim.lr: input should be a finite number, got nan", "ch"),
        (
            "optim.lr=0",
            "optim.lr: input should be greater than 0, got 0",
            "change optim.lr (Highest",
        ),
        (
            "optim.epochs=true",
            "epochs: input should be a valid integer, got True",
            "ch",
        ),
        ("optim.epochs=1.5", "epochs: input should be a valid integer, got 1.5", "ch"),
        (
            "train.seed=-1",
            "train.seed: input should be greater than or equal",
            "change train.seed (Seed of the",
        ),
        ("data.protocol=all", "data.protocol: input should be 'as-given', 'gro", "ch"),
        ("augment.policy=mri+bsic", "unknown augment.policy 'bsic'; did you mean", "c"),
        ("augment.crop_scale=[1, 0.5]", "low <= high <= 1, got [1.0, 0.5]", "change"),
        (
            "augment.crop_scale=[0.5]",
            "[low, high] with low <= high <= 1, got",
            "change",
        ),
        ("model.mean=[0.5]", "with 3 value(s), as model.in_chans says, got [0.5]", "c"),
        (
            "model.mean=[1, 1, 1]",
            "model.mean and model.std together, got one",
            "change",
        ),
        ("optim.min_lr=1", "optim.min_lr <= optim.lr, got 1.0 > 0.001", "change"),
        (
            "optim.warmup_epochs=99",
            "warmup_epochs < optim.epochs, got 99.0 >=",
            "change",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_value(
    assignment: str, problem: str, hint: str
) -> None:
    error = error_of(assignment)
    assert problem in error.problem
    assert error.hint.startswith(hint)


def test_two_remedies_for_rare_classes_are_one_too_many() -> None:
    error = error_of("train.sampler=balanced", "train.class_weights=sqrt")
    assert "train.class_weights = 'sqrt'" in error.problem


def test_a_table_and_a_setting_in_it_contradict_each_other() -> None:
    error = error_of("model.extra=3", "model.extra.a=4")
    assert error.problem == "expected a table for model.extra, got 3"


def test_a_section_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("optim = 3\n")
    assert "optim" in error_of(path=path).problem
    error = error_of("optim.lr=1", path=path)
    assert error.problem == "expected a table for optim, got 3"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[optim\n", "x.toml is not TOML: "),
        (b"\xfe", "x.toml is not TOML: "),
        (b"[optim]\nlr = 1\nlr = 2\n", "x.toml is not TOML: "),
    ],
)
def test_a_file_that_is_not_toml_is_named(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    assert problem in error_of(path=tmp_path / "x.toml").problem


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "gone.toml"
    problem = error_of(path=missing).problem
    assert problem == f"cannot read the config {missing}: No such file or directory"
    assert "Is a directory" in error_of(path=tmp_path).problem


def test_parsing_takes_what_toml_gives() -> None:
    assert parse_config({"optim": {"lr": 0.5}}).optim.lr == 0.5
    with pytest.raises(ConfigError, match=r"unknown setting 'model\.nam'"):
        parse_config({"model": {"nam": "x"}})


def test_settings_of_the_machine_are_those_that_change_no_result() -> None:
    assert machine_settings() == {
        *("data.path", "data.cache_dir", "data.cache_limit_mib"),
        *("train.workers", "train.device"),
    }
    assert machine_settings() < setting_names().keys()


def test_a_key_of_a_table_does_not_take_the_type_of_a_setting_of_its_name() -> None:
    config = load_config(assignments=["model.extra.name=123", "model.extra.path=none"])
    assert config.model.extra == {"name": 123, "path": "none"}


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""], ids=["mark", "none"])
def test_a_byte_order_mark_before_the_settings_is_passed_over(
    tmp_path: Path, mark: bytes
) -> None:
    (tmp_path / "x.toml").write_bytes(mark + b"[optim]\r\nlr = 0.5\r\n")
    assert load_config(tmp_path / "x.toml").optim.lr == 0.5


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_file_in_utf_16_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "x.toml").write_bytes(f"{mark}[optim]\n".encode(encoding))
    error = error_of(path=tmp_path / "x.toml")
    assert "x.toml is not TOML: it is text in UTF-16" in error.problem
    assert error.hint.startswith("save it as UTF-8")


def test_a_file_of_any_size_or_depth_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.toml"
    path.write_text("a = " + "[" * 100_000)
    assert "x.toml is not TOML: " in error_of(path=path).problem
    monkeypatch.setattr("tumorlens.config.MAX_TOML_BYTES", 20)
    path.write_text("# a comment that is too long")
    assert error_of(path=path).problem == f"{path} is larger than 20 bytes"


def test_an_assignment_of_several_lines_sets_nothing_beside() -> None:
    config = load_config(assignments=["data.path='a'\n[optim]\nlr = 5"])
    assert config.data.path == "'a'\n[optim]\nlr = 5"
    assert config.optim == Config().optim


# paths


def test_every_path_becomes_absolute_and_no_other_setting_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = load_config(assignments=[f"{key}=sub/../x" for key in path_settings()])
    after = absolute_paths(before)
    assert set(differences(before, after)) == path_settings()
    expected = dict.fromkeys(path_settings(), str(tmp_path / "x"))
    assert {key: values_of(after)[key] for key in path_settings()} == expected
    assert absolute_paths(after) == after


def test_the_paths_are_those_that_the_descriptions_speak_of() -> None:
    assert path_settings() == {
        *("data.path", "data.metadata", "data.labels", "data.split"),
        *("data.cache_dir", "model.pretrained"),
    }
    assert path_settings() < setting_names().keys()


@pytest.mark.parametrize(
    "word",
    [
        *("data.metadata=none", "model.pretrained=auto", "model.pretrained=yes"),
        "model.pretrained=no",
    ],
)
def test_a_word_in_place_of_a_path_stays_a_word(word: str) -> None:
    config = load_config(assignments=[word])
    assert absolute_paths(config) == config


def test_the_kind_of_a_number_is_that_of_the_setting() -> None:
    kinds = {
        key: number_kind(key) for key, value in values_of(Config()).items() if value
    }
    del kinds["model.in_chans"]  # one of two choices
    for key, kind in kinds.items():
        value = values_of(Config())[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        assert kind is (type(value) if is_number else None), key
    assert number_kind("train.ema_decay") is float
    assert number_kind("data.fold") is int
    assert number_kind("model.in_chans") is None
    assert number_kind("model.extra.depth") is None


# settings without effect


@pytest.mark.parametrize(
    ("idle", "used"),
    [
        ("augment.mix_probability=0.5", "augment.mixup=1"),
        ("augment.mix_probability=0.5", "augment.cutmix=1"),
        ("augment.crop_scale=[0.1, 1.0]", "augment.policy=random-resized-crop"),
        ("augment.auto_augment=v0", "augment.policy=auto-augment+mri"),
        ("augment.strength=2", "augment.policy=basic+mri"),
        ("optim.min_lr=1e-5", "optim.scheduler=cosine"),
        ("optim.gamma=0.5", "optim.scheduler=step"),
        ("optim.gamma=0.5", "optim.scheduler=exponential"),
        ("optim.step_size=2", "optim.scheduler=step"),
        ("train.early_stop_epochs=3", "train.best_by=loss"),
        ("train.early_stop_epochs=12", "optim.epochs=13"),
        ("data.num_folds=3", "data.protocol=grouped-kfold"),
        ("data.test_fraction=0.3", "data.protocol=grouped"),
        ("data.cache_dir=x", "data.cache_limit_mib=1"),
    ],
)
def test_a_setting_without_effect_is_named_with_the_reason(
    idle: str, used: str
) -> None:
    off = {
        "augment": ["augment.policy=none"],
        "optim": ["optim.scheduler=constant"],
        "train": ["train.best_by=last"] * (idle != "train.early_stop_epochs=12"),
        "data": ["data.protocol=as-given", "data.cache_limit_mib=0"],
    }[idle.partition(".")[0]]
    key = idle.partition("=")[0]
    found = idle_settings(load_config(assignments=[*off, idle]))
    assert key in found
    assert found[key]
    assert key not in idle_settings(load_config(assignments=[*off, idle, used]))


def test_only_settings_that_were_changed_are_without_effect() -> None:
    assert idle_settings(Config()) == {}
    config = load_config(assignments=["data.split=x", "data.val_fraction=0.3"])
    assert idle_settings(config) == {"data.val_fraction": "data.split has the subsets"}
    assert idle_settings(config).keys() <= setting_names().keys()


def test_every_setting_that_the_code_names_exists() -> None:
    """A list with a name that is none would be passed over in silence."""
    known = {*setting_names(), "model.json", "model.safetensors", "trust.json"}
    sections = "|".join(Config.model_fields)
    named = {
        (path.name, node.value)
        for path in Path(tumorlens.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(rf"({sections})\.[a-z_]+", node.value)
    }
    assert len(named) > 50
    assert {one for one in named if one[1] not in known} == set()


# Whatever the settings are


LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PARTS: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 300),
    float: st.floats(0, 2, allow_subnormal=False),
    str: LETTERS
    | st.sampled_from(
        ["basic", "none", "no", "2020", "1e-4", "true", "a b", "original", "Adam"]
    ),
    Any: LETTERS | st.booleans() | st.integers() | st.lists(st.integers(), max_size=2),
    type(None): st.none(),
}


def values_for(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a type; some may be out of range."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_for(parts[0])
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is list:
        return st.lists(values_for(parts[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(LETTERS, values_for(parts[1]), max_size=2)
    if parts:
        return st.one_of(*[values_for(part) for part in parts])
    return PARTS[annotation]


ANNOTATIONS = {
    f"{section}.{name}": field.annotation
    for section, outer in Config()
    for name, field in type(outer).model_fields.items()
}


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a few settings with values that are valid together."""
    names = draw(st.lists(st.sampled_from(sorted(ANNOTATIONS)), min_size=1, max_size=4))
    values = {name: draw(values_for(ANNOTATIONS[name])) for name in names}
    try:
        parse_config(nested(values))
    except ConfigError:
        reject()
    return values


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        found.setdefault(section, {})[name] = value
    return found


RELAXED = hypothesis.settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=400,
    suppress_health_check=[
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)


@RELAXED
@hypothesis.given(settings())
def test_any_settings_are_read_back_as_they_were_written(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    config = parse_config(nested(values))
    path = tmp_path / "config.toml"
    write_text(path, dump_config(config))
    assert load_config(path) == config


def as_typed(value: Any) -> str:
    """Return a value as behind `--set key=`: plain text without quotes, else TOML."""
    if value is None:
        return "none"
    if isinstance(value, str) and re.fullmatch(r"[\w.-][\w. -]*[\w.-]", value):
        return value
    return tomli_w.dumps({"v": value}).removeprefix("v = ")


@RELAXED
@hypothesis.given(settings())
def test_any_setting_can_be_set_on_the_command_line(values: dict[str, Any]) -> None:
    assignments = [
        f"{key}={as_typed(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    expected = {k: v for k, v in values.items() if not isinstance(v, dict)}
    # 'none' is a value of this one.
    if expected.get("data.metadata", "") is None:
        expected["data.metadata"] = "none"
    unset = [key for key, value in expected.items() if value == "none"]
    for key in unset:
        if key != "data.metadata" and type(None) in get_args(ANNOTATIONS[key]):
            expected[key] = None
    assert load_config(assignments=assignments) == parse_config(nested(expected))
