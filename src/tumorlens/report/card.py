"""The model card as data, `card.json`: what a run is, and what is known of its worth.

Nothing is measured here. Each part repeats fields of a file of the run under the same
names; beside them are counts of rows (`split.csv`, `looks.jsonl`) and sums over epochs
(`history.jsonl`). A part whose file is not there is in `missing`, with the command that
makes it. Paths of the machine stay out, and so do names of images.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import tumorlens
from tumorlens.config import Fit, Protocol
from tumorlens.data.leakage import LeakVerdict
from tumorlens.data.sets import sets_of
from tumorlens.data.split import LEFT_OUT, count_left_out
from tumorlens.deploy.artefact import Manifest, ParityAccuracy, open_artefact
from tumorlens.errors import RunError
from tumorlens.evaluation.map_checks import ExplanationChecks, Summary
from tumorlens.files import (
    Count,
    Fraction,
    NotNegative,
    Number,
    read_model,
    sha256_of,
)
from tumorlens.report.explanations import CHECKS_FILE
from tumorlens.runs.estimate import Estimate, Loss, Share, within
from tumorlens.runs.external import FILE as EXTERNAL_FILE
from tumorlens.runs.external import ClassPair, ExternalCounts
from tumorlens.runs.measures import (
    ClassMeasures,
    FoldMeasures,
    PairedDifference,
    SourceMeasures,
    Subset,
    TrustMeasures,
)
from tumorlens.runs.stress import StressTrust, read_stress
from tumorlens.runs.trust import (
    FILE as TRUST_FILE,
)
from tumorlens.runs.trust import (
    GATE_FILE,
    GateFacts,
    OperatingPoint,
    Promise,
    Trust,
    read_trust,
    trust_by_part,
)
from tumorlens.system import without_user
from tumorlens.text import natural_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tumorlens.config import Config
    from tumorlens.data.index import SplitRow
    from tumorlens.deploy.artefact import Artefact
    from tumorlens.runs.external import ExternalMetrics
    from tumorlens.runs.folder import Run
    from tumorlens.runs.measures import Measures, Metrics
    from tumorlens.runs.stress import Stress

NOT_KNOWN = "not known to the software"

INTENDED_USE = (
    "Research and teaching: comparing methods, repeating figures, learning how an "
    "image classifier is judged. Its input is one 2-D image of a head MRI, of the kind "
    "that the training images show. It is no medical device: no diagnosis and no "
    "treatment may rest on an answer."
)

_ONE_IMAGE = (
    "It sees a single image: no neighbouring slices, no other sequences, no history "
    "and no clinical question."
)
_OWN_CLASSES = (
    "It knows its own classes only. An image of anything else gets one of them too, "
    "unless it is turned away."
)
_SOURCES = (
    "A class whose training images come from a source of their own can be recognized "
    "by that source. No training cures it."
)
_NOT_CALIBRATED = (
    "It is not calibrated: its probabilities may not mean what they say, and it never "
    "answers that it is uncertain."
)
_NO_OTHER_SET = (
    "It was measured on no other set, so nothing is known of images from other places."
)

_WITH_A_SPLIT = "tumorlens import WEIGHTS --data DATA --out RUN"
"""What makes a run with a split of weights from elsewhere."""

_MISSING = {
    "split": ("not known, as the run has no split", _WITH_A_SPLIT),
    "training": ("not known, as the weights were not trained here", ""),
    "figures": ("not measured", "tumorlens evaluate RUN"),
    "trust": ("not calibrated", "tumorlens trust RUN"),
    "external": ("not measured", "tumorlens evaluate RUN --on DATA"),
    "stress": ("not measured", "tumorlens stress RUN"),
    "explanations": (
        "not checked",
        "tumorlens explain RUN IMAGE... --out RUN/explain",
    ),
    "exports": ("not exported", "tumorlens export RUN --format onnx"),
}
"""Part of the card -> what it says where the part is missing, and the command that
makes it."""

_NEED_A_SPLIT = ("figures", "trust", "stress", "exports")

_IN_ITS_RUN = ("not in an artefact", "tumorlens card RUN")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CardNetwork(_Part):
    """A network, as in `model.json`."""

    name: str
    """timm's name."""
    classes: tuple[str, ...]
    size_px: int
    fit: Fit
    views: str
    """Views that are averaged: `tta` of `model.json`, or "mirror"."""
    temperature: float
    epoch: int | None
    """Epoch of the weights; 0 for imported ones, `None` in an artefact."""
    weights_sha256: str


