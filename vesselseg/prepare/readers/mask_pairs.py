"""Pair mask images with their images by names of folders and files, for one or several observers.

Known naming schemes: DRIVE (images/21_training.tif, 1st_manual/21_manual1.gif, and mask/ with the field of view, which
is not a vessel mask), CHASE_DB1 (Image_01L_1stHO.png), STARE (labels-ah/im0001.ah.ppm), HRF, FIVES, DCA1 (1_gt.pgm), or
simply images/a.png and masks/a.png, or a.png and a_mask.png.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from vesselseg.errors import UserError
from vesselseg.imaging.mask_option import MaskValues
from vesselseg.imaging.notes import Note
from vesselseg.imaging.source_files import SourceFiles, printable
from vesselseg.prepare.prepare_image import ImageTask
from vesselseg.prepare.readers.masks import MaskLabels, settle_meanings
from vesselseg.prepare.readers.nnunet import FIRST_CHANNEL, RawFolder
from vesselseg.prepare.readers.scan import (
    ImageIndex,
    ImageMatch,
    ScanResult,
    file_stem,
    first_frame_number,
    matched_image,
    report_clips,
)

_SEPARATOR = re.compile(r"[ _.\-]+")
# Words of names, in lower case -> observer. 0: "mask", which is the field of view if there is another mask.
_OBSERVERS = {
    **dict.fromkeys(("mask", "masks"), 0),
    **dict.fromkeys(
        ("gt", "groundtruth", "seg", "segmentation", "segmentations", "segmentationclass",
         "label", "labels", "labelstr", "labelsts", "manual", "annotation", "annotations", "annot",
         "target", "targets", "vessel", "vessels", "manual1", "1stmanual",
         "1stho", "observer1", "obs1", "expert1", "ah"), 1),
    **dict.fromkeys(("manual2", "2ndmanual", "2ndho", "observer2", "obs2", "expert2", "vk"), 2),
    **dict.fromkeys(("manual3", "3rdmanual", "3rdho", "observer3", "obs3", "expert3"), 3),
}  # fmt: skip
_NEVER = ("fov", "roi")
_ONE_WORD = re.compile(r"\b(ground|1st|2nd|3rd|manual|observer|obs|expert) (truth|manual|ho|\d)\b")
_PICTURE_WORDS = ("image", "images", "imagestr", "imagests", "img", "training", "test", "orig", "original", "raw")


@dataclass(frozen=True)
class _Mask:
    """name: path below the source. observer: from 1, 0 for "mask". stem: without the words that mark it as a mask."""

    name: str
    observer: int
    stem: str


def scan_masks(
    files: SourceFiles, folders: Sequence[str], images: Sequence[str], first_frame: int | None
) -> ScanResult:
    """Images with their masks.

    folders: below the source, with masks only, the first observer's first; empty: masks are detected by name.
    images: files that are images unless they are masks. Raises UserError for folders without images.
    """
    found = ScanResult()
    look_like_masks = _by_names(files, images)
    masks = _in_folders(files, folders) if folders else look_like_masks
    found.not_images = {mask.name for mask in masks}
    if not folders:
        found.not_images |= {name for name in files.images if _words(PurePosixPath(name)) & set(_NEVER)}
    indices = _indices(files, [name for name in images if name not in found.not_images], look_like_masks)
    masks_of: dict[ImageMatch, list[_Mask]] = defaultdict(list)
    for mask in masks:
        matches = _matches(mask, indices)
        if len(matches) == 1:
            if matches[0].by:
                reason = f"{printable(mask.name)} is of {printable(matches[0].name)}, by {matches[0].by}"
                found.skip(mask.name, "name_match", reason)
            masks_of[matches[0]].append(mask)
        elif matches:
            names = ", ".join(printable(match.name) for match in matches[:3])
            found.skip(mask.name, "ambiguous_image", f"the mask matches several images: {names}")
        else:
            found.skip(
                mask.name,
                "no_image",
                f"a mask without its image; expected {mask.stem}.*{indices[0].closest(mask.name)}",
            )
    first = first_frame_number(masks_of, first_frame)
    report_clips(found, files.root, masks_of, first)
    for match, candidates in sorted(masks_of.items(), key=lambda item: (item[0].name, item[0].number or 0)):
        labels = _labels(found, files, match, candidates)
        if labels is not None:
            found.tasks.append(ImageTask(match.label, labels, matched_image(files.root, match, first)))
    return found


def settle_tasks(tasks: Sequence[ImageTask], asked: MaskValues, raw: RawFolder | None) -> list[ImageTask]:
    """The tasks with the meaning that the values of all their masks have together, or that nnU-Net's file states."""
    if raw is not None and not asked:
        asked = MaskValues("classes", raw.ignore)
    names = {} if raw is None else raw.names
    labels = [replace(task.labels, names=names) for task in tasks if isinstance(task.labels, MaskLabels)]
    return [replace(task, labels=one) for task, one in zip(tasks, settle_meanings(labels, asked), strict=True)]


