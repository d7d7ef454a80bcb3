"""Losses and validation Dice of ways to train, three seeds each, on real pictures at small shapes.

usage: python benchmarks/learning_curves.py --data data/angiograms --out DIR [--iterations 600] [--parallel 6]

Every run is a training through tools/dist.sh of configs/scratch_1gpu.py with frozen encoders and adapters, and differs
from the first way in what VARIANTS names and in nothing else. No pretrained weights exist here: vision tower, language
model and SAM2 are small and drawn once at random, the same for all runs, and stay frozen where the recipes freeze them.
That is no way to a good model; it shows whether two ways of computing the same training learn the same. A seed decides
about adapters, order of images, augmentation and dropout.

DIR gets learning_curves.json and learning_curves.png.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import OK, REPOSITORY, log_rows, train
from benchmarks.variants import chosen, folder_name, shared_schedule, study_parser
from vesselseg.config.load import load_config
from vesselseg.machine import available_cores
from vesselseg.models.sam2_grounding import build_sam2
from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports

CONFIG = REPOSITORY / "configs" / "scratch_1gpu.py"
ZERO3_OFFLOAD = REPOSITORY / "configs" / "internvl3_8b_4x24gb_zero3_offload.py"
VIEWS = 8  # augmented views per image in a store: epoch e sees number e % VIEWS
REFERENCE = "ZeRO-2, bf16"
# Name -> what differs from the reference. DeepSpeed's settings come from the recipe, half a size from the whole one.
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "ZeRO-3, all on the CPU": {"strategy.zero_optimization": ZERO3_OFFLOAD},
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
LAST_PART = 0.2  # of the iterations, over which a final loss is the mean
# Two-sided 95 % of Student's t for the difference of two means of n runs each.
STUDENT = {2: 4.303, 3: 2.776, 4: 2.447, 5: 2.306, 6: 2.228}


@dataclass(frozen=True)
class Run:
    """One training. settings: what all runs share."""

    variant: str
    seed: int
    image_size: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its work folder."""
        return folder_name(self.variant, self.seed)

    def overrides(self) -> dict[str, Any]:
        """Shared settings, what the variant differs in, and the seed."""
        changed = dict(VARIANTS[self.variant])
        if "strategy.zero_optimization" in changed:
            with muted():  # checking a config imports DeepSpeed, which talks
                changed["strategy.zero_optimization"] = load_config(ZERO3_OFFLOAD)["strategy"]["zero_optimization"]
        if "model.sa2va.sam2.image_size" in changed:
            changed["model.sa2va.sam2.image_size"] = self.image_size // 2
        return {**self.settings, **changed, "seed": self.seed}


