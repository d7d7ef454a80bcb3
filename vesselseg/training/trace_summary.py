"""A profiler's trace -> time and memory of an iteration by part: arithmetic on intervals only.

Every moment counts once. With a GPU it belongs to the range in which the running kernel was launched; else to
communication that no kernel overlaps; else the GPU is idle, and the process waits for data or computes itself. Without
a GPU it belongs to the innermost range of the process, or to communication.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vesselseg.machine import GIB

WAITING, IDLE, REST, COMMUNICATION = "waiting for data", "idle GPU", "all else", "communication"
# Ranges of loop, train_step, training_model and sa2va -> lines of the summary.
LINES = {
    "load data": WAITING,
    "copy to device": "copy to device",
    "encoders": "encoders",
    "language model": "language model",
    "mask decoder": "mask decoder, loss",
    "loss": "mask decoder, loss",
    "backward": "backward, recompute",
    "optimizer": "optimizer step",
    "forward": REST,
    "hooks": "logs, checkpoints",
}
ORDER = (*dict.fromkeys(line for line in LINES.values() if line != REST), COMMUNICATION, IDLE, REST)
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """seconds: of one iteration, by line; they sum to `iteration`. memory: peak GiB within a line's ranges.
    on_gpu: whether both are the GPU's."""

    iteration: float
    iterations: int
    seconds: dict[str, float]
    memory: dict[str, float]
    on_gpu: bool

    def table(self, images_per_iteration: int) -> str:
        """The summary as about ten lines."""
        what = "GPU memory" if self.on_gpu else "main memory since the profile began"
        lines = [
            f"one iteration of process 0 takes {self.iteration:.3f} s for {images_per_iteration} image(s), mean of "
            f"{self.iterations}; largest {what}: {max(self.memory.values(), default=0):.2f} GiB"
        ]
        for line in ORDER if self.on_gpu else (line for line in ORDER if line != IDLE):
            seconds = self.seconds.get(line, 0.0)
            memory = f"{self.memory[line]:8.2f} GiB" if line in self.memory else ""
            lines.append(f"{line:<20}{seconds:9.4f} s{100 * seconds / self.iteration:7.1f} %{memory}")
        return "\n".join(lines)


def summarise(trace: dict[str, Any]) -> Summary:
    """trace: the JSON that torch.profiler exports, of whole iterations; raises ValueError if it contains none."""
    events = [event for event in trace["traceEvents"] if "ts" in event]
    steps = {event["name"]: _interval(event) for event in events if event.get("name", "").startswith("ProfilerStep#")}
    if not steps:
        raise ValueError("the trace holds no iteration")
    window = (min(start for start, _ in steps.values()), max(end for _, end in steps.values()))
    phases = innermost(event for event in events if event.get("cat") == "user_annotation" and event["name"] in LINES)
    on_gpu = any(event.get("cat") == "kernel" for event in events)
    microseconds = _of_gpu(events, phases, window) if on_gpu else _of_process(events, phases, window)
    scale = 1e-6 / len(steps)
    return Summary(
        iteration=(window[1] - window[0]) * scale,
        iterations=len(steps),
        seconds={line: total * scale for line, total in microseconds.items()},
        memory=_memory(events, phases, on_gpu),
        on_gpu=on_gpu,
    )


@dataclass(frozen=True)
class Phases:
    """The line at any time: (start, end, line) in order of time, without overlaps."""

    pieces: list[tuple[float, float, str]]

    def at(self, time: float) -> str:
        """The line at a time in microseconds."""
        number = bisect_right(self.pieces, time, key=lambda piece: piece[0]) - 1
        return self.pieces[number][2] if number >= 0 and time < self.pieces[number][1] else REST

    def of(self, line: str) -> list[Interval]:
        """The times of one line."""
        return [(start, end) for start, end, found in self.pieces if found == line]


def innermost(ranges: Iterable[dict[str, Any]]) -> Phases:
    """Nested ranges of one thread -> the innermost one at any time."""
    pieces: list[tuple[float, float, str]] = []
    open_ranges: list[tuple[float, str]] = []  # their ends and lines, outermost first
    reached = 0.0

    def go_to(time: float) -> None:
        nonlocal reached
        while open_ranges:
            end, line = open_ranges[-1]
            if min(end, time) > reached:
                pieces.append((reached, min(end, time), line))
                reached = min(end, time)
            if end > time:
                return
            open_ranges.pop()

    for event in sorted(ranges, key=lambda event: (event["ts"], -event["dur"])):
        start, end = _interval(event)
        go_to(start)
        reached = max(reached, start)
        open_ranges.append((end, LINES[event["name"]]))
    go_to(float("inf"))
    return Phases(pieces)


def _of_process(events: Sequence[dict[str, Any]], phases: Phases, window: Interval) -> dict[str, float]:
    communicating = _clip(_union(_interval(event) for event in events if _is_communication(event)), window)
    found = {COMMUNICATION: _length(communicating)}
    for line in {piece[2] for piece in phases.pieces}:
        found[line] = _length(_without(_clip(_union(phases.of(line)), window), communicating))
    found[REST] = found.get(REST, 0.0) + window[1] - window[0] - sum(found.values())
    return found


def _of_gpu(events: Sequence[dict[str, Any]], phases: Phases, window: Interval) -> dict[str, float]:
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    computing: dict[str, list[Interval]] = defaultdict(list)
    for event in events:
        if event.get("cat") in GPU_WORK:
            line = phases.at(launched.get(event["args"].get("correlation"), event["ts"]))
            computing[COMMUNICATION if "nccl" in event["name"].lower() else line].append(_interval(event))
    communicating = computing.pop(COMMUNICATION, [])
    found: dict[str, float] = {}
    busy: list[Interval] = []
    for line, intervals in [*computing.items(), (COMMUNICATION, communicating)]:
        own = _clip(_union(intervals), window)
        found[line] = _length(_without(own, busy))
        busy = _union([*busy, *own])
    waiting = _without(_clip(_union(phases.of(WAITING)), window), busy)
    found[WAITING] = found.get(WAITING, 0.0) + _length(waiting)
    found[IDLE] = window[1] - window[0] - sum(found.values())
    return found


def _memory(events: Sequence[dict[str, Any]], phases: Phases, on_gpu: bool) -> dict[str, float]:
    """Peak GiB by line, of the device that computes."""
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("name") == "[memory]" and (event["args"]["Device Type"] == 0) != on_gpu:
            line = phases.at(event["ts"])
            found[line] = max(found[line], event["args"]["Total Allocated"] / GIB)
    return dict(found)


def _is_communication(event: dict[str, Any]) -> bool:
    return event.get("ph") == "X" and event["name"].startswith(("gloo:", "c10d::"))


def _interval(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Overlapping intervals merged, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _without(intervals: Sequence[Interval], taken: Sequence[Interval]) -> list[Interval]:
    """The parts of the intervals outside of `taken`; both in order and without overlaps."""
    left: list[Interval] = []
    first = 0
    for start, end in intervals:
        while first < len(taken) and taken[first][1] <= start:
            first += 1
        number = first
        while number < len(taken) and taken[number][0] < end:
            if taken[number][0] > start:
                left.append((start, taken[number][0]))
            start = max(start, taken[number][1])
            number += 1
        if start < end:
            left.append((start, end))
    return left


def _clip(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    clipped = ((max(start, window[0]), min(end, window[1])) for start, end in intervals)
    return [(start, end) for start, end in clipped if start < end]


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
