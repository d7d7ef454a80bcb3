"""Labelled pictures (a folder or an archive) -> dataset folder with report.json and report.html.

    python tools/prepare_data.py SOURCE --out data/NAME

SOURCE is a folder of any depth, a .tar.gz, .tgz, .tar or .zip with pictures and their labels: LabelMe .json, mask
images, COCO .json, YOLO-seg .txt or CVAT .xml. Pictures may be DICOM. It is only read. docs/data.md says more.
Exit status: 0 done (the summary counts what was left out or changed), 2 nothing written, with the reason.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

import yaml

from vesselseg.dataset.prompts import DEFAULT_PHRASE
from vesselseg.errors import UserError
from vesselseg.prepare.findings import FINDING_KINDS
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.prepare_dataset import prepare_dataset
from vesselseg.prepare.readers.formats import FORMATS
from vesselseg.prepare.splits import parse_fractions
from vesselseg.run_tool import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder, .tar.gz, .tgz, .tar or .zip with pictures and labels")
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make, e.g. data/arcade")
    parser.add_argument("--format", choices=list(FORMATS), default="", help="of the labels (default: told by what is "
                        "there); dicom: DICOM pictures only, also where other pictures lie beside them")  # fmt: skip
    parser.add_argument("--masks", action="append", default=[], metavar="DIR", help="folder below SOURCE that holds "
                        "mask images (default: told by names); once more for each further observer")  # fmt: skip
    parser.add_argument("--first-frame", type=int, choices=(0, 1), help="number of the first frame of a DICOM clip in "
                        "the names of labels (default: 0 where a label is of frame 0, else 1)")  # fmt: skip
    naming = parser.add_argument_group("what the shapes are called")
    naming.add_argument("--text", help="phrase of every label without --labels, and of pictures without any shape "
                        f"(default: {DEFAULT_PHRASE}; files of tools/predict.py keep their phrases)")  # fmt: skip
    naming.add_argument("--labels", type=Path, metavar="MAP.yaml", help="label: phrase, or label: null to leave it "
                        "out; labels that it does not name are an error")  # fmt: skip
    naming.add_argument("--per-shape", action="store_true", help="each shape an object of its own, those with the "
                        "same group_id together; otherwise all shapes of one phrase are one object")  # fmt: skip
    naming.add_argument("--line-width", type=float, metavar="PX", help="draw lines and points this wide, in pixels of "
                        "the image; without it they are left out and listed")  # fmt: skip
    split = parser.add_argument_group("train, val, test (regular expressions search the path below SOURCE)")
    split.add_argument("--split", default="0.8,0.1,0.1", help="shares of train,val,test (default: %(default)s)")
    split.add_argument("--group-regex", default="", metavar="REGEX", help="patient or clip: the first (...) or the "
                       "whole match; a group is never on two sides, e.g. '(p[0-9]+)_'")  # fmt: skip
    split.add_argument("--val-regex", default="", metavar="REGEX", help="files that are the val split, as they are")
    split.add_argument("--test-regex", default="", metavar="REGEX", help="files that are the test split, as they are; "
                       "the rest is shared out among the other splits")  # fmt: skip
    split.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    names = parser.add_argument_group("names (hashed with a secret salt; always where SOURCE holds DICOM)")
    names.add_argument("--pseudonymise", action="store_true", help="hash the names of files and groups")
    names.add_argument("--salt", type=Path, metavar="FILE", help="the salt, made if it is not there: the same salt "
                       "gives the same names (default: OUT.salt, beside OUT; keep it apart from the data)")  # fmt: skip
    names.add_argument("--key-table", type=Path, metavar="FILE.csv", help="also write which name became which hash")
    running = parser.add_argument_group("running")
    running.add_argument("--strict", action="store_true", help="any finding is an error, nothing is written")
    running.add_argument("--force", action="store_true", help="replace an existing dataset folder")
    running.add_argument("--max-gib", type=float, default=50.0, help="size limit of the unpacked archive (%(default)s)")
    running.add_argument("--max-files", type=int, default=500_000, help="file limit of an archive (%(default)s)")
    running.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    running.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def read_label_map(path: Path) -> dict[str, str | None]:
    """label -> phrase, or None to leave the label out; raises UserError with every bad entry."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {path}: not readable as YAML: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--labels {path}: expected lines like 'vessel: blood vessel', found {type(content).__name__}")
    problems = []
    for label, phrase in content.items():
        if isinstance(label, bool) or label is None:
            problems.append(f"{label}: put the label in quotes, YAML reads it as {type(label).__name__}")
        elif phrase is not None and (not isinstance(phrase, str) or not phrase.strip()):
            problems.append(f"{label}: expected a phrase or null, found {phrase!r}")
    if problems:
        raise UserError(f"--labels {path}:\n  " + "\n  ".join(problems))
    return {str(label).strip(): phrase for label, phrase in content.items()}


