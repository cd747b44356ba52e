"""Explanations: what an answer rests on, with checks of whether that can be believed.

Runs can be explained by gradients or by occlusion, artefacts by occlusion alone: their
graphs have no gradients. `tumorlens.report.explanations` writes what is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tumorlens.data.images import read_image, square_box, without_path
from tumorlens.data.phantom.masks import read_mask
from tumorlens.errors import ConfigError, DataError, RunError, did_you_mean
from tumorlens.evaluation.map_checks import (
    ImageChecks,
    Localisation,
    Removal,
    Stage,
    cell_edges,
    cell_means,
    localisation_of,
    outside_of,
    rank_correlation,
    removal_of,
)
from tumorlens.evaluation.occlusion import mean_value, occlusion_map, place_on_image
from tumorlens.extras import naming_missing_extras

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.deploy.predictor import Member, Network, Predictor
    from tumorlens.evaluation.map_checks import Neighbour
    from tumorlens.evaluation.neighbours import TrainingImages
    from tumorlens.runs.folder import Run

    PredictSquares = Callable[[NDArray[np.uint8]], NDArray[np.floating]]

Method = Literal["grad-cam", "integrated-gradients", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)

_SEED = 0
"""Seed of the random orders and weights: equal calls give equal files."""


@dataclass(frozen=True)
class Explanation:
    """The map of one image, and its checks."""

    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3)."""
    heat: NDArray[np.float32]
    """(H, W): positive where the image supports the class; 0 where the network does not
    see it."""
    checks: ImageChecks
    """Without the names of files."""
    tumour: NDArray[np.bool_] | None = None
    """(H, W), where it is known."""


