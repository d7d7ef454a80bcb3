"""Results of scanning a source for labels, and the matching of labels to images by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from vesselseg.imaging.label_shapes import LabelFileError, LabelSource
from vesselseg.imaging.source_files import SourceFiles, printable
from vesselseg.imaging.spellings import other_spellings, spelling_key
from vesselseg.prepare.findings import Finding
from vesselseg.prepare.prepare_image import ImageTask
from vesselseg.prepare.source_images import ImageFile
from vesselseg.suggest import did_you_mean

_COMPARED = 300  # names; a comparison takes a millisecond for a few dozen
_FRAME = re.compile(r"^(?P<clip>.+?)[ _.-]*?(?:frame|fr|f)?[ _.-]*(?P<number>\d+)$", re.IGNORECASE)


@dataclass
class ScanResult:
    """tasks: labelled images. findings: files that are not used. not_images: image files that are labels."""

    tasks: list[ImageTask] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    not_images: set[str] = field(default_factory=set)

    def skip(self, name: str, code: str, reason: str) -> None:
        """Add a finding for a file that is left out."""
        self.findings.append(Finding(printable(name), None, code, reason))


@dataclass(frozen=True)
class ImageMatch:
    """An image below the source that matches a label. number: frame number at the end of the label's name, or None."""

    name: str
    number: int | None = None
    by: str = field(default="", compare=False)
    """the rule by which the names match, "" if they are the same"""

    @property
    def label(self) -> str:
        """Its name for findings and regular expressions, different for each frame of a clip."""
        return printable(self.name) + ("" if self.number is None else f", frame {self.number}")


class ImageIndex:
    """The images of a source by name. Paths in label files are never opened, only looked up here.

    form: normalisation of stems before they are compared; it receives the stem in lower case.
    Names match by the rules of `imaging.spellings`.
    """

    def __init__(self, files: SourceFiles, names: Iterable[str], form: Callable[[str], str] = str) -> None:
        self.root = files.root
        self._dicoms = set(files.dicoms)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_other: dict[str, list[tuple[str, str]]] = defaultdict(list)  # stem in another spelling -> (rule, name)
        self._form = form
        for name in names:
            path = PurePosixPath(name)
            self._by_name[spelling_key(path.name)].append(name)
            self._by_stem[form(file_stem(name, name in self._dicoms))].append(name)
            for rule, spelled in other_spellings(name):
                self._by_other[form(file_stem(spelled))].append((rule, name))

    def by_name(self, wanted: str, near: str, hint: str = "") -> list[ImageMatch]:
        """Images that match a path in a label file, e.g. "train/a.jpg": by name, else by stem, else by frame number.

        near: path of the label file; of several matches, those in the nearest folder count. hint: text that may contain
        the name of a folder.
        """
        plain = wanted.replace("\\", "/")
        for rule, spelled in [("", plain), *other_spellings(plain)]:
            matches = self._by_path(PurePosixPath(spelled), near, hint)
            if matches:
                return [replace(match, by=match.by or rule) for match in matches]
        return []

    def _by_path(self, path: PurePosixPath, near: str, hint: str) -> list[ImageMatch]:
        same = self._by_name.get(spelling_key(path.name), [])
        if not same:
            return self.by_stem(file_stem(str(path)), str(PurePosixPath(near).parent / path), hint)
        same = [name for name in same if PurePosixPath(name).name == path.name] or same
        return [ImageMatch(name) for name in _nearest(same, (*_folders(near), *_folders(str(path))), hint)]

    def closest(self, wanted: str) -> str:
        """ "; did you mean ...?" with the most similar name; "" without one, or where many names would be compared."""
        if len(self._by_name) > _COMPARED:
            return ""
        names = [PurePosixPath(name).name for names in self._by_name.values() for name in names]
        return printable(did_you_mean(PurePosixPath(wanted).name, names))

    def by_stem(self, stem: str, near: str, hint: str = "") -> list[ImageMatch]:
        """Images with this normalised stem, else DICOM clips of which it is the stem and a frame number."""
        folders = _folders(near)
        if stem in self._by_stem:
            return [ImageMatch(name) for name in _nearest(self._by_stem[stem], folders, hint)]
        split = _FRAME.match(stem)
        frames = [] if split is None else self._frames(split, folders, hint)
        return frames or self._by_spelling(stem, folders, hint)

    def _by_spelling(self, stem: str, folders: tuple[str, ...], hint: str) -> list[ImageMatch]:
        """Images whose stem is another spelling of this one."""
        for rule, spelled in other_spellings(stem):
            names = self._by_stem.get(self._form(spelling_key(spelled)), [])
            if names:
                return [ImageMatch(name, by=rule) for name in _nearest(names, folders, hint)]
        rules = {name: rule for rule, name in self._by_other.get(stem, [])}
        return [ImageMatch(name, by=rules[name]) for name in _nearest(list(rules), folders, hint)]

    def _frames(self, split: re.Match[str], folders: tuple[str, ...], hint: str) -> list[ImageMatch]:
        """DICOM clips of which a name holds stem and frame number."""
        clips = [name for name in self._by_stem.get(split["clip"], []) if name in self._dicoms]
        return [ImageMatch(name, int(split["number"])) for name in _nearest(clips, folders, hint)]


