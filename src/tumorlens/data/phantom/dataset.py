"""A synthetic four-class set of brain MRI, with faults planted for the audit to find.

The set has the layout and the faults of real ones: class folders under Training and
Testing, copies across the two, a patient on both sides, one picture under two labels,
a truncated file, and a class whose files have a size of their own. `planted.json` lists
the planted faults, so that an audit can be scored, and `masks.zip` the tumours, so that
an explanation can be.

It is made for demonstrations and tests of software. A score on it is no evidence about
patients, as `README.txt` in the folder states.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from tumorlens.data.phantom.atlas import load_atlas
from tumorlens.data.phantom.masks import decode_mask, encode_mask, write_masks
from tumorlens.data.phantom.patient import FINDINGS, draw_patient, draw_slice
from tumorlens.errors import ConfigError, DataError
from tumorlens.files import replacing_folder, write_bytes, write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.phantom.atlas import Atlas
    from tumorlens.data.phantom.patient import Finding, View, Weighting

_PATIENTS = (12, 4800)
"""At least three patients of each class: one for Testing, and two in Training, of whom
one may be on both sides while the other is there to be copied."""

_SIZES_PX = (64, 1024)
_OWN_SIZE: Finding = "no_tumor"
"""The class that the size of its files gives away."""

_SIDES = (7 / 8, 1, 9 / 8)
_OWN_SIDE = 15 / 16
"""Sides of the pictures, relative to `size_px`."""

_SLICES: tuple[tuple[View, float], ...] = (
    ("axial", -1),
    ("axial", 0),
    ("axial", 1),
    ("coronal", -1),
    ("coronal", 0),
    ("coronal", 1),
    ("sagittal", -0.5),
    ("sagittal", 0.5),
)
"""The cuts through each patient: direction, and offset in spreads."""

_SPARE: tuple[View, float] = ("sagittal", 1.5)
"""One more cut, for the file that is truncated: it is not a copy of anything."""

_COPIES: dict[str, tuple[Finding, ...]] = {
    "byte-copy": FINDINGS,
    "re-encoded": FINDINGS,
    "mirrored": FINDINGS,
    # Another size would spoil the class with a size of its own.
    "resized": ("glioma", "meningioma", "pituitary"),
    "two-labels": ("glioma", "meningioma"),
}
"""Kind of copy -> the classes that take turns as its source."""

_README = """\
This is a synthetic set, made by tumorlens from the MNI152 average brain.

No picture here is of a patient, and no tumour here grew in one. The set is for trying
out and testing software. A score on it is NO evidence about how a classifier does on
patients.

Faults were planted on purpose: copies across Training and Testing, patients on both
sides, pictures under two labels, truncated files, and a class that the size of its
files gives away. planted.json lists every one of them. masks.zip has the pixels of each
tumour, by the path of its picture.

Made with: tumorlens phantom OUT --patients {patients} --seed {seed}
Pictures:  {num_images} ({classes})

The brain template is ICBM 2009a nonlinear symmetric, copyright (C) 1993-2009 Louis
Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University, as distributed with nilearn.
"""


@dataclass(frozen=True)
class PhantomSummary:
    """Result of `make_phantom`."""

    path: Path
    num_patients: int
    num_images: int
    """All files under Training and Testing, those that cannot be read included."""

    by_class: Mapping[str, int]
    """Class -> number of files."""

    planted: Mapping[str, int]
    """Kind of fault -> number of planted faults."""


@dataclass(frozen=True)
class _File:
    """One picture to be drawn."""

    path: str
    patient: int
    finding: Finding
    view: View
    offset: float
    weighting: Weighting
    side_px: int
    quality: int
    """Quality of the JPEG; 0 for a PNG."""

    is_truncated: bool = False

    @property
    def side(self) -> str:
        """The subset's folder."""
        return self.path.partition("/")[0]


