"""Folder or archive of labelled images -> dataset folder with its report; the output is complete or absent."""

from __future__ import annotations

import logging
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vesselseg.dataset.manifest import SPLITS, Record, fingerprint, write_manifest
from vesselseg.errors import UserError
from vesselseg.imaging.decode import is_dicom
from vesselseg.imaging.source_files import SourceFiles, unique_stems
from vesselseg.machine import available_cores
from vesselseg.output_folder import check_apart, move_into_place, temporary_folder
from vesselseg.prepare.fill_choice import MOST, FillChoice, choose_fill
from vesselseg.prepare.findings import Finding
from vesselseg.prepare.one_sided import find_one_sided
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_image import ImageOptions, ImageResult, ImageTask, prepare_image
from vesselseg.prepare.pseudonymise import Pseudonymiser
from vesselseg.prepare.readers.formats import FORMATS
from vesselseg.prepare.report import PreparationResult, build_report, write_report, write_splits
from vesselseg.prepare.report_page import write_report_page
from vesselseg.prepare.sources import OpenSource, check_sources, open_sources, replace_earlier, scan_source
from vesselseg.prepare.splits import assign_fixed, compile_pattern, find_group, merge_groups, split_groups
from vesselseg.suggest import close_name

_NOT_SHOWN = "(not shown)"  # in place of names that a pseudonymised report must not contain
_PARALLEL_FROM = 24  # files; below that a process pool takes longer to start than it saves

_log = logging.getLogger(__name__)


def prepare_dataset(source: Path | Sequence[Path], out: Path, options: PrepareOptions) -> dict[str, Any]:
    """Create the dataset folder ``out`` from folders or archives; returns the content of its report.json.

    source: one or several; of a picture that several hold with labels, the labels of the last one are used.

    Raises UserError, before ``out`` is changed, if nothing is usable, labels are unknown, the archive is rejected,
    ``out`` exists (without force), or there is any finding (with strict). The source is only read.
    """
    paths = [Path(source)] if isinstance(source, (str, Path)) else [Path(one) for one in source]
    out = Path(out)
    check_sources(paths)
    _check_paths(paths, out, options.force)
    _check_options(options)
    for path in paths:
        _check_secrets(path, out, options)
    with ExitStack() as stack:
        building = stack.enter_context(temporary_folder(out, "building"))
        archives = any(not path.is_dir() for path in paths)
        unpacking = stack.enter_context(temporary_folder(out, "unpacking")) if archives else building
        sources = open_sources(paths, unpacking, options)
        names = _pseudonyms(sources, out, options)
        report = _build(sources, building, options, names)
        if names is not None:
            names.save_salt()
            if options.key_table is not None:
                names.write_key(options.key_table)
        replaced = out.exists()
        move_into_place(building, out)
        if replaced:
            _log.info("replaced %s", out)
    return report


def _pseudonyms(sources: Sequence[OpenSource], out: Path, options: PrepareOptions) -> Pseudonymiser | None:
    if not options.pseudonymise and not any(source.files.dicoms for source in sources):
        return None
    return Pseudonymiser(options.salt or out.with_name(f"{out.name}.salt"))


def _build(
    sources: Sequence[OpenSource], building: Path, options: PrepareOptions, names: Pseudonymiser | None
) -> dict[str, Any]:
    """Fill the folder ``building``; returns the report."""
    scanned = [scan_source(one, options) for one in sources]
    for one in scanned:
        if not one.scan.tasks and not one.findings:
            raise UserError(_describe_empty(one.source.path, one.source.files))
    source = Path(", ".join(str(one.path) for one in sources))
    kind = ", ".join(dict.fromkeys(one.kind for one in scanned))
    scan_findings = [finding for one in scanned for finding in one.findings]
    tasks = _name_tasks([task for one in scanned for task in one.tasks], names)
    image_options = _image_options(building, options, names)
    choice = _choose_fill(tasks, image_options, options)
    if choice is not None:
        options, image_options = replace(options, fill=choice.fill), replace(image_options, fill=choice.fill)
    results = _prepare_images(tasks, image_options, options)
    results = replace_earlier(results, [len(one.tasks) for one in scanned], image_options.images)
    _check_labels(results, options)
    usable = [result for result in results if result.record is not None]
    left_out = [result for result in results if result.record is None]
    left_out += [ImageResult(f.file, findings=[f]) for f in scan_findings if f.effect == "file left out"]
    if not usable:
        what = f"{source}: nothing usable in {len(left_out)} {'JSON file(s)' if kind == 'labelme' else 'label(s)'}"
        raise UserError(_describe_findings(what, _sorted_findings(_findings_of(left_out), names)))
    records, findings = _group(usable, options, names)
    splits, split_findings = _split(records, usable, options)
    noted = [finding for finding in scan_findings if finding.effect != "file left out"] + find_one_sided(usable)
    findings = _sorted_findings(
        [*_findings_of(usable), *_findings_of(left_out), *noted, *findings, *split_findings], names
    )
    if options.strict and findings:
        raise UserError(_describe_findings(f"{source}: {len(findings)} finding(s), and --strict allows none", findings))
    unlabelled = [name for one in scanned for name in one.unlabelled(results)]
    prepared = PreparationResult(source, options, kind, usable, left_out, records, splits, findings, unlabelled)
    prepared = replace(prepared, fill_by="" if choice is None else choice.describe())
    return _write(building, prepared if names is None else _anonymise(prepared, names))


