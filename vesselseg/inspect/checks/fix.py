"""--fix: write a new dataset folder in which problems with a clear solution are corrected; the old one is only read."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import vesselseg
from vesselseg.dataset.manifest import (
    SPLITS,
    Record,
    dataset_home,
    fingerprint,
    fold_numbers,
    image_path,
    write_manifest,
)
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError
from vesselseg.inspect.checks.check import write_check
from vesselseg.inspect.checks.measure_image import mask_digest
from vesselseg.inspect.checks.measured_dataset import MeasuredDataset
from vesselseg.inspect.checks.near_duplicates import clusters
from vesselseg.inspect.checks.phrase_variants import find_variants, rename_phrases, replacements
from vesselseg.inspect.checks.result import CheckResult
from vesselseg.output_folder import check_apart, whole_folder
from vesselseg.prepare.report import write_report, write_splits
from vesselseg.prepare.splits import merge_groups, split_groups


@dataclass
class FixPlan:
    """Content of the new folder.

    records: index in the old annotations.json -> record. splits: image names per split. changes: messages on what
    differs from the old folder.
    """

    records: dict[int, Record]
    splits: dict[str, list[str]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def fix_dataset(
    check: CheckResult, out: Path, recheck: Callable[[Path], CheckResult], force: bool = False
) -> tuple[FixPlan, CheckResult]:
    """Write the new dataset folder ``out`` and check it; returns the plan and that check.

    recheck: checks a folder. Raises UserError if ``out`` is the old folder, is inside or contains it, or exists
    (without force).
    """
    old = check.measured.folder
    check_apart(Path(out), [dataset_home(old)], "--fix")
    plan = plan_fix(check)
    if not plan.records:
        raise UserError(f"{old}: no image is usable; there is nothing to write")
    with whole_folder(out, force, "annotations.json") as building:
        for record in plan.records.values():
            target = image_path(building, record)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image_path(old, record), target)
        write_manifest(building, list(plan.records.values()))
        write_splits(building, plan.splits)
        report = {
            "vesselseg": vesselseg.__version__,
            "source": str(old),
            "source_fingerprint": check.measured.fingerprint,
            "changes": plan.changes,
            "findings": [],
            "fingerprint": fingerprint(building),
        }
        write_report(building, report)
    after = recheck(Path(out))
    write_check(after, Path(out), plan.changes)
    return plan, after


def plan_fix(check: CheckResult) -> FixPlan:
    """FixPlan the content of the new folder; writes nothing."""
    measured = check.measured
    plan = FixPlan({index: measured.records[index] for index in measured.usable})
    plan.changes += [f"left out {facts.image}: {facts.problem[1]}" for facts in measured.facts if facts.problem]
    _rename_labels(plan)
    _drop_empty_objects(plan, measured)
    related = [
        *check.duplicates.identical,
        *clusters(len(measured.records), ((p.first, p.second) for p in check.duplicates.near)),
    ]
    groups = merge_groups([record.group_key for record in measured.records], related)
    _drop_equal(plan, check)
    _name_groups(plan, groups)
    _split(plan, measured)
    if numbers := fold_numbers(dataset_home(measured.folder)):
        plan.changes.append(
            f"omitted the {len(numbers)} stored folds, which refer to the old images and groups: "
            "vesselseg folds make creates new ones"
        )
    return plan


def _rename_labels(plan: FixPlan) -> None:
    counts = Counter(phrase for record in plan.records.values() for phrase in set(record.phrases))
    names = replacements(find_variants(counts))
    for index, record in plan.records.items():
        plan.records[index] = rename_phrases(record, names)
    plan.changes += [f"label {old!r} became {new!r} in {counts[old]} image(s)" for old, new in names.items()]


def _drop_empty_objects(plan: FixPlan, measured: MeasuredDataset) -> None:
    """Remove empty objects from images with others; the only object of an image may be empty: it has no vessel."""
    for index, record in plan.records.items():
        pixels = measured.facts[index].object_pixels
        if not any(pixels) or all(pixels):
            continue
        width, height = measured.facts[index].size
        by_others = [any(drawn[number] for drawn in record.observers.values()) for number in range(len(record.phrases))]
        drawn = [bool(mask.any()) for mask in record_masks(record, height, width)]
        keep = [number for number in range(len(drawn)) if drawn[number] or by_others[number]]
        if len(keep) < len(drawn):
            plan.changes.append(f"{record.image}: removed {len(drawn) - len(keep)} empty object(s)")
            plan.records[index] = _with_objects(record, keep)


def _with_objects(record: Record, keep: Sequence[int]) -> Record:
    return replace(
        record,
        phrases=tuple(record.phrases[number] for number in keep),
        regions=tuple(record.regions[number] for number in keep),
        observers={name: tuple(drawn[number] for number in keep) for name, drawn in record.observers.items()},
    )


def _name_groups(plan: FixPlan, groups: Sequence[str]) -> None:
    """Give merged groups their most frequent name. groups: per record of the old folder, the merged group."""
    members = defaultdict(list)
    for index in plan.records:
        members[groups[index]].append(index)
    for indices in members.values():
        names = Counter(plan.records[index].group for index in indices if plan.records[index].group)
        keys = sorted({plan.records[index].group_key for index in indices})
        if len(keys) < 2:
            continue
        name = max(sorted(names), key=lambda group: names[group]) if names else keys[0]
        for index in indices:
            plan.records[index] = replace(plan.records[index], group=name)
        plan.changes.append(f"merged {_listed(keys)} into one group, {name}: they share identical or similar images")


def _drop_equal(plan: FixPlan, check: CheckResult) -> None:
    """Keep one of identical images per distinct mask."""
    for indices in check.duplicates.identical:
        kept: dict[str, str] = {}
        for index in sorted(indices, key=lambda index: not check.measured.splits_at([index])):  # those in a split first
            record = plan.records[index]
            width, height = check.measured.facts[index].size
            masks = mask_digest(record, record_masks(record, height, width))
            if masks in kept:
                plan.changes.append(f"left out {record.image}: the same image and masks as {kept[masks]}")
                del plan.records[index]
            else:
                kept[masks] = record.image
        if len(kept) > 1:
            plan.changes.append(
                f"kept {_listed(list(kept.values()))}: the same image with different masks, to be inspected"
            )


def _split(plan: FixPlan, measured: MeasuredDataset) -> None:
    """Put every group into the split of most of its images; if that empties a split, redraw the whole split."""
    members = defaultdict(list)
    for index, record in plan.records.items():
        if measured.splits_of[record.image]:
            members[record.group_key].append(index)
    side = {group: _main_split(measured, indices) for group, indices in members.items()}
    before = {split for split in SPLITS if any(split in measured.splits_of[r.image] for r in plan.records.values())}
    if before - set(side.values()):
        side = _redraw_split(measured, members)
        plan.changes.append("split all groups again: moving groups would have emptied a split")
    else:
        plan.changes += _moves(measured, members, side)
    chosen = {index: side[group] for group, indices in members.items() for index in indices}
    plan.splits = {
        split: [record.image for index, record in plan.records.items() if chosen.get(index) == split]
        for split in SPLITS
    }
    unknown = [image for image in measured.splits_of if image not in {record.image for record in measured.records}]
    plan.changes += [f"removed {image} from the splits: it has no record" for image in unknown]


def _main_split(measured: MeasuredDataset, indices: Sequence[int]) -> str:
    """The split of most of the images; train before val before test if equal."""
    counted = Counter(split for image in measured.images(indices) for split in measured.splits_of[image])
    return max(SPLITS, key=lambda split: counted[split])


def _moves(measured: MeasuredDataset, members: Mapping[str, list[int]], side: Mapping[str, str]) -> Iterator[str]:
    for group, indices in members.items():
        moved = [image for image in measured.images(indices) if measured.splits_of[image] != (side[group],)]
        if moved:
            yield f"moved {_listed(moved)} to {side[group]}, the split of the rest of group {group}"


def _redraw_split(measured: MeasuredDataset, members: Mapping[str, list[int]]) -> dict[str, str]:
    """Group -> split, with the fractions of the old splits."""
    each = [group for group, indices in members.items() for _ in indices]
    listed = [len(measured.splits[split]) for split in SPLITS]
    train, val, test = (count / sum(listed) for count in listed)
    return dict(zip(each, split_groups(each, (train, val, test), seed=0)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
