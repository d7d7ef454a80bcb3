"""What tools/plan_memory.py says about a row, for comparison with what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.runs import REPOSITORY

TOOL = REPOSITORY / "tools" / "plan_memory.py"
LIMIT_S = 60.0


def plan_of(config: str, gpus: int, cap_gib: float | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Planned peak and FLOPs per image; None where there is no plan."""
    nothing = {"planned_peak_gib": None, "tflop_per_image": None}
    if not TOOL.exists():
        return nothing
    command = [
        sys.executable,
        str(TOOL),
        config,
        "--gpus",
        str(max(1, gpus)),
        "--gpu-gib",
        str(cap_gib or 80),
        "--json",
    ]
    command += ["--cfg-options", *(f"{key}={value}" for key, value in settings.items())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    try:
        plan = json.loads(done.stdout)
    except json.JSONDecodeError:
        return nothing | {"plan_message": (done.stderr or done.stdout)[-300:]}
    return {"planned_peak_gib": plan["peak_gib"], "tflop_per_image": plan["tflop_per_image"]}
