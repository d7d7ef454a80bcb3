"""Losses and validation Dice of ways to train, three seeds each, on real images at small shapes.

usage: python benchmarks/learning_curves.py --data data/angiograms --out DIR [--iterations 600] [--parallel 6]

Every run trains configs/scratch_1gpu.py with frozen encoders and adapters through tools/dist.sh, and differs from the
reference only by the settings in VARIANTS. No pretrained weights are needed: vision tower, language model and SAM2 are
small, drawn at random once, shared by all runs, and frozen where the recipes freeze them. The models are poor; the
question is whether two ways of computing the same training learn equally well. The seed determines adapters, order of
images, augmentation and dropout.

DIR gets learning_curves.json and learning_curves.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import OK, REPOSITORY
from benchmarks.variants import Run, over_seeds, seeds_noise, select_runs, shared_schedule, study_parser, train_run
from vesselseg.config.load import load_config
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports

CONFIG = REPOSITORY / "configs" / "scratch_1gpu.py"
ZERO3_OFFLOAD = REPOSITORY / "configs" / "internvl3_8b_4x24gb_zero3_offload.py"
VIEWS = 8  # augmented views per image in a store: epoch e sees number e % VIEWS
REFERENCE = "ZeRO-2, bf16"
# Name -> overrides. `overrides` fills in DeepSpeed's settings from the recipe, and half of the image size.
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    # partitioned weights are not averaged
    "ZeRO-3, all on the CPU": {"strategy.zero_optimization": ZERO3_OFFLOAD, "schedule.ema": 0.0},
    f"features stored, {VIEWS} views": {"features.store": "disk", "features.variants": VIEWS},
    "base in 4 bits": {"model.sa2va.quantise": "nf4"},
    "SAM2 at half size": {"model.sa2va.sam2.image_size": None},
    "mask decoder frozen": {
        "model.sa2va.trainable.mask_decoder": False,
        "model.sa2va.trainable.high_res_convs": False,
    },
    "activations on the host": {"model.sa2va.activations_on_host": True},
}
LINES = 60  # points of a loss curve
VALIDATIONS = 6


def main() -> int:
    """Train all runs and write JSON and picture, failed runs included. Exit status 1 where a run failed."""
    args = parse_arguments()
    runs = select_runs(args.variants, list(VARIANTS), args.seeds)
    settings = shared_settings(args)
    results = run_all(runs, settings, args)
    described = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    summary = {"settings": described, **summarise(results)}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "learning_curves.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draw(summary, args.out / "learning_curves.png")
    print("\n".join(comparison["sentence"] for comparison in summary["comparisons"]))
    return 0 if all(result["status"] == OK for result in results) else 1


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    defaults = {"iterations": 600, "image_size": 1024, "parallel": 6, "workers": 2, "budget_s": 540.0}
    parser = study_parser(__doc__, "learning_curves", **defaults)
    parser.add_argument("--hidden-size", type=int, default=256, help="of the language model (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="processes of each run (default: %(default)s)")
    return parser.parse_args()


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Config overrides of all runs; writes the frozen weights."""
    shutil.rmtree(args.scratch, ignore_errors=True)
    base, sam2_file = args.scratch / "base", args.scratch / "sam2.pt"
    write_tiny_base(base, hidden_size=args.hidden_size, layers=4)
    with muted():
        sam2 = load_config(CONFIG)["model"]["sa2va"]["sam2"]
    sam2 = {**{key: value for key, value in sam2.items() if key != "checkpoint"}, "image_size": args.image_size}
    torch.manual_seed(0)
    torch.save({"model": build_sam2(sam2).state_dict()}, sam2_file)
    return {
        **shared_schedule(args, LINES, VALIDATIONS),
        "model.sa2va.base": base,
        "model.sa2va.sam2.checkpoint": sam2_file,
        "model.sa2va.trainable.llm": "lora",
        "model.sa2va.trainable.projector": True,
        "model.sa2va.trainable.sam2_encoder": False,
        "model.sa2va.trainable.vision": False,
        "model.sa2va.gradient_checkpointing": True,
        "precision": "bf16",
        "features.store": None,
        "features.folder": args.scratch / "features",
    }