def _name_tasks(tasks: list[ImageTask], names: Pseudonymiser | None) -> list[ImageTask]:
    """Set the name of each task's image in the dataset folder."""
    if names is not None:
        return [replace(task, stem=names.file(task.file)) for task in tasks]
    return [replace(task, stem=stem) for task, stem in zip(tasks, unique_stems([task.file for task in tasks]))]


def _image_options(building: Path, options: PrepareOptions, names: Pseudonymiser | None) -> ImageOptions:
    images = building / "images"
    images.mkdir()
    return ImageOptions(
        images=images,
        text=options.default_phrase,
        keep_phrases=options.text is None and options.labels is None,
        labels=options.labels,
        per_shape=options.per_shape,
        line_width=options.line_width,
        fill=options.fill,
        pixels_only=names is not None,
    )


def _choose_fill(tasks: list[ImageTask], image_options: ImageOptions, options: PrepareOptions) -> FillChoice | None:
    """By --fill-masks; the pictures that are looked at are prepared again afterwards, with the chosen fill."""
    if options.fill_masks is None:
        return None
    sample = tasks[:: max(1, len(tasks) // (2 * MOST))]  # of the whole source; some of them will have no mask
    return choose_fill(_prepare_images(sample, image_options, replace(options, quiet=True)), options.fill_masks)


def _sorted_findings(findings: list[Finding], names: Pseudonymiser | None) -> list[Finding]:
    """Sorted findings, without names if names are hashed."""
    shown = findings if names is None else [names.pseudonymise(finding) for finding in findings]
    return sorted(shown, key=lambda finding: finding.sort_key)


def _anonymise(prepared: PreparationResult, names: Pseudonymiser) -> PreparationResult:
    """Remove names from the options and the source; records and findings contain none already."""
    options = prepared.options
    hidden = replace(
        options,
        group_regex=_NOT_SHOWN if options.group_regex else "",
        val_regex=_NOT_SHOWN if options.val_regex else "",
        test_regex=_NOT_SHOWN if options.test_regex else "",
        masks=tuple(_NOT_SHOWN for _ in options.masks),
    )
    return replace(
        prepared,
        source=Path(_NOT_SHOWN),
        options=hidden,
        unlabelled=[names.file(name) for name in prepared.unlabelled],
        pseudonymised=True,
    )


def _write(building: Path, prepared: PreparationResult) -> dict[str, Any]:
    write_manifest(building, prepared.records)
    write_splits(building, prepared.splits)
    report = build_report(prepared)
    report["fingerprint"] = fingerprint(building)
    write_report(building, report)
    write_report_page(building, report, prepared)
    return report


def _prepare_images(tasks: list[ImageTask], image_options: ImageOptions, options: PrepareOptions) -> list[ImageResult]:
    """Prepare all images in order, in several processes if there are many."""
    work = partial(prepare_image, options=image_options)
    workers = min(options.workers or available_cores(), len(tasks))
    bar = partial(tqdm, total=len(tasks), unit="file", desc="preparing", disable=options.quiet)
    if workers == 1 or len(tasks) < _PARALLEL_FROM:
        return list(bar(map(work, tasks)))
    with ProcessPoolExecutor(workers, initializer=_ignore_interrupt) as pool:
        try:
            return list(bar(pool.map(work, tasks, chunksize=4)))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for lack of memory; try again with --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C is sent to all processes; only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _group(
    usable: list[ImageResult], options: PrepareOptions, names: Pseudonymiser | None
) -> tuple[list[Record], list[Finding]]:
    """Records with their group, from --group-regex or else the DICOM patient; a file without one is listed."""
    pattern = compile_pattern("--group-regex", options.group_regex) if options.group_regex else None
    records, findings = [], []
    for result in usable:
        assert result.record is not None
        group = find_group(pattern, result.file) if pattern is not None else result.patient
        if not group and pattern is not None:
            reason = f"--group-regex {pattern.pattern} does not match; the file is its own group"
            findings.append(Finding(result.file, None, "no_group", reason))
        elif not group and result.origin is not None and is_dicom(result.origin):
            findings.append(Finding(result.file, None, "no_group", "no patient in the DICOM header"))
        records.append(replace(result.record, group=names.group(group) if group and names is not None else group or ""))
    return records, findings


def _split(
    records: list[Record], usable: list[ImageResult], options: PrepareOptions
) -> tuple[dict[str, list[str]], list[Finding]]:
    """Image names per split. Files with identical pixels count as one group regardless of their names."""
    same = defaultdict(list)
    for position, result in enumerate(usable):
        same[result.pixel_hash].append(position)
    repeated = [positions for positions in same.values() if len(positions) > 1]
    findings = [
        Finding(usable[position].file, None, "duplicate_image", f"the same image as {usable[positions[0]].file}")
        for positions in repeated
        for position in positions[1:]
    ]
    groups = merge_groups([record.group_key for record in records], repeated)
    patterns = {"val": options.val_regex, "test": options.test_regex}
    compiled = {name: compile_pattern(f"--{name}-regex", text) for name, text in patterns.items() if text}
    fixed = assign_fixed(groups, [result.file for result in usable], compiled) if compiled else {}
    names = split_groups(groups, options.fractions, options.seed, fixed)
    splits = {name: [r.image for r, split in zip(records, names) if split == name] for name in SPLITS}
    for name, share in zip(SPLITS, options.fractions):
        if not splits[name] and share > 0:
            reason = f"split {name} is empty: the number of groups is {len(set(groups))}"
            findings.append(Finding("(all files)", None, "empty_split", reason))
    return splits, findings


def _findings_of(results: Iterable[ImageResult]) -> list[Finding]:
    return [finding for result in results for finding in result.findings]


def _check_options(options: PrepareOptions) -> None:
    problems = []
    if options.text is not None and not options.text.strip():
        problems.append("--text: the phrase is empty")
    if options.line_width is not None and not 0 < options.line_width < 1e4:
        problems.append(f"--line-width {options.line_width:g}: expected pixels above 0")
    if options.max_gib <= 0 or options.max_files <= 0:
        problems.append("--max-gib and --max-files: expected numbers above 0")
    if options.format and options.format not in FORMATS:
        problems.append(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    if options.masks and options.format not in ("", "masks", "dicom"):
        problems.append(f"--masks: goes with --format masks, not {options.format}")
    for name in ("group_regex", "val_regex", "test_regex"):
        if getattr(options, name):
            compile_pattern(f"--{name.replace('_', '-')}", getattr(options, name))
    if problems:
        raise UserError("\n  ".join(problems))


def _check_secrets(source: Path, out: Path, options: PrepareOptions) -> None:
    """Salt and key table must not be in the dataset folder, which is shared, nor be written into the source."""
    for option, path in (("--salt", options.salt), ("--key-table", options.key_table)):
        if path is None:
            continue
        for place, folder in (("the dataset folder", out), ("the source", source)):
            inside = folder.resolve() in path.resolve().parents
            if inside and not (option == "--salt" and place == "the source" and path.exists()):
                raise UserError(
                    f"{option} {path} is inside {place} {folder}; store it elsewhere, where only you can read it"
                )
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")


def _check_paths(sources: Sequence[Path], out: Path, force: bool) -> None:
    check_apart(out, sources)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UserError(f"--out {out} exists and is not a plain folder; choose another name")
    if not any(out.iterdir()):
        return
    if not force:
        raise UserError(f"--out {out} exists already; give --force to replace it, or choose another name")
    if not (out / "annotations.json").is_file():
        raise UserError(f"--out {out} is not a dataset folder (no annotations.json); --force does not replace it")


def _check_labels(results: list[ImageResult], options: PrepareOptions) -> None:
    """Raise for labels that the map lacks: leaving them out would lose vessels, guessing would invent them."""
    unknown: Counter[str] = Counter()
    for result in results:
        unknown.update(result.unknown)
    if not unknown:
        return
    lines = []
    for label, count in sorted(unknown.items(), key=lambda item: (-item[1], item[0])):
        close = close_name(label, options.labels or {})
        lines.append(f"{label!r} ({count} shape(s))" + (f"; similar to {close!r} in the map" if close else ""))
    raise UserError(
        f"--labels lacks {len(unknown)} label(s) of the source:\n  "
        + "\n  ".join(lines[:30])
        + "\nAdd each with its phrase, or with null to leave the label out."
    )


def _describe_empty(source: Path, files: SourceFiles) -> str:
    others = len(files.others) - len(files.dicoms)
    return (
        f"{source}: no labels: found {len(files.jsons)} .json, {len(files.images)} image(s), {len(files.dicoms)} DICOM "
        f"file(s), {others} other file(s); expected images with a LabelMe .json next to each, mask images (--masks DIR "
        "names their folder), COCO .json, YOLO-seg .txt or CVAT .xml"
    )


def _describe_findings(head: str, findings: list[Finding]) -> str:
    shown = "\n  ".join(finding.as_text() for finding in findings[:20])
    more = f"\n  and {len(findings) - 20} more" if len(findings) > 20 else ""
    return f"{head}; nothing was written:\n  {shown}{more}"
