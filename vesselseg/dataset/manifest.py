"""annotations.json of a dataset folder: the record type, reading, writing and validation.

A dataset folder contains ``images/``, ``annotations.json`` (a list of records), ``splits.json`` and ``report.json``.
A record may have either of two forms:

* one object: ``{"image": f, "mask": [[x1, y1, ...], ...], "text": "blood vessel"}``
* Sa2VA's own: ``{"image": f, "mask": [[[x1, y1, ...], ...], ...], "text": ["...", ...]}``

and is always written in the second. A region is a polygon (flat list of x, y in pixels of the stored image) or, for
bitmaps, a COCO run-length code ``{"size": [height, width], "counts": "..."}``. Optional fields of a record: ``group``;
``spacing`` (millimetres per pixel, [row, column]) and ``spacing_at`` ("patient" or "detector"); ``fill`` (how polygons
become pixels, see `vesselseg.imaging.rasterise`; absent: labelme); ``observers`` (annotations of further observers:
name -> one list of regions per object, in the order of ``text``); ``ignore`` (regions about which
the labels say nothing).

A fold of a cross-validation is a dataset folder too: ``data/NAME/folds/2`` contains only a ``splits.json``, its images
and annotations are those of ``data/NAME``.
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
from vesselseg.imaging.regions import DEFAULT_FILL, FILLS, Fill, Region

SPLITS = ("train", "val", "test")
FOLDS = "folds"  # folder of a dataset folder: 1/splits.json, 2/splits.json, ...


@dataclass(frozen=True)
class Record:
    """One image with its objects.

    image: path below ``images/``, with forward slashes.
    regions: per object, the regions whose union is its mask; an object without regions has an empty mask.
    phrases: per object, the phrase that prompts for it, e.g. "blood vessel".
    group: patient, clip or study; a group is never in two splits. Empty: the image is its own group.
    spacing: (row, column) in millimetres per pixel, above 0; None if unknown.
    observers: annotations of further observers by name ("2", "3"): regions per object, in the order of ``phrases``.
    fill: how polygons become pixels, see `vesselseg.imaging.rasterise`.
    spacing_at: where the spacing is measured, "patient" or "detector" (then lengths are too long); "" if unknown.
    ignore: regions about which the labels say nothing; neither vessel nor background.
    """

    image: str
    regions: tuple[tuple[Region, ...], ...]
    phrases: tuple[str, ...]
    group: str = ""
    spacing: tuple[float, float] | None = None
    observers: Mapping[str, tuple[tuple[Region, ...], ...]] = field(default_factory=dict)
    fill: Fill = DEFAULT_FILL
    spacing_at: str = ""
    ignore: tuple[Region, ...] = ()

    @property
    def group_key(self) -> str:
        """The group, or the image's name if it has none."""
        return self.group or self.image

    def with_observer(self, observer: str) -> Record:
        """The record with the regions of a further observer; raises KeyError for an unknown name."""
        return replace(self, regions=self.observers[observer])


def read_manifest(folder: Path) -> list[Record]:
    """Read and check annotations.json of a dataset folder or fold; raises ManifestError that lists all problems."""
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
    problems += [f"{name}: in more than one record" for name in sorted(named) if named[name] > 1]
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
        if record.spacing_at:
            entry["spacing_at"] = record.spacing_at
        if record.fill != DEFAULT_FILL:
            entry["fill"] = record.fill
        if record.observers:
            entry["observers"] = {name: [list(r) for r in drawn] for name, drawn in record.observers.items()}
        if record.ignore:
            entry["ignore"] = list(record.ignore)
        entries.append(entry)
    (Path(folder) / "annotations.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def parse_record(entry: Any) -> Record:
    """Parse an entry of annotations.json in either form; raises ManifestError."""
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
        raise ManifestError(f'{image}: "observers" must contain one list of objects per name')
    observers = {
        name: _parse_objects(f"{image}, observer {name}", objects, len(text)) for name, objects in drawn.items()
    }
    group, fill = entry.get("group"), entry.get("fill", DEFAULT_FILL)
    if fill not in FILLS:
        raise ManifestError(f'{image}: "fill" is {fill!r}, expected one of {", ".join(FILLS)}')
    named = "" if group is None else str(group)
    at = entry.get("spacing_at", "")
    if at not in ("", "patient", "detector"):
        raise ManifestError(f'{image}: "spacing_at" must be "patient" or "detector"')
    ignore = entry.get("ignore") or []
    if not isinstance(ignore, list):
        raise ManifestError(f'{image}: "ignore" must be a list of regions')
    (ignored,) = _parse_objects(f"{image}, ignore", [ignore], 1)
    return Record(image, regions, tuple(text), named, _parse_spacing(entry), observers, fill, at, ignored)


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
            "Prepare the source again with vesselseg prepare, which repairs or leaves out such shapes"
        )