def overrides(run: Run, settings: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Config overrides of one run: shared settings, those of its variant, its seed."""
    changed = dict(VARIANTS[run.variant])
    if "strategy.zero_optimization" in changed:
        with muted():  # checking a config imports DeepSpeed, which prints
            changed["strategy.zero_optimization"] = load_config(ZERO3_OFFLOAD)["strategy"]["zero_optimization"]
    if "model.sa2va.sam2.image_size" in changed:
        changed["model.sa2va.sam2.image_size"] = image_size // 2
    return {**settings, **changed, "seed": run.seed}


def run_all(runs: Sequence[Run], settings: Mapping[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train `args.parallel` runs at a time; one record per run, in their order."""
    deadline = time.monotonic() + args.budget_s

    def train_one(run: Run) -> dict[str, Any]:
        limit_s = max(0.0, deadline - time.monotonic())
        record = train_run(run, CONFIG, overrides(run, settings, args.image_size), args, limit_s, args.gpus)
        print(f"{record['status']} after {record['seconds']:.0f} s: {run.variant}, seed {run.seed}", flush=True)
        return record

    with ThreadPoolExecutor(args.parallel) as pool:
        return list(pool.map(train_one, runs))


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The records, mean and range of each variant over its seeds, and each variant compared with the first."""
    names = list(dict.fromkeys(result["variant"] for result in results))
    variants = {}
    for name in names:
        own = [result for result in results if result["variant"] == name]
        variants[name] = {kind: over_seeds([result[kind] for result in own]) for kind in ("loss", "dice")}
        for final in ("final_loss", "final_dice"):
            variants[name][final] = [result[final] for result in own if result[final] is not None]
    pairs = [compare(names[0], name, variants) for name in names[1:]]
    return {"runs": list(results), "variants": variants, "comparisons": pairs}


def compare(first: str, second: str, variants: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the final means of two variants agree: whether they differ by no more than `seeds_noise`."""
    outcome: dict[str, Any] = {"variants": [first, second]}
    clauses = []
    for kind in ("final_loss", "final_dice"):
        one, other = variants[first][kind], variants[second][kind]
        seeds = min(len(one), len(other))
        if not seeds:
            clauses.append(f"no {kind.replace('_', ' ')}")
            continue
        difference, noise = mean(other) - mean(one), seeds_noise(one, other)
        agree = None if noise is None else abs(difference) <= noise
        outcome[kind] = {"difference": difference, "noise": noise, "agree": agree}
        verdict = {None: "one seed, no noise estimate", True: "within", False: "beyond"}[agree]
        limit = "" if noise is None else f" the seeds' noise of {noise:.4f}"
        clauses.append(f"{kind.replace('_', ' ')} {mean(one):.4f} and {mean(other):.4f}: {verdict}{limit}")
    return outcome | {"sentence": f"{first} / {second}: {'; '.join(clauses)}"}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Mean and range of every variant: training loss on the left, validation Dice on the right."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for panel, kind in zip(panels, ("loss", "dice")):
        for name, variant in summary["variants"].items():
            curve = variant[kind]
            (line,) = panel.plot(curve["iter"], curve["mean"], label=name, linewidth=1.2)
            panel.fill_between(curve["iter"], curve["low"], curve["high"], color=line.get_color(), alpha=0.15)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="iteration", ylabel="training loss", yscale="log")
    for axis_part in ("set_major_formatter", "set_minor_formatter"):  # plain numbers instead of powers of ten
        getattr(panels[0].yaxis, axis_part)(FormatStrFormatter("%g"))
    panels[1].set(xlabel="iteration", ylabel="validation Dice, best threshold")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    quieten_imports()
    run_tool(main)
