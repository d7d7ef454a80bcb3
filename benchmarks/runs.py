"""Trainings through tools/dist.sh with a time limit, and the rows and curves of their logs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
OK, OUT_OF_MEMORY, FAILED, TIME_LIMIT = "ok", "out of memory", "failed", "time limit"
GRACE_S = 10.0  # between SIGTERM and SIGKILL
MESSAGE_LINES = 12
FINAL_PART = 0.2  # of the iterations, over which a final loss is the mean
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    status: str  # OK, OUT_OF_MEMORY, FAILED or TIME_LIMIT
    message: str  # its error message, or the end of its output; empty for OK
    seconds: float  # from the call to the end


def train(
    config: str | Path,
    processes: int,
    work_dir: Path,
    overrides: Mapping[str, Any],
    *,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    limit_s: float = 600.0,
) -> Outcome:
    """Run one training until it ends or reaches its time limit.

    overrides: values of --cfg-options, e.g. {"schedule.lr": 1e-4}. flags: further arguments of vesselseg train.
    environment: added to this process's variables.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    options = ["--cfg-options", *(f"{key}={value}" for key, value in overrides.items())] if overrides else []
    command = ["bash", str(REPOSITORY / "tools" / "dist.sh"), "train", str(config), str(processes)]
    command += ["--work-dir", str(work_dir), *flags, *options]
    console = work_dir / "console.txt"
    started = time.monotonic()
    with console.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=file, env={**os.environ, **(environment or {})}
        )
        status = _wait(process, started + limit_s)
    seconds = time.monotonic() - started
    message = "" if status == OK else failure(console.read_text(errors="replace"))
    if status == FAILED and "out of GPU memory" in message:
        status = OUT_OF_MEMORY
    return Outcome(status, message, round(seconds, 1))


def log_rows(work_dir: Path) -> list[dict[str, Any]]:
    """The complete lines of log.jsonl; empty while there is no log."""
    path = work_dir / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def curves(work_dir: Path, iterations: int) -> dict[str, Any]:
    """Loss and Dice by iteration; `final_loss` and `final_dice` are None unless the run reached `iterations`."""
    rows = log_rows(work_dir)
    loss = {row["iter"]: row["loss"] for row in rows if row["kind"] == "train" and row["loss"] is not None}
    dice = {row["iter"]: row["dice"] for row in rows if row["kind"] == "val"}
    complete = max(loss, default=0) == iterations and max(dice, default=0) == iterations
    last = [value for iteration, value in loss.items() if iteration > iterations * (1 - FINAL_PART)]
    return {
        "loss": loss,
        "dice": dice,
        "final_loss": mean(last) if complete else None,
        "final_dice": dice[iterations] if complete else None,
        "images_per_s": next((row["images_per_s"] for row in reversed(rows) if row["kind"] == "train"), None),
        "memory_gib": max((row["memory_gib"] for row in rows if row["kind"] == "train"), default=None),
    }


def failure(console: str) -> str:
    """The error message of a run for the user, or the end of its output."""
    lines = [line for line in console.splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
    chosen = lines[-MESSAGE_LINES:] if start is None else lines[start : start + MESSAGE_LINES]
    return "\n".join(chosen)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process and its descendants, by SIGKILL if they ignore SIGTERM; returns when they are gone."""
    family = _stopped_family(process) if process.poll() is None else []
    for action in ("terminate", "kill"):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                getattr(member, action)()
                member.resume()
        _, family = psutil.wait_procs(family, timeout=GRACE_S)
    process.wait()


def _stopped_family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The process and its descendants, all stopped. Each is stopped before its children are listed, so that none is
    started afterwards.
    """
    found, waiting, until = [], [psutil.Process(process.pid)], time.monotonic() + GRACE_S
    while waiting:
        with suppress(psutil.NoSuchProcess):
            member = waiting.pop()
            member.suspend()
            found.append(member)
            while member.status() not in STOPPED and time.monotonic() < until:
                time.sleep(0.001)
            waiting += member.children()
    return found


def _wait(process: subprocess.Popen[Any], deadline: float) -> str:
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return TIME_LIMIT
            time.sleep(0.2)
        return OK if process.returncode == 0 else FAILED
    finally:
        stop(process)
