"""Trainings through tools/dist.sh, with a time limit, and what their logs say."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
OK, OUT_OF_MEMORY, FAILED, TIME_LIMIT = "ok", "out of memory", "failed", "time limit"
GRACE_S = 10.0  # between asking processes to end and ending them
MESSAGE_LINES = 12
STANDING = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)


@dataclass(frozen=True)
class Outcome:
    """status: one of the four above. message: what the run said when it failed. seconds: from call to end."""

    status: str
    message: str
    seconds: float


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
    """One training to its end, or to its time limit.

    overrides: {"schedule.lr": 1e-4}. environment: variables added to this process's own.
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
    """Whole lines of log.jsonl; none if there is no log yet."""
    path = work_dir / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def failure(console: str) -> str:
    """What a run said last: its message to the user, or the end of its output."""
    lines = [line for line in console.splitlines() if line.strip()]
    told = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
    chosen = lines[-MESSAGE_LINES:] if told is None else lines[told : told + MESSAGE_LINES]
    return "\n".join(chosen)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, at last by force; returns when they are gone."""
    family = _stopped_family(process) if process.poll() is None else []
    for action in ("terminate", "kill"):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                getattr(member, action)()
                member.resume()
        _, family = psutil.wait_procs(family, timeout=GRACE_S)
    process.wait()


def _stopped_family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """It and its descendants; each stands still before its children are looked for, so that none is started later."""
    found, waiting, until = [], [psutil.Process(process.pid)], time.monotonic() + GRACE_S
    while waiting:
        with suppress(psutil.NoSuchProcess):
            member = waiting.pop()
            member.suspend()
            found.append(member)
            while member.status() not in STANDING and time.monotonic() < until:
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
