"""--fix: a new dataset folder without what can be set right by rule; the old one is only read."""

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
from vesselseg.inspect.checks.phrase_variants import find_variants, rename, renamed
from vesselseg.inspect.checks.result import Check
from vesselseg.output_folder import check_apart, whole_folder
from vesselseg.prepare.report import write_report, write_splits
from vesselseg.prepare.splits import merge_groups, split_groups


@dataclass
class Plan:
    """The new folder's content, and what was done in sentences. records: by place in the old annotations.json."""

    records: dict[int, Record]
    splits: dict[str, list[str]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def fix_dataset(check: Check, out: Path, again: Callable[[Path], Check], force: bool = False) -> tuple[Plan, Check]:
    """Write the new dataset folder ``out`` with the check of itself; returns what was done and that check.

    again: checks a folder. Raises UserError where ``out`` is the old folder or lies in it, or exists (without force).
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
    after = again(Path(out))
    write_check(after, Path(out), plan.changes)
    return plan, after


def plan_fix(check: Check) -> Plan:
    """What the new folder will hold; reads images of equal pictures, writes nothing."""
    measured = check.measured
    plan = Plan({place: measured.records[place] for place in measured.usable})
    plan.changes += [f"left out {facts.image}: {facts.problem[1]}" for facts in measured.facts if facts.problem]
    _rename_labels(plan)
    _drop_empty_objects(plan, measured)
    related = [
        *check.repeated.equal,
        *clusters(len(measured.records), ((p.first, p.second) for p in check.repeated.near)),
    ]
    groups = merge_groups([record.group_key for record in measured.records], related)
    _drop_equal(plan, check)
    _name_groups(plan, groups)
    _split(plan, measured)
    if numbers := fold_numbers(dataset_home(measured.folder)):
        plan.changes.append(
            f"did not take over the {len(numbers)} stored folds, which are of the old images and groups: "
            "python tools/make_folds.py makes new ones"
        )
    return plan


def _rename_labels(plan: Plan) -> None:
    counts = Counter(phrase for record in plan.records.values() for phrase in set(record.phrases))
    names = renamed(find_variants(counts))
    for place, record in plan.records.items():
        plan.records[place] = rename(record, names)
    plan.changes += [f"label {old!r} became {new!r} in {counts[old]} image(s)" for old, new in names.items()]


def _drop_empty_objects(plan: Plan, measured: MeasuredDataset) -> None:
    """Objects without a pixel go where the image has others: alone, they say that there is no vessel."""
    for place, record in plan.records.items():
        pixels = measured.facts[place].object_pixels
        if not any(pixels) or all(pixels):
            continue
        width, height = measured.facts[place].size
        by_others = [any(drawn[number] for drawn in record.observers.values()) for number in range(len(record.phrases))]
        drawn = [bool(mask.any()) for mask in record_masks(record, height, width)]
        keep = [number for number in range(len(drawn)) if drawn[number] or by_others[number]]
        if len(keep) < len(drawn):
            plan.changes.append(f"{record.image}: left out {len(drawn) - len(keep)} object(s) without a pixel")
            plan.records[place] = _with_objects(record, keep)


def _with_objects(record: Record, keep: Sequence[int]) -> Record:
    return replace(
        record,
        phrases=tuple(record.phrases[number] for number in keep),
        regions=tuple(record.regions[number] for number in keep),
        observers={name: tuple(drawn[number] for number in keep) for name, drawn in record.observers.items()},
    )


def _name_groups(plan: Plan, groups: Sequence[str]) -> None:
    """Groups that share a picture, or nearly, get one name, the commonest of theirs; the others keep theirs.

    groups: per record of the old folder, the same for all that belong together.
    """
    members = defaultdict(list)
    for place in plan.records:
        members[groups[place]].append(place)
    for places in members.values():
        names = Counter(plan.records[place].group for place in places if plan.records[place].group)
        keys = sorted({plan.records[place].group_key for place in places})
        if len(keys) < 2:
            continue
        name = max(sorted(names), key=lambda group: names[group]) if names else keys[0]
        for place in places:
            plan.records[place] = replace(plan.records[place], group=name)
        plan.changes.append(f"made one group, {name}, of {_listed(keys)}: they share pictures, or nearly")


def _drop_equal(plan: Plan, check: Check) -> None:
    """Of equal pictures with equal masks the first stays; with different masks all different ones stay."""
    for places in check.repeated.equal:
        kept: dict[str, str] = {}
        for place in sorted(places, key=lambda place: not check.measured.sides([place])):  # those in use first
            record = plan.records[place]
            width, height = check.measured.facts[place].size
            masks = mask_digest(record, record_masks(record, height, width))
            if masks in kept:
                plan.changes.append(f"left out {record.image}: the same picture and masks as {kept[masks]}")
                del plan.records[place]
            else:
                kept[masks] = record.image
        if len(kept) > 1:
            plan.changes.append(
                f"kept {_listed(list(kept.values()))}: the same picture with different masks, decide by eye"
            )


def _split(plan: Plan, measured: MeasuredDataset) -> None:
    """Every group on one side, the one where most of it is; a split that this empties is drawn anew with all others."""
    members = defaultdict(list)
    for place, record in plan.records.items():
        if measured.splits_of[record.image]:
            members[record.group_key].append(place)
    side = {group: _main_side(measured, places) for group, places in members.items()}
    before = {split for split in SPLITS if any(split in measured.splits_of[r.image] for r in plan.records.values())}
    if before - set(side.values()):
        side = _drawn_anew(measured, members)
        plan.changes.append("divided all groups anew among the splits: moving groups would have emptied one")
    else:
        plan.changes += _moves(measured, members, side)
    chosen = {place: side[group] for group, places in members.items() for place in places}
    plan.splits = {
        split: [record.image for place, record in plan.records.items() if chosen.get(place) == split]
        for split in SPLITS
    }
    unknown = [image for image in measured.splits_of if image not in {record.image for record in measured.records}]
    plan.changes += [f"took {image} out of the splits: it has no record" for image in unknown]


def _main_side(measured: MeasuredDataset, places: Sequence[int]) -> str:
    """Where most of the images are; train before val before test where equally many are."""
    counted = Counter(split for image in measured.images(places) for split in measured.splits_of[image])
    return max(SPLITS, key=lambda split: counted[split])


def _moves(measured: MeasuredDataset, members: Mapping[str, list[int]], side: Mapping[str, str]) -> Iterator[str]:
    for group, places in members.items():
        moved = [image for image in measured.images(places) if measured.splits_of[image] != (side[group],)]
        if moved:
            yield f"moved {_listed(moved)} to {side[group]}, where the rest of group {group} is"


def _drawn_anew(measured: MeasuredDataset, members: Mapping[str, list[int]]) -> dict[str, str]:
    """Group -> split, in the shares that the splits had."""
    each = [group for group, places in members.items() for _ in places]
    listed = [len(measured.splits[split]) for split in SPLITS]
    train, val, test = (count / sum(listed) for count in listed)
    return dict(zip(each, split_groups(each, (train, val, test), seed=0)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