def make_phantom(
    out: Path,
    *,
    patients: int = 48,
    seed: int = 42,
    size_px: int = 224,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a synthetic set with planted faults.

    The folder appears in one step, when it is complete. Its bytes depend on `patients`,
    `seed`, `size_px` and the versions of numpy, scipy, Pillow and nilearn only.

    Args:
        out: A folder that does not exist, or is empty.
        patients: Number of patients, shared out evenly between the classes; each has 8
            slices.
        seed: Any whole number from 0 upwards.
        size_px: Typical side of a picture. The sides differ between patients.
        progress: Called with the number of patients drawn so far and in all.

    Raises:
        ConfigError: `patients`, `seed` or `size_px` is out of range.
        DataError: `out` is a file or not empty, or cannot be written.
        MissingExtraError: nilearn is not installed.
    """
    _check_range("patients", patients, *_PATIENTS, example=48)
    _check_range("size_px", size_px, *_SIZES_PX, example=224)
    _check_range("seed", seed, 0, 2**63 - 1, example=42)
    out = out.absolute()
    _check_free(out)
    with replacing_folder(out) as folder:
        files = _plan(patients, seed, size_px)
        masks = _draw_all(folder, files, seed, progress)
        copies = _plant_copies(folder, files, np.random.default_rng([seed, 1]))
        paths = [file.path for file in files] + [copy for _, _, copy in copies]
        faults = _list_faults(files, copies, paths)
        _write_metadata(folder / "metadata.csv", files)
        for kind, source, copy in copies:
            if source in masks:
                masks[copy] = _changed_mask(masks[source], kind)
        write_masks(folder, masks)
        write_json(
            folder / "planted.json",
            {
                "format": 1,
                "synthetic": True,
                "patients": patients,
                "seed": seed,
                "size_px": size_px,
                "faults": faults,
            },
        )
        by_class = dict(sorted(Counter(path.split("/")[1] for path in paths).items()))
        classes = ", ".join(f"{name} {count}" for name, count in by_class.items())
        write_text(
            folder / "README.txt",
            _README.format(
                patients=patients, seed=seed, num_images=len(paths), classes=classes
            ),
        )
    return PhantomSummary(
        path=out,
        num_patients=patients,
        num_images=len(paths),
        by_class=by_class,
        planted=dict(Counter(fault["kind"] for fault in faults)),
    )


def _check_range(name: str, value: int, low: int, high: int, *, example: int) -> None:
    """Check that a value is a whole number in [low, high].

    Raises:
        ConfigError: It names the setting, the bounds and the value.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ConfigError(
            f"{name} must be a whole number from {low} to {high}, got {value!r}",
            hint=f"for example {example}",
        )


def _check_free(out: Path) -> None:
    """Refuse a folder with content.

    Raises:
        DataError: It is a file, or not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise DataError(
            f"the phantom needs a new or an empty folder, but {out} {what}",
            hint="name another folder, or remove this one yourself",
        )


def _plan(patients: int, seed: int, size_px: int) -> list[_File]:
    """Return every picture to be drawn; the copies come later."""
    in_training = [number for number in range(patients) if number // 4 % 4 != 1]
    chosen = np.random.default_rng([seed, 0]).permutation(in_training).tolist()
    num_both = max(1, patients // 24)
    on_both_sides, chosen = set(chosen[:num_both]), chosen[num_both:]
    # Not of the class with a size of its own: all of that one's files can be opened.
    chosen = [number for number in chosen if _finding_of(number) != _OWN_SIZE]
    with_truncated = set(chosen[: max(1, patients // 48)])

    files: list[_File] = []
    for number in range(patients):
        rng = np.random.default_rng([seed, 2, number])
        finding = _finding_of(number)
        side = float(rng.choice(_SIDES)) if finding != _OWN_SIZE else _OWN_SIDE
        weighting: dict[str, Weighting] = {
            view: "t1" if rng.random() < 0.8 else "t2"
            for view in ("axial", "coronal", "sagittal")
        }
        for i, (view, offset) in enumerate((*_SLICES, _SPARE)):
            is_spare = i == len(_SLICES)
            quality = (
                0
                if rng.random() < 1 / 8 and not is_spare
                else int(rng.integers(80, 96))
            )
            if is_spare and number not in with_truncated:
                continue
            is_testing = number not in in_training or (
                number in on_both_sides and view == "sagittal"
            )
            suffix = "jpg" if quality else "png"
            files.append(
                _File(
                    path=f"{'Testing' if is_testing else 'Training'}/{finding}/"
                    f"{_patient_name(number)}-{i + 1}-{view}.{suffix}",
                    patient=number,
                    finding=finding,
                    view=view,
                    offset=offset,
                    weighting=weighting[view],
                    side_px=round(side * size_px),
                    quality=quality,
                    is_truncated=is_spare,
                )
            )
    return files


def _finding_of(number: int) -> Finding:
    """Return the class of a patient: the classes take turns."""
    return FINDINGS[number % len(FINDINGS)]


def _draw_all(
    folder: Path,
    files: list[_File],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, bytes]:
    """Draw and write the pictures, several patients at a time; return their masks."""
    atlas = load_atlas()
    masks: dict[str, bytes] = {}
    by_patient: dict[int, list[_File]] = {}
    for file in files:
        by_patient.setdefault(file.patient, []).append(file)

    def draw(own: list[_File]) -> list[tuple[bytes, NDArray[np.bool_]]]:
        # Random numbers of its own, so that the order of the threads does not matter.
        rng = np.random.default_rng([seed, 3, own[0].patient])
        return _draw_patient_files(atlas, own, rng)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        drawn = pool.map(draw, by_patient.values())
        for done, (own, contents) in enumerate(
            zip(by_patient.values(), drawn, strict=True), start=1
        ):
            for file, (content, mask) in zip(own, contents, strict=True):
                write_bytes(folder / file.path, content)
                if mask.any() and not file.is_truncated:
                    masks[file.path] = encode_mask(mask)
            if progress:
                progress(done, len(by_patient))
    return masks


def _draw_patient_files(
    atlas: Atlas, files: list[_File], rng: np.random.Generator
) -> list[tuple[bytes, NDArray[np.bool_]]]:
    """Return the content of each of a patient's files, and the tumour in it."""
    patient = draw_patient(atlas, files[0].finding, rng)
    contents = []
    for file in files:
        cut = draw_slice(
            atlas,
            patient,
            view=file.view,
            weighting=file.weighting,
            offset_mm=file.offset * patient.spread_mm,
            size_px=file.side_px,
            rng=rng,
        )
        content = _encode(Image.fromarray(cut.image), quality=file.quality)
        content = content[: len(content) // 2] if file.is_truncated else content
        contents.append((content, cut.mass))
    return contents


def _encode(image: Image.Image, *, quality: int) -> bytes:
    """Return a JPEG of this quality, or a PNG for 0."""
    buffer = io.BytesIO()
    if quality:
        image.save(buffer, "JPEG", quality=quality)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _plant_copies(
    folder: Path, files: list[_File], rng: np.random.Generator
) -> list[tuple[str, str, str]]:
    """Copy Training files to places where they do not belong.

    Returns:
        Kind of copy, path of the file, path of its copy.
    """
    num_patients = len({file.patient for file in files})
    on_both_sides = _on_both_sides(files)
    free: dict[str, list[_File]] = {name: [] for name in FINDINGS}
    for i in rng.permutation(len(files)).tolist():
        file = files[i]
        # A copy of a file with another fault would blur what was planted.
        is_sound = not file.is_truncated and file.patient not in on_both_sides
        if is_sound and file.side == "Training":
            free[file.finding].append(file)

    copies: list[tuple[str, str, str]] = []
    for kind, classes in _COPIES.items():
        share = 24 if kind == "two-labels" else 12
        for name, _ in zip(cycle(classes), range(max(1, num_patients // share))):
            file = free[name].pop()
            copy = f"Testing/{name}/x{len(copies) + 1:03d}"
            if kind == "two-labels":
                other = "meningioma" if name == "glioma" else "glioma"
                copy = f"Training/{other}/x{len(copies) + 1:03d}"
            content = (folder / file.path).read_bytes()
            if kind in ("byte-copy", "two-labels"):
                copy += file.path[-4:]
            else:
                copy += ".jpg"
                content = _changed(content, kind)
            write_bytes(folder / copy, content)
            copies.append((kind, file.path, copy))
    return copies


def _changed(content: bytes, kind: str) -> bytes:
    """Return a copy that shows the same picture with other bytes."""
    with Image.open(io.BytesIO(content)) as image:
        if kind == "re-encoded":
            return _encode(image, quality=70)
        if kind == "mirrored":
            return _encode(ImageOps.mirror(image), quality=90)
        assert kind == "resized"
        side_px = _resized_px(image.width)
        small = image.resize((side_px, side_px), Image.Resampling.LANCZOS)
        return _encode(small, quality=90)


def _changed_mask(content: bytes, kind: str) -> bytes:
    """Return the mask of a copy."""
    if kind == "mirrored":
        return encode_mask(decode_mask(content)[:, ::-1])
    if kind == "resized":
        mask = decode_mask(content)
        side_px = _resized_px(len(mask))
        return encode_mask(np.array(Image.fromarray(mask).resize((side_px, side_px))))
    return content


def _resized_px(side_px: int) -> int:
    return round(side_px * 0.8)


def _on_both_sides(files: list[_File]) -> set[int]:
    """Return the patients with files in Training and in Testing."""
    sides = {(file.patient, file.side) for file in files}
    return {p for p, side in sides if side == "Testing" and (p, "Training") in sides}


def _list_faults(
    files: list[_File], copies: list[tuple[str, str, str]], paths: list[str]
) -> list[dict[str, Any]]:
    """Return every planted fault, in the layout of `planted.json`."""
    faults: list[dict[str, Any]] = [
        {"kind": kind, "paths": [source, copy]} for kind, source, copy in copies
    ]
    for number in sorted(_on_both_sides(files)):
        own = sorted(file.path for file in files if file.patient == number)
        faults.append(
            {
                "kind": "patient-on-both-sides",
                "patient": _patient_name(number),
                "paths": own,
            }
        )
    faults += [
        {"kind": "truncated", "paths": [file.path]}
        for file in files
        if file.is_truncated
    ]
    own_size = [path for path in paths if path.split("/")[1] == _OWN_SIZE]
    side_px = next(file.side_px for file in files if file.finding == _OWN_SIZE)
    faults.append(
        {
            "kind": "own-size",
            "class": _OWN_SIZE,
            "width": side_px,
            "height": side_px,
            "paths": sorted(own_size),
        }
    )
    return faults


def _write_metadata(path: Path, files: list[_File]) -> None:
    """Write the patient of each picture. Copies have none."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["path", "patient"])
    table.writerows(
        [file.path, _patient_name(file.patient)]
        for file in sorted(files, key=lambda file: file.path)
    )
    write_text(path, buffer.getvalue())


def _patient_name(number: int) -> str:
    """Return the name of a patient in metadata and file names."""
    return f"p{number:03d}"
