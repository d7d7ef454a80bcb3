"""Logs of mmengine and xtuner runs -> TrainingLog: the text log, and scalars.json with full precision.

    WORK_DIR/20250701_120000/20250701_120000.log               one line per logging interval
    WORK_DIR/20250701_120000/vis_data/scalars.json             the same values, one JSON object per line

One folder per start of the run; rows that a later start repeats replace the earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vesselseg.evaluation.errors import EvaluationError
from vesselseg.training.logs.own_log import last_sign
from vesselseg.training.logs.run_config import read_config_facts
from vesselseg.training.logs.training_log import Row, TrainingLog, drop_repeated, finite, is_loss, json_rows

SCALARS = "scalars.json"
_STAMP = r"((?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d)"  # without the year in the console's output
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LINE = re.compile(
    rf"^{_STAMP} - mmengine - \w+ - (Iter|Epoch)\((train|val)\)\s*(?:\[ *(\d+)\])?\[ *(\d+)/ *(\d+)\]\s+(.*)$",
    re.MULTILINE,
)
_SPACED = re.compile(r"\) +\[")  # Iter(train) [ 10/3672]: spaces before the brackets vary
_ANY_STAMP = re.compile(rf"^{_STAMP} - mmengine", re.MULTILINE)
_VALUE = re.compile(r"([A-Za-z_][\w./-]*): ([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf))(?=\s|$)")
_NAMES = {"time": "iter_s", "data_time": "data_s", "memory": "memory_gib"}
_MAX_EPOCHS = re.compile(r"^max_epochs *= *(\d+)", re.MULTILINE)


@dataclass
class _Session:
    """One start of the run; numbers that the text does not state are None."""

    train: list[Row] = field(default_factory=list)
    validations: list[Row] = field(default_factory=list)
    planned: int | None = None  # iterations of the run
    per_epoch: int | None = None  # iterations
    max_epochs: int | None = None
    stamps: list[str] = field(default_factory=list)  # times of the lines
    unreadable: int = 0  # lines


def is_mmengine_text(path: Path) -> bool:
    """Whether a text file is a log of mmengine."""
    return bool(_ANY_STAMP.search(_plain_text(path)))


def _plain_text(path: Path) -> str:
    """The text without the colours and carriage returns of a console."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return _COLOURS.sub("", text).replace("\r", "\n")


def read_mmengine_logs(folder: Path, texts: list[Path], scalars: list[Path]) -> TrainingLog:
    """texts, scalars: the files of all starts of one run. Raises EvaluationError if they contain no training row."""
    sessions = [_session(*pair) for pair in _pairs(texts, scalars)]
    train, redone = drop_repeated([row for session in sessions for row in session.train])
    validations, _ = drop_repeated([row for session in sessions for row in session.validations])
    if not train:
        named = ", ".join(path.name for path in (*texts, *scalars))
        raise EvaluationError(
            f"{folder}: no training row in {named}; the run ended before its first line, or has not reached it"
        )
    facts = [read_config_facts(path) for path in sorted(folder.glob("*.py")) if folder.is_dir()]
    planned = next((session.planned for session in reversed(sessions) if session.planned), None)
    stated = [one.max_epochs for one in reversed(sessions)] + [fact.max_epochs for fact in facts]
    epochs = next((count for count in stated if count), None)
    per_epoch = next((session.per_epoch for session in reversed(sessions) if session.per_epoch), None)
    _add_epochs(train, per_epoch or (planned / epochs if planned and epochs else None))
    return TrainingLog(
        kind="mmengine",
        train=train,
        validations=validations,
        planned=planned if per_epoch is None else epochs and per_epoch * epochs,
        cut_off=redone,
        unreadable=sum(session.unreadable for session in sessions),
        last_sign=last_sign([*texts, *scalars], [s for one in sessions for s in one.stamps], "%Y/%m/%d %H:%M:%S"),
        dice_weight=next((fact.dice_weight for fact in facts if fact.dice_weight), None),
    )


