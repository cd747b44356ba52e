"""The settings of a run, with their bounds, defaults and descriptions.

A `Config` is frozen and complete. It is read from TOML, changed by `--set key=value`
(default < file < `--set`) and written back in full before the first step, so that every
run folder has its complete settings. Nothing here reads images or imports torch;
`tumorlens.training.network` checks whether a model name exists.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    cast,
    get_args,
    get_origin,
)

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from tumorlens.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

Protocol = Literal["as-given", "grouped", "grouped-kfold"]
Fit = Literal["squash", "pad"]
Precision = Literal["auto", "fp32", "bf16"]
Policy = Literal["none", "basic", "random-resized-crop", "auto-augment", "mri"]

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


_MACHINE: dict[str, JsonValue] = {"machine": True}
"""Mark of a setting that says where and with what a run is computed, not what it is."""


def _path_or(*words: str) -> dict[str, JsonValue]:
    """Return the mark of a setting that is a path, unless it is one of these words."""
    return {"path": True, "words": list(words)}


# The name of a set is the first folder in the paths of its files.
_NOT_IN_NAMES = re.compile(r"[/\x00-\x1f\ud800-\udfff]")
_MAX_NAME = 120

MAX_TOML_BYTES = 16 << 20
"""Largest TOML file that is read; a plan of 10,000 arms stays below it."""


class _Section(BaseModel):
    # Strict: `epochs = true` or `lr = "1e-3"` is a mistake, not a number.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Section):
    """The images, and their split into train, val and test."""

    path: str | list[str] | None = Field(
        None,
        description="Folder of class folders, or a CSV/Parquet table; or a list of "
        "such sets with the same classes, which are pooled.",
        json_schema_extra=_MACHINE | _path_or(),
    )
    names: list[str] | None = Field(
        None,
        description="Names of the sets, if data.path is a list, in its order. They "
        "begin the paths of their files, and are the source of files without one. "
        "Unset: the names of the folders.",
    )
    metadata: str | None = Field(
        None,
        description="CSV with the columns path, patient, source and source_label. "
        "Unset: DATA/metadata.csv if it exists; 'none' ignores that file too.",
        json_schema_extra=_path_or("none"),
    )
    labels: str | None = Field(
        None,
        description="CSV with the columns path, label and reason, such as "
        "'tumorlens review' suggests: corrected labels, which hold in place of those "
        "of the data.",
        json_schema_extra=_path_or(),
    )
    protocol: Protocol = Field(
        "grouped",
        description="Way to make the subsets: 'as-given' keeps the folders Training "
        "and Testing, the others keep patients and copies together.",
    )
    split: str | None = Field(
        None,
        description="Existing split.csv to use instead of making one; refused if it "
        "puts a group on two sides, unless protocol is 'as-given'.",
        json_schema_extra=_path_or(),
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="Share of the training images that become val, by group."
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Share of all images that become test under 'grouped'."
    )
    num_folds: Annotated[int, Field(ge=2, le=20)] = Field(
        5,
        description="Number of folds under 'grouped-kfold'; each image is tested once.",
    )
    fold: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Single fold to train under 'grouped-kfold', from 0; unset: all "
        "folds.",
    )
    fit: Fit = Field(
        "pad",
        description="Way to make an image square: 'squash' resizes it as it is, 'pad' "
        "crops the black border, pads to a square and keeps the proportions.",
    )
    max_unreadable: Fraction = Field(
        0.05, description="Largest share of unreadable files; more stop the run."
    )
    max_file_mib: Positive = Field(
        64.0, description="Largest size of a file that is opened, in MiB."
    )
    max_pixels: Annotated[int, Field(gt=0)] = Field(
        100_000_000, description="Largest number of pixels of an image that is decoded."
    )
    cache_dir: str | None = Field(
        None,
        description="Folder for decoded images, which are kept between runs. Unset: "
        "tumorlens in the user's cache folder.",
        json_schema_extra=_MACHINE | _path_or(),
    )
    cache_limit_mib: NotNegative = Field(
        8192.0,
        description="Largest size of the cache, in MiB. Sets that are larger when "
        "decoded are decoded anew in each epoch by the loader's workers.",
        json_schema_extra=_MACHINE,
    )

    @field_validator("path", mode="before")
    @classmethod
    def _one_place_or_several(cls, path: Any) -> Any:
        places = path if isinstance(path, list) else [path]
        if path is not None and not (
            places and all(isinstance(p, str) for p in places)
        ):
            raise ValueError(
                f"expected data.path as a text or a list of texts, got {path!r}"
            )
        return places[0] if len(places) == 1 else path

    @model_validator(mode="after")
    def _one_name_per_set(self) -> Self:
        if self.names is None or self.path is None:
            return self
        places = self.path if isinstance(self.path, list) else [self.path]
        if len(places) != len(self.names) or isinstance(self.path, str):
            raise ValueError(
                f"expected {len(self.names)} sets in data.path, one for each of "
                f"data.names, {self.names}, got {self.path!r}"
            )
        for name in self.names:
            is_too_long = len(name) > _MAX_NAME
            if name in ("", ".", "..") or is_too_long or _NOT_IN_NAMES.search(name):
                raise ValueError(
                    f"expected data.names of 1 to {_MAX_NAME} letters, without '/', "
                    f"got {name!r}"
                )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"expected different data.names, got {self.names}")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_the_folds(self) -> Self:
        if self.fold is not None and self.protocol != "grouped-kfold":
            raise ValueError(
                f"expected data.protocol = 'grouped-kfold' with data.fold, got "
                f"{self.protocol!r}"
            )
        if self.fold is not None and self.fold >= self.num_folds:
            raise ValueError(
                f"expected data.fold < data.num_folds, got {self.fold} >= "
                f"{self.num_folds}"
            )
        return self


class ModelConfig(_Section):
    """The network, its weights and its input."""

    name: str = Field("resnet18", description="Any image classifier of timm.")
    pretrained: str = Field(
        "auto",
        description="Initial weights: 'auto' and 'yes' fetch those of the model hub, "
        "'no' draws random ones; anything else is a .safetensors or .pth file.",
        json_schema_extra=_path_or("auto", "yes", "no"),
    )
    drop_rate: Fraction = Field(0.0, description="Dropout before the last layer.")
    drop_path_rate: Fraction = Field(
        0.0, description="Rate of stochastic depth, for the networks that have it."
    )
    global_pool: str | None = Field(
        None,
        description="Global pooling: 'avg', 'max' or another of timm's; unset: the "
        "network's own.",
    )
    in_chans: Literal[1, 3] = Field(
        3, description="Input channels: 1 for grey, 3 for RGB."
    )
    size_px: Annotated[int, Field(ge=16, le=2048)] | None = Field(
        None,
        description="Side of the square input, in pixels; unset: that of the weights.",
    )
    mean: list[float] | None = Field(
        None,
        description="Mean per channel of values in [0, 1]; unset: that of the weights.",
    )
    std: list[Positive] | None = Field(
        None,
        description="Standard deviation per channel of values in [0, 1]; unset: that "
        "of the weights.",
    )
    mirror: bool = Field(
        default=False,
        description="Whether to average the probabilities of each image and its "
        "left-right mirror image in every evaluation and prediction. Doubles the cost.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of the network itself, such as pad_type.",
    )

    @model_validator(mode="after")
    def _one_mean_and_std_per_channel(self) -> Self:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.in_chans:
                raise ValueError(
                    f"expected model.{name} with {self.in_chans} value(s), as "
                    f"model.in_chans says, got {values}"
                )
        if (self.mean is None) != (self.std is None):
            raise ValueError("expected model.mean and model.std together, got one")
        return self


class AugmentConfig(_Section):
    """Augmentation, of training images only."""

    policy: str = Field(
        "mri",
        description="Named policy, or several joined by '+': none, basic, "
        "random-resized-crop, auto-augment, mri.",
    )
    crop_scale: list[Positive] = Field(
        [0.5, 1.0],
        description="Smallest and largest share of the area that "
        "'random-resized-crop' keeps; timm's own default is [0.08, 1].",
    )
    auto_augment: str = Field(
        "original",
        description="timm's name of the policy behind 'auto-augment': 'original', "
        "'v0', '3a', or a RandAugment such as 'rand-m9-n2'.",
    )
    strength: Positive = Field(
        1.0, description="Factor on every range of the 'mri' policy."
    )
    random_erasing: Fraction = Field(
        0.0, description="Probability of erasing a rectangle of an image."
    )
    mixup: NotNegative = Field(0.0, description="Mixup alpha; 0 is off.")
    cutmix: NotNegative = Field(0.0, description="CutMix alpha; 0 is off.")
    mix_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of the batches that are mixed, if mixing is on."
    )

    @model_validator(mode="after")
    def _policy_is_known_and_scale_is_a_range(self) -> Self:
        known = get_args(Policy)
        for name in self.policies:
            if name not in known:
                raise ValueError(
                    f"unknown augment.policy {name!r}; {did_you_mean(name, known)}"
                )
        if len(self.crop_scale) != 2 or not (
            self.crop_scale[0] <= self.crop_scale[1] <= 1
        ):
            raise ValueError(
                f"expected augment.crop_scale as [low, high] with low <= high <= 1, "
                f"got {self.crop_scale}"
            )
        return self

    @property
    def policies(self) -> list[str]:
        """The names in `policy`, in the order in which they are applied."""
        return [name.strip() for name in self.policy.split("+")]


class OptimConfig(_Section):
    """The optimizer and its learning rate over time."""

    name: str = Field(
        "adamw", description="Any optimizer of timm: adam, adamw, sgd, ..."
    )
    lr: Positive = Field(1e-3, description="Highest learning rate.")
    weight_decay: NotNegative = Field(
        0.05, description="Weight decay; not applied to biases and normalization."
    )
    momentum: Fraction = Field(
        0.9, description="Momentum, for the optimizers that have one."
    )
    epochs: Annotated[int, Field(gt=0, le=100_000)] = Field(
        12, description="Passes over the training images."
    )
    scheduler: Literal["constant", "step", "cosine", "exponential", "onecycle"] = Field(
        "cosine",
        description="Learning-rate schedule. 'step', 'cosine' and 'exponential' are "
        "torch's StepLR, CosineAnnealingLR and ExponentialLR and step after each "
        "epoch; 'onecycle' is OneCycleLR and steps after each batch.",
    )
    step_size: Annotated[int, Field(gt=0)] = Field(
        5, description="Epochs between two steps of 'step'."
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="Factor per step of 'step', or per epoch of 'exponential'.",
    )
    min_lr: NotNegative = Field(
        0.0, description="Learning rate at the end of 'cosine'."
    )
    warmup_epochs: NotNegative = Field(
        0.0, description="Epochs of linear warm-up from 1 % of the learning rate."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Factor on the learning rate per layer towards the input; off if "
        "unset.",
    )
    clip_grad_norm: Positive | None = Field(
        None, description="Largest L2 norm of the gradient; unset: not clipped."
    )

    @model_validator(mode="after")
    def _lr_bounds_are_ordered(self) -> Self:
        if self.min_lr > self.lr:
            raise ValueError(
                f"expected optim.min_lr <= optim.lr, got {self.min_lr} > {self.lr}"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(
                f"expected optim.warmup_epochs < optim.epochs, got "
                f"{self.warmup_epochs} >= {self.epochs}"
            )
        return self


class TrainConfig(_Section):
    """The loop: batches, loss, precision, and the choice of the kept epoch."""

    batch_size: Annotated[int, Field(gt=0, le=65_536)] = Field(
        32, description="Images per step and per process."
    )
    accumulate: Annotated[int, Field(gt=0, le=1024)] = Field(
        1,
        description="Parts into which a full batch is split on its way through the "
        "network; their gradients are added up. Less memory for the same steps, but "
        "batch norm works on the parts. A part of a single image joins the one before.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        42,
        description="Seed of the split, the initial weights, the order of the images "
        "and the augmentation.",
    )
    precision: Precision = Field(
        "auto",
        description="Precision of training: 'auto' is bf16 where the device is fast "
        "at it (CUDA from Ampere on, Intel GPUs that have it, CPUs with AVX-512 bf16 "
        "or AMX), else fp32.",
    )
    workers: Count = Field(
        0,
        description="Number of loader processes. 0 decodes and augments in the main "
        "process, the fastest choice for a cached set on few cores.",
        json_schema_extra=_MACHINE,
    )
    label_smoothing: Fraction = Field(
        0.0, description="Label smoothing of the cross-entropy."
    )
    class_weights: Literal["none", "sqrt", "balanced"] = Field(
        "none",
        description="Weights of the classes in the loss: 'none' for equal ones, "
        "'balanced' for the inverse of the frequency, 'sqrt' for its square root. The "
        "loss of a batch is divided by the sum of its weights.",
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="Order of the images: 'shuffle' draws each once, 'balanced' draws "
        "every class equally often.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of the exponential moving average of the weights, which is "
        "then evaluated and kept; unset: off.",
    )
    freeze_backbone_epochs: Count = Field(
        0, description="Number of first epochs in which only the last layer is trained."
    )
    freeze: list[str] = Field(
        [],
        description="Parts of the network that are never trained, by timm's names, "
        "such as ['conv_stem', 'blocks.0']. Their batch norm statistics are kept "
        "too. Early layers are the slowest to train and gain least from it.",
    )
    early_stop_epochs: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Epochs without a better val measure until training stops."
    )
    best_by: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss", "last"] = (
        Field(
            "accuracy",
            description="Val measure that chooses the epoch whose weights are kept; "
            "'last' keeps those of the last epoch.",
        )
    )
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        "auto",
        description="Device: 'cuda' is a GPU of NVIDIA (of AMD with torch for ROCm), "
        "'mps' one of Apple, 'xpu' one of Intel; 'auto' is the GPU if torch finds one, "
        "else the CPU.",
        json_schema_extra=_MACHINE,
    )
    watch_test: bool = Field(
        default=False,
        description="Whether to measure test after every epoch too, as in published "
        "curves. It chooses nothing, is logged as a look and needs the protocol "
        "'as-given'.",
    )

    @model_validator(mode="after")
    def _weights_or_sampling(self) -> Self:
        if self.sampler == "balanced" and self.class_weights != "none":
            raise ValueError(
                "expected one remedy for rare classes, got train.sampler = 'balanced' "
                f"and train.class_weights = {self.class_weights!r}"
            )
        return self


_Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class TrustConfig(_Section):
    """What the end of a training fits on val: calibration, sets, abstention, gate."""

    fit: bool = Field(
        default=True,
        description="Whether training ends with it; see docs/trust.md.",
    )
    coverage: _Rate = Field(
        0.9, description="Share of cases whose true class is to be in the set."
    )
    error: _Rate = Field(
        0.05, description="Largest share of wrong answers that is promised."
    )
    confidence: _Rate = Field(
        0.9, description="Chance with which that promise is to hold."
    )
    specificity: _Rate = Field(
        0.95, description="Specificity of the operating point of each class."
    )


class Config(_Section):
    """All settings of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    trust: TrustConfig = TrustConfig()

    @model_validator(mode="after")
    def _test_is_for_the_end(self) -> Self:
        if self.train.watch_test and self.data.protocol != "as-given":
            raise ValueError(
                "expected data.protocol 'as-given' with train.watch_test = true, got "
                f"{self.data.protocol!r}: an honest test subset is looked at once"
            )
        return self