class CardSplit(_Part):
    """Counts of the rows of `split.csv`."""

    images: dict[str, dict[str, Count]]
    """Subset, or fold -> class -> images; without those left out."""
    groups: dict[str, Count]
    """Subset, or fold -> groups."""
    left_out: dict[str, Count]
    """Reason, in words -> files."""


class CardProtocol(_Part):
    """How the subsets were made, as in `config.toml`, and how often they were seen."""

    protocol: Protocol
    is_given: bool
    """Whether the subsets were read from a file of the user's."""
    val_fraction: Fraction
    test_fraction: Fraction
    num_folds: Count
    fold: int | None
    """Single fold that was trained, of `num_folds`."""
    best_by: str
    """Val measure that chose the weights; "last" for those of the last epoch."""
    watch_test: bool
    """Whether test was measured after each epoch."""
    seed: int
    looks: dict[str, Count]
    """What was looked at -> how often, from `looks.jsonl`."""


class CardTraining(_Part):
    """What training took: `history.jsonl` and `config.toml`, see `Card.networks`."""

    epochs: dict[str, Count]
    """Folder of a network -> epochs."""
    seconds: dict[str, NotNegative]
    """Folder of a network -> the sum of its epochs."""
    start: str
    """Weights that it began with, in words."""
    optimizer: str
    lr: Number
    scheduler: str
    batch_size: Count
    augment: str
    label_smoothing: Number
    class_weights: str


class CardMachine(_Part):
    """Machine and versions of the training, from `environment.json`."""

    tumorlens: str | None
    commit: str | None = None
    python: str | None = None
    platform: str | None = None
    cpu_count: int | None = None
    device: str | None = None
    precision: str | None = None
    packages: dict[str, str]
    """Library -> version, of those that were there."""


class CardMeasures(_Part):
    """Figures on some images, as in `metrics.json`."""

    num_images: Count
    num_groups: Count
    classes: tuple[str, ...]
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    macro_auroc: Share
    log_loss: Loss
    brier: Annotated[Estimate, within(0, 2)]
    ece: Share
    per_class: dict[str, ClassMeasures]
    confusion_matrix: tuple[tuple[Count, ...], ...]
    by_source: dict[str, SourceMeasures]
    folds: tuple[FoldMeasures, ...]
    interval: str
    warnings: tuple[str, ...]
    no_interval: dict[str, str]
    not_measured: dict[str, str]


class CardFigures(CardMeasures):
    """Figures on test, and what the answers are worth there."""

    trust: TrustMeasures | None


class CardCalibration(_Part):
    """Calibration on val, as in `trust.json`."""

    log_loss: Loss
    brier: Loss
    ece: Share


class CardTrust(_Part):
    """When a network answers, as in `trust.json`."""

    num_images: Count
    num_groups: Count
    temperature: float
    before: CardCalibration | None
    after: CardCalibration | None
    coverage: Fraction
    """Wanted coverage of the conformal sets."""
    promise: Promise
    operating_points: dict[str, OperatingPoint]
    gate: GateFacts | None


class CardExternal(_Part):
    """Figures on another set, as in `external.json`."""

    name: str
    data: str
    model: str
    classes: tuple[ClassPair, ...]
    unknown_classes: dict[str, Count]
    counts: ExternalCounts
    is_seen_known: bool
    all: CardMeasures
    seen: CardMeasures | None
    new: CardMeasures | None
    notes: tuple[str, ...]
    words: str
    """What training has seen of the set."""


class CardCorruption(_Part):
    """The level of a corruption that costs the most accuracy, as in `stress.json`."""

    name: str
    title: str
    level: Count
    accuracy: Share
    change: PairedDifference
    p_holm: Fraction
    trust: StressTrust | None
    is_found: bool
    """Whether the change is more than chance."""


class CardStress(_Part):
    """Accuracy on worse images, as in `stress.json`."""

    model: str
    subset: Subset
    num_images: Count
    num_groups: Count
    clean: Share
    clean_trust: StressTrust | None
    corruptions: tuple[CardCorruption, ...]
    not_measured: dict[str, str]
    words: str


