"""`vesselseg report`: training and card."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from vesselseg.errors import UserError

app = App(name="report", help="Write the report of a training, or the results of an evaluation into a model card.")


@app.command
def training(runs: list[Path], *, out: Path | None = None) -> None:
    """Report trainings: losses, speed, memory, validation, overfitting, checkpoints, and the commands that come next.

    vesselseg report training work_dirs/mine
    vesselseg report training work_dirs/a work_dirs/b --out work_dirs/a_and_b

    Reads work folders of vesselseg (log.jsonl), of mmengine and of xtuner
    (TIME/TIME.log, vis_data/scalars.json), or one of these files. Runs that have
    crashed or still run are fine.

    Args:
        runs: folders of runs, or log files
        out: folder to write (default for one run: RUN/analysis)
    """
    if out is None and (len(runs) > 1 or runs[0].is_file()):
        raise UserError("several runs, or a log file, need --out DIR: which folder to write")
    from vesselseg.training.logs.report import analyse_runs, summary_lines, write_analysis

    found = analyse_runs(runs)
    page = write_analysis(found, out or runs[0] / "analysis")
    for run in found:
        print("\n".join(summary_lines(run)))
    print(f"report: {page}")


@app.command
def card(model: Path, results: Path, *, other_data: bool = False) -> None:
    """Write what an evaluation found into the model card of the model that was evaluated.

    vesselseg report card work_dirs/mine/hf work_dirs/mine/eval

    README.md of the folder gets a section with figures, intervals, threshold and
    what they do not say, and the hub's model-index; the rest of it stays as it is.
    Results of another model, of its training images or of another dataset are
    refused.

    Args:
        model: folder that vesselseg convert wrote
        results: results.json, or the folder that vesselseg eval wrote
        other_data: scored on another dataset than trained on; the card says so
    """
    from vesselseg.export.card_results import add_results

    print(f"card: {add_results(model, results, other_data)}")
