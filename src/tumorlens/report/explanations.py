"""The folder of explanations: a picture and a map for each image, and `checks.json`."""

from __future__ import annotations

import io
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from tumorlens.data.images import read_image
from tumorlens.data.index import check_outside
from tumorlens.deploy.explain import Explainer, Explanation, unreadable
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.map_checks import (
    ExplanationChecks,
    ImageChecks,
    summarized,
)
from tumorlens.evaluation.occlusion import PATCHES_PER_SIDE
from tumorlens.files import check_folder, replacing_folder, write_bytes, write_model
from tumorlens.report.dicom_picture import MIN_DROP, WARNING
from tumorlens.report.drawing import (
    DARK,
    HEAT_COLORS,
    LIGHT,
    SMOOTH,
    Heading,
    render,
    shortened,
)
from tumorlens.report.page import small_copy
from tumorlens.text import decimal, one_line, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tumorlens.data.images import ImageLimits
    from tumorlens.data.sets import ImageSets
    from tumorlens.deploy.explain import Method
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.report.measured import Mistake
    from tumorlens.runs.folder import Run

CHECKS_FILE = "checks.json"

_SCALES: dict[Method, str] = {
    "grad-cam": "Grad-CAM, logit x feature",
    "integrated-gradients": "integrated gradients, logit per pixel",
    "occlusion": f"fall of the probability under a patch of 1/{PATCHES_PER_SIDE}",
}
_NAMES: dict[Method, str] = {
    "grad-cam": "Grad-CAM",
    "integrated-gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}
_TOP_QUANTILE = 0.995
"""The colours end here for a map with a value for each pixel: a single one of them
would leave the rest clear."""

_MAX_PX = 1024
"""Longest side of an image on the picture."""

_Number = TypeVar("_Number", np.uint8, np.float32)

_LABEL_LETTERS = 20
_NAME_LETTERS = 60
_NOTE_LETTERS = 120
_LINE_INCHES = 0.16


def check_explanations(out: Path, images: Sequence[Path]) -> None:
    """Refuse a folder that explanations cannot be written to, before work is done.

    Args:
        out: The folder.
        images: What will be explained: files and folders.

    Raises:
        DataError: It is a file or not empty, lies in a folder of the images, or cannot
            be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise DataError(
            f"explanations need a new or an empty folder, but {out} {what}",
            hint="name another folder, or remove this one yourself",
        )
    for one in images:
        check_outside(out, one)
    check_folder(out)


def write_explanations(
    explainer: Explainer,
    paths: Iterable[Path],
    out: Path,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> ExplanationChecks:
    """Explain images into a folder, which appears when it is complete.

    Args:
        explainer: The model and the method.
        paths: Image files.
        out: A folder that `check_explanations` has let pass.
        progress: Called with the number of images done, and `None`.

    Returns:
        What `checks.json` holds. Images that cannot be read are in it with their error.

    Raises:
        DataError: None of the images can be read, a mask does not fit its image, or
            the folder cannot be written.
        MissingExtraError: matplotlib, or what an image needs, is not installed.
    """
    entries: list[ImageChecks] = []
    with replacing_folder(out.absolute()) as folder:
        for number, path in enumerate(paths, start=1):
            entries.append(_explain(explainer, path, folder, number))
            if progress is not None:
                progress(number, None)
        if all(one.error for one in entries):
            raise DataError(
                f"no image can be explained: {entries[0].path} {entries[0].error}"
                if entries
                else "there is no image to explain",
                hint="name image files, or folders of them",
            )
        found = ExplanationChecks(
            model=explainer.predictor.name,
            method=explainer.method,
            classes=explainer.predictor.classes,
            summary=summarized(entries),
            not_checked=_not_checked(explainer, entries),
            images=tuple(entries),
        )
        write_model(folder / CHECKS_FILE, found)
    return found


def draw_explanation(explanation: Explanation, method: Method) -> bytes:
    """Return the image beside the image under its map, as a PNG.

    Only what speaks for the class is shown, from clear to red, with the scale beside
    it. Large images are shrunk.
    """
    checks = explanation.checks
    image, heat = _shrunk(explanation.image), _shrunk(explanation.heat)
    label, predicted = checks.explained or "", checks.predicted or ""
    answer = f"{percent(checks.prob)} {label}"
    if label != predicted:
        answer += f", predicted is {predicted}"
    heading = Heading(
        one_line(f"What speaks for {label}"),
        one_line(f"{Path(checks.path).name} · {answer} · {_NAMES[method]}"),
        f"{WARNING}. It shows what the answer rests on, not where a tumour is.",
    )

    notes = _notes(checks)

    def draw(panels: Sequence[Axes]) -> None:
        for axes in panels:
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, **SMOOTH)
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[])
        if explanation.tumour is not None:
            outline = _shrunk(explanation.tumour.astype(np.float32))
            panels[1].contour(outline, [0.5], colors=[DARK["ink"]], linewidths=0.8)
        _draw_heat(panels[1], heat, label, method)
        figure = panels[0].get_figure(root=True)
        assert figure is not None
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=9)

    body_inches = 4.2 + _LINE_INCHES * len(notes)
    drawing = render(
        draw, heading, columns=2, panel_inches=4.4, body_inches=body_inches
    )
    return drawing.png()


def draw_neighbours(explainer: Explainer, checks: ImageChecks) -> bytes:
    """Return the nearest training images beside each other, as a PNG.

    Raises what `images.read_image` raises.
    """
    neighbours = checks.neighbours or ()
    limits = explainer.predictor.limits
    pictures = [
        _shrunk(read_image(explainer.file_of(one), limits=limits), _MAX_PX // 4)
        for one in neighbours
    ]

    def draw(panels: Sequence[Axes]) -> None:
        for axes, picture, one in zip(panels, pictures, neighbours, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, **SMOOTH)
            axes.grid(visible=False)
            axes.set(xticks=[], yticks=[])
            label = shortened(one_line(one.label), num_letters=_LABEL_LETTERS)
            axes.set_xlabel(f"{label}\n{decimal(one.similarity, 3)}", fontsize=9)

    heading = Heading(
        "The most similar training images",
        one_line(
            f"of {Path(checks.path).name}, predicted {checks.predicted} · cosine of "
            "the embeddings"
        ),
        WARNING,
    )
    return render(
        draw, heading, columns=len(neighbours), panel_inches=1.9, body_inches=2.4
    ).png()


def with_maps(
    run: Run,
    mistakes: Sequence[Mistake],
    table: Predictions,
    sets: ImageSets,
    *,
    limits: ImageLimits,
) -> list[Mistake]:
    """Return mistakes with the map of the class that each was taken for.

    By Grad-CAM where the network has a map of features, else by occlusion. An image of
    a k-fold run is explained by the network that has not seen it.

    Args:
        run: The run.
        mistakes: Those to be shown. One whose picture is missing gets no map.
        table: Its predictions, which name the fold of each image.
        sets: Where the images are.
        limits: Limits above which an image is not opened.

    Raises:
        RunError: A network has no weights, or they were changed.
        MissingExtraError: torch or captum is not installed.
    """
    folds = dict(zip(table.paths, table.folds, strict=True))
    explainers: dict[int | None, Explainer] = {}
    explained = []
    for one in mistakes:
        fold, path = folds[one.picture.path], one.picture.path
        if one.picture.why_not:
            explained.append(one)
            continue
        if fold not in explainers:
            explainers[fold] = _explainer_of(run if fold is None else run.folds()[fold])
        image = read_image(sets.file_at(path), limits=limits)
        heat = explainers[fold].heat_of(image, label=one.predicted)
        explained.append(replace(one, heat=small_copy(path, overlaid(image, heat))))
    return explained


def overlaid(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return an image under its map, (H, W, 3): what is positive, up to its maximum."""
    top = float(heat.max())
    share = np.clip(heat / top if top > 0 else 0 * heat, 0, 1)[..., np.newaxis]
    clear, red = (np.array(color) for color in HEAT_COLORS)
    color = clear + share * (red - clear)  # (H, W, 4)
    rgb = image if image.ndim == 3 else image[..., np.newaxis]
    mixed = rgb * (1 - color[..., 3:]) + 255 * color[..., :3] * color[..., 3:]
    found: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return found


def _explainer_of(run: Run) -> Explainer:
    predictor = Predictor.open(run.path)
    try:
        return Explainer(predictor)
    except ConfigError:  # no map of features
        return Explainer(predictor, method="occlusion")


def _draw_heat(
    axes: Axes, heat: NDArray[np.float32], label: str, method: Method
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    hot = heat[heat > 0]
    is_fine = method == "integrated-gradients"
    top = (
        float(np.quantile(hot, _TOP_QUANTILE) if is_fine else hot.max(initial=0))
        if hot.size
        else 0.0
    )
    if top <= (MIN_DROP if method == "occlusion" else 0):
        axes.set_xlabel(f"nothing stands out that speaks for {label}", fontsize=9)
        return
    colors = LinearSegmentedColormap.from_list("heat", HEAT_COLORS)
    shown = axes.imshow(heat, cmap=colors, vmin=0, vmax=top, **SMOOTH)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(
        shown, ax=axes, shrink=0.8, extend="max" if is_fine else "neither"
    )
    bar.set_label(_SCALES[method], fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_edgecolor(LIGHT["line"])


def _explain(
    explainer: Explainer, path: Path, folder: Path, number: int
) -> ImageChecks:
    """Write picture and map of one image, and return its entry.

    Raises:
        DataError: A mask is at fault, not the image.
    """
    try:
        image = explainer.explain(path)
    except RunError as error:
        return unreadable(path, error)
    except DataError as error:
        if error.problem.startswith(f"{path} "):
            return unreadable(path, error)
        raise
    name = f"{number:04d}-{_plain_name(path)}"
    content = io.BytesIO()
    np.save(content, image.heat, allow_pickle=False)
    write_bytes(folder / f"{name}.npy", content.getvalue())
    write_bytes(folder / f"{name}.png", draw_explanation(image, explainer.method))
    if image.checks.neighbours:
        write_bytes(
            folder / f"{name}-neighbours.png", draw_neighbours(explainer, image.checks)
        )
    return image.checks.model_copy(
        update={"picture": f"{name}.png", "heat": f"{name}.npy"}
    )


def _plain_name(path: Path) -> str:
    """Return the stem of a file name in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem)[:_NAME_LETTERS]


def _not_checked(
    explainer: Explainer, entries: Sequence[ImageChecks]
) -> tuple[str, ...]:
    missing = list(explainer.not_checked)
    if all(one.localisation is None for one in entries):
        missing.append(
            "localisation: the tumour of no image is known; a phantom's masks.zip has "
            "those of a phantom"
        )
    return tuple(missing)


def _notes(checks: ImageChecks) -> list[str]:
    """Return the checks of an image in words, a line each."""
    words = []
    if checks.randomization:
        last = checks.randomization[-1].correlation
        words.append(
            "rank correlation with the map of a random network: "
            + ("none, one is flat" if last is None else decimal(last, 2))
        )
    if checks.removal:
        one = checks.removal
        words.append(
            f"deletion {decimal(one.deletion, 2)} (random "
            f"{decimal(one.deletion_random, 2)}), insertion "
            f"{decimal(one.insertion, 2)} (random {decimal(one.insertion_random, 2)})"
        )
    for other, value in (checks.agreement or {}).items():
        words.append(f"rank correlation with {other}: {decimal(value, 2)}")
    if checks.outside and checks.outside.heat is not None:
        words.append(
            f"{percent(checks.outside.heat)} of the heat is outside the head, which "
            f"leaves {percent(checks.outside.area)} of the image"
        )
    if checks.localisation:
        one_of = checks.localisation
        words.append(
            f"hottest pixel {'in' if one_of.is_hit else 'not in'} the known tumour "
            f"(outlined), IoU {decimal(one_of.iou, 2)}"
        )
    return [line for word in words for line in textwrap.wrap(word, _NOTE_LETTERS)]


def _shrunk(pixels: NDArray[_Number], max_px: int = _MAX_PX) -> NDArray[_Number]:
    height, width = pixels.shape[:2]
    scale = max_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
