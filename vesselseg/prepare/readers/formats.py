"""Detect the label format of a source by content, and list the labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.imaging.labelme import LabelmeLabels
from vesselseg.imaging.mask_option import BY_EVIDENCE, MaskValues
from vesselseg.imaging.source_files import SourceFiles, printable
from vesselseg.prepare.prepare_image import ImageTask
from vesselseg.prepare.readers.coco import scan_coco
from vesselseg.prepare.readers.cvat import scan_cvat
from vesselseg.prepare.readers.mask_pairs import scan_masks, settle_tasks
from vesselseg.prepare.readers.nnunet import read_raw_folder
from vesselseg.prepare.readers.scan import (
    ImageIndex,
    ImageMatch,
    ScanResult,
    file_stem,
    first_frame_number,
    matched_image,
    report_clips,
)
from vesselseg.prepare.readers.yolo import looks_like_yolo, scan_yolo

Scan = Callable[[SourceFiles, list[str], ImageIndex, "int | None"], ScanResult]


def _contains(*words: bytes) -> Callable[[bytes], bool]:
    return lambda content: all(word in content for word in words)


@dataclass(frozen=True)
class LabelFormat:
    """A format of labels, and how its files are recognised and read.

    suffix: of its label files, in lower case; "" if no file is recognised by its content.
    matches: whether the bytes of a file with this suffix are of this format. JSON files are given whole, others by
    their first bytes.
    scan: (source, its label files of this format, its images, number of a clip's first frame) -> labelled images; None
    where `scan_labels` has a case of its own.
    """

    title: str
    suffix: str = ""
    matches: Callable[[bytes], bool] = lambda content: False
    scan: Scan | None = None


# Of several formats that match a file, the first one counts.
FORMATS = {
    "labelme": LabelFormat("LabelMe JSON", ".json", _contains(b'"shapes"')),
    "masks": LabelFormat("mask images"),
    "coco": LabelFormat("COCO JSON", ".json", _contains(b'"annotations"', b'"images"'), scan_coco),
    "yolo": LabelFormat("YOLO-seg text", ".txt", looks_like_yolo, scan_yolo),
    "cvat": LabelFormat("CVAT for images XML", ".xml", _contains(b"<annotations"), scan_cvat),
    "dicom": LabelFormat("DICOM images only, with labels of any of these formats"),
}
_START = 4096  # bytes that identify most files


@dataclass(frozen=True)
class ScanOptions:
    """forced: one of FORMATS or "". masks: folders with masks. first_frame: number of a clip's first frame, or None.

    mask_values: what values of masks mean, if the user says so.
    """

    forced: str = ""
    masks: tuple[str, ...] = ()
    first_frame: int | None = None
    mask_values: MaskValues = BY_EVIDENCE


def scan_labels(files: SourceFiles, options: ScanOptions) -> tuple[str, ScanResult]:
    """The format of the labels, and the images that they label. Raises UserError if formats are mixed."""
    only_dicom = options.forced == "dicom"
    by_format = _label_files(files)
    kind = options.forced if options.forced and not only_dicom else _detect(files, by_format, options)
    names = by_format.get(kind, [])
    images = files.dicoms if only_dicom else (*files.images, *files.dicoms)
    if kind == "masks":
        found = scan_masks(files, options.masks, images, options.first_frame)
        found.tasks = settle_tasks(found.tasks, options.mask_values, read_raw_folder(files))
        return kind, found
    label_format = FORMATS[kind]
    if label_format.scan is not None:
        names = _yolo_texts(files, names) if kind == "yolo" else names or _with_suffix(files, label_format.suffix)
        return kind, label_format.scan(files, names, ImageIndex(files, images), options.first_frame)
    return "labelme", _scan_labelme(files, ImageIndex(files, files.dicoms), options.first_frame, only_dicom)


def _detect(files: SourceFiles, by_format: dict[str, list[str]], options: ScanOptions) -> str:
    """The only format; LabelMe if there are JSON files of unknown kind, so that each gets a finding."""
    if options.masks:
        return "masks"
    if len(by_format) > 1:
        listed = ", ".join(f"{kind} ({len(names)}, as {printable(names[0])})" for kind, names in by_format.items())
        raise UserError(f"{files.root.name}: labels of several formats: {listed}; choose one with --format")
    if by_format:
        return next(iter(by_format))
    images = (*files.images, *files.dicoms)
    return "masks" if scan_masks(files, (), images, None).tasks or not files.jsons else "labelme"


def _label_files(files: SourceFiles) -> dict[str, list[str]]:
    """Format -> its label files, by their content."""
    found: dict[str, list[str]] = {kind: [] for kind in FORMATS}
    suffixes = sorted({label_format.suffix for label_format in FORMATS.values()} - {""})
    for name in (name for suffix in suffixes for name in _with_suffix(files, suffix)):
        kind = _kind(files.root / name)
        if kind:
            found[kind].append(name)
    images = {file_stem(name) for name in (*files.images, *files.dicoms)}
    if not any(file_stem(name) in images for name in found["yolo"]):  # numeric text files unrelated to any image
        found["yolo"] = []
    return {kind: names for kind, names in found.items() if names}


def _with_suffix(files: SourceFiles, suffix: str) -> list[str]:
    return list(files.jsons) if suffix == ".json" else files.others_with(suffix)


def _kind(path: Path) -> str:
    """The format of a label file by its content, "" if it is none."""
    suffix, content = path.suffix.lower(), _start(path)
    # An embedded image may stand before the shapes of a LabelMe file, and COCO's lists may be anywhere.
    if suffix == ".json" and not FORMATS["labelme"].matches(content):
        try:
            content = path.read_bytes().replace(b"\0", b"")  # UTF-16
        except OSError:
            return ""
    known = (kind for kind, one in FORMATS.items() if one.suffix == suffix and one.matches(content))
    return next(known, "")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(_START)
    except OSError:
        return b""


def _yolo_texts(files: SourceFiles, names: Sequence[str]) -> list[str]:
    """Files with outlines, and those next to them that are empty (no vessel) or have the name of an image."""
    folders = {str(Path(name).parent) for name in names}
    images = {file_stem(name) for name in (*files.images, *files.dicoms)}
    adjacent = [name for name in files.others_with(".txt") if not folders or str(Path(name).parent) in folders]
    more = [name for name in adjacent if file_stem(name) in images or (folders and not _start(files.root / name))]
    return sorted({*names, *more})


def _scan_labelme(files: SourceFiles, dicoms: ImageIndex, first_frame: int | None, only_dicom: bool) -> ScanResult:
    """One task per JSON file. Only DICOM images are matched here; ``find_source_image`` resolves the others."""
    found = ScanResult()
    matches: dict[str, ImageMatch] = {}
    for name in files.jsons:
        near = dicoms.by_stem(file_stem(name), name) if files.dicoms else []
        if len(near) == 1:
            matches[name] = near[0]
        elif only_dicom:
            found.skip(name, "no_image", f"no DICOM file {Path(name).stem}.*")
    first = first_frame_number(matches.values(), first_frame)
    report_clips(found, files.root, matches.values(), first)
    for name in files.jsons:
        task = ImageTask(printable(name), LabelmeLabels(files.root / name), search=not only_dicom)
        if name in matches:
            found.tasks.append(replace(task, image=matched_image(files.root, matches[name], first)))
        elif not only_dicom:
            found.tasks.append(task)
    return found
