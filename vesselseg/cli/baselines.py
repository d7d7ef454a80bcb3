"""`vesselseg baselines`: frangi, unet and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from vesselseg.baselines.options import BASELINES, TUNING_IMAGES, Augmentation, Optimizer, UNetOptions
from vesselseg.cli.parameters import Batch, Data, Device, Flat, Force, Metric, Out, Positive, Seed, show_messages
from vesselseg.output_folder import check_output

app = App(name="baselines", help="Predict with a tuned Frangi filter or a U-Net, and compare methods.")
UNET = "U-Net"


@app.command
def frangi(
    data: Data,
    *,
    out: Out,
    split: Annotated[tuple[Literal["val", "test"], ...], Parameter(consume_multiple=True)] = ("test",),
    images: Positive = TUNING_IMAGES,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Tune a Frangi filter on the training split and predict other splits with it, as a baseline.

    vesselseg baselines frangi data/NAME --split test --out work_dirs/frangi
    vesselseg eval work_dirs/frangi --data data/NAME --split test --out work_dirs/frangi_eval

    Args:
        split: what to predict
        images: to tune on
    """
    from vesselseg.baselines.frangi_baseline import write_frangi_baseline

    show_messages()
    params = write_frangi_baseline(data, split, out, images, seed, force)
    print(f"parameters: {params.to_dict()}")
    print(f"predictions: {out}")


DEFAULTS = UNetOptions()


@app.command
def unet(
    data: Data,
    *,
    out: Out,
    split: Annotated[tuple[Literal["val", "test"], ...], Parameter(consume_multiple=True)] = ("val", "test"),
    options: Annotated[UNetOptions, Flat] = DEFAULTS,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Train a U-Net with nnU-Net's recipe on the training split and predict other splits with it, as a baseline.

    vesselseg baselines unet data/NAME --out work_dirs/unet
    vesselseg eval work_dirs/unet --data data/NAME --split test --out work_dirs/unet_eval

    Epoch and threshold are those with the best mean Dice on the validation split.
    It ends after --epochs or --minutes, whichever comes first, and the learning
    rate with it. On a GPU the defaults take about ten minutes; on a CPU take
    --size 256 --width 8 --batch 4.

    Args:
        split: what to predict
    """
    from vesselseg.baselines.unet_baseline import write_unet_baseline
    from vesselseg.inference.load import choose_device

    show_messages()
    trained = write_unet_baseline(data, split, out, options, choose_device(device), force)
    best = trained.epochs[trained.best]
    print(f"best of {len(trained.epochs)} epochs: {trained.best + 1}, validation Dice {best.dice:.4f}")
    print(f"threshold: {best.threshold:.2f}")
    if trained.ended_by == "minutes":
        print(f"ended after {options.minutes:g} minutes; more, or a GPU, may do better, and runs differ a little")
    print(f"predictions: {out}")


@dataclass(frozen=True)
class ComparedUNet(UNetOptions):
    """The U-Net of a comparison; --batch is that of the models, --seed that of both baselines."""

    size: Annotated[int, Parameter(group=UNET)] = UNetOptions.size
    width: Annotated[int, Parameter(group=UNET)] = UNetOptions.width
    epochs: Annotated[int, Parameter(group=UNET)] = UNetOptions.epochs
    steps: Annotated[int, Parameter(group=UNET)] = UNetOptions.steps
    minutes: Annotated[float, Parameter(group=UNET)] = UNetOptions.minutes
    batch: Annotated[int, Parameter(parse=False)] = UNetOptions.batch
    optimizer: Annotated[Optimizer, Parameter(group=UNET)] = UNetOptions.optimizer
    learning_rate: Annotated[float | None, Parameter(parse=False)] = UNetOptions.learning_rate
    augment: Annotated[Augmentation, Parameter(group=UNET)] = UNetOptions.augment
    compile: Annotated[bool, Parameter(group=UNET)] = UNetOptions.compile
    seed: Annotated[int, Parameter(help="of both baselines")] = UNetOptions.seed


@app.command
def compare(
    data: Data,
    methods: tuple[str, ...] = (),
    *,
    out: Annotated[Path, Parameter(help="folder for baselines, evaluations and the table")],
    metric: Metric = "dice",
    unet: Annotated[ComparedUNet, Flat] = ComparedUNet(),
    device: Device = "auto",
    batch: Batch = 4,
) -> None:
    """Score models and masks next to a tuned Frangi filter and a U-Net on the same test images, in one table.

    vesselseg baselines compare data/NAME work_dirs/mine/hf --out work_dirs/baselines
    vesselseg baselines compare data/NAME mine=work_dirs/mine/hf nnU-Net=predictions --out work_dirs/baselines

    Takes exported models, checkpoints (.pth), folders of masks or probabilities,
    and finished evaluations (folders with results.json). Both baselines learn from
    the training split of data/NAME; a second call with the same --out and options
    reuses them. Thresholds are searched on the validation split where a method
    predicts it.

    Args:
        methods: [NAME=]PATH: model, checkpoint, folder or evaluation
    """
    check_output(out, force=True, marker=BASELINES)
    from vesselseg.baselines.methods import Runtime, baseline_notes, compare_methods, parse_method
    from vesselseg.inference.load import choose_device
    from vesselseg.progress import batch_progress
    from vesselseg.reports.comparison_report import table_lines
    from vesselseg.reports.methods_report import TABLE_MARKDOWN, write_methods

    show_messages()
    runtime = Runtime(device, batch, batch_progress)
    chosen = [parse_method(text) for text in methods]
    comparison, folders = compare_methods(data, chosen, out, unet, choose_device(device), metric, runtime)
    notes = baseline_notes(out)
    page = write_methods(comparison, folders, out, notes)
    print("\n".join([*table_lines(comparison), *notes]))
    print(f"table: {page}, {out / TABLE_MARKDOWN}")
