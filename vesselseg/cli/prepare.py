"""`vesselseg prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vesselseg.cli.parameters import Flat, Values, text_parser
from vesselseg.errors import UserError
from vesselseg.imaging.mask_option import BY_EVIDENCE
from vesselseg.imaging.regions import Fill
from vesselseg.prepare.options import PrepareOptions
from vesselseg.prepare.splits import parse_fractions
from vesselseg.suggest import did_you_mean

NAMES = "Names of the shapes"
SPLIT = "Train, val, test (regular expressions search the path below SOURCE)"
HASHED = "Names of files (hashed with a secret salt; always where SOURCE holds DICOM)"
RUNNING = "Running"


def read_label_map(text: str) -> dict[str, str | None]:
    """label -> phrase, or None to leave the label out; raises UserError with every bad entry."""
    import yaml

    path = Path(text)
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


@dataclass(frozen=True)
class Options(PrepareOptions):
    """`PrepareOptions`, by the names and groups of the command line."""

    text: Annotated[str | None, Parameter(group=NAMES)] = PrepareOptions.text
    labels: Annotated[
        Mapping[str, str | None] | None,
        Parameter(group=NAMES, converter=text_parser(read_label_map), n_tokens=1, accepts_keys=False),
    ] = PrepareOptions.labels
    per_shape: Annotated[bool, Parameter(group=NAMES)] = PrepareOptions.per_shape
    line_width: Annotated[float | None, Parameter(group=NAMES)] = PrepareOptions.line_width
    fill: Annotated[Fill, Parameter(group=NAMES)] = PrepareOptions.fill
    fill_masks: Annotated[Path | None, Parameter(group=NAMES)] = PrepareOptions.fill_masks
    mask_values: Annotated[Values, Parameter(group=NAMES)] = BY_EVIDENCE
    fractions: Annotated[
        tuple[float, float, float],
        Parameter(
            name="--split",
            group=SPLIT,
            converter=text_parser(parse_fractions),
            n_tokens=1,
            show_default=lambda shares: ",".join(map(str, shares)),
        ),
    ] = PrepareOptions.fractions
    group_regex: Annotated[str, Parameter(group=SPLIT)] = PrepareOptions.group_regex
    val_regex: Annotated[str, Parameter(group=SPLIT)] = PrepareOptions.val_regex
    test_regex: Annotated[str, Parameter(group=SPLIT)] = PrepareOptions.test_regex
    seed: Annotated[int, Parameter(group=SPLIT)] = PrepareOptions.seed
    pseudonymise: Annotated[bool, Parameter(group=HASHED)] = PrepareOptions.pseudonymise
    salt: Annotated[Path | None, Parameter(group=HASHED)] = PrepareOptions.salt
    key_table: Annotated[Path | None, Parameter(group=HASHED)] = PrepareOptions.key_table
    strict: Annotated[bool, Parameter(group=RUNNING)] = PrepareOptions.strict
    force: Annotated[bool, Parameter(group=RUNNING)] = PrepareOptions.force
    max_gib: Annotated[float, Parameter(group=RUNNING)] = PrepareOptions.max_gib
    max_files: Annotated[int, Parameter(group=RUNNING)] = PrepareOptions.max_files
    workers: Annotated[int, Parameter(group=RUNNING)] = PrepareOptions.workers
    quiet: Annotated[bool, Parameter(group=RUNNING)] = PrepareOptions.quiet


def prepare(*sources: Path, out: Path, options: Annotated[Options, Flat] = Options()) -> None:
    """Labelled pictures (a folder or an archive) -> dataset folder with report.json and report.html.

    vesselseg prepare SOURCE --out data/NAME
    vesselseg prepare OLD CORRECTED --out data/NAME

    SOURCE is a folder of any depth, a .tar.gz, .tgz, .tar or .zip with pictures and their labels: LabelMe .json, mask
    images, COCO .json, YOLO-seg .txt or CVAT .xml. Pictures may be DICOM. It is only read. docs/data.md says more.
    Exit status: 0 done (the summary counts what was left out or changed), 2 nothing written, with the reason.

    Args:
        sources: folders, .tar.gz, .tgz, .tar or .zip with pictures and labels; of a picture in several, the last counts
        out: dataset folder to make, e.g. data/arcade
    """
    from vesselseg.prepare.prepare_dataset import prepare_dataset

    report = prepare_dataset(sources, out, options)
    print("\n".join([summarise(report, out), *unused_labels(options.labels, report)]))


def summarise(report: dict[str, Any], out: Path) -> str:
    """What the user should know at once, in a few lines."""
    from vesselseg.prepare.findings import FINDING_KINDS

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
    if report["fill_by"]:
        lines.append(f"  fill: {report['fill_by']}")
    loud = [finding for finding in report["findings"] if finding["code"] in ("no_vessel", "all_vessel")]
    lines += [f"  WARNING: {finding['reason']}" for finding in loud]
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
        lines.append(f"  labels that are phrases, as vesselseg predict was asked for them: {', '.join(others)}")
    return lines


def unused_labels(labels: Mapping[str, str | None] | None, report: dict[str, Any]) -> list[str]:
    """Names of the map that no file uses: most likely a misspelling."""
    found = [row["label"] for row in report["labels"]]
    missing = [name for name in labels or {} if name not in found]
    return [f"  --labels names {name!r}, which no file uses{did_you_mean(name, found)}" for name in missing]
