"""A folder of masks or probabilities, one file per image, read as probabilities.

The prediction of ``images/a/b.png`` is ``a/b.png`` or ``a/b.npy``. What a file holds:

* ``.npy`` of floats: probabilities in 0..1; of bool or integers: a mask of 0 and 1. (height, width) either way.
* 1-bit and palette PNG: a mask; index 0 is background, everything else vessel.
* 16-bit PNG: probability = value / 65535.
* 8-bit PNG: decided for the folder as a whole. Where every value is 0, 1 or 255 the files are masks (not 0 is
  vessel), otherwise all of them are probabilities = value / 255. Colour PNGs count where their channels are equal.

``predictions.json`` may lie beside them: its ``threshold`` is then the one stored with the predictions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vesselseg.evaluation.errors import EvaluationError, problem_list

SETTINGS_FILE = "predictions.json"
SUFFIXES = (".png", ".npy")
DEFAULT_THRESHOLD = 0.5
_MASK_VALUES = (0, 1, 255)


@dataclass(frozen=True)
class Stored:
    """One prediction as it lies on the disk.

    values: (height, width) as stored; scale: what to divide by to get a probability, None for a mask;
    undecided: 8-bit values that fit both a mask and a very dark probability map.
    """

    values: NDArray[np.generic]
    scale: float | None
    undecided: bool = False

    def probabilities(self, as_probabilities: bool) -> NDArray[np.float32]:
        """(height, width) float32 in 0..1; as_probabilities: how 8-bit files of the folder are read."""
        if self.scale is None or (self.undecided and not as_probabilities):
            return (self.values != 0).astype(np.float32)
        return np.divide(self.values, np.float32(self.scale)).astype(np.float32)


class PredictionFolder:
    """Predictions on the disk for the images of a dataset folder."""

    def __init__(self, folder: Path, image_names: Iterable[str]) -> None:
        """image_names: all images of the dataset, of every split; files that belong to none of them are errors.

        Raises EvaluationError for a folder without predictions, for files that belong to no image, for two files of
        one image, and for two images that share one prediction.
        """
        self.folder = Path(folder)
        self._files = self._match(sorted(image_names))
        self.threshold, self.threshold_origin = _stored_threshold(self.folder)
        self.holds_probabilities = False
        self._eight_bit_probabilities = False

    def check(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Read every prediction once and raise EvaluationError that lists all missing, wrong and unreadable ones.

        sizes: per image its (height, width). Also settles whether the folder holds masks or probabilities.
        """
        missing = [name for name in sizes if name not in self._files]
        if missing:
            expected = [f"{name}: expected {_stem(name)}.png or {_stem(name)}.npy" for name in missing]
            advice = f"Predict them into {self.folder}, or leave the images out of the split."
            raise EvaluationError(problem_list(f"{self.folder}: images without a prediction", expected, advice))
        problems: list[str] = []
        kinds: set[str] = set()
        for name, size in sizes.items():
            try:
                kinds.add(_kind(self._stored(name, size)))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            advice = "Save each prediction at its image's own size, as a mask or as probabilities in 0..1."
            raise EvaluationError(problem_list(f"{self.folder}: unusable predictions", problems, advice))
        self._eight_bit_probabilities = "8-bit probabilities" in kinds
        self.holds_probabilities = self._eight_bit_probabilities or "probabilities" in kinds

    def probabilities(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """(height, width) float32 in 0..1 of one image; size: its (height, width)."""
        return self._stored(name, size).probabilities(self._eight_bit_probabilities)

    def _stored(self, name: str, size: tuple[int, int]) -> Stored:
        path = self._files[name]
        where = path.relative_to(self.folder).as_posix()
        stored = _read_npy(path, where) if path.suffix.lower() == ".npy" else _read_png(path, where)
        if stored.values.shape != size:
            found = " x ".join(str(side) for side in stored.values.shape)
            raise ValueError(f"{where}: {found} (height x width), but {name} is {size[0]} x {size[1]}")
        return stored

    def _match(self, image_names: Sequence[str]) -> dict[str, Path]:
        files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                files.setdefault(_stem(path.relative_to(self.folder).as_posix()), []).append(path)
        if not files:
            raise EvaluationError(
                f"{self.folder}: no .png and no .npy in it; expected one prediction per image, named as the image is"
            )
        images: dict[str, list[str]] = {}
        for name in image_names:
            images.setdefault(_stem(name), []).append(name)
        problems = [
            f"{stem}: one prediction for {', '.join(names)}" for stem, names in images.items() if len(names) > 1
        ]
        problems += [
            f"{stem}: two predictions, {', '.join(path.name for path in paths)}"
            for stem, paths in files.items()
            if len(paths) > 1
        ]
        extra = [
            path.relative_to(self.folder).as_posix() for stem in files.keys() - images.keys() for path in files[stem]
        ]
        problems += [f"{name}: belongs to no image of the dataset" for name in sorted(extra)]
        if problems:
            advice = "A prediction is named as its image: images/a/b.jpg -> a/b.png or a/b.npy. Move other files away."
            raise EvaluationError(problem_list(f"{self.folder}: files that match no single image", problems, advice))
        return {names[0]: files[stem][0] for stem, names in images.items() if stem in files}


def _kind(stored: Stored) -> str:
    if stored.scale is None or stored.undecided:
        return "mask"
    return "8-bit probabilities" if stored.scale == 255 else "probabilities"


def _read_npy(path: Path, where: str) -> Stored:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{where}: not readable as a NumPy array: {error}") from None
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer):
        if values.size and not np.isin(values, (0, 1)).all():
            raise ValueError(f"{where}: integers other than 0 and 1; save masks as bool, probabilities as float32")
        return Stored(values, None)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{where}: expected floats, bool or integers, found {values.dtype}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{where}: values {values.min():.4g} to {values.max():.4g}, expected probabilities in 0..1")
    return Stored(values, 1.0)


def _read_png(path: Path, where: str) -> Stored:
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image.convert("L") if mode == "1" else image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where}: not readable as an image: {error}") from None
    if mode in ("1", "P"):
        return Stored(values, None)
    if mode.startswith("I"):
        return Stored(values, 65535.0)
    if mode in ("RGB", "RGBA", "LA"):
        values = _grey(values, mode, where)
    elif mode != "L":
        raise ValueError(f"{where}: PNG mode {mode}; expected 1-bit, palette, 8-bit or 16-bit grey")
    return Stored(values, 255.0, undecided=bool(np.isin(values, _MASK_VALUES).all()))


def _grey(values: NDArray[np.generic], mode: str, where: str) -> NDArray[np.generic]:
    colours = values[..., : 1 if mode == "LA" else 3]
    if (colours != colours[..., :1]).any():
        raise ValueError(f"{where}: a colour image; expected a grey one (is it an overlay?)")
    return colours[..., 0]


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _stored_threshold(folder: Path) -> tuple[float, str]:
    path = folder / SETTINGS_FILE
    if not path.exists():
        return DEFAULT_THRESHOLD, f"default for a folder without {SETTINGS_FILE}"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        threshold = float(settings["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f'{path}: expected an object with a number "threshold" ({error!r})') from None
    if not 0 <= threshold < 1:
        raise EvaluationError(f"{path}: threshold {threshold}, expected 0 <= threshold < 1")
    return threshold, f"stored in {SETTINGS_FILE} beside the predictions"