class CardExplanations(_Part):
    """What maps are worth, as in `checks.json`."""

    model: str
    method: str
    summary: Summary
    not_checked: tuple[str, ...]
    words: tuple[str, ...]


class CardExport(_Part):
    """An artefact against its run, as in `parity.json`."""

    kind: str
    precision: str
    num_images: Count
    max_difference: NotNegative
    accuracy: ParityAccuracy
    shown: str
    """What the images show about a loss of accuracy."""


class CardGap(_Part):
    """A part that is missing."""

    why: str
    command: str
    """What makes it; empty where nothing does."""


class CardLicence(_Part):
    """Licences, as far as the software knows them."""

    software: str = "Apache-2.0"
    """That of tumorlens."""
    weights: str
    pretrained: str
    """Licence of the weights that the training began with."""
    data: str


class Card(_Part):
    """The content of `card.json`."""

    format: Literal[1] = 1
    tumorlens: str
    """Version that wrote the card."""
    name: str
    """Name of the run or, for an artefact, of its run."""
    kind: Literal["run", "k-fold run", "ensemble", "imported weights", "artefact"]
    model: str
    """timm's name of the network; what an ensemble is made of."""
    classes: tuple[str, ...] = Field(min_length=2)
    intended_use: str = INTENDED_USE
    limits: tuple[str, ...]
    networks: dict[str, CardNetwork]
    """Folder inside the run, "." for the run itself -> the network in it."""
    sets: tuple[str, ...] = ()
    """Names of the sets of images, where they are known."""
    leak: LeakVerdict | None = None
    """`leak.json`, the verdict of the audit on this split; `None` in an artefact."""
    split: CardSplit | None = None
    protocol: CardProtocol | None = None
    training: CardTraining | None = None
    machine: CardMachine
    figures: CardFigures | None = None
    trust: dict[str, CardTrust]
    """Folder inside the run -> trust; one for each fold, empty where not calibrated."""
    external: dict[str, CardExternal] = Field(default_factory=dict)
    """Folder below `external` -> figures on another set."""
    stress: dict[str, CardStress] = Field(default_factory=dict)
    """File -> accuracy on worse images."""
    explanations: dict[str, CardExplanations] = Field(default_factory=dict)
    """File -> what the maps beside it are worth."""
    exports: dict[str, CardExport]
    """Folder -> an artefact."""
    licence: CardLicence
    base_model: str | None = None
    """Name on the model hub of the weights that the training began with."""
    missing: dict[str, CardGap]
    """Part -> why it is not there."""
    files: dict[str, str]
    """File of the run -> its SHA-256."""

    @property
    def has_leak(self) -> bool:
        """Whether figures are not to be believed: training may have seen test."""
        return self.leak is not None and self.leak.leaks