class Explainer:
    """A model and a method, ready for images.

    Attributes:
        predictor: The model.
        method: How its answers are explained.
        not_checked: What cannot be checked for any image, and why.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        method: Method | None = None,
        label: str | None = None,
    ) -> None:
        """Check that the method can explain the model.

        Args:
            predictor: The model. The map of several networks is their mean; what needs
                changed weights or other methods is checked on the first of them.
            method: `None` is Grad-CAM for a run and occlusion for an artefact.
            label: The class to explain; `None` is the predicted one of each image.

        Raises:
            ConfigError: The method is unknown or cannot explain the model, the class is
                unknown, or the networks see different parts of an image.
            MissingExtraError: captum is not installed.
        """
        first = predictor.members[0]
        self.predictor = predictor
        self.method: Method = method or ("grad-cam" if first.network else "occlusion")
        self.not_checked = []
        self._label = _index_of(label, predictor.classes)
        if self.method not in METHODS:
            raise ConfigError(
                f"unknown method {method!r}", hint=did_you_mean(self.method, METHODS)
            )
        if len({member.spec.fit for member in predictor.members}) > 1:
            raise ConfigError(
                f"the networks of {predictor.name} see different parts of an image: "
                "data.fit differs",
                hint="explain one of its members",
            )
        self._others = self._usable_others(first)
        self._copy = None
        self._training: TrainingImages | None = None
        self._num_neighbours = 0
        if first.network is None:
            self.not_checked.append(
                "randomization: the weights of an artefact cannot be changed"
            )
        else:
            from tumorlens.training.network import copy_model

            self._copy = copy_model(first.network.card, first.network.module)

    def _usable_others(self, first: Member) -> tuple[Method, ...]:
        """Check the method on every network; return the methods to compare it with.

        Raises:
            ConfigError: It cannot explain one of them.
        """
        others = tuple(other for other in METHODS if other != self.method)
        if first.network is None:
            if self.method != "occlusion":
                raise ConfigError(
                    f"{self.method} needs gradients, which the artefact "
                    f"{self.predictor.name} does not have",
                    hint="use --method occlusion, or name the run",
                )
            self.not_checked.append(
                "agreement: the other methods need gradients, which an artefact does "
                "not have"
            )
            return ()
        with naming_missing_extras("explain"):
            from tumorlens.evaluation.saliency import check_grad_cam
        if self.method == "grad-cam":
            for member in self.predictor.members:
                assert member.network is not None
                one = member.network
                check_grad_cam(one.module, one.card, one.device)
            return others
        try:
            check_grad_cam(
                first.network.module, first.network.card, first.network.device
            )
        except ConfigError as error:
            self.not_checked.append(f"agreement with grad-cam: {error.problem}")
            return tuple(other for other in others if other != "grad-cam")
        return others

    def look_up_neighbours(
        self,
        run: Run,
        *,
        count: int,
        data: Sequence[Path] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Add the nearest training images to every explanation from here on.

        Args:
            run: The run that the predictor was opened from. Its first network is used,
                with the images that it was trained on.
            count: Number of images.
            data: Where the images are; `None` takes the run's `data.path`.
            progress: Called with the images decoded and those in all.

        Raises:
            ConfigError: The network has no embedding.
            DataError: The images are not there.
            RunError: The run has no split, or its data has changed.
        """
        from tumorlens.evaluation.neighbours import embed_training

        network = self.predictor.members[0].network
        assert network is not None
        self._num_neighbours = count
        self._training = embed_training(
            run.networks()[0],
            network.module,
            network.card,
            network.device,
            data=data,
            progress=progress,
        )

    def file_of(self, neighbour: Neighbour) -> Path:
        """Return where a neighbour of an explanation is."""
        assert self._training is not None
        return self._training.index.file_at(neighbour.path)

    def _neighbours(self, square: NDArray[np.uint8]) -> tuple[Neighbour, ...] | None:
        network = self.predictor.members[0].network
        if self._training is None or network is None:
            return None
        from tumorlens.evaluation.neighbours import embed_square

        embedding = embed_square(network.module, square, network.card, network.device)
        return self._training.nearest(embedding, count=self._num_neighbours)

    def explain(self, path: Path) -> Explanation:
        """Return the map of an image with its checks.

        Raises:
            DataError: The file cannot be read, or the mask of a phantom's image is of
                another size.
            RunError: A probability is NaN or infinite.
            MissingExtraError: A compressed DICOM file needs the extra `dicom`.
        """
        image = read_image(path, limits=self.predictor.limits)
        tumour = _tumour_of(path, (image.shape[0], image.shape[1]))
        probs = self.predictor.probs_of([image])[0]
        predicted = int(probs.argmax())
        label = predicted if self._label is None else self._label

        squares = [member.square(image) for member in self.predictor.members]
        maps = self._maps(squares, label)
        heat = self._placed(maps, image)
        cells = np.mean([cell_means(one) for one in maps], axis=0)
        return Explanation(
            image,
            heat,
            ImageChecks(
                path=str(path),
                explained=self.predictor.classes[label],
                predicted=self.predictor.classes[predicted],
                prob=float(probs[label]),
                randomization=self._randomization(squares[0], maps[0], label),
                removal=self._removal(squares, cells, label),
                agreement=self._agreement(squares[0], maps[0], label),
                outside=outside_of(heat, image),
                localisation=_located(heat, tumour),
                neighbours=self._neighbours(squares[0]),
            ),
            tumour,
        )

    def heat_of(self, image: NDArray[np.uint8], *, label: str) -> NDArray[np.float32]:
        """Return the map of a decoded image, (H, W), without any check.

        Args:
            image: (H, W) or (H, W, 3), from `images.read_image`.
            label: A class of the model.
        """
        squares = [member.square(image) for member in self.predictor.members]
        number = self.predictor.classes.index(label)
        return self._placed(self._maps(squares, number), image)

    def _maps(
        self, squares: Sequence[NDArray[np.uint8]], label: int
    ) -> list[NDArray[np.float32]]:
        return [
            _map_of(self.method, member, square, label)
            for member, square in zip(self.predictor.members, squares, strict=True)
        ]

    def _placed(
        self, maps: Sequence[NDArray[np.float32]], image: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Return the mean of the networks' maps, on the image."""
        box = square_box(image, fit=self.predictor.members[0].spec.fit)
        shape = (image.shape[0], image.shape[1])
        mean: NDArray[np.float32] = np.stack(
            [place_on_image(one, box=box, shape=shape) for one in maps]
        ).mean(axis=0)
        return mean

    def _removal(
        self,
        squares: list[NDArray[np.uint8]],
        cells: NDArray[np.floating],
        label: int,
    ) -> Removal:
        members = self.predictor.members

        def prob_of(there: NDArray[np.bool_]) -> NDArray[np.floating]:
            probs = [
                member.predict(_covered(square, there))[:, label]
                for member, square in zip(members, squares, strict=True)
            ]
            mean: NDArray[np.floating] = np.mean(probs, axis=0)
            return mean

        return removal_of(cells, prob_of, seed=_SEED)

    def _randomization(
        self, square: NDArray[np.uint8], heat: NDArray[np.float32], label: int
    ) -> tuple[Stage, ...] | None:
        network = self.predictor.members[0].network
        if network is None or self._copy is None:
            return None
        from tumorlens.deploy.predictor import Network
        from tumorlens.evaluation.saliency import randomized

        cells = cell_means(heat)
        stages = []
        for share, module in randomized(network.module, self._copy, seed=_SEED):
            random = Network(network.card, module, network.device)
            try:
                other = _map_of_network(self.method, random, square, label)
                correlation = rank_correlation(cells, cell_means(other))
            except RunError:  # random weights may lead out of the range of numbers
                correlation = None
            stages.append(Stage(randomized=share, correlation=correlation))
        return tuple(stages)

    def _agreement(
        self, square: NDArray[np.uint8], heat: NDArray[np.float32], label: int
    ) -> dict[str, float | None] | None:
        member = self.predictor.members[0]
        cells = cell_means(heat)
        return {
            other: rank_correlation(
                cells, cell_means(_map_of(other, member, square, label))
            )
            for other in self._others
        } or None


def unreadable(path: Path, error: DataError | RunError) -> ImageChecks:
    """Return the entry of an image that cannot be explained."""
    words = without_path(error, path) if isinstance(error, DataError) else error.problem
    return ImageChecks(path=str(path), error=words)


def _map_of(
    method: Method, member: Member, square: NDArray[np.uint8], label: int
) -> NDArray[np.float32]:
    """Return the map of a square, (S, S)."""
    if method == "occlusion" or member.network is None:
        return occlusion_map(square, member.predict, label=label)
    return _map_of_network(method, member.network, square, label)


def _map_of_network(
    method: Method, network: Network, square: NDArray[np.uint8], label: int
) -> NDArray[np.float32]:
    from tumorlens.evaluation.saliency import grad_cam, integrated_gradients
    from tumorlens.training.network import as_input, predict_probs

    card, module, device = network.card, network.module, network.device
    if method == "occlusion":

        def predict(squares: NDArray[np.uint8]) -> NDArray[np.floating]:
            return predict_probs(module, [as_input(card, squares)], card, device)

        return occlusion_map(square, predict, label=label)
    by_gradients = partial(
        grad_cam if method == "grad-cam" else integrated_gradients,
        module,
        square,
        card,
        device,
    )
    return by_gradients(label=label)


def _covered(square: NDArray[np.uint8], there: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a square with only some of its cells, (N, S, S, C); others are its mean.

    Args:
        square: (S, S, C).
        there: The cells that are there, (N, CELLS, CELLS).
    """
    sides = np.diff(cell_edges(len(square)))
    pixels = there.repeat(sides, axis=1).repeat(sides, axis=2)[..., np.newaxis]
    return np.where(pixels, square, mean_value(square))


def _located(
    heat: NDArray[np.float32], tumour: NDArray[np.bool_] | None
) -> Localisation | None:
    return None if tumour is None else localisation_of(heat, tumour)


def _tumour_of(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return the known tumour in an image.

    Raises:
        DataError: The mask has another size than the image.
    """
    tumour = read_mask(path)
    if tumour is None or not tumour.any():
        return None
    if tumour.shape != shape:
        raise DataError(
            f"the mask of {path} has {tumour.shape[1]} x {tumour.shape[0]} pixels, the "
            f"image {shape[1]} x {shape[0]}",
            hint="make the phantom again: its images were changed",
        )
    return tumour


def _index_of(label: str | None, classes: tuple[str, ...]) -> int | None:
    """Return the number of a class.

    Raises:
        ConfigError: The model does not know it.
    """
    if label is None:
        return None
    if label not in classes:
        raise ConfigError(f"unknown class {label!r}", hint=did_you_mean(label, classes))
    return classes.index(label)