def summarise(report: dict[str, Any], out: Path) -> str:
    """What the user should know at once, in a few lines."""
    counts, splits = report["counts"], report["splits"]
    lines = [
        f"{out}: {counts['images']} images, {counts['objects']} objects from {counts['shapes']} shapes, "
        f"{counts['negatives']} images without any; labels: {report['format']}",
        "  split: " + ", ".join(f"{name} {split['images']}" for name, split in splits.items())
        + f" (seed {report['options']['seed']})",
    ]  # fmt: skip
    if report["group_rule"]:
        lines.append(f"  groups: {counts['groups']}, by {report['group_rule']}")
    else:
        lines.append("  groups: none given, every file is its own; --group-regex keeps a patient's frames on one side")
    lines += describe_labels(report)
    if report["unlabelled"]:
        lines.append(f"  images without labels, not used: {len(report['unlabelled'])}")
    if report["pseudonymised"]:
        lines.append("  names of files and patients are hashed; text in the pictures themselves is not removed")
    lines.append(f"  findings: {len(report['findings'])}")
    for code, count in report["findings_by_code"].items():
        effect, title = FINDING_KINDS[code]
        lines.append(f"    {count:5d}  {title} ({effect})")
    lines.append(f"  report: {out / 'report.html'}")
    return "\n".join(lines)


def describe_labels(report: dict[str, Any]) -> list[str]:
    """What became of labels that no map names."""
    if report["options"]["labels"] is not None:
        return []
    text, lines = report["options"]["text"], []
    read = [row for row in report["labels"] if row["phrase"] == text]
    others = sorted(row["label"] for row in report["labels"] if row["phrase"] == row["label"])
    if len(read) > 1:
        lines.append(f"  labels: all {len(read)} read as {text!r}; --labels tells them apart")
    if {row["phrase"] for row in report["labels"]} - {text}:
        lines.append(f"  labels that are phrases, as tools/predict.py was asked for them: {', '.join(others)}")
    return lines


def warn_unused_labels(labels: dict[str, str | None] | None, report: dict[str, Any]) -> list[str]:
    """Names of the map that no file uses: most likely a misspelling."""
    found = [row["label"] for row in report["labels"]]
    warnings = []
    for name in labels or {}:
        if name not in found:
            close = difflib.get_close_matches(name, found, n=1)
            hint = f"; near to {close[0]!r} of the source" if close else ""
            warnings.append(f"  --labels names {name!r}, which no file uses{hint}")
    return warnings


def main() -> int:
    """Arguments -> one call -> summary."""
    arguments = parse_arguments()
    labels = read_label_map(arguments.labels) if arguments.labels else None
    options = PrepareOptions(
        text=arguments.text,
        labels=labels,
        fractions=parse_fractions(arguments.split),
        group_regex=arguments.group_regex,
        val_regex=arguments.val_regex,
        test_regex=arguments.test_regex,
        seed=arguments.seed,
        per_shape=arguments.per_shape,
        line_width=arguments.line_width,
        strict=arguments.strict,
        force=arguments.force,
        max_gib=arguments.max_gib,
        max_files=arguments.max_files,
        workers=arguments.workers,
        progress=not arguments.quiet,
        format=arguments.format,
        masks=tuple(arguments.masks),
        first_frame=arguments.first_frame,
        pseudonymise=arguments.pseudonymise,
        salt=arguments.salt,
        key_table=arguments.key_table,
    )
    report = prepare_dataset(arguments.source, arguments.out, options)
    print("\n".join([summarise(report, arguments.out), *warn_unused_labels(labels, report)]))
    return 0


if __name__ == "__main__":
    run_tool(main)
