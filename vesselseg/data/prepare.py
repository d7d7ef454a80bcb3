"""Folder or archive of LabelMe files -> dataset folder with its report. The output appears whole or not at all."""

from __future__ import annotations

import difflib
import logging
import os
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vesselseg.data.archive import unpack
from vesselseg.data.findings import Finding
from vesselseg.data.manifest import SPLITS, Record, fingerprint, write_manifest
from vesselseg.data.prepare_file import FileOptions, FileResult, FileTask, prepare_file
from vesselseg.data.prepare_page import write_page
from vesselseg.data.prepare_report import Prepared, build_report, write_report, write_splits
from vesselseg.data.source_files import SourceFiles, list_source, name_files
from vesselseg.data.splits import assign_fixed, compile_pattern, find_group, merge_groups, split_groups
from vesselseg.errors import UserError
from vesselseg.output_folder import move_into_place, temporary_folder

DEFAULT_TEXT = "blood vessel"
_PARALLEL_FROM = 24  # files; below that a process pool takes longer to start than it saves

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare; the options of tools/prepare_data.py.

    text: phrase of every label, and of pictures without any shape. labels: label -> phrase, or None to leave the label
    out; None: every label is `text`. fractions: train, val, test. group_regex: first capture group (or the match) in
    the path below the source. val_regex, test_regex: files that go to these splits as they are. per_shape: each shape
    (or group_id) an object of its own. line_width: pixels of the stored image. strict: any finding is an error.
    force: replace an existing dataset folder. max_gib, max_files: limits of an archive. workers: processes, 0 for all.
    """

    text: str = DEFAULT_TEXT
    labels: Mapping[str, str | None] | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    group_regex: str = ""
    val_regex: str = ""
    test_regex: str = ""
    seed: int = 0
    per_shape: bool = False
    line_width: float | None = None
    strict: bool = False
    force: bool = False
    max_gib: float = 50.0
    max_files: int = 500_000
    workers: int = 0
    progress: bool = True


def prepare(source: Path, out: Path, options: PrepareOptions) -> dict[str, Any]:
    """Make the dataset folder ``out`` from a folder or archive; returns the content of its report.json.

    Raises UserError, before ``out`` is touched, when nothing is usable, labels are unknown, the archive is refused,
    ``out`` exists (without force), or there is any finding (with strict). The source is only read.
    """
    source, out = Path(source), Path(out)
    _check_places(source, out, options.force)
    _check_options(options)
    with ExitStack() as stack:
        building = stack.enter_context(temporary_folder(out, "building"))
        if source.is_dir():
            root, within = source, None
        else:
            root = within = stack.enter_context(temporary_folder(out, "unpacking"))
            unpack(source, root, options.max_gib, options.max_files)
        report = _build(root, within, source, building, options)
        replaced = out.exists()
        move_into_place(building, out)
        if replaced:
            _log.info("replaced %s", out)
    return report


def _build(root: Path, within: Path | None, source: Path, building: Path, options: PrepareOptions) -> dict[str, Any]:
    """Fill the folder ``building``; returns the report."""
    files = list_source(root)
    tasks = name_files(files)
    if not tasks:
        raise UserError(_describe_empty(source, files))
    images = building / "images"
    images.mkdir()
    file_options = FileOptions(images, options.text, options.labels, options.per_shape, options.line_width, within)
    results = _run(tasks, file_options, options)
    _check_labels(results, options)
    usable = [result for result in results if result.record is not None]
    if not usable:
        raise UserError(_describe_findings(f"{source}: nothing usable in {len(tasks)} JSON file(s)", _all(results)))
    records, findings = _group(usable, options)
    splits, split_findings = _split(records, usable, options)
    findings = sorted([*_all(results), *findings, *split_findings], key=lambda finding: finding.sort_key)
    if options.strict and findings:
        raise UserError(_describe_findings(f"{source}: {len(findings)} finding(s), and --strict allows none", findings))
    left_out = [result for result in results if result.record is None]
    return _write(building, Prepared(source, options, files, usable, left_out, records, splits, findings))


def _write(building: Path, prepared: Prepared) -> dict[str, Any]:
    write_manifest(building, prepared.records)
    write_splits(building, prepared.splits)
    report = build_report(prepared)
    report["fingerprint"] = fingerprint(building)
    write_report(building, report)
    write_page(building, report, prepared)
    return report


def _run(tasks: list[FileTask], file_options: FileOptions, options: PrepareOptions) -> list[FileResult]:
    """All files, in order, over processes if there are many."""
    work = partial(prepare_file, options=file_options)
    workers = min(options.workers or _cpus(), len(tasks))
    bar = partial(tqdm, total=len(tasks), unit="file", desc="preparing", disable=not options.progress)
    if workers == 1 or len(tasks) < _PARALLEL_FROM:
        return list(bar(map(work, tasks)))
    with ProcessPoolExecutor(workers, initializer=_ignore_interrupt) as pool:
        try:
            return list(bar(pool.map(work, tasks, chunksize=4)))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for want of memory; try again with --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches all processes; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group(usable: list[FileResult], options: PrepareOptions) -> tuple[list[Record], list[Finding]]:
    """Records with their group; a file that the rule does not match is its own group, and listed."""
    pattern = compile_pattern("--group-regex", options.group_regex) if options.group_regex else None
    records, findings = [], []
    for result in usable:
        assert result.record is not None
        group = find_group(pattern, result.file)
        if pattern is not None and group is None:
            reason = f"--group-regex {pattern.pattern} does not match; the file is its own group"
            findings.append(Finding(result.file, None, "no_group", reason))
        records.append(replace(result.record, group=group or ""))
    return records, findings


def _split(
    records: list[Record], usable: list[FileResult], options: PrepareOptions
) -> tuple[dict[str, list[str]], list[Finding]]:
    """Image names per split. Files with the same picture count as one group, whatever their names say."""
    same = defaultdict(list)
    for position, result in enumerate(usable):
        same[result.picture].append(position)
    repeated = [positions for positions in same.values() if len(positions) > 1]
    findings = [
        Finding(usable[position].file, None, "duplicate_image", f"the same picture as {usable[positions[0]].file}")
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


def _all(results: Iterable[FileResult]) -> list[Finding]:
    return [finding for result in results for finding in result.findings]


def _check_options(options: PrepareOptions) -> None:
    problems = []
    if not options.text.strip():
        problems.append("--text: the phrase is empty")
    if options.line_width is not None and not 0 < options.line_width < 1e4:
        problems.append(f"--line-width {options.line_width:g}: expected pixels above 0")
    if options.max_gib <= 0 or options.max_files <= 0:
        problems.append("--max-gib and --max-files: expected numbers above 0")
    for name in ("group_regex", "val_regex", "test_regex"):
        if getattr(options, name):
            compile_pattern(f"--{name.replace('_', '-')}", getattr(options, name))
    if problems:
        raise UserError("\n  ".join(problems))


def _check_places(source: Path, out: Path, force: bool) -> None:
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder, .tar.gz, .tgz, .tar or .zip with LabelMe files")
    real_source, real_out = source.resolve(), out.resolve()
    if real_out == real_source or real_source in real_out.parents:
        raise UserError(f"--out {out} lies inside the source {source}, which stays unchanged; choose another folder")
    if real_out in real_source.parents:
        raise UserError(f"--out {out} contains the source {source}, which would be replaced; choose another folder")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UserError(f"--out {out} exists and is no plain folder; choose another name")
    if not any(out.iterdir()):
        return
    if not force:
        raise UserError(f"--out {out} exists already; give --force to replace it, or choose another name")
    if not (out / "annotations.json").is_file():
        raise UserError(f"--out {out} is no dataset folder (it has no annotations.json); --force does not replace it")


def _check_labels(results: list[FileResult], options: PrepareOptions) -> None:
    """A label that the map does not name is an error: leaving it out silently loses vessels, guessing invents them."""
    unknown: Counter[str] = Counter()
    for result in results:
        unknown.update(result.unknown)
    if not unknown:
        return
    lines = []
    for label, count in sorted(unknown.items(), key=lambda item: (-item[1], item[0])):
        close = difflib.get_close_matches(label, list(options.labels or {}), n=1)
        lines.append(f"{label!r} ({count} shape(s))" + (f"; near to {close[0]!r} of the map" if close else ""))
    raise UserError(
        f"--labels does not name {len(unknown)} label(s) of the source:\n  "
        + "\n  ".join(lines[:30])
        + "\nAdd each with its phrase, or with null to leave it out."
    )


def _describe_empty(source: Path, files: SourceFiles) -> str:
    return (
        f"{source}: no LabelMe file: found 0 .json, {len(files.images)} image(s), {len(files.others)} other file(s); "
        "expected pictures with a LabelMe .json beside each"
    )


def _describe_findings(head: str, findings: list[Finding]) -> str:
    shown = "\n  ".join(finding.as_text() for finding in findings[:20])
    more = f"\n  and {len(findings) - 20} more" if len(findings) > 20 else ""
    return f"{head}; nothing was written:\n  {shown}{more}"
