"""`vesselseg folds`: make and pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vesselseg.cli.parameters import Force, Out, Seed
from vesselseg.evaluation.options import RESULTS_FILE
from vesselseg.output_folder import check_output

app = App(name="folds", help="Cross-validation: make folds of a dataset folder, pool the results of all folds.")


@app.command
def make(
    data: Path,
    *,
    folds: int = 5,
    val: float = 0.1,
    seed: Annotated[int, Parameter(help="the same seed makes the same folds")] = 0,
    force: Annotated[bool, Parameter(help="replace the folds that are stored there")] = False,
) -> None:
    """Make folds for a cross-validation, by group: each of them is a dataset folder that every command takes.

    vesselseg folds make data/NAME --folds 5
    vesselseg train CONFIG 4 --out work_dirs/x_fold2 --cfg-options data_root=data/NAME/folds/2
    vesselseg eval work_dirs/x_fold2/best.pth --data data/NAME/folds/2 --out work_dirs/x_fold2/eval

    Every image is tested on in exactly one fold. vesselseg folds pool puts the
    results of all folds together.

    Args:
        data: dataset folder made by vesselseg prepare
        folds: how many
        val: share of the images that a fold does not test on, on which it validates
    """
    from vesselseg.dataset.manifest import FOLDS, read_fold
    from vesselseg.prepare.folds import make_folds

    splits = make_folds(data, folds, val, seed, force)
    for number, one in enumerate(splits, start=1):
        folder = data / FOLDS / str(number)
        print(f"{folder}: " + ", ".join(f"{name} {len(images)}" for name, images in one.items()))
    fold = read_fold(data / FOLDS / "1")
    print(f"fingerprint of the folds: {fold.fingerprint if fold else ''}")


@app.command
def pool(results: list[Path], *, out: Out, seed: Seed = 0, force: Force = False) -> None:
    """Pool the results of all folds: means over all images, intervals that resample groups.

    vesselseg folds pool work_dirs/x_fold*/eval --out work_dirs/x_folds

    Takes what vesselseg eval wrote for the test split of each fold of vesselseg
    folds make; vesselseg compare takes the result.

    Args:
        results: results.json or its folder, per fold
    """
    check_output(out, force, RESULTS_FILE)
    from vesselseg.evaluation.cross_validation import pool_folds, write_pooled
    from vesselseg.reports.console import console_summary

    evaluation, folds = pool_folds(results, seed)
    file = write_pooled(evaluation, folds, out, force)
    print("\n".join(console_summary(evaluation)))
    for fold in folds:
        dice = fold.content["summary"]["dice"]["mean"]  # always defined: empty masks have their rule
        print(f"fold {fold.number} of {fold.of}: {len(fold.items)} items, Dice {dice:.4f}")
    print(f"results: {file}")