def read_toml(
    path: Path,
    *,
    kind: str = "config",
    hint: str = "give the path of a TOML file, or leave it out and use --data",
    examples: str = "configs/",
) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: The file.
        kind: Name of the kind of file in the error message.
        hint: Hint of the error message if the file cannot be read.
        examples: Folder of examples, named in the hint for invalid TOML.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOML_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {kind} {path}: {error.strerror}", hint=hint
        ) from None
    if len(content) > MAX_TOML_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_TOML_BYTES:,} bytes",
            hint=f"see {examples} for files that work",
        )
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(
            f"{path} is not TOML: it is text in UTF-16, and TOML is UTF-8",
            hint="save it as UTF-8: in Notepad by Save as, in PowerShell by "
            "Out-File -Encoding utf8",
        )
    try:
        # Notepad and PowerShell put a byte order mark before UTF-8.
        return tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", hint=f"see {examples} for files that work"
        ) from None


def load_config(path: Path | None = None, *, assignments: Iterable[str] = ()) -> Config:
    """Return the settings of a TOML file with `--set` assignments on top.

    Args:
        path: A TOML file; `None` starts from the defaults.
        assignments: Texts such as `optim.lr=1e-4`. A value that is not TOML is plain
            text, so that `model.name=resnet50` needs no quotes; `none` unsets a setting
            that can be unset.

    Returns:
        The complete settings.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown, mistyped, out of
            range or contradicts another.

    Example:
        >>> config = load_config(assignments=["optim.lr=1e-4", "model.name=resnet50"])
        >>> config.optim.lr, config.model.name, config.train.batch_size
        (0.0001, 'resnet50', 32)
    """
    settings: dict[str, Any] = {}
    if path is not None:
        settings = read_toml(path)
    for assignment in assignments:
        assign(settings, *parse_assignment(assignment))
    return parse_config(settings)


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Return name and value of a `--set` assignment.

    Args:
        assignment: As for `load_config`.

    Raises:
        ConfigError: It is not of the form `section.name=value`.

    Example:
        >>> parse_assignment("optim.lr=1e-4"), parse_assignment("data.path=2020")
        (('optim.lr', 0.0001), ('data.path', '2020'))
        >>> parse_assignment("data.path=['first', 'second']")
        ('data.path', ['first', 'second'])
    """
    key, equals, text = (part.strip() for part in assignment.partition("="))
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(
            f"expected --set section.name=value, got {assignment!r}",
            hint="for example --set optim.lr=1e-4",
        )
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, text
    if len(found) > 1:  # several lines
        return key, text
    value = found["value"]
    # A folder may be called 2020, but no text setting is a number.
    annotation, several = _annotation(key), str | list[str] | None
    is_text = annotation in (str, str | None, several)
    is_value = isinstance(value, str | list if annotation == several else str)
    return key, text if is_text and not is_value else value


def as_setting(value: Any) -> Any:
    """Return a value as TOML has it: paths as texts, and one in a list alone.

    Example:
        >>> as_setting(Path("a")), as_setting([Path("a")]), as_setting(("a", Path("b")))
        ('a', 'a', ['a', 'b'])
    """
    if isinstance(value, list | tuple) and any(
        isinstance(v, Path | str) for v in value
    ):
        several = [as_setting(one) for one in value]
        return several[0] if len(several) == 1 else several
    return str(value) if isinstance(value, Path) else value


def assign(settings: dict[str, Any], key: str, value: Any) -> None:
    """Put one setting into nested settings, in place.

    Args:
        settings: As read from TOML.
        key: `section.name`; `model.extra.pad_type` is one key of a table.
        value: 'none' unsets a setting that can be unset.

    Raises:
        ConfigError: Something that is not a table is where a table should be.
    """
    *tables, name = key.split(".")
    inner = settings
    for depth, table in enumerate(tables, start=1):
        inner = inner.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"expected a table for {'.'.join(tables[:depth])}, got {inner!r}",
                hint="set the table, or settings in it, but not both",
            )
    if value == "none" and _can_be_unset(key):
        inner.pop(name, None)
    else:
        inner[name] = value


def merge(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put the sections of a TOML file into nested settings, in place.

    Example:
        >>> settings = {"optim": {"lr": 0.1, "epochs": 3}}
        >>> merge(settings, {"optim": {"lr": 0.2}})
        >>> settings
        {'optim': {'lr': 0.2, 'epochs': 3}}
    """
    for section, inner in more.items():
        both = isinstance(inner, dict) and isinstance(settings.get(section), dict)
        settings[section] = settings[section] | inner if both else inner


