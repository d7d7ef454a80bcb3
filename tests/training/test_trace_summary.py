"""Time by part, from traces with known results."""

from __future__ import annotations

from typing import Any

import pytest

from vesselseg.config.settings import Schedule
from vesselseg.machine import GIB
from vesselseg.training.plan import TrainPlan
from vesselseg.training.profile import ProfileHook
from vesselseg.training.trace_summary import summarise

STEP = {"name": "ProfilerStep#3", "cat": "user_annotation", "ts": 0.0, "dur": 1000.0}


def inside(name: str, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": start, "dur": end - start}


def kernel(number: int, launched: float, start: float, end: float, name: str = "gemm") -> list[dict[str, Any]]:
    """A kernel and its launch, which takes no time."""
    call = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launched, "dur": 0.0}
    work = {"cat": "kernel", "name": name, "ts": start, "dur": end - start}
    return [{**event, "args": {"correlation": number}} for event in (call, work)]


def shares(events: list[dict[str, Any]]) -> dict[str, float]:
    """Microseconds per iteration by line, without lines of nothing."""
    summary = summarise({"traceEvents": events})
    assert sum(summary.seconds.values()) == pytest.approx(summary.iteration)
    return {line: pytest.approx(1e6 * seconds) for line, seconds in summary.seconds.items() if seconds > 1e-12}


RANGES = [
    inside("load data", 0, 100),
    inside("forward", 100, 400),
    inside("encoders", 110, 200),
    inside("language model", 200, 380),
    inside("backward", 400, 800),
    inside("optimizer", 800, 950),
]


def test_without_a_gpu_time_belongs_to_the_innermost_range_or_to_communication() -> None:
    talk = [
        {"ph": "X", "cat": "user_annotation", "name": "gloo:all_reduce", "ts": 700.0, "dur": 200.0},
        {"ph": "X", "cat": "cpu_op", "name": "c10d::allreduce_", "ts": 690.0, "dur": 20.0},
    ]
    assert shares([STEP, *RANGES, *talk]) == {
        "waiting for data": 100,
        "encoders": 90,
        "language model": 180,
        "backward, recompute": 290,
        "communication": 210,
        "optimizer step": 50,
        "all else": 80,
    }


def test_gpu_time_belongs_to_its_kernels_and_idle_time_differs_from_waiting() -> None:
    work = [
        *kernel(1, launched=120, start=150, end=400),  # the encoders', launched long before it ends
        *kernel(2, launched=210, start=400, end=500),
        *kernel(3, launched=500, start=500, end=700),  # launched by a thread of autograd, inside backward
        *kernel(4, launched=600, start=600, end=800, name="ncclDevKernel_AllReduce"),  # half of it is hidden
        *kernel(5, launched=810, start=900, end=1000),
    ]
    assert shares([STEP, *RANGES, *work]) == {
        "waiting for data": 100,
        "encoders": 250,
        "language model": 100,
        "backward, recompute": 200,
        "communication": 100,
        "optimizer step": 100,
        "idle GPU": 150,
    }


def test_memory_is_the_largest_of_each_range_on_the_device_that_computes() -> None:
    def allocated(when: float, gib: float, device: int) -> dict[str, Any]:
        return {"name": "[memory]", "ts": when, "args": {"Device Type": device, "Total Allocated": gib * GIB}}

    memory = [allocated(150, 3, 1), allocated(160, 5, 1), allocated(170, 99, 0), allocated(500, 7, 1)]
    events = [STEP, *RANGES, *kernel(1, 120, 150, 400)]
    assert summarise({"traceEvents": [*events, *memory]}).memory == {"encoders": 5.0, "backward, recompute": 7.0}
    text = summarise({"traceEvents": [*events, *memory]}).table(images_per_iteration=8)
    assert "for 8 image(s), mean of 1; largest GPU memory: 7.00 GiB" in text
    assert "encoders               0.0003 s   25.0 %    5.00 GiB" in text.splitlines()


def test_iterations_are_averaged_and_a_trace_without_any_is_refused() -> None:
    steps = [{**STEP, "name": f"ProfilerStep#{number}", "ts": 1000.0 * number} for number in range(4)]
    assert summarise({"traceEvents": steps}).iteration == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="no iteration"):
        summarise({"traceEvents": RANGES})


def test_whole_accumulation_groups_are_looked_at(tmp_path: Any) -> None:
    plan = TrainPlan(100, 1, Schedule(accumulation=4))
    assert [ProfileHook(n, plan, tmp_path).iterations for n in (1, 4, 5)] == [4, 4, 8]
