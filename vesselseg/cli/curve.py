"""`vesselseg curve`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from vesselseg.cli.logged import last_lines, run_logged
from vesselseg.cli.parameters import CfgOptions, Data, Positive, Seed, Whole, text_parser
from vesselseg.config.files import find_config
from vesselseg.config.overrides import read_overrides
from vesselseg.errors import UserError
from vesselseg.output_folder import check_apart, replace_text

FILE = "curve.json"
LABEL = "Dice"
SHOWN_LINES = 15  # of a failed command
OWN = ("data_root", "seed", "schedule.epochs")  # settings that the curve decides


def shares_of(text: str) -> tuple[float, ...]:
    """ "1/8,1/4,0.5,1" as numbers."""
    try:
        pairs = [part.partition("/") for part in text.split(",")]
        return tuple(float(above) / float(below or 1) for above, _, below in pairs)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r}: expected shares like 1/8,1/4,1/2,1") from None


def curve(
    data: Data,
    *,
    config: str,
    out: Annotated[Path, Parameter(help="folder for results; a started one is continued")],
    gpus: Whole | None = None,
    shares: Annotated[tuple[float, ...], Parameter(converter=text_parser(shares_of), n_tokens=1)] = (
        1 / 8,
        1 / 4,
        1 / 2,
        1,
    ),
    seeds: Positive = 1,
    split: Literal["val", "test"] = "test",
    seed: Seed = 0,
    cfg_options: CfgOptions = (),
) -> int:
    """Train on parts of your labels, and say how much more labels would bring, with an interval.

    vesselseg curve data/mine --config scratch_1gpu --out work_dirs/curve

    Each part is in the next larger one, groups stay whole, and every training sees
    as many images as the one on all labels. Each is validated on the same images
    and scored on the same split at its own stored threshold. A call that was
    interrupted goes on where it was. Writes curve.json and curve.png.

    Args:
        config: a recipe's name, or a config file
        gpus: as vesselseg train takes them
        shares: of the training images, rising
        seeds: trainings per share, each on another part
        split: what is scored
    """
    path = find_config(config)
    overrides = read_overrides(path, cfg_options)
    if set(OWN) & set(overrides):
        raise UserError(
            f"--cfg-options {', '.join(set(OWN) & set(overrides))}: the curve sets this itself; leave it out"
        )
    check_apart(out, [data])
    from vesselseg.dataset.manifest import fingerprint, read_splits
    from vesselseg.prepare.subsets import nested_subsets, read_training_groups, write_subset
    from vesselseg.training.console import muted, quieten_imports

    splits = read_splits(data)
    for name in ("val", split):
        if not splits[name]:
            raise UserError(f"{data}: the {name} split is empty; a curve needs images to validate on and to score")
    images, groups = read_training_groups(data)
    quieten_imports()
    with muted():
        from vesselseg.config.load import load_config

        epochs = load_config(path, {**overrides, "data_root": str(data)})["schedule"]["epochs"]
    facts = {"data": fingerprint(data), "config": path.stem, "split": split, "cfg_options": list(cfg_options)}
    done = finished(out, facts)
    for number in range(seed, seed + seeds):
        for part in nested_subsets(images, groups, shares, number):
            if any((run["labels"], run["seed"]) == (len(part), number) for run in done):
                continue
            folder = out / f"{len(part)}_labels_seed_{number}"
            write_subset(data, {"train": part}, folder / "data")
            settings = [f"data_root={folder / 'data'}", f"seed={number}"]
            settings += [f"schedule.epochs={math.ceil(epochs * len(images) / len(part))}"]
            print(f"{len(part)} labels, seed {number}", flush=True)
            train = ["train", str(path), *([] if gpus is None else [str(gpus)]), "--out", str(folder / "run")]
            call([*train, "--resume", "auto", "--cfg-options", *cfg_options, *settings], folder / "train.log")
            score = ["eval", str(folder / "run" / "best.pth"), "--data", str(folder / "data"), "--split", split]
            call([*score, "--out", str(folder / "eval"), "--force"], folder / "eval.log")
            done.append(scored(folder / "eval" / "results.json", len(part), number))
            replace_text(out / FILE, json.dumps({**facts, "runs": done}, indent=1))
            shutil.rmtree(folder)  # a checkpoint for each would soon fill the disk
    return report(out, facts, done, seed)


def finished(out: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of an earlier call. Raises UserError where it was about something else."""
    file = out / FILE
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    differing = [
        f"{key} {content.get(key)!r}, now {value!r}" for key, value in facts.items() if content.get(key) != value
    ]
    if differing:
        raise UserError(f"{file} is of other trainings: {'; '.join(differing)}; choose another --out")
    runs: list[dict[str, Any]] = content["runs"]
    return runs


def call(arguments: Sequence[str], log: Path) -> None:
    """Run one command with its output in a file. Raises UserError with its last lines."""
    status = run_logged(arguments, log)
    if status:
        shown = last_lines(log, SHOWN_LINES)
        raise UserError(f"vesselseg {arguments[0]} ended with status {status}, see {log}:\n{shown}")


def scored(results: Path, labels: int, seed: int) -> dict[str, Any]:
    """What is kept of an evaluation: the score and the group of every item."""
    items = json.loads(results.read_text(encoding="utf-8"))["items"]
    names = [" ".join(filter(None, (item["image"], item["phrase"]))) for item in items]
    return {
        "labels": labels,
        "seed": seed,
        "values": {name: item["metrics"]["dice"] for name, item in zip(names, items)},
        "groups": {name: item["group"] for name, item in zip(names, items)},
    }


def report(out: Path, facts: dict[str, Any], runs: Sequence[dict[str, Any]], seed: int) -> int:
    """Print the curve, and write it beside the runs and as a picture."""
    from vesselseg.evaluation.label_curve import CurveRun, label_curve
    from vesselseg.reports.label_curve_chart import curve_lines, draw_curve

    known = [CurveRun(run["labels"], run["seed"], run["values"]) for run in runs]
    if len({run.labels for run in known}) < 2:
        raise UserError(f"{out}: one number of labels has no curve; expected two --shares or more")
    found = label_curve(known, runs[0]["groups"], seed)
    replace_text(out / FILE, json.dumps({**facts, "runs": list(runs), "curve": found.to_dict()}, indent=1))
    draw_curve(found, LABEL, out / "curve.png")
    print("\n".join(curve_lines(found, LABEL)))
    print(f"results: {out / FILE}, {out / 'curve.png'}")
    return 0
