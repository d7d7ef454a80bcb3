"""annotations.json of a dataset folder: one record type, read, write, validate.

A dataset folder holds ``images/``, ``annotations.json`` (a list of records), ``splits.json`` and ``report.json``.
A record is read in both forms that users have:

* one object: ``{"image": f, "mask": [[x1, y1, ...], ...], "text": "blood vessel"}``
* Sa2VA's own: ``{"image": f, "mask": [[[x1, y1, ...], ...], ...], "text": ["...", ...]}``

and always written in the second. A region is a polygon (flat list of x, y in pixels of the stored image) or a COCO
run-length code ``{"size": [height, width], "counts": "..."}``, for bitmaps. Optional fields of a record: ``group``;
``spacing`` (millimetres per pixel, [row, column]); ``observers``, what further people drew in the same image: name ->
one list of regions per object, in the order of ``text``.

A fold of a cross-validation is a dataset folder too: ``data/NAME/folds/2`` holds a ``splits.json`` and nothing else,
its images and annotations are those of ``data/NAME``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vesselseg.errors import ManifestError
from vesselseg.imaging.regions import Region

SPLITS = ("train", "val", "test")
FOLDS = "folds"  # folder of a dataset folder: 1/splits.json, 2/splits.json, ...


@dataclass(frozen=True)
class Record:
    """One image with its objects.

    image: path below ``images/``, with forward slashes.
    regions: per object, the regions whose union is its mask; an object with no region has an empty mask.
    phrases: per object, what the user would ask for, e.g. "blood vessel".
    group: patient, clip or study; a group is never on both sides of a split. Empty: the image is its own group.
    spacing: (row, column) millimetres per pixel, above 0; None where it is not known.
    observers: what further people drew, by name ("2", "3"): per object the regions, in the order of ``phrases``.
    """

    image: str
    regions: tuple[tuple[Region, ...], ...]
    phrases: tuple[str, ...]
    group: str = ""
    spacing: tuple[float, float] | None = None
    observers: Mapping[str, tuple[tuple[Region, ...], ...]] = field(default_factory=dict)

    @property
    def group_key(self) -> str:
        """The group, or the image's own name where it has none."""
        return self.group or self.image

    def with_observer(self, observer: str) -> Record:
        """The record with what a further observer drew in place of its regions; KeyError for unknown names."""
        return replace(self, regions=self.observers[observer])


def read_manifest(folder: Path) -> list[Record]:
    """Read and check annotations.json of a dataset folder or fold; raises ManifestError with all problems at once."""
    path = dataset_home(folder) / "annotations.json"
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise ManifestError(f"{path}: expected a list of records, found {type(entries).__name__}")
    records, problems = [], []
    for index, entry in enumerate(entries):
        try:
            records.append(parse_record(entry))
        except ManifestError as error:
            problems.append(f"record {index}: {error}")
    named = Counter(record.image for record in records)
    problems += [f"{name}: named by more than one record" for name in sorted(named) if named[name] > 1]
    if problems:
        raise ManifestError(_list_problems(path, problems))
    return records


