"""Trainings -> analysis.html, report.json and a few lines for the console."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vesselseg.evaluation.results_file import versions
from vesselseg.output_folder import whole_folder
from vesselseg.reports.html import png_data_uri, render
from vesselseg.training.logs.analysis import Analysis, analyse, mean, skipped
from vesselseg.training.logs.charts import colour, draw_charts
from vesselseg.training.logs.find_logs import read_logs
from vesselseg.training.logs.next_commands import next_commands
from vesselseg.training.logs.training_log import loss_names

PAGE, JSON = "analysis.html", "report.json"
FORMAT = 1


def analyse_runs(paths: Sequence[Path]) -> list[Analysis]:
    """One Analysis per work folder or log file, in their order. Raises EvaluationError that lists unreadable ones."""
    return [analyse(name, path, log) for name, path, log in zip(run_names(paths), paths, read_logs(paths))]


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that distinguish them."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def write_analysis(runs: Sequence[Analysis], out: Path) -> Path:
    """Write page and JSON into out and return the page's path; an earlier analysis there is replaced, nothing else."""
    with whole_folder(out, True, PAGE) as folder:
        text = json.dumps(as_dict(runs), ensure_ascii=False, indent=1, allow_nan=False)
        (folder / JSON).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE).write_text(_page(runs), encoding="utf-8")
    return out / PAGE


def as_dict(runs: Sequence[Analysis]) -> dict[str, Any]:
    """The content of report.json."""
    return {"format": FORMAT, "versions": versions(), "runs": [_plain(_run_dict(run)) for run in runs]}


def _run_dict(run: Analysis) -> dict[str, Any]:
    log = run.log
    return {
        "name": run.name,
        "path": str(run.path),
        "kind": log.kind,
        "state": run.state,
        "iteration": log.last_iteration,
        "planned_iterations": log.planned,
        "skipped": len(skipped(log)),
        "best": run.best,
        "dice_gaps": [{"iter": iteration, "gap": gap} for iteration, gap in run.gaps],
        "overfitting": run.overfitting,
        "findings": run.findings,
        "unit": run.unit,
        "table": [asdict(block) for block in run.blocks],
        "checkpoints": [asdict(one) for one in run.checkpoints],
        "next": [{"what": what, "command": command} for what, command in next_commands(run)],
        "train": log.train,
        "validations": log.validations,
        "events": log.events,
    }


def _plain(value: Any) -> Any:
    """Replace nan and inf, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_lines(run: Analysis) -> list[str]:
    """The run in a few lines, for the console."""
    log = run.log
    lines = [f"{run.name}: {state_text(run)}"]
    if run.blocks:
        last = run.blocks[-1]
        lines.append("  last: " + ", ".join(f"{name} {value:.4f}" for name, value in last.losses.items()))
    lines += [f"  {text}" for text in (dice_text(run), speed_text(run)) if text]
    lines += [f"  overfitting: {sign}" for sign in run.overfitting] or (
        ["  overfitting: no sign"] if len(log.validations) > 1 else []
    )
    lines += [f"  note: {finding}" for finding in run.findings]
    return lines + [f"  next ({what}):\n    {command}" for what, command in next_commands(run)]


def state_text(run: Analysis) -> str:
    """Finished, running or stopped, and where."""
    log = run.log
    reached = f"iteration {log.last_iteration:,}" + (f" of {log.planned:,}" if log.planned else "")
    if run.state == "running":
        return f"running, {reached}"
    if run.state == "finished":
        return f"finished, {reached}"
    if run.state == "ended":
        return f"{reached} was the last; the log does not state the length of the run"
    return f"stopped early at {reached}: crashed or was stopped"


def dice_text(run: Analysis) -> str:
    """The best validation, in a clause."""
    if run.best is None:
        return "no validation Dice in the log"
    best, last = run.best, run.log.validations[-1]
    at = f" at threshold {best['threshold']:.2f}" if best.get("threshold") is not None else ""
    return f"best validation Dice {best['dice']:.4f}{at}, iteration {best['iter']:,}; last {last['dice']:.4f}"


def speed_text(run: Analysis) -> str:
    """Mean speed and largest memory, in a clause."""
    images, seconds = mean(run.log, run.log.train, "images_per_s"), mean(run.log, run.log.train, "iter_s")
    allocated = max((block.memory_gib for block in run.blocks if block.memory_gib is not None), default=None)
    reserved = max((b.memory_reserved_gib for b in run.blocks if b.memory_reserved_gib is not None), default=None)
    parts = [f"{images:.2f} images/s"] if images else []
    parts += [f"{seconds:.3f} s per iteration"] if seconds else []
    parts += [f"{allocated:.1f} GiB allocated"] if allocated else []
    parts += [f"{reserved:.1f} GiB reserved"] if reserved else []
    return ", ".join(parts)


def _page(runs: Sequence[Analysis]) -> str:
    return render(
        "run.html.j2",
        runs=runs,
        colours=[colour(number) for number in range(len(runs))],
        losses={run.name: loss_names([run.log]) for run in runs},
        state_text=state_text,
        dice_text=dice_text,
        speed_text=speed_text,
        skipped=skipped,
        next_commands=next_commands,
        charts=[(chart.title, chart.note, png_data_uri(chart.picture)) for chart in draw_charts(runs)],
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )
