"""Several sources of one dataset folder: each is scanned by itself, and a picture's labels in the last one count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.imaging.source_files import SourceFiles, list_source_files, printable, unique_stems
from vesselseg.prepare.archive import unpack
from vesselseg.prepare.findings import Finding
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_image import ImageResult, ImageTask
from vesselseg.prepare.readers.formats import ScanOptions, scan_labels
from vesselseg.prepare.readers.scan import ScanResult


@dataclass(frozen=True)
class OpenSource:
    """A folder, or an archive that is unpacked. prefix: of its files' names, "" if it is the only source."""

    path: Path
    files: SourceFiles
    allowed_root: Path | None
    prefix: str = ""

    def named(self, file: str) -> str:
        """The name of one of its files in findings, regular expressions and the dataset folder."""
        return f"{self.prefix}/{file}" if self.prefix else file


@dataclass(frozen=True)
class ScannedSource:
    """A source with its labels. kind: their format. tasks: one per labelled image."""

    source: OpenSource
    kind: str
    scan: ScanResult
    tasks: list[ImageTask]
    findings: list[Finding]

    def unlabelled(self, results: Sequence[ImageResult]) -> Iterator[str]:
        """Images without labels."""
        used = {result.origin for result in results} | {task.image.path for task in self.tasks if task.image}
        files = self.source.files
        for name in (*files.images, *files.dicoms):
            if name not in self.scan.not_images and files.root / name not in used:
                yield self.source.named(printable(name))


def open_sources(paths: Sequence[Path], unpacking: Path, options: PrepareOptions) -> list[OpenSource]:
    """List all files; archives are unpacked into folders below `unpacking`."""
    opened = []
    for number, (path, prefix) in enumerate(zip(paths, _prefixes(paths))):
        if path.is_dir():
            root, allowed_root = path, None
        else:
            root = allowed_root = unpacking / str(number)
            root.mkdir()
            unpack(path, root, options.max_gib, options.max_files)
        opened.append(OpenSource(path, list_source_files(root), allowed_root, prefix))
    return opened


def check_sources(paths: Sequence[Path]) -> None:
    """Raise UserError for no source, one that does not exist, and one inside another, whose files would count twice."""
    if not paths:
        raise UserError("no source; give a folder, .tar.gz, .tgz, .tar or .zip with labelled images")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give a folder, .tar.gz, .tgz, .tar or .zip with labelled images")
    for number, path in enumerate(paths):
        for other in (*paths[:number], *paths[number + 1 :]):
            if path.resolve().is_relative_to(other.resolve()):
                raise UserError(f"{path} is inside {other}, and its files would count twice; name one of them")


def scan_source(source: OpenSource, options: PrepareOptions) -> ScannedSource:
    """Detect the format of the labels and list the labelled images."""
    wanted = ScanOptions(options.format, options.masks, options.first_frame, options.mask_values)
    kind, scan = scan_labels(source.files, wanted)
    tasks = [replace(task, file=source.named(task.file), allowed_root=source.allowed_root) for task in scan.tasks]
    links = [Finding(printable(name), None, "link", reason) for name, reason in source.files.links]
    findings = [replace(finding, file=source.named(finding.file)) for finding in [*scan.findings, *links]]
    return ScannedSource(source, kind, scan, tasks, findings)


def replace_earlier(results: Sequence[ImageResult], counts: Sequence[int], images: Path) -> list[ImageResult]:
    """The results, without records of pictures that a later source has with labels of its own.

    counts: results of each source, in order. images: the folder of the stored images, from which theirs are removed.
    """
    source_of = [number for number, count in enumerate(counts) for _ in range(count)]
    last: dict[str, tuple[int, str]] = {}
    for number, result in zip(source_of, results):
        if result.record is not None:
            last[result.pixel_hash] = number, result.file
    kept = []
    for number, result in zip(source_of, results):
        if result.record is not None and last[result.pixel_hash][0] > number:
            (images / result.record.image).unlink()
            finding = Finding(result.file, None, "replaced", f"the labels in {last[result.pixel_hash][1]} are used")
            result = ImageResult(result.file, origin=result.origin, findings=[*result.findings, finding])
        kept.append(result)
    return kept


def _prefixes(paths: Sequence[Path]) -> list[str]:
    if len(paths) == 1:
        return [""]
    return unique_stems([path.resolve().name.split(".")[0] or "source" for path in paths])
