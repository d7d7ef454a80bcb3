"""Figures of one training from its log, and rows of figures as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.runs import OK, log_rows

Result = Mapping[str, Any]


def figures(work_dir: Path, micro_batch: int, gpus: int) -> dict[str, Any]:
    """Memory (GiB), speed and sizes (bytes) from a log; None where it lacks them. Seconds per image are per GPU."""
    rows = log_rows(work_dir)
    lines = [row for row in rows if row["kind"] == "train"]
    events = {row["event"]: row for row in rows if row["kind"] == "event"}
    peaks = [row for row in [*events.values(), *lines] if row.get("memory_gib") is not None]
    started = events.get("started", {})
    steady = steady_lines(lines)
    seconds = median(line["iter_s"] for line in steady) / micro_batch if steady else None
    return {
        "init_peak_gib": started.get("memory_gib"),
        "peak_allocated_gib": max((row["memory_gib"] for row in peaks), default=None),
        "peak_reserved_gib": max((row["memory_reserved_gib"] or 0.0 for row in peaks), default=0.0) or None,
        "s_per_image": seconds,
        "s_per_image_all_iterations": _mean_of_all(lines, micro_batch),
        "images_per_s": gpus / seconds if seconds else None,
        "data_wait_share": _data_wait_share(steady),
        "iterations": lines[-1]["iter"] if lines else 0,
        "loss": lines[-1]["loss"] if lines else None,
        "start_s": started.get("seconds"),
        "first_step_s": events.get("first_step", {}).get("seconds"),
        "checkpoint_bytes": sum(path.stat().st_size for path in work_dir.glob("iter_*.pth")) or None,
        "resume_bytes": sum(path.stat().st_size for path in work_dir.glob("iter_*.resume/**/*") if path.is_file())
        or None,
        "log": [{key: line[key] for key in ("iter", "loss", "iter_s", "data_s")} for line in lines],
    }


def steady_lines(lines: Sequence[Result]) -> list[Result]:
    """Lines of the log after the warm-up: those whose first iteration is in the last two thirds."""
    begins = [0, *(line["iter"] for line in lines)]
    return [line for line, begin in zip(lines, begins) if begin >= begins[-1] / 3]


def _mean_of_all(lines: Sequence[Result], micro_batch: int) -> float | None:
    begins = [0, *(line["iter"] for line in lines)]
    seconds = sum(line["iter_s"] * (line["iter"] - begin) for line, begin in zip(lines, begins))
    return seconds / begins[-1] / micro_batch if lines else None


def _data_wait_share(lines: Sequence[Result]) -> float | None:
    return sum(line["data_s"] for line in lines) / sum(line["iter_s"] for line in lines) if lines else None


def with_rates(result: dict[str, Any]) -> dict[str, Any]:
    """Add TFLOP/s per GPU, percent of the ceiling, and how far the plan is off."""
    seconds, tflop, ceiling = (result.get(name) for name in ("s_per_image", "tflop_per_image", "ceiling_tflops"))
    rate = tflop / seconds if seconds and tflop else None
    peaks = {"planned_off_percent": ("planned_peak_gib", "peak_allocated_gib")}
    peaks["planned_reserved_off_percent"] = ("planned_reserved_gib", "peak_reserved_gib")
    off = {name: _off(result.get(planned), result.get(measured)) for name, (planned, measured) in peaks.items()}
    return {
        **result,
        "tflops_per_gpu": rate,
        "percent_of_ceiling": 100 * rate / ceiling if rate and ceiling else None,
        **off,
    }


def _off(planned: float | None, measured: float | None) -> float | None:
    return 100 * (planned / measured - 1) if planned and measured else None


def _number(name: str, digits: int, factor: float = 1.0) -> Callable[[Result], str]:
    def text(result: Result) -> str:
        value = result.get(name)
        return "" if value is None else f"{value * factor:.{digits}f}"

    return text


def _planned(result: Result) -> str:
    off = result.get("planned_off_percent")
    return _number("planned_peak_gib", 2)(result) + ("" if off is None else f" ({off:+.0f} %)")


def _rate(result: Result) -> str:
    percent = result.get("percent_of_ceiling")
    return _number("tflops_per_gpu", 0)(result) + ("" if percent is None else f" ({percent:.0f} %)")


def _outcome(result: Result) -> str:
    message = " ".join(result["message"].removeprefix("error: ").split())
    return "" if result["status"] == OK else f"**{result['status']}** {message[:200]}".replace("|", "/")


COLUMNS: dict[str, Callable[[Result], str]] = {
    "row": lambda result: result["name"],
    "GPUs": lambda result: f"{result['gpus']} x {result['gpu']}",
    "cap GiB": _number("cap_gib", 1),
    "micro-batch": lambda result: f"{result.get('micro_batch', '')} x {result.get('accumulation', '')}",
    "init peak": _number("init_peak_gib", 2),
    "peak": _number("peak_allocated_gib", 2),
    "reserved": _number("peak_reserved_gib", 2),
    "planned": _planned,
    "s / image": _number("s_per_image", 4),
    "images / s, all GPUs": _number("images_per_s", 2),
    "TFLOP/s per GPU (ceiling)": _rate,
    "loss": _number("loss", 3),
    "first step s": _number("first_step_s", 1),
    "checkpoint MB": _number("checkpoint_bytes", 0, 1e-6),
    "to resume MB": _number("resume_bytes", 0, 1e-6),
    "outcome": _outcome,
}


def markdown(results: Sequence[Result]) -> str:
    """One line per row; memory in GiB."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(column(result) for column in COLUMNS.values()) + " |" for result in results]
    return "\n".join(lines) + "\n"