def _indices(files: SourceFiles, images: Sequence[str], look_like_masks: Sequence[_Mask]) -> list[ImageIndex]:
    """Images by complete stem, then by stem without type words; those with names like masks come last."""
    doubtful = {mask.name for mask in look_like_masks}
    pools = [[name for name in images if name not in doubtful], images]
    forms = (lambda stem: "_".join(_split(stem)), _plain)
    first_channels = [name for name in pools[0] if file_stem(name).endswith(FIRST_CHANNEL)]
    of_channel = ImageIndex(files, first_channels, lambda stem: "_".join(_split(stem.removesuffix(FIRST_CHANNEL))))
    return [*(ImageIndex(files, pool, form) for pool in pools for form in forms), of_channel]


def _labels(found: ScanResult, files: SourceFiles, match: ImageMatch, masks: list[_Mask]) -> MaskLabels | None:
    """One mask per observer; two of the same observer are a finding, and the image is left out."""
    notes: list[Note] = []
    if len({mask.observer for mask in masks}) > 1 and any(mask.observer == 0 for mask in masks):
        names = ", ".join(printable(mask.name) for mask in masks if mask.observer == 0)
        notes.append(Note("other_mask", f"{names} is treated as the field of view; --masks overrides this"))
        masks = [mask for mask in masks if mask.observer]
    masks = sorted(masks, key=lambda mask: (mask.observer, mask.name))
    observers = [mask.observer for mask in masks]
    if len(set(observers)) < len(observers):
        names = ", ".join(printable(mask.name) for mask in masks[:4])
        found.skip(match.label, "ambiguous_mask", f"several candidate masks: {names}; choose with --masks")
        return None
    return MaskLabels(tuple(files.root / mask.name for mask in masks), tuple(notes))


def _in_folders(files: SourceFiles, folders: Sequence[str]) -> list[_Mask]:
    masks, empty = [], []
    for number, folder in enumerate(folders, 1):
        below = [name for name in files.images if f"/{folder.strip('/')}/".casefold() in f"/{name}".casefold()]
        if not below:
            empty.append(folder)
        masks += [_Mask(name, number, _plain(file_stem(name))) for name in below]
    if empty:
        folders_there = sorted({str(PurePosixPath(name).parent) for name in files.images})
        raise UserError(
            f"--masks {', '.join(empty)}: no such folder with images below the source; expected one of: "
            + ", ".join(folders_there[:20])
        )
    return masks


def _by_names(files: SourceFiles, images: Sequence[str]) -> list[_Mask]:
    shared = os.path.commonpath([PurePosixPath(name).parent for name in images]) if images else ""
    masks = []
    for name in files.images:
        words = _words(PurePosixPath(name), shared)
        observers = [_OBSERVERS[word] for word in words if word in _OBSERVERS]
        if observers and not words & set(_NEVER):
            masks.append(_Mask(name, max(observers), _plain(file_stem(name))))
    return masks


def _words(path: PurePosixPath, shared: str = "") -> set[str]:
    """Words that may mark a mask: first and last of the name, and those of the nearest descriptive folder."""
    parts = _split(path.stem)
    said = set(parts[:1] + parts[-1:]) if len(parts) > 1 else set()
    for folder in reversed(path.parent.relative_to(shared).parts[-2:]):
        words = _split(folder)
        names = {"".join(words), words[-1]}
        if names & {*_OBSERVERS, *_NEVER}:
            return said | names
        if names & set(_PICTURE_WORDS):
            break
    return said


def _split(name: str) -> list[str]:
    """Words of a name, in lower case; "1st_manual" and "ground truth" count as one word each."""
    text = " ".join(word for word in _SEPARATOR.split(name.casefold()) if word)
    return _ONE_WORD.sub(r"\1\2", text).split(" ")


def _plain(stem: str) -> str:
    """A stem without leading and trailing words that only state the type of file, joined with underscores."""
    words = _split(stem)
    kinds = {*_OBSERVERS, *_PICTURE_WORDS}
    while len(words) > 1 and words[-1] in kinds:
        words = words[:-1]
    while len(words) > 1 and words[0] in kinds:
        words = words[1:]
    return "_".join(words)


def _matches(mask: _Mask, indices: Sequence[ImageIndex]) -> list[ImageMatch]:
    """Images with the mask's complete name, else without trailing mask words, else without any type word."""
    words = _split(file_stem(mask.name))
    stems = ["_".join(words)]
    while len(words) > 1 and words[-1] in _OBSERVERS:
        words = words[:-1]
    wanted = dict.fromkeys([*stems, "_".join(words), mask.stem])
    tried = (index.by_stem(stem, mask.name) for index in indices for stem in wanted)
    return next((matches for matches in tried if matches), [])
