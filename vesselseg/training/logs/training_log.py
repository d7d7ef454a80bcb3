"""What the log files of a training tell, in one form whatever wrote them: rows named as in vesselseg's log.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
QUIET = 600.0  # seconds without a sign of life after which a run counts as stopped, unless its rows come more rarely


@dataclass(frozen=True)
class TrainingLog:
    """One run.

    train: rows with `iter` and what was logged of `epoch`, `loss`, its parts, `lr`, `grad_norm`, `images_per_s`,
    `iter_s`, `data_s`, `memory_gib`, `memory_reserved_gib`, in the order of `iter`. validations: rows with `iter` and
    what was logged of `dice`, `iou`, `threshold`. events: rows with `event` and `iter`. planned: iterations of the
    run, if told. cut_off: rows that a resumed run went through again. unreadable: lines that are no whole rows.
    last_sign: seconds since 1970 at which the run wrote last. dice_weight: of the Dice loss in `loss_dice`, if told.
    data_root: the dataset folder, if told.
    """

    kind: str
    train: list[Row]
    validations: list[Row]
    events: list[Row] = field(default_factory=list)
    planned: int | None = None
    cut_off: int = 0
    unreadable: int = 0
    last_sign: float = 0.0
    dice_weight: float | None = None
    data_root: str | None = None

    @property
    def last_iteration(self) -> int:
        """Of the last row; 0 before the first."""
        return max((row["iter"] for row in (*self.train, *self.validations, *self.events)), default=0)

    def state(self, now: float | None = None) -> str:
        """`finished`, `running`, `stopped` (crashed or ended from outside), or `ended` where the length is not told."""
        if self.planned is not None and self.train and self.train[-1]["iter"] >= self.planned:
            return "finished"
        quiet = (time.time() if now is None else now) - self.last_sign
        if quiet < self.patience():
            return "running"
        return "ended" if self.planned is None and self.train and "eta_s" not in self.train[-1] else "stopped"

    def patience(self) -> float:
        """Seconds of silence that are normal for this run: several times what lies between its rows."""
        between = [
            (row["iter"] - before["iter"]) * row["iter_s"]
            for before, row in zip(self.train, self.train[1:])
            if row.get("iter_s")
        ]
        validating = [row["seconds"] for row in self.validations if row.get("seconds")]
        return max(QUIET, 5 * max(between, default=0.0), 3 * max(validating, default=0.0))

    def nearest_train(self, iteration: int) -> Row | None:
        """The training row in whose window the iteration lies, else the last one."""
        return next((row for row in self.train if row["iter"] >= iteration), self.train[-1] if self.train else None)


def loss_names(logs: Iterable[TrainingLog]) -> list[str]:
    """`loss` and every part that any run logged, the sum first."""
    found = {name for log in logs for row in log.train for name in row if is_loss(name)}
    return sorted(found, key=lambda name: (name != "loss", name))


def is_loss(name: str) -> bool:
    """Whether a column is a loss: loss, loss_dice, llm_loss."""
    return "loss" in name


def finite(value: Any) -> bool:
    """Whether a row's entry is a number that can be drawn and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def without_redone(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Rows in the order of `iter`, and how many were left out because a resumed run went through them again."""
    kept: list[Row] = []
    for row in rows:
        while kept and kept[-1]["iter"] >= row["iter"]:
            kept.pop()
        kept.append(row)
    return kept, len(rows) - len(kept)


def json_rows(path: Path) -> tuple[list[Row], int]:
    """The JSON objects of a file of one per line, and how many lines are none (a last one may still be written)."""
    rows, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unreadable += 1
    return rows, unreadable