def write_manifest(folder: Path, records: list[Record]) -> None:
    """Write ``folder/annotations.json`` in Sa2VA's form."""
    entries = []
    for record in records:
        entry: dict[str, Any] = {
            "image": record.image,
            "mask": [list(regions) for regions in record.regions],
            "text": list(record.phrases),
        }
        if record.group:
            entry["group"] = record.group
        if record.spacing is not None:
            entry["spacing"] = list(record.spacing)
        if record.observers:
            entry["observers"] = {name: [list(r) for r in drawn] for name, drawn in record.observers.items()}
        entries.append(entry)
    (Path(folder) / "annotations.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def parse_record(entry: Any) -> Record:
    """One entry of annotations.json in either form -> Record; raises ManifestError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise ManifestError('expected an object with "image", "mask" and "text"')
    image, text, mask = entry["image"], entry.get("text"), entry.get("mask")
    if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
        raise ManifestError(f'{image}: "image" must be a path below images/')
    if not isinstance(mask, list):
        raise ManifestError(f'{image}: "mask" must be a list, found {type(mask).__name__}')
    if isinstance(text, str):
        text, mask = [text], [mask]
    if not isinstance(text, list) or not all(isinstance(phrase, str) and phrase.strip() for phrase in text):
        raise ManifestError(f'{image}: "text" must be a phrase or a list of phrases')
    regions = _parse_objects(image, mask, len(text))
    drawn = entry.get("observers") or {}
    if not isinstance(drawn, dict) or not all(isinstance(objects, list) for objects in drawn.values()):
        raise ManifestError(f'{image}: "observers" must hold one list of objects per name')
    observers = {
        name: _parse_objects(f"{image}, observer {name}", objects, len(text)) for name, objects in drawn.items()
    }
    group = entry.get("group")
    return Record(image, regions, tuple(text), "" if group is None else str(group), _parse_spacing(entry), observers)


def _parse_objects(where: str, mask: list[Any], phrases: int) -> tuple[tuple[Region, ...], ...]:
    if phrases != len(mask):
        raise ManifestError(f"{where}: {phrases} phrases for {len(mask)} objects")
    for number, regions in enumerate(mask):
        if not isinstance(regions, list):
            raise ManifestError(f"{where}, object {number}: expected a list of regions")
        for region in regions:
            _check_region(where, number, region)
    return tuple(tuple(regions) for regions in mask)


def _parse_spacing(entry: dict[str, Any]) -> tuple[float, float] | None:
    spacing = entry.get("spacing")
    if spacing is None:
        return None
    numbers = isinstance(spacing, list) and all(type(v) in (int, float) and 0 < v < math.inf for v in spacing)
    if not numbers or len(spacing) != 2:
        raise ManifestError(f'{entry["image"]}: "spacing" must be [row, column], two numbers of millimetres above 0')
    return float(spacing[0]), float(spacing[1])


def _check_region(image: str, number: int, region: Any) -> None:
    where = f"{image}, object {number}"
    if isinstance(region, dict):
        size = region.get("size")
        sized = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
        if not sized or not isinstance(region.get("counts"), str):
            raise ManifestError(f'{where}: a run-length region needs "size" [height, width] and "counts", a string')
        return
    if not isinstance(region, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in region):
        raise ManifestError(f"{where}: a polygon must be a flat list of finite numbers")
    if len(region) < 6 or len(region) % 2:
        raise ManifestError(
            f"{where}: a polygon needs at least 3 points, as x, y pairs; found {len(region)} numbers. "
            "Run tools/prepare_data.py on the source again: it repairs or leaves out such shapes"
        )


def read_splits(folder: Path) -> dict[str, list[str]]:
    """Read ``folder/splits.json``: image names per split, with all of train, val and test present (may be empty).

    Raises ManifestError where a split lists an image twice. That no image is in two splits matters to evaluation only,
    which checks it.
    """
    path = Path(folder) / "splits.json"
    _check_fold(Path(folder))
    splits = _read_json(path)
    if not isinstance(splits, dict) or not all(isinstance(splits.get(name), list) for name in SPLITS):
        raise ManifestError(f"{path}: expected an object with the lists {', '.join(SPLITS)}")
    listed = {name: [str(image) for image in splits[name]] for name in SPLITS}
    problems = [
        f"{image}: {times} times in split {name}"
        for name, images in listed.items()
        for image, times in Counter(images).items()
        if times > 1
    ]
    if problems:
        raise ManifestError(_list_problems(path, problems))
    return listed


def image_path(folder: str | Path, record: Record) -> Path:
    """The image file of a record of a dataset folder or fold."""
    return dataset_home(folder) / "images" / record.image


def read_split(folder: Path, split: str) -> list[Record]:
    """The records of one split, in the order of splits.json; raises ManifestError for unknown names."""
    if split not in SPLITS:
        raise ManifestError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    by_name = {record.image: record for record in read_manifest(folder)}
    names = read_splits(folder)[split]
    missing = [name for name in names if name not in by_name]
    if missing:
        problems = [f"{name}: in split {split} but not in annotations.json" for name in missing]
        raise ManifestError(_list_problems(Path(folder) / "splits.json", problems))
    return [by_name[name] for name in names]


def fingerprint(folder: Path) -> str:
    """SHA-256 (first 16 hex digits) over annotations.json and splits.json: which data a result was made with."""
    return _digest(dataset_home(folder) / "annotations.json", Path(folder) / "splits.json")


def image_digests(folder: str | Path, records: Iterable[Record]) -> dict[str, str]:
    """Image -> SHA-256 (first 12 hex digits) of its file: the same picture in another split, fold or dataset folder."""
    contents = ((record.image, image_path(folder, record).read_bytes()) for record in records)
    return {image: hashlib.sha256(content).hexdigest()[:12] for image, content in contents}


@dataclass(frozen=True)
class Fold:
    """Which fold of which cross-validation a folder is.

    number: 1..of. fingerprint: SHA-256 (first 16 hex digits) over the annotations and the splits of all folds, the same
    for all of them: results with the same one may be pooled.
    """

    number: int
    of: int
    fingerprint: str


def read_fold(folder: str | Path) -> Fold | None:
    """What fold ``data/NAME/folds/2`` is; None for a dataset folder itself."""
    home = dataset_home(folder)
    if home == Path(folder):
        return None
    numbers = fold_numbers(home)
    splits = [home / FOLDS / str(number) / "splits.json" for number in numbers]
    digest = _digest(home / "annotations.json", *splits)
    return Fold(int(Path(folder).absolute().name), len(numbers), digest)


def fold_numbers(home: Path) -> list[int]:
    """The folds that tools/make_folds.py stored in a dataset folder, in order; empty if there are none."""
    stored = (path.parent.name for path in (Path(home) / FOLDS).glob("*/splits.json"))
    return sorted(int(name) for name in stored if name.isdecimal())


def dataset_home(folder: str | Path) -> Path:
    """The folder that holds annotations.json and images/: the dataset folder itself, or that of a fold."""
    folder = Path(folder)
    place = folder.absolute()
    if place.parent.name != FOLDS or not place.name.isdecimal() or (folder / "annotations.json").exists():
        return folder
    home = place.parent.parent
    return home if (home / "annotations.json").exists() else folder


def _check_fold(folder: Path) -> None:
    home = dataset_home(folder)
    if home != folder and not (folder / "splits.json").exists():
        numbers = ", ".join(map(str, fold_numbers(home))) or "none; make them with tools/make_folds.py"
        raise ManifestError(f"{folder} is no fold of {home}, which has: {numbers}")


def _digest(*files: Path) -> str:
    """SHA-256 over the files' bytes, first 16 hex digits."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; make the dataset folder with tools/prepare_data.py") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from None


def _list_problems(path: Path, problems: list[str]) -> str:
    shown = "\n  ".join(problems[:20])
    more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
    return f"{path}: {len(problems)} problem(s)\n  {shown}{more}"
