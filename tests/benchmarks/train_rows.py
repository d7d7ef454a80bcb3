"""Run one iteration of every row of benchmarks/train_step_rows.yaml at tiny shapes, all in this process on the CPU.

usage: python -m tests.benchmarks.train_rows FOLDER

Prints a line of JSON per row: its name, the losses of its log and an error, or null. One process replaces all GPUs of a
row, and batches and images are the smallest; everything else is the row's: strategy, quantisation, features, heads.
Rows that become equal are trained once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from vesselseg.training.console import muted, quieten_imports

SIDE = 64  # of SAM2's view, instead of 1024
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}


def main(folder: Path) -> None:
    """Write data and base, then train row after row."""
    with muted():  # DeepSpeed prints while it is imported
        from benchmarks.train_step import ROWS, read_rows
        from tests.training.conftest import write_data
        from vesselseg.models.tiny_base import write_tiny_base
    write_data(folder / "data")
    write_tiny_base(folder / "base", hidden_size=32, layers=1, tile_size=56)
    known: dict[str, dict[str, Any]] = {}
    for rows in read_rows(ROWS).values():
        for row in rows:
            settings = tiny_settings(row, folder)
            key = json.dumps([row.config, settings], sort_keys=True)
            if key not in known:
                known[key] = outcome(row.config, settings, folder / f"run_{len(known)}")
            print(json.dumps({"name": row.name, **known[key]}), flush=True)


def tiny_settings(row: Any, folder: Path) -> dict[str, Any]:
    """The row's overrides with the smallest sizes."""
    from benchmarks.runs import REPOSITORY
    from vesselseg.config.load import load_config

    settings = {
        **row.overrides,
        "data_root": str(folder / "data"),
        "model.sa2va.base": str(folder / "base"),
        "model.sa2va.random_weights": False,
        "model.sa2va.sam2.checkpoint": None,
        "model.sa2va.sam2.variant": "tiny",
        "model.sa2va.sam2.image_size": SIDE,
        "schedule.micro_batch": 1,
        "schedule.accumulation": 1,
        "schedule.max_iters": 1,
        "schedule.epochs": 1,
        "loader.num_workers": 0,
        "logging.interval": 1,
        "logging.tensorboard": False,
        "validation.interval": None,
        "checkpoint.interval": 1 if row.checkpoint else None,
    }
    sa2va = load_config(REPOSITORY / row.config, row.overrides)["model"]["sa2va"]
    if not isinstance(sa2va["gradient_checkpointing"], bool):
        settings["model.sa2va.gradient_checkpointing"] = 1  # a number of layers, of which the tiny model has one
    head = sa2va["sam2"].get("vessel_head")
    if head and head.get("side"):
        side = head["side"] * SIDE // sa2va["sam2"]["image_size"]
        settings["model.sa2va.sam2.vessel_head"] = {**row.overrides["model.sa2va.sam2.vessel_head"], "side": side}
    return settings


def outcome(config: str, settings: dict[str, Any], work_dir: Path) -> dict[str, Any]:
    """Losses of one training, or its error."""
    from benchmarks.runs import REPOSITORY, log_rows
    from vesselseg.config.load import load_config
    from vesselseg.training.launch import train

    try:
        own = {**settings, "features.folder": str(work_dir / "features")}
        train(load_config(REPOSITORY / config, own), work_dir, skip_plan=True)
    except Exception:  # a row that fails is reported, and the others run
        return {"losses": [], "checkpoint": False, "error": traceback.format_exc()[-2000:]}
    losses = [line["loss"] for line in log_rows(work_dir) if line["kind"] == "train"]
    return {"losses": losses, "checkpoint": (work_dir / "iter_1.pth").exists(), "error": None}


if __name__ == "__main__":
    os.environ.update(ALONE)
    os.environ.setdefault("MASTER_PORT", "0")
    quieten_imports()
    main(Path(sys.argv[1]))
