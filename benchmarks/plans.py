"""The memory plan of a row of train_step.py, to compare it with the measured peaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.runs import REPOSITORY
from vesselseg.training.memory_plan.cards import card_like

LIMIT_S = 120.0
FLOPS_OF_ANY_CARD = "H200"  # FLOPs per image are the same on all of them


def plan_of(result: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Planned peaks (GiB) and TFLOP per image of a measured row; None without a plan, then plan_message says why."""
    card = card_like(result["gpu"])
    command = [sys.executable, "-m", "vesselseg", "plan", result["config"], "--json"]
    command += ["--gpus", str(max(1, result["gpus"])), "--card", card.name if card else FLOPS_OF_ANY_CARD]
    command += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    try:
        plan = json.loads(done.stdout)
    except json.JSONDecodeError:
        plan = {}
    gpu, time = plan.get("gpu") or {}, plan.get("time") or {}
    return {
        "planned_peak_gib": gpu.get("peak_gib"),
        "planned_reserved_gib": gpu.get("reserved_gib"),
        "tflop_per_image": time.get("tflop_per_image"),
        "plan_message": None if plan else (done.stderr or done.stdout)[-500:],
    }
