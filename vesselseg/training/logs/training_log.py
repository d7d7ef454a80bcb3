"""Content of a training's log files in one form, whichever program wrote them: rows named as in log.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STOPPED_AFTER = 600.0  # seconds without a new line after which a run counts as stopped, if its rows are not rarer


@dataclass(frozen=True)
class TrainingLog:
    """One run.

    Training rows have `iter` and, if logged, `epoch`, `loss`, its parts, `lr`, `grad_norm`, `images_per_s`, `iter_s`,
    `data_s`, `memory_gib` and `memory_reserved_gib`; validations have `iter` and, if logged, `dice`, `iou` and
    `threshold`; events have `event` and `iter`.
    """

    kind: str  # vesselseg or mmengine
    train: list[Row]  # in the order of `iter`
    validations: list[Row]
    events: list[Row] = field(default_factory=list)
    planned: int | None = None  # iterations of the run, if known
    cut_off: int = 0  # rows that a resumed run repeated
    unreadable: int = 0  # incomplete lines
    last_sign: float = 0.0  # time of the last line, seconds since 1970
    dice_weight: float | None = None  # of the Dice loss in `loss_dice`, if known
    data_root: str | None = None  # the dataset folder, if known

    @property
    def last_iteration(self) -> int:
        """Iteration of the last row; 0 before the first."""
        return max((row["iter"] for row in (*self.train, *self.validations, *self.events)), default=0)

    def state(self, now: float | None = None) -> str:
        """`finished`, `running`, `stopped` (crashed or was stopped), or `ended` if the length of the run is unknown."""
        if self.planned is not None and self.train and self.train[-1]["iter"] >= self.planned:
            return "finished"
        quiet = (time.time() if now is None else now) - self.last_sign
        if quiet < self.patience():
            return "running"
        return "ended" if self.planned is None and self.train and "eta_s" not in self.train[-1] else "stopped"

    def patience(self) -> float:
        """Seconds without a new row that are normal for this run: several times the interval between its rows."""
        between = [
            (row["iter"] - before["iter"]) * row["iter_s"]
            for before, row in zip(self.train, self.train[1:])
            if row.get("iter_s")
        ]
        validating = [row["seconds"] for row in self.validations if row.get("seconds")]
        return max(STOPPED_AFTER, 5 * max(between, default=0.0), 3 * max(validating, default=0.0))

    def nearest_train(self, iteration: int) -> Row | None:
        """The training row that covers the iteration, else the last one."""
        return next((row for row in self.train if row["iter"] >= iteration), self.train[-1] if self.train else None)


def loss_names(logs: Iterable[TrainingLog]) -> list[str]:
    """`loss` and every part that any run logged, the sum first."""
    found = {name for log in logs for row in log.train for name in row if is_loss(name)}
    return sorted(found, key=lambda name: (name != "loss", name))


def is_loss(name: str) -> bool:
    """Whether a column is a loss: loss, loss_dice, llm_loss."""
    return "loss" in name


def finite(value: Any) -> bool:
    """Whether a row's entry is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drop_repeated(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Rows in the order of `iter`, and the number of rows that were dropped because a resumed run repeated them."""
    kept: list[Row] = []
    for row in rows:
        while kept and kept[-1]["iter"] >= row["iter"]:
            kept.pop()
        kept.append(row)
    return kept, len(rows) - len(kept)


def json_rows(path: Path) -> tuple[list[Row], int]:
    """The JSON objects of a JSON-lines file, and the number of other lines (the last one may still be written)."""
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