def read_splits(folder: Path) -> dict[str, list[str]]:
    """Read ``folder/splits.json``: image names for each of train, val and test, possibly empty.

    Raises ManifestError if a split lists an image twice. An image in two splits matters only for evaluation, which
    checks for it.
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
    """SHA-256 (first 16 hex digits) of annotations.json and splits.json; identifies the data of a result."""
    return _digest(dataset_home(folder) / "annotations.json", Path(folder) / "splits.json")


def image_digests(folder: str | Path, records: Iterable[Record]) -> dict[str, str]:
    """Image -> SHA-256 (first 12 hex digits) of its file, which identifies it across splits, folds and folders."""
    contents = ((record.image, image_path(folder, record).read_bytes()) for record in records)
    return {image: hashlib.sha256(content).hexdigest()[:12] for image, content in contents}


@dataclass(frozen=True)
class Fold:
    """A fold of a cross-validation.

    number: 1..of. of: number of folds. fingerprint: SHA-256 (first 16 hex digits) of the annotations and the splits of
    all folds; results with the same fingerprint may be pooled.
    """

    number: int
    of: int
    fingerprint: str


def read_fold(folder: str | Path) -> Fold | None:
    """The fold of a folder such as ``data/NAME/folds/2``; None for a dataset folder itself."""
    home = dataset_home(folder)
    if home == Path(folder):
        return None
    numbers = fold_numbers(home)
    splits = [home / FOLDS / str(number) / "splits.json" for number in numbers]
    digest = _digest(home / "annotations.json", *splits)
    return Fold(int(Path(folder).absolute().name), len(numbers), digest)


def fold_numbers(home: Path) -> list[int]:
    """Numbers of the folds stored in a dataset folder, sorted; empty if there are none."""
    stored = (path.parent.name for path in (Path(home) / FOLDS).glob("*/splits.json"))
    return sorted(int(name) for name in stored if name.isdecimal())


def dataset_home(folder: str | Path) -> Path:
    """The folder with annotations.json and images/: the dataset folder itself, or that of a fold."""
    folder = Path(folder)
    place = folder.absolute()
    if place.parent.name != FOLDS or not place.name.isdecimal() or (folder / "annotations.json").exists():
        return folder
    home = place.parent.parent
    return home if (home / "annotations.json").exists() else folder


def _check_fold(folder: Path) -> None:
    home = dataset_home(folder)
    if home != folder and not (folder / "splits.json").exists():
        numbers = ", ".join(map(str, fold_numbers(home))) or "none; make them with vesselseg folds make"
        raise ManifestError(f"{folder} is not a fold of {home}, which has: {numbers}")


def _digest(*files: Path) -> str:
    """SHA-256 of the concatenated files, first 16 hex digits."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; make the dataset folder with vesselseg prepare") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from None


def _list_problems(path: Path, problems: list[str]) -> str:
    shown = "\n  ".join(problems[:20])
    more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
    return f"{path}: {len(problems)} problem(s)\n  {shown}{more}"
