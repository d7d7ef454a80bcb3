"""A run folder of vesselseg (log.jsonl, log.cut_off.jsonl, train.log) -> TrainingLog."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.training.logs.run_config import read_config_facts
from vesselseg.training.logs.training_log import Row, TrainingLog, drop_repeated, finite, json_rows

LOG, CUT_OFF, CONSOLE = "log.jsonl", "log.cut_off.jsonl", "train.log"
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  ", re.MULTILINE)
_PLANNED = re.compile(r"\biter +\d+/(\d+) |, (\d+) in all, \d+ optimizer steps")


def read_own_log(path: Path) -> TrainingLog:
    """path: a log.jsonl; the files next to it are read if they exist. Raises EvaluationError if it contains no row."""
    rows, unreadable = json_rows(path)
    known = [row for row in rows if row.get("kind") in ("train", "val", "event") and isinstance(row.get("iter"), int)]
    if not known:
        raise EvaluationError(
            f"{path}: no row of a vesselseg log (JSON objects with kind and iter, one per line) in {len(rows)} row(s) "
            f"and {unreadable} unreadable line(s); name the folder of a run that has started to train"
        )
    train, redone = drop_repeated([row for row in known if row["kind"] == "train"])
    validations, _ = drop_repeated([row for row in known if row["kind"] == "val" and finite(row.get("dice"))])
    cut_off = path.with_name(CUT_OFF)
    console = path.with_name(CONSOLE)
    text = console.read_text(encoding="utf-8", errors="replace") if console.is_file() else ""
    facts = read_config_facts(path.with_name("config.py"))
    return TrainingLog(
        kind="vesselseg",
        train=train,
        validations=validations,
        events=[row for row in known if row["kind"] == "event"],
        planned=_planned(text, train),
        cut_off=redone + (len(json_rows(cut_off)[0]) if cut_off.is_file() else 0),
        unreadable=unreadable + len(rows) - len(known),
        last_sign=last_sign([path, console], _STAMP.findall(text), "%Y-%m-%d %H:%M:%S"),
        dice_weight=facts.dice_weight,
        data_root=facts.data_root,
    )


def last_sign(files: list[Path], stamps: list[str], form: str) -> float:
    """Time of the newest file, or of the last line if that is earlier (a copied file is newer than its run); seconds
    since 1970."""
    changed = max(path.stat().st_mtime for path in files if path.is_file())
    return min(changed, datetime.strptime(stamps[-1], form).timestamp()) if stamps else changed


def _planned(console: str, train: list[Row]) -> int | None:
    """Iterations of the whole run: stated in the console log, else known when the run is finished."""
    stated = _PLANNED.findall(console)
    if stated:
        return int(next(number for number in stated[-1] if number))
    return train[-1]["iter"] if train and train[-1].get("eta_s") == 0 else None