def card_of_run(run: Run) -> Card:
    """Return the card of a finished run of any kind.

    Raises:
        RunError: The run is not finished, or one of its files is missing, damaged or
            of other weights.
        ArtefactError: One of its artefacts is damaged.
    """
    if not run.is_finished:
        raise RunError(
            f"the training of {run.path} is not finished",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    networks = {_place(run, one.path): _network(one) for one in run.networks()}
    environment = run.environment()
    is_imported = "imported_from" in environment
    metrics = run.metrics() if run.metrics_path.is_file() else None
    leak = run.leak() if run.leak_path.is_file() else None
    split = run.split() if run.split_path.is_file() else ()
    external, folders = run.external_metrics(), _exports(run)
    stress = {one.name: read_stress(one) for one in _stress_files(run)}
    checks = {
        _place(run, one): _read_checks(one)
        for one in sorted(run.path.glob(f"*/{CHECKS_FILE}"))
    }
    licence, base_model = _licence(run.config, is_imported=is_imported)
    parts: dict[str, Any] = {
        "split": _split(split) if split else None,
        "training": None if is_imported else _training(run),
        "figures": metrics and _figures(metrics),
        "trust": _trust(run),
        "external": {name: _external(one) for name, one in external.items()},
        "stress": {name: _stress(one) for name, one in stress.items()},
        "explanations": {name: _explanations(one) for name, one in checks.items()},
        "exports": {name: _export(one) for name, one in folders.items()},
    }
    card = Card(
        tumorlens=tumorlens.__version__,
        name=run.name,
        kind=_kind(run, is_imported=is_imported),
        model=run.model_name,
        classes=next(iter(networks.values())).classes,
        limits=_limits(
            leak, is_calibrated=bool(parts["trust"]), is_elsewhere=bool(external)
        ),
        networks=networks,
        sets=_set_names(run.config),
        leak=leak,
        protocol=_protocol(run) if split else None,
        machine=_machine(environment),
        licence=licence,
        base_model=base_model,
        missing=_gaps(run, [name for name, part in parts.items() if not part]),
        files=_files(run, [*stress, *checks]),
        **parts,
    )
    return _without_user(card)


def card_of_artefact(path: Path) -> Card:
    """Return the card of an artefact: its networks, its trust and its verdict.

    Raises:
        ArtefactError: It is no artefact, or a file is not the one that was exported.
        RunError: Its trust is damaged or of other weights.
    """
    artefact = open_artefact(path)
    known = artefact.card
    trusted = read_trust(artefact.path, known.weights_sha256)
    is_one = len(known.networks) == 1
    networks = {
        "." if is_one else f"members/{number}": CardNetwork(
            name=name,
            classes=known.classes,
            size_px=known.size_px,
            fit=known.fit,
            views=known.views,
            temperature=known.temperature[number],
            epoch=None,
            weights_sha256=known.weights_sha256[number],
        )
        for number, name in enumerate(known.networks)
    }
    trust = {".": _of_trust(trusted.trust)} if trusted else {}
    manifest = read_model(artefact.path / "manifest.json", Manifest, hint="")
    card = Card(
        tumorlens=tumorlens.__version__,
        name=known.run,
        kind="artefact",
        model=" + ".join(known.networks),
        classes=known.classes,
        limits=_limits(None, is_calibrated=bool(trust), is_elsewhere=None),
        networks=networks,
        machine=CardMachine(tumorlens=known.tumorlens, packages=known.made_with),
        trust=trust,
        exports={".": _export(artefact)},
        licence=CardLicence(weights=NOT_KNOWN, pretrained=NOT_KNOWN, data=NOT_KNOWN),
        missing={
            name: CardGap(why=_IN_ITS_RUN[0], command=_IN_ITS_RUN[1])
            for name in _MISSING
            if name != "exports" and not (name == "trust" and trust)
        },
        files={name: facts.sha256 for name, facts in manifest.files.items()},
    )
    return _without_user(card)


def _without_user(card: Card) -> Card:
    # Names from outside, as that of a set, may hold the user's.
    return Card.model_validate_json(without_user(card.model_dump_json()))


def _kind(
    run: Run, *, is_imported: bool
) -> Literal["run", "k-fold run", "ensemble", "imported weights"]:
    if run.is_ensemble:
        return "ensemble"
    if is_imported:
        return "imported weights"
    return "k-fold run" if run.is_kfold else "run"


def _gaps(run: Run, names: Iterable[str]) -> dict[str, CardGap]:
    gaps = {}
    for name in names:
        why, command = _MISSING[name]
        if name == "exports" and run.is_kfold:
            command = "tumorlens export RUN/folds/0 --format onnx"
        if name in _NEED_A_SPLIT and not run.split_path.is_file():
            why, command = f"{why}, as the run has no split", _WITH_A_SPLIT
        gaps[name] = CardGap(why=why, command=command)
    return gaps


def _place(run: Run, path: Path) -> str:
    """Return where a folder or file of a run is, from the run."""
    return path.relative_to(run.path).as_posix()


def _network(run: Run) -> CardNetwork:
    """Return a network, its weights checked. Raises what `Run.card` raises."""
    card = run.card()
    views = card.tta if card.tta != "none" else "mirror" if card.mirror else "none"
    return CardNetwork(
        name=card.name,
        classes=card.classes,
        size_px=card.size_px,
        fit=card.fit,
        views=views,
        temperature=card.temperature,
        epoch=card.epoch,
        weights_sha256=card.weights_sha256,
    )


def _limits(
    leak: LeakVerdict | None, *, is_calibrated: bool, is_elsewhere: bool | None
) -> tuple[str, ...]:
    """Return the limits, one sentence or two each.

    Args:
        leak: The leak verdict; `None` where it is not known.
        is_calibrated: Whether it has trust.
        is_elsewhere: Whether it was measured on another set; `None`: not known.
    """
    limits = [_ONE_IMAGE, _OWN_CLASSES, _SOURCES]
    if not is_calibrated:
        limits.append(_NOT_CALIBRATED)
    if leak is not None and leak.leaks:
        limits.append(f"The figures on test are not held out. {leak.words}")
    elif leak is not None and leak.unknown_patients:
        limits.append(
            "Whether training has seen the patients of test is open: "
            f"{leak.unknown_patients}."
        )
    if is_elsewhere is False:
        limits.append(_NO_OTHER_SET)
    return tuple(limits)


def _set_names(config: Config) -> tuple[str, ...]:
    """Return the names of the sets, without the folders that they are in."""
    sets = sets_of(config.data)
    if sets is None:
        return ()
    # Before the folders are cut off: the folder itself may have the user's name.
    last = (Path(without_user(str(place))).name for place in sets.places)
    return sets.names or tuple(name for name in last if name not in ("", "~"))


def _split(rows: Sequence[SplitRow]) -> CardSplit:
    images: dict[str, Counter[str]] = {}
    groups: dict[str, set[str]] = {}
    order = ("train", "val", "test")
    for row in rows:
        if row.subset != LEFT_OUT:
            images.setdefault(row.subset, Counter())[row.label] += 1
            groups.setdefault(row.subset, set()).add(row.group)
    subsets = sorted(
        images,
        key=lambda one: (
            order.index(one) if one in order else len(order),
            natural_key(one),
        ),
    )
    return CardSplit(
        images={one: dict(sorted(images[one].items())) for one in subsets},
        groups={one: len(groups[one]) for one in subsets},
        left_out=count_left_out(rows),
    )


def _protocol(run: Run) -> CardProtocol:
    """Return the protocol. Raises what `Run.looks` raises."""
    data, train = run.config.data, run.config.train
    return CardProtocol(
        protocol=data.protocol,
        is_given=data.split is not None,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        num_folds=data.num_folds,
        fold=data.fold,
        best_by=train.best_by,
        watch_test=train.watch_test,
        seed=train.seed,
        looks=dict(Counter(look.subset for look in run.looks())),
    )


def _training(run: Run) -> CardTraining:
    """Return what training took. Raises what `Run.history` raises."""
    histories = {_place(run, one.path): one.history() for one in run.networks()}
    config = run.config
    return CardTraining(
        epochs={place: len(rows) for place, rows in histories.items()},
        seconds={
            place: sum(row.get("seconds") or 0.0 for row in rows)
            for place, rows in histories.items()
        },
        start=_start(config),
        optimizer=config.optim.name,
        lr=config.optim.lr,
        scheduler=config.optim.scheduler,
        batch_size=config.train.batch_size,
        augment=config.augment.policy,
        label_smoothing=config.train.label_smoothing,
        class_weights=config.train.class_weights,
    )


def _start(config: Config) -> str:
    """Return the weights that a training began with, in words."""
    start = config.model.pretrained
    if start == "no":
        return "random weights"
    if start in ("auto", "yes"):
        return "the pretrained weights that timm names for the network"
    return f"the weights file {Path(start).name}"


def _machine(environment: Mapping[str, Any]) -> CardMachine:
    compute = environment.get("compute") or {}
    packages = environment.get("packages") or {}
    return CardMachine(
        **{
            name: environment.get(name)
            for name in ("tumorlens", "commit", "python", "platform", "cpu_count")
        },
        device=compute.get("device"),
        precision=compute.get("precision"),
        packages={name: version for name, version in packages.items() if version},
    )


def _licence(config: Config, *, is_imported: bool) -> tuple[CardLicence, str | None]:
    """Return the licences, and the name on the hub of the first weights."""
    start, base_model = config.model.pretrained, None
    pretrained = NOT_KNOWN
    if start == "no":
        pretrained = "none, as it began with random weights"
    elif start in ("auto", "yes") and not is_imported:
        import timm

        known = timm.get_pretrained_cfg(config.model.name)
        if known is not None:
            base_model = known.hf_hub_id or None
            pretrained = (
                f"{known.license}, as timm has it" if known.license else pretrained
            )
    licence = CardLicence(weights=NOT_KNOWN, pretrained=pretrained, data=NOT_KNOWN)
    return licence, base_model


def _measures(found: Measures, kind: type[CardMeasures] = CardMeasures) -> Any:
    names = set(kind.model_fields)
    return kind.model_validate(found.model_dump(include=names))


def _figures(found: Metrics) -> CardFigures:
    measures: CardFigures = _measures(found, CardFigures)
    return measures


def _trust(run: Run) -> dict[str, CardTrust]:
    """Return the trust of a run, or of each fold; empty where one has none.

    Raises what `trust_by_part` raises.
    """
    parts, found = run.folds() or (run,), trust_by_part(run)
    return {
        _place(run, part.path): _of_trust(one.trust)
        for part, one in zip(parts, found, strict=bool(found))
    }


def _of_trust(trust: Trust) -> CardTrust:
    def calibration(name: str) -> CardCalibration | None:
        found = getattr(trust, name)
        return found and CardCalibration(
            log_loss=found.log_loss, brier=found.brier, ece=found.ece
        )

    return CardTrust(
        num_images=trust.num_images,
        num_groups=trust.num_groups,
        temperature=trust.temperature,
        before=calibration("before"),
        after=calibration("after"),
        coverage=trust.sets.coverage,
        promise=trust.promise,
        operating_points=trust.operating_points,
        gate=trust.gate,
    )


def _external(found: ExternalMetrics) -> CardExternal:
    parts = {
        part: None if measures is None else _measures(measures)
        for part, measures in (
            ("all", found.all),
            ("seen", found.seen),
            ("new", found.new),
        )
    }
    return CardExternal(
        name=found.name,
        data=found.data,
        model=found.model,
        classes=found.classes,
        unknown_classes=found.unknown_classes,
        counts=found.counts,
        is_seen_known=found.is_seen_known,
        notes=found.notes,
        words=found.words,
        **parts,
    )


def _stress_files(run: Run) -> list[Path]:
    first = run.stress_path("test")
    return sorted(run.path.glob(f"{first.stem}*.json"))


def _stress(found: Stress) -> CardStress:
    corruptions = []
    for one in found.by_loss:
        worst = one.most_lost
        corruptions.append(
            CardCorruption(
                name=one.name,
                title=one.title,
                level=worst.level,
                accuracy=worst.accuracy,
                change=worst.change,
                p_holm=worst.p_holm,
                trust=worst.trust,
                is_found=worst.is_found,
            )
        )
    return CardStress(
        model=found.model,
        subset=found.subset,
        num_images=found.num_images,
        num_groups=found.num_groups,
        clean=found.clean,
        clean_trust=found.clean_trust,
        corruptions=tuple(corruptions),
        not_measured=found.not_measured,
        words=found.words,
    )


def _read_checks(path: Path) -> ExplanationChecks:
    return read_model(path, ExplanationChecks, hint="make the maps again, or move them")


def _explanations(found: ExplanationChecks) -> CardExplanations:
    return CardExplanations(
        model=found.model,
        method=found.method,
        summary=found.summary,
        not_checked=found.not_checked,
        words=tuple(found.sentences()),
    )


def _exports(run: Run) -> dict[str, Artefact]:
    """Return the artefacts of a run. Raises what `open_artefact` raises."""
    folders = sorted(path.parent for path in run.path.glob("export/*/manifest.json"))
    return {_place(run, folder): open_artefact(folder) for folder in folders}


def _export(artefact: Artefact) -> CardExport:
    parity = artefact.parity()
    return CardExport(
        kind=artefact.card.kind,
        precision=artefact.card.precision,
        num_images=parity.num_images,
        max_difference=parity.max_difference,
        accuracy=parity.accuracy,
        shown=parity.shown,
    )


def _files(run: Run, others: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every file that the card, or its checklist, speaks of."""
    paths = [run.path / name for name in others]
    parts = {part.path: part for part in (run, *run.folds(), *run.networks())}
    for part in parts.values():
        paths += [
            part.path / "config.toml",
            part.environment_path,
            part.split_path,
            part.leak_path,
            part.seen_path,
            part.history_path,
            part.card_path,
            part.weights_path,
            part.path / TRUST_FILE,
            part.path / GATE_FILE,
            part.predictions_path,
            part.answers_of("test"),
            part.metrics_path,
            part.looks_path,
            part.ensemble_path,
        ]
    paths += sorted(run.path.glob(f"external/*/{EXTERNAL_FILE}"))
    paths += sorted(run.path.glob("export/*/manifest.json"))
    return {_place(run, path): sha256_of(path) for path in paths if path.is_file()}