def main() -> int:
    """All runs, several at a time; then the summary, also of what has failed."""
    args = parse_arguments()
    trainings = chosen(args.variants, list(VARIANTS), args.seeds)
    settings = shared_settings(args)
    runs = [Run(variant, seed, args.image_size, settings) for variant, seed in trainings]
    results = run_all(runs, args)
    described = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    summary = {"settings": described, **summarise(results)}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "learning_curves.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draw(summary, args.out / "learning_curves.png")
    print("\n".join(comparison["sentence"] for comparison in summary["comparisons"]))
    return 0 if all(result["status"] == OK for result in results) else 1


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    usual = {"iterations": 600, "image_size": 1024, "parallel": 6, "workers": 2, "budget_s": 540.0}
    parser = study_parser(__doc__, "learning_curves", **usual)
    parser.add_argument("--hidden-size", type=int, default=256, help="of the language model (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="processes of each run (default: %(default)s)")
    return parser.parse_args()


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share; writes the frozen weights."""
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


def run_all(runs: Sequence[Run], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Curves of every run."""
    deadline = time.monotonic() + args.budget_s
    threads = max(1, available_cores() // args.parallel)

    def one(run: Run) -> dict[str, Any]:
        folder = args.scratch / run.name
        outcome = train(
            CONFIG,
            args.gpus,
            folder,
            run.overrides(),
            flags=("--skip-plan",),
            environment={"OMP_NUM_THREADS": str(threads)},
            limit_s=max(0.0, deadline - time.monotonic()),
        )
        print(f"{outcome.status} after {outcome.seconds:.0f} s: {run.variant}, seed {run.seed}", flush=True)
        told = {"variant": run.variant, "seed": run.seed, "status": outcome.status, "message": outcome.message}
        return told | curves(folder, args.iterations)

    with ThreadPoolExecutor(args.parallel) as pool:
        return list(pool.map(one, runs))


def curves(folder: Path, iterations: int) -> dict[str, Any]:
    """Loss and Dice by iteration. Final ones only of a run that came to its end."""
    rows = log_rows(folder)
    loss = {row["iter"]: row["loss"] for row in rows if row["kind"] == "train" and row["loss"] is not None}
    dice = {row["iter"]: row["dice"] for row in rows if row["kind"] == "val"}
    whole = max(loss, default=0) == iterations and max(dice, default=0) == iterations
    last = [value for iteration, value in loss.items() if iteration > iterations * (1 - LAST_PART)]
    return {
        "loss": loss,
        "dice": dice,
        "final_loss": mean(last) if whole else None,
        "final_dice": dice[iterations] if whole else None,
        "images_per_s": next((row["images_per_s"] for row in reversed(rows) if row["kind"] == "train"), None),
        "memory_gib": max((row["memory_gib"] for row in rows if row["kind"] == "train"), default=None),
    }


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs, each variant's mean and range over its seeds, and each variant against the first one."""
    names = list(dict.fromkeys(result["variant"] for result in results))
    variants = {}
    for name in names:
        own = [result for result in results if result["variant"] == name]
        variants[name] = {kind: over_seeds([result[kind] for result in own]) for kind in ("loss", "dice")}
        for final in ("final_loss", "final_dice"):
            variants[name][final] = [result[final] for result in own if result[final] is not None]
    pairs = [compare(names[0], name, variants) for name in names[1:]]
    return {"runs": list(results), "variants": variants, "comparisons": pairs}


def over_seeds(found: Sequence[Mapping[int, float]]) -> dict[str, list[float]]:
    """Mean, lowest and highest of several curves, where all of them have a point."""
    shared = sorted(set.intersection(*(set(curve) for curve in found)))
    columns = [[curve[iteration] for curve in found] for iteration in shared]
    return {
        "iter": [float(iteration) for iteration in shared],
        "mean": [mean(column) for column in columns],
        "low": [min(column) for column in columns],
        "high": [max(column) for column in columns],
    }


def compare(first: str, second: str, variants: Mapping[str, Any]) -> dict[str, Any]:
    """Whether two ways end alike: whether their means differ by less than seeds alone explain (95 %)."""
    outcome: dict[str, Any] = {"variants": [first, second]}
    told = []
    for kind in ("final_loss", "final_dice"):
        one, other = variants[first][kind], variants[second][kind]
        seeds = min(len(one), len(other))
        if not seeds:
            told.append(f"no {kind.replace('_', ' ')}")
            continue
        difference, noise = mean(other) - mean(one), seeds_noise(one, other)
        agree = None if noise is None else abs(difference) <= noise
        outcome[kind] = {"difference": difference, "noise": noise, "agree": agree}
        verdict = {None: "one seed tells no noise", True: "within", False: "beyond"}[agree]
        limit = "" if noise is None else f" the seeds' noise of {noise:.4f}"
        told.append(f"{kind.replace('_', ' ')} {mean(one):.4f} and {mean(other):.4f}: {verdict}{limit}")
    return outcome | {"sentence": f"{first} / {second}: {'; '.join(told)}"}


def seeds_noise(one: Sequence[float], other: Sequence[float]) -> float | None:
    """How far apart the means of two ways lie by their seeds alone, 95 %; None where one has a single seed."""
    seeds = min(len(one), len(other))
    if seeds < 2:
        return None
    student = STUDENT.get(seeds, STUDENT[max(STUDENT)])
    return student * math.sqrt(stdev(one) ** 2 / len(one) + stdev(other) ** 2 / len(other))


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Mean and range of every variant: loss on the left, Dice of the validation images on the right."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for panel, kind in zip(panels, ("loss", "dice")):
        for name, variant in summary["variants"].items():
            curve = variant[kind]
            (line,) = panel.plot(curve["iter"], curve["mean"], label=name, linewidth=1.2)
            panel.fill_between(curve["iter"], curve["low"], curve["high"], color=line.get_color(), alpha=0.15)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="iteration", ylabel="training loss", yscale="log")
    for axis_part in ("set_major_formatter", "set_minor_formatter"):  # plain figures in place of powers of ten
        getattr(panels[0].yaxis, axis_part)(FormatStrFormatter("%g"))
    panels[1].set(xlabel="iteration", ylabel="validation Dice, best threshold")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    quieten_imports()
    run_tool(main)