def file_stem(name: str, dicom: bool = False) -> str:
    """The name without folders and suffix, in lower case; DICOM files named by a UID have no suffix."""
    path = PurePosixPath(name)
    keep = dicom and path.suffix[1:].isdigit()
    return spelling_key(path.name if keep else path.stem)


def select_match(
    found: ScanResult, label: str, matches: Sequence[ImageMatch], wanted: str, index: ImageIndex
) -> ImageMatch | None:
    """The only match of a label; none or several become a finding."""
    if len(matches) == 1:
        if matches[0].by:
            found.skip(label, "name_match", f"{wanted} is {printable(matches[0].name)}, by {matches[0].by}")
        return matches[0]
    if not matches:
        close = index.closest(wanted)
        found.skip(label, "no_image", f"no image: {wanted} is not in the source{close}")
    else:
        names = ", ".join(printable(match.name) for match in matches[:3])
        found.skip(label, "ambiguous_image", f"several images match: {names}")
    return None


def scan_listed_images(
    files: SourceFiles,
    names: Iterable[str],
    read: Callable[[Path], Iterable[tuple[str, LabelSource]]],
    index: ImageIndex,
    first_frame: int | None,
) -> ScanResult:
    """Labelled images of label files that list several. read: file -> (name of an image, its labels) pairs."""
    found = ScanResult()
    labelled: list[tuple[str, ImageMatch, LabelSource]] = []
    for name in names:
        try:
            listed = read(files.root / name)
        except LabelFileError as error:
            found.skip(name, error.code, str(error))
            continue
        for wanted, labels in listed:
            match = select_match(found, f"{name}: {wanted}", index.by_name(wanted, name, name), wanted, index)
            if match is not None:
                labelled.append((name, match, labels))
    add_tasks(found, files, labelled, first_frame)
    return found


def add_tasks(
    found: ScanResult,
    files: SourceFiles,
    labelled: Iterable[tuple[str, ImageMatch, LabelSource]],
    first_frame: int | None,
) -> None:
    """Add tasks for (label file, image, labels) triples; a repeated image becomes a finding."""
    entries: dict[ImageMatch, tuple[str, LabelSource]] = {}
    for name, match, labels in labelled:
        if match in entries:
            earlier = printable(entries[match][0])
            found.skip(match.label, "listed_twice", f"again in {printable(name)}; the labels in {earlier} are used")
        else:
            entries[match] = name, labels
    first = first_frame_number(entries, first_frame)
    report_clips(found, files.root, entries, first)
    for match, (_, labels) in entries.items():
        found.tasks.append(ImageTask(match.label, labels, matched_image(files.root, match, first)))


def first_frame_number(matches: Iterable[ImageMatch], first_frame: int | None) -> int:
    """The number of a clip's first frame: as given, else 0 if a label has frame number 0, else 1 as in DICOM."""
    if first_frame is not None:
        return first_frame
    return 0 if any(match.number == 0 for match in matches) else 1


def matched_image(root: Path, match: ImageMatch, first_frame: int) -> ImageFile:
    """The file of a match, with its frame counted from 0."""
    return ImageFile(root / match.name, None if match.number is None else match.number - first_frame)


def report_clips(found: ScanResult, root: Path, matches: Iterable[ImageMatch], first_frame: int) -> None:
    """Add a finding per clip that is labelled by frame number: a wrong first number would shift all labels."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for match in matches:
        if match.number is not None:
            numbers[match.name].append(match.number)
    if not numbers:
        return
    from vesselseg.imaging.dicom import count_frames

    for name, used in sorted(numbers.items()):
        reason = (
            f"{len(used)} of {count_frames(root / name)} frames have labels and are used, counted from {first_frame}: "
            "check that they fit; --first-frame changes it"
        )
        found.findings.append(Finding(printable(name), None, "clip", reason))


def _folders(name: str) -> tuple[str, ...]:
    return tuple(part.casefold() for part in PurePosixPath(name).parent.parts)


def _nearest(names: Sequence[str], folders: tuple[str, ...], hint: str) -> list[str]:
    """The names that share most folders with the label, counted from the root and from the file."""
    if len(names) < 2:
        return list(names)

    def closeness(name: str) -> tuple[bool, int, bool]:
        own = _folders(name)
        shared = _common(own, folders) + _common(own[::-1], folders[::-1])
        return own == folders, shared, any(part and part in hint.casefold() for part in own)

    best = max(map(closeness, names))
    return [name for name in names if closeness(name) == best]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(one, other):
        if left != right:
            break
        count += 1
    return count