def _pairs(texts: list[Path], scalars: list[Path]) -> Iterator[tuple[Path | None, Path | None]]:
    """Text log and scalars.json of the same start, sorted by their folders' names, which are times."""
    starts: dict[Path, list[Path | None]] = {}
    for path in texts:
        starts.setdefault(path.parent, [None, None])[0] = path
    for path in scalars:
        starts.setdefault(path.parent.parent if path.parent.name == "vis_data" else path.parent, [None, None])[1] = path
    for start in sorted(starts):
        yield starts[start][0], starts[start][1]


def _session(text: Path | None, scalars: Path | None) -> _Session:
    """Times and lengths from the text; rows from scalars.json if it contains as many."""
    found = _read_text(_plain_text(text), _year(text)) if text else _Session()
    if scalars is None:
        return found
    rows, unreadable = json_rows(scalars)
    train, validations = _scalar_rows(rows, found.per_epoch)
    if len(train) >= len(found.train):
        found.train, found.validations, found.unreadable = train, validations or found.validations, unreadable
    return found


def _year(path: Path) -> int:
    return datetime.fromtimestamp(path.stat().st_mtime).year


def _read_text(text: str, year: int) -> _Session:
    """year: of lines that do not state it."""
    stamps = _ANY_STAMP.findall(text)
    found = _Session(stamps=[stamp if stamp.count("/") == 2 else f"{year}/{stamp}" for stamp in stamps])
    epochs = _MAX_EPOCHS.search(text)
    found.max_epochs = int(epochs.group(1)) if epochs else None
    iteration = 0
    for _, unit, mode, epoch, number, length, values in _LINE.findall(_SPACED.sub(")[", text)):
        row = _named({name: float(value) for name, value in _VALUE.findall(values)})
        if mode == "val":
            if finite(row.get("dice")):
                found.validations.append({"iter": iteration, **row})
            continue
        if unit == "Iter":
            found.planned, iteration = int(length), int(number)
        else:
            found.per_epoch, iteration = int(length), (int(epoch or 1) - 1) * int(length) + int(number)
        found.train.append({"iter": iteration, **row})
    return found


def _scalar_rows(rows: list[Row], per_epoch: int | None) -> tuple[list[Row], list[Row]]:
    """Training rows contain losses. Others are validations, whose `step` counts epochs if training rows have epochs."""
    train: list[Row] = []
    validations: list[Row] = []
    for raw in rows:
        row = _named(raw)
        last = train[-1]["iter"] if train else 0
        if any(map(is_loss, row)) and not any(name.startswith("val/") for name in raw):
            step = row.get("iter", row.get("step"))
            if isinstance(step, int):
                train.append({**row, "iter": step})
        elif finite(row.get("dice")):
            by_epoch = bool(train) and "epoch" in train[-1]
            step = row.get("step")
            reached = step * per_epoch if by_epoch and per_epoch and isinstance(step, int) else last
            validations.append({**row, "iter": step if isinstance(step, int) and not by_epoch else reached})
    return train, validations


def _named(row: Row) -> Row:
    """The row with vesselseg's names and units. Memory is logged in MiB; a Dice above 1 is a percentage."""
    renamed: dict[str, Any] = {}
    for name, value in row.items():
        short = name.removeprefix("train/").removeprefix("val/")
        if short.rsplit("/", 1)[-1].lower() in ("dice", "mdice") and finite(value):
            renamed["dice"] = value / 100 if value > 1 else value
        else:
            renamed[_NAMES.get(short, short)] = value
    if "lr" not in renamed and "base_lr" in renamed:
        renamed["lr"] = renamed["base_lr"]
    if finite(renamed.get("memory_gib")):
        renamed["memory_gib"] = round(renamed["memory_gib"] / 1024, 3)
    return renamed


def _add_epochs(rows: list[Row], per_epoch: float | None) -> None:
    """Set `epoch` as vesselseg counts it: 1.5 after half of the second epoch. It needs the length of an epoch."""
    for row in rows:
        row.pop("epoch", None)
        if per_epoch:
            row["epoch"] = round(row["iter"] / per_epoch, 4)
