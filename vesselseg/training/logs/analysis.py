"""A TrainingLog -> the content of its report: table per epoch, checkpoints, signs of overfitting, findings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesselseg.training.logs.training_log import Row, TrainingLog, finite, loss_names

MAX_ROWS = 25  # of the table; more epochs are grouped
FALL = 0.01  # of validation Dice below its best, while the loss falls: overfitting
GAP, GAP_GROWTH = 0.10, 0.05  # between training and validation Dice, and its growth since the first validation
DATA_SHARE = 0.1  # of an iteration spent waiting for data
BEST = "best.pth"
_CHECKPOINT = re.compile(r"(?:^|_)(iter|epoch)_(\d+)\.pth$")


@dataclass(frozen=True)
class Block:
    """A row of the table: one or more epochs, or iterations if epochs are unknown. Means over the iterations."""

    label: str  # epochs or iterations, as "3" or "4-6"
    first: int  # iteration
    last: int  # iteration
    losses: dict[str, float]
    lr: float | None  # of the last iteration
    iter_s: float | None  # seconds per iteration
    images_per_s: float | None  # of all processes
    data_s: float | None  # seconds per iteration spent waiting for data
    grad_norm: float | None  # maximum
    memory_gib: float | None  # maximum
    memory_reserved_gib: float | None  # maximum
    skipped: int  # iterations and optimizer steps
    dice: float | None  # of the best validation
    threshold: float | None  # of the best validation


@dataclass(frozen=True)
class Checkpoint:
    """A weight file, with what the log says about it; None where it says nothing."""

    path: str
    iteration: int | None
    megabytes: float | None
    dice: float | None
    threshold: float | None
    best: bool
    resumable: bool  # a run can be resumed from it


@dataclass(frozen=True)
class Analysis:
    """One run."""

    name: str
    path: Path  # work folder or log file
    log: TrainingLog
    state: str  # see TrainingLog.state
    unit: str  # of the table's rows: Epoch or Iterations
    blocks: list[Block]
    best: Row | None  # validation row with the highest Dice
    gaps: list[tuple[int, float]]  # iteration, training minus validation Dice
    overfitting: list[str]  # sentences
    findings: list[str]  # sentences
    checkpoints: list[Checkpoint]


def analyse(name: str, path: Path, log: TrainingLog, now: float | None = None) -> Analysis:
    """path: work folder or log file. now: seconds since 1970, None for the current time."""
    unit, blocks = _blocks(log)
    gaps = dice_gaps(log)
    best = max(log.validations, key=lambda row: row["dice"], default=None)
    folder = path if path.is_dir() else path.parent
    return Analysis(
        *(name, path, log, log.state(now), unit, blocks, best, gaps),
        overfitting=overfitting(log, gaps),
        findings=findings(log),
        checkpoints=_checkpoints(folder, log, best),
    )


def mean(log: TrainingLog, rows: Sequence[Row], name: str) -> float | None:
    """Mean of a column over rows of the log, each weighted by the number of iterations that it covers."""
    before = {row["iter"]: earlier["iter"] for earlier, row in zip(log.train, log.train[1:])}
    found = [(row[name], row["iter"] - before.get(row["iter"], 0)) for row in rows if finite(row.get(name))]
    weight = sum(size for _, size in found)
    return sum(value * size for value, size in found) / weight if weight else None


def skipped(log: TrainingLog) -> list[Row]:
    """Events of iterations with a non-finite loss, and of optimizer steps with non-finite gradients."""
    return [row for row in log.events if row.get("event") in ("skipped", "step_left_out")]


def dice_gaps(log: TrainingLog) -> list[tuple[int, float]]:
    """(iteration, training minus validation Dice): training Dice is 1 - Dice loss, whose weight must be known."""
    gaps = []
    for row in log.validations:
        train = log.nearest_train(row["iter"]) or {}
        if log.dice_weight and finite(train.get("loss_dice")):
            gaps.append((row["iter"], 1 - train["loss_dice"] / log.dice_weight - row["dice"]))
    return gaps


def overfitting(log: TrainingLog, gaps: Sequence[tuple[int, float]]) -> list[str]:
    """Signs that the run has memorised its training images."""
    signs = []
    if len(log.validations) > 1:
        best, last = max(log.validations, key=lambda row: row["dice"]), log.validations[-1]
        losses: list[Any] = [(log.nearest_train(row["iter"]) or {}).get("loss") for row in (best, last)]
        if best["dice"] - last["dice"] >= FALL and all(map(finite, losses)) and losses[1] < losses[0]:
            signs.append(
                f"validation Dice fell by {best['dice'] - last['dice']:.4f} ({best['dice']:.4f} at iteration "
                f"{best['iter']:,}, {last['dice']:.4f} at {last['iter']:,}) while the training loss fell from "
                f"{losses[0]:.4f} to {losses[1]:.4f}"
            )
    if len(gaps) > 1 and gaps[-1][1] >= GAP and gaps[-1][1] - gaps[0][1] >= GAP_GROWTH:
        signs.append(
            f"training Dice is {gaps[-1][1]:.4f} above validation Dice; "
            f"it was {gaps[0][1]:+.4f} at iteration {gaps[0][0]:,}"
        )
    return signs


def findings(log: TrainingLog) -> list[str]:
    """Other findings about the run, one sentence each."""
    found = []
    lost = [row for row in log.events if row.get("event") == "skipped"]
    if lost:
        images = sorted({name for row in lost for one in row.get("processes", ()) for name in one.get("images", ())})
        named = f"; images: {', '.join(images[:6])}{', ...' if len(images) > 6 else ''}" if images else ""
        found.append(f"{len(lost)} iteration(s) skipped, their loss was not finite: {_at(lost)}{named}")
    steps = [row for row in log.events if row.get("event") == "step_left_out"]
    if steps:
        found.append(f"{len(steps)} optimizer step(s) skipped, gradients were not finite: {_at(steps)}")
    found += _broken_values(log)
    waiting, takes = mean(log, log.train, "data_s"), mean(log, log.train, "iter_s")
    if waiting and takes and waiting > DATA_SHARE * takes:
        found.append(f"{waiting / takes:.0%} of the time is spent waiting for data; more loader workers may help")
    resumed = [row for row in log.events if row.get("event") == "resumed"]
    if resumed:
        found.append(f"resumed {len(resumed)} time(s): {_at(resumed)}")
    if log.cut_off:
        found.append(f"{log.cut_off} row(s) were logged twice because the run was resumed; the later ones count")
    if log.unreadable:
        found.append(f"{log.unreadable} line(s) of the log cannot be read and are ignored")
    return found


def _broken_values(log: TrainingLog) -> list[str]:
    """Values that are not finite, by column, and a loss that falls to exactly 0, as which some programs log nan."""
    found = []
    for rows, what in ((log.train, "logged"), (log.validations, "validation")):
        for name in dict.fromkeys(name for row in rows for name in row):
            broken = [row for row in rows if _is_not_finite(row.get(name))]
            if broken:
                called = {"loss": "loss(es)", "grad_norm": "gradient norm(s)"}.get(name, f"value(s) of {name}")
                found.append(f"{len(broken)} of {len(rows)} {what} {called} are nan or inf: {_at(broken)}")
    losses = [row for row in log.train if finite(row.get("loss"))]
    zero = [row for row in losses if row["loss"] == 0]
    if zero and len(zero) < len(losses):
        found.append(f"the loss falls to exactly 0 in {len(zero)} row(s), as which xtuner logs nan: {_at(zero)}")
    return found


def _at(rows: Iterable[Row]) -> str:
    numbers = [f"{row['iter']:,}" for row in rows]
    return f"iteration {', '.join(numbers[:6])}{', ...' if len(numbers) > 6 else ''}"


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _blocks(log: TrainingLog) -> tuple[str, list[Block]]:
    """(Epoch or Iterations, the table's rows); a row of the log belongs to the block of its last iteration."""
    if not log.train:
        return "Epoch", []
    by_epoch = all(finite(row.get("epoch")) for row in log.train)
    ends = [math.ceil(row["epoch"] - 1e-6) if by_epoch else row["iter"] for row in log.train]
    size = max(1, math.ceil(max(ends) / MAX_ROWS))
    members: dict[int, list[Row]] = {}
    for row, end in zip(log.train, ends):
        members.setdefault((max(1, end) - 1) // size, []).append(row)
    blocks, before, reached = [], 0, 0
    end_of = {row["iter"]: end for row, end in zip(log.train, ends)}
    for rows in members.values():
        first, last = reached + 1, end_of[rows[-1]["iter"]]
        blocks.append(_block(log, rows, str(last) if first >= last else f"{first:,}-{last:,}", before))
        before, reached = rows[-1]["iter"], last
    return ("Epoch" if by_epoch else "Iterations"), blocks


def _block(log: TrainingLog, rows: list[Row], label: str, before: int) -> Block:
    until = rows[-1]["iter"] if rows[-1] is not log.train[-1] else max(log.last_iteration, rows[-1]["iter"])
    inside = [row for row in log.validations if before < row["iter"] <= until]
    best = max(inside, key=lambda row: row["dice"], default={})
    return Block(
        label=label,
        first=before + 1,
        last=rows[-1]["iter"],
        losses={name: value for name in loss_names([log]) if (value := mean(log, rows, name)) is not None},
        lr=next((row["lr"] for row in reversed(rows) if finite(row.get("lr"))), None),
        iter_s=mean(log, rows, "iter_s"),
        images_per_s=mean(log, rows, "images_per_s"),
        data_s=mean(log, rows, "data_s"),
        grad_norm=_largest(rows, "grad_norm"),
        memory_gib=_largest(rows, "memory_gib"),
        memory_reserved_gib=_largest(rows, "memory_reserved_gib"),
        skipped=sum(before < row["iter"] <= until for row in skipped(log)),
        dice=best.get("dice"),
        threshold=best.get("threshold"),
    )


def _largest(rows: Sequence[Row], name: str) -> float | None:
    return max((row[name] for row in rows if finite(row.get(name))), default=None)


def _checkpoints(folder: Path, log: TrainingLog, best: Row | None) -> list[Checkpoint]:
    """Files and DeepSpeed folders named *.pth, by iteration, the best first."""
    validated = {row["iter"]: row for row in log.validations}
    per_epoch = next((row["iter"] / row["epoch"] for row in log.train if row.get("epoch")), None)
    found = []
    for path in folder.glob("*.pth"):
        named = _CHECKPOINT.search(path.name)
        iteration = best["iter"] if best and path.name == BEST else None
        if named:
            number = int(named.group(2))
            scale = per_epoch if named.group(1) == "epoch" else 1
            iteration = round(number * scale) if scale else None
        row = validated.get(iteration, {}) if iteration is not None else {}
        if not (size := _bytes(path)):
            continue
        found.append(
            Checkpoint(
                *(str(path), iteration, size / 1e6),
                *(row.get("dice"), row.get("threshold"), path.name.startswith("best")),
                resumable=path.is_dir() or path.with_suffix(".resume").is_dir(),
            )
        )
    return sorted(found, key=lambda one: (not one.best, one.iteration or 0, one.path))


def _bytes(path: Path) -> int:
    """Size of a file or of all files of a folder; 0 if a running training has removed it meanwhile."""
    try:
        parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
        return sum(part.stat().st_size for part in parts)
    except FileNotFoundError:
        return 0
