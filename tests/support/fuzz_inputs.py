"""Kinds of files that a user hands over: good samples, and what reads them.

Each subject writes good files into a folder, spoils one of them, and calls the stages
that read it. `support.fuzzing` drives them.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pydicom import uid

from support.exported_runs import write_images
from support.handmade_external import write_evaluation
from support.images import draw_image
from support.mr_volumes import mr_slice, write, write_media
from support.runs_on_images import make_run
from tumorlens.config import Config, dump_config, load_config, parse_config
from tumorlens.data.dicom.series import find_series
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.images import ImageLimits, load_square, read_image
from tumorlens.data.index import SplitRow, read_index, read_split
from tumorlens.data.seen import Pictures, read_seen, seen_of
from tumorlens.deploy.artefact import open_artefact, write_manifest
from tumorlens.deploy.prediction_file import OF_TRUST, PredictionFile
from tumorlens.deploy.predictor import Predictor
from tumorlens.evaluation.external_files import read_evaluation
from tumorlens.evaluation.gate import fit_gate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.trust import Wanted, promise_of
from tumorlens.files import read_model
from tumorlens.report import (
    write_audit_page,
    write_benchmark_page,
    write_comparison_page,
    write_external_page,
    write_run_report,
)
from tumorlens.runs.estimate import Estimate
from tumorlens.runs.folder import open_run
from tumorlens.runs.listing import list_runs
from tumorlens.runs.measures import TtaEffect
from tumorlens.runs.trust import (
    GateFacts,
    OperatingPoint,
    Sets,
    Trust,
    read_gates,
    read_trust,
    write_trust,
)
from tumorlens.study.plan_file import load_plan, read_plan
from tumorlens.training.network import create_model
from tumorlens.training.weights import load_weights, read_weights_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tumorlens.stats.gate import Gate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "made_at_cd6c76c"
LIMITS = ImageLimits(max_pixels=4_000_000)
"""Small, so that a file that claims to be large costs no minutes."""

_STUDY = """\
title = "Learning rate"
seeds = [1, 2]
protocols = ["grouped"]
[base]
optim.epochs = 3
[axes]
optim.lr = [1e-3, 1e-4]
model.name = ["resnet18", "resnet50"]
"""
_SEARCH = """\
title = "Search"
[search]
trials = 4
sampler = "tpe"
pruner = "median"
[search.ranges]
optim.lr = { low = 1e-5, high = 1e-2, log = true }
optim.epochs = { low = 2, high = 8 }
train.batch_size = [8, 16]
"""


@dataclass(frozen=True)
class Subject:
    """A kind of file."""

    samples: Mapping[str, bytes]
    """Name in the folder -> good content."""
    read: Callable[[Path], object]
    """Reads the spoilt file with this path."""
    is_json: bool = False
    """Whether fields are spoilt too, and not only bytes."""
    repair: Callable[[bytes], bytes] | None = None
    """Makes the checksums of spoilt content right, or nothing behind them is read."""
    show: Callable[[Path], object] | None = None
    """Slower: writes the page of a file that `read` takes."""


def subjects(folder: Path) -> dict[str, Subject]:
    """Return every kind, by name.

    Args:
        folder: Empty; files that stay whole are made here.
    """
    data = write_images(folder / "data", num_each=4)
    run = make_run(folder / "run", data).path
    return {
        **_pictures(folder),
        **_dicom(folder),
        **_tables(data),
        **_toml(folder),
        **_weights(folder, run),
        **_artefacts(folder),
        **_results(folder, data),
        **_evaluations(folder),
        **_trust(folder),
        **_seen(folder, data),
    }


def _pictures(folder: Path) -> dict[str, Subject]:
    grey = draw_image("glioma", 1, size_px=48)
    color = np.stack([grey, np.roll(grey, 3), grey.T], axis=2)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text that is longer than four bytes"
    images = {"grey": Image.fromarray(grey), "color": Image.fromarray(color)}
    images["palette"] = images["color"].quantize(16)
    images["alpha"] = Image.merge("LA", (images["grey"], images["grey"]))
    images["bits"] = images["grey"].convert("1")
    images["deep"] = Image.fromarray(grey.astype(np.uint16) * 257)
    images["float"] = Image.fromarray(grey.astype(np.float32))
    images["cmyk"] = images["color"].convert("CMYK")
    made: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "jpeg": [
            ("grey", {}),
            ("color", {"exif": exif}),
            ("color", {"progressive": True, "quality": 40}),
            ("cmyk", {}),
        ],
        "png": [(name, {}) for name in ("grey", "color", "palette", "alpha", "deep")],
        "tiff": [
            *((name, {}) for name in ("grey", "deep", "float", "bits", "palette")),
            *(
                ("color", {"compression": name})
                for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
            ),
            ("grey", {"save_all": True, "append_images": [images["grey"]] * 2}),
        ],
        "bmp": [(name, {}) for name in ("grey", "color", "palette", "bits")],
    }
    whole = folder / "whole.png"
    images["grey"].save(whole)

    def read(path: Path) -> None:
        read_image(path, limits=LIMITS)
        load_square(path, size_px=32, fit="pad", in_chans=3, limits=LIMITS)
        # What the audit knows of it, beside a second class.
        place = path.parent / "set"
        for label, file in (("a", path), ("b", whole)):
            (place / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / label / "x")
        find_duplicates(read_index(place), limits=LIMITS)

    found = {}
    for kind, variants in made.items():
        samples = {}
        for number, (name, options) in enumerate(variants):
            path = folder / "sample"
            images[name].save(path, format=kind, **options)
            samples[f"{number}.{kind}"] = path.read_bytes()
        repair = _with_right_checksums if kind == "png" else None
        found[kind] = Subject(samples, read, repair=repair)
    return found


def _with_right_checksums(png: bytes) -> bytes:
    place, parts = 8, [png[:8]]
    while len(png) >= place + 12:
        size = int.from_bytes(png[place : place + 4], "big")
        body = png[place + 4 : place + 8 + size]
        checksum = zlib.crc32(body).to_bytes(4, "big")
        parts.append(png[place : place + 4] + body + checksum)
        place += 12 + size
    return b"".join(parts) + png[place:]


def _dicom(folder: Path) -> dict[str, Subject]:
    pixels = draw_image("glioma", 2, size_px=48)
    options: dict[str, Any] = {
        "study_uid": "1.2.3",
        "series_uid": "1.2.4",
        "number": 1,
        "depth": 3.0,
    }
    window: dict[str, Any] = {
        "WindowCenter": 900,
        "WindowWidth": 1800,
        "RescaleSlope": 1.5,
    }
    datasets = [
        mr_slice(pixels, **options),
        mr_slice(pixels, **options, **window, RescaleIntercept=-100),
        mr_slice(np.stack([pixels] * 3), **options, PixelRepresentation=1),
        mr_slice(pixels, **options, PhotometricInterpretation="MONOCHROME1"),
    ]
    samples = {}
    for number, dataset in enumerate(datasets):
        path = write(folder / "sample.dcm", dataset)
        samples[f"{number}.dcm"] = path.read_bytes()
    for number, syntax in enumerate((uid.RLELossless, uid.JPEG2000Lossless)):
        dataset = mr_slice(pixels, **options)
        try:
            dataset.compress(syntax)
        except (RuntimeError, NotImplementedError):  # no encoder here
            continue
        path = write(folder / "sample.dcm", dataset)
        samples[f"packed-{number}.dcm"] = path.read_bytes()
    for number, syntax in enumerate(
        (uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
    ):
        dataset = mr_slice(pixels, **options)
        dataset.file_meta.TransferSyntaxUID = syntax
        path = write(folder / "sample.dcm", dataset)
        samples[f"syntax-{number}.dcm"] = path.read_bytes()

    def read(path: Path) -> None:
        found = find_series([path], limits=LIMITS)
        read_image(path, limits=LIMITS)
        for series in found.series:
            for one in series.slices[:3]:
                read_image(one.path, limits=LIMITS, frame=one.frame)

    media = write_media(folder / "media", num_slices=2)

    def read_media(path: Path) -> None:
        place = path.parent / "media"
        shutil.copytree(media.parent, place, dirs_exist_ok=True)
        shutil.copy(path, place / "DICOMDIR")
        find_series([place / "DICOMDIR"], limits=LIMITS)

    return {
        "dicom": Subject(samples, read),
        "dicomdir": Subject({"DICOMDIR": media.read_bytes()}, read_media),
    }


def _tables(data: Path) -> dict[str, Subject]:
    index = read_index(data)
    paths = [record.path for record in index.records]
    table = "path,label,subset,patient,source\n" + "".join(
        f"{path},{path.partition('/')[0]},train,p{number},a\n"
        for number, path in enumerate(paths)
    )
    metadata = "path,patient,source,source_label\n" + "".join(
        f"{path},p{number},a,{path.partition('/')[0]}\n"
        for number, path in enumerate(paths)
    )
    # pandas' spelling of a table, with quotes, a mark and Windows' ends of lines.
    quoted = "\ufeff" + "".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) + "\r\n"
        for line in table.splitlines()
    )

    def read(path: Path) -> None:
        shutil.copytree(data, path.parent, dirs_exist_ok=True)
        read_index(path)

    def read_metadata(path: Path) -> None:
        read_index(data, metadata=str(path))

    info = Predictor("run", ("glioma", "no_tumor"), "0" * 64, ())
    part = "".join(
        json.dumps(line) + "\n"
        for line in (
            {
                "format": 2,
                "runs": [
                    {
                        "name": "run",
                        "classes": ["glioma", "no_tumor"],
                        "digest": "0" * 64,
                    }
                ],
                "columns": [
                    *("path", "run", "predicted", "prob_glioma", "prob_no_tumor"),
                    *(*OF_TRUST, "error"),
                ],
            },
            *(
                [
                    {
                        "path": name,
                        "run": "run",
                        "predicted": "glioma",
                        "prob_glioma": 0.75,
                        "prob_no_tumor": 0.25,
                        **dict.fromkeys((*OF_TRUST, "error")),
                    }
                ]
                for name in ("a.png", "b.png")
            ),
        )
    )

    def resume(path: Path) -> None:
        out = path.with_name("x.csv")
        with PredictionFile(out, [info], resume=True) as file:
            rest = list(file.remaining(info, [Path("a.png"), Path("b.png")]))
            if not rest:
                file.finish()

    subjects = {
        "csv": Subject({"x.csv": table.encode(), "y.csv": quoted.encode()}, read),
        "metadata.csv": Subject({"m.csv": metadata.encode()}, read_metadata),
        "split.csv": Subject(
            {"split.csv": (FIXTURES / "run/split.csv").read_bytes()}, read_split
        ),
        "predictions.csv": Subject(
            {"p.csv": (FIXTURES / "run/predictions.csv").read_bytes()},
            read_predictions,
        ),
        "predictions.csv.part": Subject({"x.csv.part": part.encode()}, resume),
    }
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        return subjects
    buffer = arrow.BufferOutputStream()
    columns = {"path": paths, "label": [path.partition("/")[0] for path in paths]}
    parquet.write_table(arrow.table(columns), buffer)
    content = buffer.getvalue().to_pybytes()
    return subjects | {"parquet": Subject({"x.parquet": content}, read)}


def _toml(folder: Path) -> dict[str, Subject]:
    config = parse_config(
        {
            "data": {"path": "/data", "protocol": "grouped-kfold", "fold": 1},
            "model": {"mean": [0.5] * 3, "std": [0.2] * 3, "extra": {"pad_type": ""}},
            "train": {"freeze": ["conv1"], "ema_decay": 0.9},
        }
    )
    configs = {
        "a.toml": dump_config(Config()).encode(),
        "b.toml": dump_config(config).encode(),
    }

    def read(path: Path) -> None:
        load_config(path, assignments=["optim.lr=1e-4", "model.extra.a=1"])
        place = path.parent / "run"
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / "config.toml")
        open_run(place)
        list_runs([place], sort="-optim.lr", where=["model.name=resnet18"])

    studies = {"s.toml": _STUDY.encode(), "t.toml": _SEARCH.encode()}

    def read_study(path: Path) -> None:
        load_plan(path)

    plan = {"study.toml": (FIXTURES / "study/study.toml").read_bytes()}
    return {
        "toml": Subject(configs, read),
        "study.toml": Subject(studies, read_study),
        "plan.toml": Subject(plan, read_plan),
    }


def _weights(folder: Path, run: Path) -> dict[str, Subject]:
    config = parse_config({"model": {"name": "test_resnet", "size_px": 32}}).model
    config = config.model_copy(update={"pretrained": "no"})
    model, _ = create_model(config, num_classes=4)
    path = folder / "sample.pth"
    torch.save(model.state_dict(), path)

    def read(path: Path) -> None:
        read_weights_metadata(path, name="test_resnet")
        load_weights(model, path, in_chans=3)

    return {
        "safetensors": Subject(
            {"w.safetensors": (run / "weights.safetensors").read_bytes()}, read
        ),
        "pth": Subject({"w.pth": path.read_bytes()}, read),
    }


def _artefacts(folder: Path) -> dict[str, Subject]:
    whole = FIXTURES / "run/export/onnx"
    image = draw_image("glioma", 3)

    def placed(path: Path) -> Path:
        place = path.parent / "artefact"
        shutil.copytree(whole, place, dirs_exist_ok=True)
        shutil.copy(path, place / path.name)
        return place

    def read_sealed(path: Path) -> None:
        open_artefact(placed(path)).parity()

    def read(path: Path) -> None:
        place = placed(path)
        # A seal that fits: what is behind it has to be checked as well.
        (place / "manifest.json").unlink()
        write_manifest(place)
        Predictor.open(place).probs_of([image])

    def content(name: str) -> dict[str, bytes]:
        return {name: (whole / name).read_bytes()}

    return {
        "onnx": Subject(content("graph.onnx"), read),
        "manifest.json": Subject(content("manifest.json"), read_sealed, is_json=True),
        "model.json (artefact)": Subject(content("model.json"), read, is_json=True),
        "parity.json": Subject(content("parity.json"), read, is_json=True),
    }


def _results(folder: Path, data: Path) -> dict[str, Subject]:
    from tumorlens.data.audit import Audit
    from tumorlens.deploy.benchmark.results import read_benchmark
    from tumorlens.study.comparison import read_comparison

    whole = folder / "old"
    shutil.copytree(FIXTURES / "run", whole)
    (whole / "tracking.json").write_text('{"url": "", "run_id": "1", "sent": {}}')

    def placed(path: Path) -> Path:
        place = path.parent / "run"
        shutil.copytree(whole, place, dirs_exist_ok=True)
        target = place / path.name
        shutil.copy(path, target if target.exists() else place / "tta" / path.name)
        return place

    def read_run(path: Path) -> None:
        run = open_run(placed(path))
        run.metrics(), run.leak(), run.environment(), run.history(), run.looks()
        run.tracking(), run.card(check_weights=False), run.split()
        effect = run.tta_path("val")
        if effect.is_file():
            read_model(effect, TtaEffect, hint="")
        assert not [row for row in list_runs([run.path]) if row.state == "damaged"]

    def show_run(path: Path) -> None:
        write_run_report(open_run(path.parent / "run"), data=FIXTURES / "images")

    def content(*names: str) -> dict[str, bytes]:
        return {Path(name).name: (whole / name).read_bytes() for name in names}

    tta = sorted((whole / "tta").glob("*.json"))
    names = ("metrics.json", "leak.json", "environment.json", "model.json")
    runs = {
        name: Subject(content(name), read_run, is_json=True, show=show_run)
        for name in names
    }
    for name in ("history.jsonl", "looks.jsonl"):
        runs[name] = Subject(content(name), read_run, show=show_run)
    runs["tracking.json"] = Subject(content("tracking.json"), read_run, is_json=True)
    if tta:
        runs["tta.json"] = Subject(
            {"val.json": tta[0].read_bytes()}, read_run, is_json=True
        )
    pages: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
        "audit.json": (
            lambda path: read_model(path, Audit, hint=""),
            lambda path: write_audit_page(
                path, data=FIXTURES / "images", out=path.with_suffix(".html")
            ),
        ),
        "benchmark.json": (
            read_benchmark,
            lambda path: write_benchmark_page(path, out=path.with_suffix(".html")),
        ),
        "comparison.json": (
            read_comparison,
            lambda path: write_comparison_page(
                path, data=FIXTURES / "images", out=path.with_suffix(".html")
            ),
        ),
    }
    return runs | {
        name: Subject(
            {name: (FIXTURES / name).read_bytes()}, read, is_json=True, show=show
        )
        for name, (read, show) in pages.items()
    }


def _evaluations(folder: Path) -> dict[str, Subject]:
    whole = folder / "external"
    write_evaluation(whole, [1, 1, 0, 1, 0, 1], "nnnpps")

    def placed(path: Path) -> Path:
        place = path.parent / "placed"
        shutil.copytree(whole, place, dirs_exist_ok=True)
        shutil.copy(path, place / path.name)
        return place

    def read(path: Path) -> None:
        read_evaluation(placed(path))

    def show(path: Path) -> None:
        write_external_page(path.parent / "placed", data=None)

    return {
        name: Subject(
            {name: (whole / name).read_bytes()},
            read,
            is_json=name.endswith("json"),
            show=show,
        )
        for name in ("external.json", "images.csv")
    }


def _trust(folder: Path) -> dict[str, Subject]:
    whole = folder / "trusted"
    whole.mkdir()
    write_trust(whole, *made_trust())

    def placed(path: Path) -> Path:
        place = path.parent / "trusted"
        shutil.copytree(whole, place, dirs_exist_ok=True)
        shutil.copy(path, place / path.name)
        return place

    probs, embedding, facts = np.full((2, 4), 0.25), np.ones((2, 12)), np.ones((2, 3))

    def read(path: Path) -> None:
        found = read_trust(placed(path), ["0" * 64])
        assert found is not None
        found.judge(probs, embedding, facts)

    def read_gate(path: Path) -> None:
        for gate in read_gates(path):
            gate.percentile(
                gate.measure(np.ones((2, gate.mean.size)), facts).max(axis=1)
            )

    return {
        "trust.json": Subject(
            {"trust.json": (whole / "trust.json").read_bytes()}, read, is_json=True
        ),
        "gate.npz": Subject({"gate.npz": (whole / "gate.npz").read_bytes()}, read_gate),
    }


def made_trust() -> tuple[Trust, list[Gate]]:
    """Return trust in four classes with a gate for embeddings of 12 numbers."""
    rng = np.random.default_rng(0)
    facts = rng.normal(0.3, 0.05, (40, 3))
    train, val = rng.normal(size=(60, 12)), rng.normal(size=(40, 12))
    gate, aurocs = fit_gate(
        train, np.arange(60) % 4, val, facts, {"far": val + 4}, seed=1
    )
    probs = rng.dirichlet(np.ones(4), 40)
    labels = np.arange(40) % 4
    sets = Sets(
        coverage=0.9, lac=0.5, aps=0.9, lac_by_class=(0.5,) * 4, aps_by_class=(0.9,) * 4
    )
    nothing = Estimate(value=None, low=None, high=None)
    point = OperatingPoint(threshold=0.5, specificity=nothing, sensitivity=nothing)
    trust = Trust(
        weights_sha256=("0" * 64,),
        classes=("a", "b", "c", "d"),
        num_images=40,
        num_groups=40,
        seed=0,
        temperature=1.5,
        before=None,
        after=None,
        sets=sets,
        promise=promise_of(probs, labels, Wanted()),
        operating_points={"a": point},
        gate=GateFacts(
            sha256="0" * 64, method=gate.method, auroc=aurocs, false_alarms=0.01
        ),
    )
    return trust, [gate]


def _seen(folder: Path, data: Path) -> dict[str, Subject]:
    index = read_index(data)
    found = find_duplicates(index)
    rows = [
        SplitRow(one.path, one.sha256, one.label, one.path, "train")
        for one in index.records
    ]
    path = folder / "seen.npz"
    seen_of(rows, index, found).write(path)
    thumbnails = np.stack(list(found.thumbnails.values()))
    pictures = Pictures(thumbnails, list(found.pixels.values()))

    def read(path: Path) -> None:
        read_seen(path).look_up(pictures)

    return {"seen.npz": Subject({"seen.npz": path.read_bytes()}, read)}