def parse_config(settings: Mapping[str, Any]) -> Config:
    """Return the complete settings for nested dictionaries, as read from TOML.

    Raises:
        ConfigError: A setting is unknown, mistyped, out of range or contradicts
            another. The first such setting is named.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problem, hint = _explain(error.errors()[0])
        raise ConfigError(problem, hint=hint) from None


def absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths, so that they hold in any folder.

    Pooled sets get their names, which then hold wherever their folders are moved.

    Raises:
        ConfigError: A set is named twice.
    """
    values = config.model_dump(mode="json", exclude_none=True)
    for key in path_settings():
        section, _, name = key.partition(".")
        if name in values[section]:
            values[section][name] = absolute_path(key, values[section][name])
    path = values["data"].get("path")
    if isinstance(path, list) and "names" not in values["data"]:
        values["data"]["names"] = set_names(path)
    return parse_config(values)


def absolute_path(key: str, value: Any) -> Any:
    """Return the value of a setting; a path becomes absolute.

    Args:
        key: `section.name` of any setting.
        value: Its value. Words such as 'none' of data.metadata are no paths.

    Example:
        >>> absolute_path("data.metadata", "none"), absolute_path("optim.lr", 0.1)
        ('none', 0.1)
        >>> absolute_path("data.path", "/images/../set")
        '/set'
    """
    if not paths_in(key, value):
        return value
    if isinstance(value, list):
        return [absolute_path(key, one) for one in value]
    return str(Path(value).resolve())


