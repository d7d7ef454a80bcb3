"""A folder of masks or probabilities of any program, one file per image, read as probabilities.

The prediction of ``images/a/b.jpg`` is ``a/b`` with a suffix of ``prediction_files.READERS``: PNG, TIFF, NPY, NPZ or
NIfTI. If no other image is called ``b``, it may also be ``b`` without the folder, as nnU-Net writes it, or ``seg_b`` as
MedSAM does. If an image has a mask and an ``.npz``, as written by nnU-Net's ``--save_probabilities``, the probabilities
are read. Other files (``plans.json``, ``.pkl``) are ignored.

Integer images are interpreted for the folder as a whole: as masks, as probabilities, or refused as numbers of classes
(``prediction_values``).

An optional ``predictions.json`` holds the ``threshold`` of the predictions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vesselseg.evaluation.errors import EvaluationError, problem_list
from vesselseg.evaluation.prediction_files import READERS, Stored, read_prediction, suffix_of
from vesselseg.evaluation.prediction_values import picture_meaning
from vesselseg.imaging.mask_evidence import Evidence, ValueKind, add_up
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.mask_values import Meaning

SETTINGS_FILE = "predictions.json"
DEFAULT_THRESHOLD = 0.5
_PREFIX = "seg_"  # of MedSAM's files


class PredictionFolder:
    """Predictions in files for the images of a dataset folder."""

    def __init__(self, folder: Path, image_names: Iterable[str], asked: MaskValues = BY_EVIDENCE) -> None:
        """image_names: all images of the dataset, of every split. asked: what the user says about values of masks.

        Raises EvaluationError for a folder without predictions, for files that match no image, for two files of one
        image, and for two images that match one file.
        """
        self.folder = Path(folder)
        self._files = self._match(sorted(image_names))
        self.threshold, self.threshold_origin = _stored_threshold(self.folder)
        self.holds_probabilities = False
        self._asked = asked or (MaskValues("probability") if _is_own(self.folder) else asked)
        self._meanings: dict[ValueKind, Meaning | None] = {}

    def holds(self, name: str) -> bool:
        """Whether an image has a file."""
        return name in self._files

    def check(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Read every prediction once; raises EvaluationError that lists all missing, wrong and unreadable ones.

        sizes: image -> (height, width). Also determines whether the folder holds masks or probabilities.
        """
        missing = [name for name in sizes if name not in self._files]
        if missing:
            endings = ", ".join(READERS)
            expected = [f"{name}: expected {_stem(name)} with a suffix of {endings}" for name in missing]
            advice = f"Add these predictions to {self.folder}, or remove the images from the split."
            raise EvaluationError(problem_list(f"{self.folder}: images without a prediction", expected, advice))
        problems: list[str] = []
        shown: dict[ValueKind, list[Evidence]] = {}
        plain = False
        for name, size in sizes.items():
            try:
                stored = self._stored(name, size)
                evidence = stored.evidence()
                plain |= evidence is None and stored.scale is not None
                if evidence is not None:
                    shown.setdefault(evidence.kind, []).append(evidence)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            advice = "Save each prediction at the size of its image, as a mask or as probabilities in 0..1."
            raise EvaluationError(problem_list(f"{self.folder}: unusable predictions", problems, advice))
        self._settle(shown)
        self.holds_probabilities = plain or None in self._meanings.values()

    def _settle(self, shown: dict[ValueKind, list[Evidence]]) -> None:
        """Decide what the integers of each kind mean; raises EvaluationError where they are numbers of classes."""
        for kind, several in shown.items():
            try:
                self._meanings[kind] = picture_meaning(add_up(several), self._asked)
            except ValueError as error:
                raise EvaluationError(f"{self.folder}: {error}") from None

    def probabilities(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """(height, width) float32 in 0..1 of one image; size: its (height, width)."""
        stored = self._stored(name, size)
        evidence = None if stored.kind in self._meanings else stored.evidence()
        if evidence is not None:  # not checked before: the file alone decides
            self._settle({evidence.kind: [evidence]})
        return stored.probabilities(None if stored.kind is None else self._meanings[stored.kind])

    def _stored(self, name: str, size: tuple[int, int]) -> Stored:
        path = self._files[name]
        where = path.relative_to(self.folder).as_posix()
        try:
            stored = read_prediction(path, self._asked)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if stored.values.shape != size:
            found = " x ".join(str(side) for side in stored.values.shape)
            raise ValueError(f"{where}: {found} (height x width), but {name} is {size[0]} x {size[1]}")
        return stored

    def _match(self, image_names: Sequence[str]) -> dict[str, Path]:
        """Image -> its file; raises EvaluationError for files that match no image or several."""
        images: dict[str, list[str]] = {}
        for name in image_names:
            images.setdefault(_stem(name), []).append(name)
        # Exact names first; shorter ones of nnU-Net and MedSAM count only where they are unambiguous.
        owners = _owners(images)
        files, extra = self._found(owners)
        problems = [f"{stem}: one prediction matches {', '.join(names)}" for stem, names in images.items() if names[1:]]
        problems += [
            f"{stem}: two predictions, {', '.join(path.name for path in paths)}"
            for stem, paths in files.items()
            if len(paths) > 1
        ]
        problems += [f"{name}: matches no image of the dataset" for name in extra]
        if problems:
            advice = "Name a prediction like its image: images/a/b.jpg -> a/b.png or a/b.npy. Remove other files."
            raise EvaluationError(problem_list(f"{self.folder}: files that match no single image", problems, advice))
        return {names[0]: files[stem][0] for stem, names in images.items() if stem in files}

    def _found(self, owners: dict[str, str]) -> tuple[dict[str, list[Path]], list[str]]:
        """(files by image, without masks that have an .npz; names of files that match no image)."""
        files: dict[str, list[Path]] = {}
        extra = []
        for path in sorted(self.folder.rglob("*")):
            if not suffix_of(path.name) or not path.is_file():
                continue
            name = path.relative_to(self.folder).as_posix()
            stem = owners.get(name[: -len(suffix_of(name))])
            if stem is None:
                extra.append(name)
            else:
                files.setdefault(stem, []).append(path)
        if not files and not extra:
            endings = ", ".join(READERS)
            raise EvaluationError(
                f"{self.folder}: contains no prediction ({endings}); expected one per image, named like the image"
            )
        return {stem: _with_probabilities(paths) for stem, paths in files.items()}, extra


def _owners(stems: Iterable[str]) -> dict[str, str]:
    """Accepted name of a prediction -> name of its image, both without suffix."""
    plain = Counter(PurePosixPath(stem).name for stem in stems)
    owners: dict[str, str] = {}
    for stem in stems:
        path = PurePosixPath(stem)
        names = [path.with_name(_PREFIX + path.name).as_posix()]
        if plain[path.name] == 1:
            names += [path.name, _PREFIX + path.name]
        owners.update(dict.fromkeys(names, stem))
    return {**owners, **{stem: stem for stem in stems}}


def _with_probabilities(paths: list[Path]) -> list[Path]:
    """Only the .npz of a mask and an .npz: nnU-Net writes both for one prediction."""
    archives = [path for path in paths if suffix_of(path.name) == ".npz"]
    return archives if len(archives) == 1 and len(paths) == 2 else paths


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _is_own(folder: Path) -> bool:
    """Whether a baseline of vesselseg wrote the folder: its pictures are probabilities, however small."""
    try:
        return "data_fingerprint" in json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


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
    return threshold, f"stored in {SETTINGS_FILE} of the predictions"
