"""Loss and validation Dice of a run as one image.

usage: python benchmarks/plot_training.py work_dirs/RUN/log.jsonl OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(log: Path, out: Path) -> None:
    """Losses on the left, validation Dice and IoU on the right. log: log.jsonl; out: PNG file."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["kind"] == "train" and row.get("loss") is not None]
    validation = [row for row in rows if row["kind"] == "val"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for name, label in (
        ("loss", "total"),
        ("loss_bce", "2.0 x BCE"),
        ("loss_dice", "0.5 x Dice"),
        ("loss_lm", "answer"),
    ):
        left.plot([row["iter"] for row in train], [row[name] for row in train], label=label)
    left.set(xlabel="iteration", ylabel="training loss", yscale="log")
    left.legend(frameon=False)
    right.plot([row["iter"] for row in validation], [row["dice"] for row in validation], "o-", label="Dice")
    right.plot([row["iter"] for row in validation], [row["iou"] for row in validation], "o-", label="IoU")
    right.set(xlabel="iteration", ylabel="validation, best threshold", ylim=(0, 1))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