def paths_in(key: str, value: Any) -> list[str]:
    """Return the paths in the value of a setting: none in a word, one, or several.

    Example:
        >>> paths_in("model.pretrained", "no"), paths_in("model.pretrained", "a.pth")
        ([], ['a.pth'])
        >>> paths_in("data.path", ["a", "b"]), paths_in("augment.crop_scale", [0.5, 1])
        (['a', 'b'], [])
    """
    extra = _extra_of(key)
    if not extra.get("path"):
        return []
    several = value if isinstance(value, list) else [value]
    return [
        one
        for one in several
        if isinstance(one, str) and one not in extra.get("words", ())
    ]


def set_names(paths: Sequence[str | Path]) -> list[str]:
    """Return the names of several sets of images: those of their folders or tables.

    Those with equal names are told apart by the folders above them, without those of
    the home folder, which name the user.

    Raises:
        ConfigError: A set is named twice.

    Example:
        >>> set_names(["/a/brain", "/b/figshare.csv"])
        ['brain', 'figshare']
        >>> set_names(["/kaggle/bhuvaji/images", "/kaggle/nickparvar/images"])
        ['bhuvaji-images', 'nickparvar-images']
    """
    places = [Path(path).resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(
                f"the set of images {place} is named twice", hint="name it once"
            )
    home = None
    with suppress(RuntimeError):  # there is none
        home = Path.home().resolve()
    parts = []
    for place in places:
        is_table = place.suffix.lower() in (".csv", ".parquet")
        below = place
        if home is not None and home in place.parents:
            below = place.relative_to(home)
        folders = below.parent.parts[below.is_absolute() :]
        parts.append([*folders, place.stem if is_table else place.name])
    depths = [1] * len(parts)
    for _ in range(max(map(len, parts), default=1)):
        names = [
            _NOT_IN_NAMES.sub("_", "-".join(part[-depth:]))[:_MAX_NAME] or "root"
            for part, depth in zip(parts, depths, strict=True)
        ]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        depths = [
            depth + (counts[name] > 1)
            for name, depth in zip(names, depths, strict=True)
        ]
    raise ConfigError(
        f"the sets of images {', '.join(map(str, places))} have names that cannot be "
        "told apart",
        hint="name them: --set \"data.names=['first', 'second']\"",
    )


def dump_config(config: Config) -> str:
    """Return the settings as TOML that `load_config` reads back to an equal `Config`.

    TOML has no null: unset settings are left out.
    """
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def setting_names() -> dict[str, str]:
    """Return every setting as `section.name` with its description."""
    return {
        f"{section}.{name}": field.description or ""
        for section, outer in Config.model_fields.items()
        for name, field in _section(outer.annotation).model_fields.items()
    }


OF_SPLIT = (
    *("data.path", "data.names", "data.metadata", "data.labels", "data.protocol"),
    "data.split",
    *("data.val_fraction", "data.test_fraction", "data.num_folds"),
    *("data.max_unreadable", "data.max_file_mib", "data.max_pixels", "train.seed"),
)
"""Settings that decide which file is in which subset."""

OF_IMPORT = (
    *(key for key in OF_SPLIT if key != "data.num_folds"),
    *("data.fit", "data.cache_dir", "data.cache_limit_mib", "train.workers"),
    *("model.name", "model.drop_rate", "model.drop_path_rate", "model.global_pool"),
    *("model.in_chans", "model.size_px", "model.mean", "model.std", "model.mirror"),
    *("model.extra", "trust.coverage", "trust.error", "trust.confidence"),
    "trust.specificity",
)
"""Settings that imported weights use: of the network, the split, the evaluation and, if
it is asked for, `tumorlens trust`."""


def check_used(
    key: str,
    *,
    only: Collection[str] | None = None,
    but: Collection[str] = (),
    shown: str = "",
) -> None:
    """Refuse a setting that has no effect where it is given.

    Args:
        key: Its name. A key of `model.extra` counts as `model.extra`; an unknown name
            passes, since parsing tells.
        only: Names of the settings that have an effect. Default: all.
        but: Names of settings that have none.
        shown: How the user gave it. Default: its name.

    Raises:
        ConfigError: It has none.
    """
    name = ".".join(key.split(".")[:2])
    if name not in setting_names():
        return
    if name in but or (only is not None and name not in only):
        hint = "leave it out"
        if only is not None:
            hint += f"; those with an effect: {', '.join(only)}"
        raise ConfigError(f"{shown or key} has no effect here", hint=hint)


def machine_settings() -> frozenset[str]:
    """Return the settings, as `section.name`, that belong to a machine, not a run.

    Two runs that differ in nothing else are the same training on two machines.
    """
    return frozenset(key for key in setting_names() if _extra_of(key).get("machine"))


def path_settings() -> frozenset[str]:
    """Return the settings, as `section.name`, whose values are paths."""
    return frozenset(key for key in setting_names() if _extra_of(key).get("path"))


def number_kind(key: str) -> type[int] | type[float] | None:
    """Return int or float for a setting that is a number; `None` for any other.

    Example:
        >>> number_kind("optim.epochs"), number_kind("optim.lr")
        (<class 'int'>, <class 'float'>)
        >>> number_kind("model.size_px"), number_kind("model.name")
        (<class 'int'>, None)
    """
    annotation = _annotation(key)
    is_optional = type(None) in get_args(annotation)
    for one in get_args(annotation) if is_optional else (annotation,):
        kind = get_args(one)[0] if get_origin(one) is Annotated else one
        if kind in (int, float):
            return cast("type[int] | type[float]", kind)
    return None


def values_of(config: Config) -> dict[str, Any]:
    """Return the settings as `section.name` -> value; `None` for those unset."""
    content = config.model_dump(mode="json")
    return {
        f"{section}.{name}": value
        for section, inner in content.items()
        for name, value in inner.items()
    }


def differences(before: Config, now: Config) -> dict[str, str]:
    """Return setting -> how it differs, in words, for all settings that do.

    Example:
        >>> now = load_config(assignments=["optim.lr=0.1", "model.size_px=64"])
        >>> differences(Config(), now)
        {'model.size_px': 'unset before, now 64', 'optim.lr': '0.001 before, now 0.1'}
    """
    new = values_of(now)
    return {
        key: f"{_shown(old)} before, now {_shown(new[key])}"
        for key, old in values_of(before).items()
        if old != new[key]
    }


def idle_settings(config: Config) -> dict[str, str]:
    """Return setting -> why it has no effect, for those that are not at their default.

    Example:
        >>> idle_settings(load_config(assignments=["augment.mix_probability=0.5"]))
        {'augment.mix_probability': 'augment.mixup and augment.cutmix are 0'}
    """
    data, augment, optim, train = (
        *(config.data, config.augment, config.optim, config.train),
    )
    rules = {
        "data.val_fraction": (
            data.split is not None and data.protocol != "grouped-kfold",
            "data.split has the subsets",
        ),
        "data.test_fraction": (
            data.split is not None or data.protocol != "grouped",
            f"data.protocol is {data.protocol!r}"
            if data.split is None
            else "data.split has the subsets",
        ),
        "data.num_folds": (
            data.protocol != "grouped-kfold",
            f"data.protocol is {data.protocol!r}",
        ),
        "data.cache_dir": (data.cache_limit_mib == 0, "data.cache_limit_mib is 0"),
        "augment.crop_scale": (
            "random-resized-crop" not in augment.policies,
            f"augment.policy is {augment.policy!r}",
        ),
        "augment.auto_augment": (
            "auto-augment" not in augment.policies,
            f"augment.policy is {augment.policy!r}",
        ),
        "augment.strength": (
            "mri" not in augment.policies,
            f"augment.policy is {augment.policy!r}",
        ),
        "augment.mix_probability": (
            not augment.mixup and not augment.cutmix,
            "augment.mixup and augment.cutmix are 0",
        ),
        "optim.step_size": (
            optim.scheduler != "step",
            f"optim.scheduler is {optim.scheduler!r}",
        ),
        "optim.gamma": (
            optim.scheduler not in ("step", "exponential"),
            f"optim.scheduler is {optim.scheduler!r}",
        ),
        "optim.min_lr": (
            optim.scheduler != "cosine",
            f"optim.scheduler is {optim.scheduler!r}",
        ),
        "train.early_stop_epochs": (
            train.best_by == "last" or (train.early_stop_epochs or 0) >= optim.epochs,
            "every epoch is the best by 'last'"
            if train.best_by == "last"
            else f"optim.epochs is {optim.epochs}",
        ),
    }
    default, now = values_of(Config()), values_of(config)
    return {
        key: why
        for key, (is_idle, why) in rules.items()
        if is_idle and now[key] != default[key]
    }


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _can_be_unset(key: str) -> bool:
    # data.metadata is the exception: 'none' is one of its values.
    return type(None) in get_args(_annotation(key)) and key != "data.metadata"


def _annotation(key: str) -> Any:
    field = _field(key)
    return field.annotation if field else None


def _extra_of(key: str) -> dict[str, Any]:
    """Return the marks of a setting; none for a name that is no setting."""
    field = _field(key)
    extra = field.json_schema_extra if field else None
    return extra if isinstance(extra, dict) else {}


def _field(key: str) -> FieldInfo | None:
    section, _, name = key.partition(".")
    outer = Config.model_fields.get(section)
    return _section(outer.annotation).model_fields.get(name) if outer else None


def _section(annotation: Any) -> type[_Section]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, _Section)
    return annotation


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """Return problem and hint for one of pydantic's errors, in the user's words."""
    place = [str(part) for part in error["loc"]]
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        known = setting_names() if len(place) > 1 else Config.model_fields
        return f"unknown setting {key!r}", did_you_mean(key, known)
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]), "change one of the settings named"
    description = setting_names().get(".".join(place[:2]), "see docs/settings.md")
    message = error["msg"][:1].lower() + error["msg"][1:]
    problem = f"{key}: {message}, got {error['input']!r}"
    return problem, f"change {key} ({description.rstrip('.')})"
